"""`kvedge exec`: one command in many VMs."""

from __future__ import annotations

import asyncio
import dataclasses
import shlex
import sys
from typing import TYPE_CHECKING

import click

from kvedge.cli import _common

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["execute"]


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option(
    "--selector", default="", help="Label selector of VMs, such as kvedge.io/environment=dev."
)
@click.option("-A", "--all-namespaces", is_flag=True, help="VMs of all namespaces.")
@click.option("--parallel", type=click.IntRange(min=1), default=10, show_default=True,
              help="Sessions at a time.")  # fmt: skip
@click.option("--timeout", default=600.0, show_default=True, help="Seconds for the command.")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to try a booting VM.")
@_common.identity_option
@click.option("-l", "--user", default="", help="User to log in as (default: edge).")
@_common.via_option
@_common.output_option
@_common.namespace_option
@_common.kubeconfig_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def execute(
    selector: str,
    all_namespaces: bool,
    parallel: int,
    timeout: float,
    wait: float,
    identity: tuple[Path, ...],
    user: str,
    via: str,
    output: str,
    namespace: str | None,
    kubeconfig: Path | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in every VM that kvedge manages, or in those of --selector.

    Lines come as `NAMESPACE/NAME: line`, a summary at the end goes to stderr. The exit code is 0
    only if the command ended with 0 everywhere. Options come before COMMAND.
    """
    from kvedge import access, errors, kube, names
    from kvedge.access import parallel as running

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    chosen = selector or f"{names.LABEL_MANAGED}=kvedge"
    within = "" if all_namespaces else namespace or config.namespace

    async def ask() -> list[access.Guest]:
        async with kube.Client(config) as client:
            return await access.find_guests(client, namespace=within, selector=chosen, user=user)

    guests = asyncio.run(ask())
    if not guests:
        where = f"in namespace {within!r}" if within else "in any namespace"
        raise errors.KvedgeError(
            f"no VM {where} has labels {chosen!r}", hint="look at: kubectl get vms -A --show-labels"
        )
    plan = running.Plan(
        command=command[0] if len(command) == 1 else shlex.join(command),
        identities=_common.site_identities(identity),
        through_address=via == "address",
        sessions=parallel,
        connect_seconds=wait,
        command_seconds=timeout,
    )
    outcomes: list[running.Outcome] = []
    for outcome in running.execute(config, guests, plan):
        outcomes.append(outcome)
        if output != "json":
            _show(outcome)
    failed = [one for one in outcomes if one.failed]
    if output == "json":
        _common.emit(
            {
                "vms": [dataclasses.asdict(one) for one in sorted(outcomes, key=lambda o: o.vm)],
                "succeeded": len(outcomes) - len(failed),
                "failed": len(failed),
            }
        )
    else:
        click.echo(f"{len(outcomes) - len(failed)} of {len(outcomes)} VMs succeeded", err=True)
        for one in sorted(failed, key=lambda o: o.vm):
            why = one.error or f"exit code {one.exit_code}"
            click.echo(f"  {one.vm}: {why}", err=True)
    sys.exit(1 if failed else 0)


def _show(outcome) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    for line in outcome.stdout.splitlines():
        click.echo(f"{outcome.vm}: {line}")
    for line in outcome.stderr.splitlines():
        click.echo(f"{outcome.vm}: {line}", err=True)
