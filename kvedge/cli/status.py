"""`kvedge status`: one table of VMs, devices, deployments and pods."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import click

from kvedge.cli import _common

__all__ = ["status"]


@click.command()
@_common.output_option
@_common.kubeconfig_option
def status(output, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Show VMs, devices, deployments and pods."""
    from kvedge import kube, survey

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = asyncio.run(_read(config, survey))
    if output == "json":
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
    from kvedge import iothub, kube
    from kvedge.redact import Secret

    file = os.environ.get("KVEDGE_HUB_CONNECTION_STRING_FILE")
    ca_file = os.environ.get("KVEDGE_HUB_CA_FILE")
    async with kube.Client(config) as client:
        if not file:
            return await survey.read_fleet(client, None)
        secret = Secret(Path(file).read_text(encoding="utf-8").strip())
        async with iothub.Hub.from_connection_string(
            secret, ca_file=Path(ca_file) if ca_file else None
        ) as hub:
            return await survey.read_fleet(client, hub)
