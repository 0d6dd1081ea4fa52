"""`kvedge up` and `kvedge down`: one environment, which is one stack."""

from __future__ import annotations

import dataclasses

import click

from kvedge.cli import _common

__all__ = ["down", "up"]

_stack = click.argument("stack", default="dev")


@click.command()
@_stack
@click.option(
    "--timeout", default=900.0, show_default=True, help="Seconds until all VMs are ready."
)
@click.option("--no-wait", is_flag=True, help="Come back once the objects are written.")
@_common.output_option
def up(stack: str, timeout: float, no_wait: bool, output: str) -> None:
    """Bring the environment STACK to what infra/stacks/Pulumi.STACK.yaml says.

    Checks everything first, builds and pushes images, runs `pulumi up`, restarts VMs whose
    template or Secrets changed, and waits until each VM is ready and its device connected.
    """
    from infra import bringing, engine

    _common.load_environment(stack)
    with _common.progress_bars() as progress:
        driver = engine.Engine(stack, project=engine.find_project(stack), progress=progress)
        outcome = bringing.bring_up(driver, seconds=timeout, wait=not no_wait, progress=progress)
    if output == "json":
        _common.emit(dataclasses.asdict(outcome))
        return
    changed = sum(count for kind, count in outcome.changes.items() if kind != "same")
    click.echo(f"environment {stack!r} is up: {changed or 'no'} changes")


@click.command()
@_stack
@click.option("--keep-data", is_flag=True, help="Leave the VMs' data disks.")
@_common.output_option
def down(stack: str, keep_data: bool, output: str) -> None:
    """Take everything of the environment STACK away: cluster, hub and registry.

    Runs `pulumi destroy`, then removes what is left by label and tag, so that it works after a
    killed first `up` as well. The local site goes on running; `kvedge site down` stops it.
    """
    from infra import bringing, engine

    _common.load_environment(stack)
    with _common.progress_bars() as progress:
        driver = engine.Engine(stack, project=engine.find_project(stack), progress=progress)
        outcome = bringing.take_down(driver, keep_data=keep_data, progress=progress)
    if output == "json":
        _common.emit(dataclasses.asdict(outcome))
    else:
        click.echo(f"environment {stack!r} is gone")
