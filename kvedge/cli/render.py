"""`kvedge render` and `kvedge rollout`: an environment whose cluster pulls its objects (GitOps)."""

from __future__ import annotations

from pathlib import Path

import click

from kvedge.cli import _common

__all__ = ["render", "rollout"]

_stack = click.argument("stack", default="dev")


@click.command()
@_stack
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write; what an earlier run wrote there is replaced.",
)
@click.option(
    "--secrets",
    type=click.Choice(["external", "plain"]),
    default="external",
    show_default=True,
    help="References for External Secrets, or plain Secrets (for SOPS to encrypt).",
)
@click.option(
    "--store", default="kvedge", show_default=True, help="ClusterSecretStore of the references."
)
@click.option(
    "--register", is_flag=True,
    help="Register the devices and write the base deployment, as `up` would.",
)  # fmt: skip
def render(stack: str, out: Path, secrets: str, store: str, register: bool) -> None:
    """Write the objects of STACK as YAML with a kustomization, for Flux or `kubectl apply -k`.

    The same settings give the same bytes. `--secrets plain` registers the devices as well, because
    their keys are a part of it.
    """
    from infra import bringing, engine

    _common.load_environment(stack)
    driver = engine.Engine(stack, project=engine.find_project(stack))
    written = bringing.render(
        driver, out, store=store if secrets == "external" else "",
        register=register or secrets == "plain",
    )  # fmt: skip
    click.echo(f"wrote {len(written)} files below {out}")
    if secrets == "plain":
        click.echo(f"{out / 'secrets'} holds keys in the clear: encrypt it, or keep it", err=True)


@click.command()
@_stack
@_common.output_option
def rollout(stack: str, output: str) -> None:
    """Restart the VMs of STACK whose template or Secrets changed, a few at once.

    `kvedge up` does this by itself; after a change that came through GitOps nobody else does.
    """
    from infra import bringing, engine

    _common.load_environment(stack)
    driver = engine.Engine(stack, project=engine.find_project(stack))
    with _common.progress_bars() as progress:
        restarted = bringing.roll_out(driver, progress=progress)
    if output == "json":
        _common.emit({"environment": stack, "restarted": restarted})
    else:
        click.echo(f"restarted {', '.join(restarted) or 'no VM'}")
