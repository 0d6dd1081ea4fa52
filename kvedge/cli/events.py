"""`kvedge events`: what happened to VMs, disks and pods."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import click

from kvedge.cli import _common

__all__ = ["events"]

_HEADS = ("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE")


@click.command()
@click.argument("target", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until interrupted.")
@click.option("--warnings", is_flag=True, help="Only warnings.")
@_common.output_option
@_common.namespace_option
@_common.kubeconfig_option
def events(target, follow, warnings, output, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Show events of the VM TARGET with its guest, disks and pods, or of the whole namespace.

    With --follow, JSON comes as one object a line.
    """
    from kvedge import access, kube
    from kvedge.survey import happenings

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    within, vm = namespace or config.namespace, ""
    if target:
        found = access.parse_target(target, namespace=within)
        within, vm = found.namespace, found.name

    async def show() -> None:
        async with kube.Client(config) as client:
            wanted = {"namespace": within, "vm": vm, "warnings": warnings}
            if follow:
                async for one in happenings.follow_events(client, **wanted):
                    if output == "json":
                        click.echo(json.dumps(dataclasses.asdict(one)))
                    else:
                        click.echo("   ".join(_cells(one)))
                return
            listed = await happenings.read_events(client, **wanted)
            if output == "json":
                _common.emit([dataclasses.asdict(one) for one in listed])
            else:
                _common.table(_HEADS, map(_cells, listed), empty="no events (kept for an hour)")

    asyncio.run(show())


def _cells(one) -> tuple[str, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    times = f" (x{one.count})" if one.count > 1 else ""
    message = " ".join(one.message.split())
    return (one.time[:19], one.kind, one.reason, one.subject, f"{message}{times}")
