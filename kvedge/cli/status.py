"""`kvedge status`: one table of VMs, devices, deployments and pods."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time

import click

from kvedge.cli import _common

__all__ = ["status"]


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Show it again until interrupted.")
@click.option("--interval", type=click.FloatRange(min=0.5), default=5.0, show_default=True,
              help="Seconds between two looks of --watch.")  # fmt: skip
@_common.output_option
@_common.kubeconfig_option
def status(output, kubeconfig, watch, interval) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Show VMs, devices, deployments and pods, and why a guest did not take its secret disk.

    With --watch, a terminal shows the newest table; elsewhere it is printed when it has changed
    (JSON: one object a line).
    """
    from kvedge import errors, kube, survey

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    last = None
    while True:
        try:
            found = asyncio.run(_read(config, survey))
        except errors.RemoteError as error:
            if not watch:
                raise
            click.echo(f"note: {error.message}", err=True)
        else:
            if found != last or sys.stdout.isatty():
                _show(found, output, watch=watch)
            last = found
        if not watch:
            return
        time.sleep(interval)


def _show(found, output: str, *, watch: bool) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    if watch and sys.stdout.isatty():
        click.clear()
    if output == "json" and watch:
        click.echo(json.dumps(dataclasses.asdict(found), sort_keys=True))
    elif output == "json":
        _common.emit(dataclasses.asdict(found))
    else:
        ready = {f"{pod.namespace}/{pod.workload}": pod for pod in found.pods}
        _common.table(
            ["VM", "STATUS", "AGENT", "ADDRESS", "DEVICE", "CONNECTION", "DEPLOYMENTS", "PODS"],
            (
                (
                    vm.name,
                    vm.status,
                    "yes" if vm.agent else "no",
                    vm.address,
                    vm.device,
                    vm.connection,
                    f"{sum(s == 'Applied' for s in vm.deployments.values())}/{len(vm.deployments)}",
                    ", ".join(_told(name, ready) for name in vm.pods),
                )
                for vm in found.vms
            ),
            empty="no VMs that kvedge manages; make some: kvedge up dev",
        )
        placed = {name for vm in found.vms for name in vm.pods}
        for pod in found.pods:
            if f"{pod.namespace}/{pod.workload}" not in placed:
                click.echo(
                    f"pod {pod.namespace}/{pod.name} is on no device: {pod.status}", err=True
                )
    for note in found.notes:
        click.echo(f"note: {note}", err=True)


def _told(name: str, ready) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    pod = ready.get(name)
    return f"{name} {pod.ready} {pod.status}" if pod else f"{name} (no pod here)"


async def _read(config, survey):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    from kvedge import kube

    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(kube.Client(config))
        hub = _common.hub_from_environment()
        if hub is not None:
            await stack.enter_async_context(hub)
        return await survey.read_fleet(client, hub)
