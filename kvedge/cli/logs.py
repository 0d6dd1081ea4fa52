"""`kvedge logs`: a guest's serial console or a module's log."""

from __future__ import annotations

import asyncio
import re
import sys

import click

from kvedge.cli import _common

__all__ = ["logs"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.argument("target")
@click.argument("module", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until interrupted.")
@click.option("--tail", type=click.IntRange(min=0), help="Only the last lines.")
@click.option("--since", default="", help="Only of the last time, such as 10m or 2h.")
@click.option("--timestamps", is_flag=True, help="Put a time before each line of the console.")
@_common.namespace_option
@_common.kubeconfig_option
def logs(target, module, follow, tail, since, timestamps, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Show the serial console of the VM TARGET since its start, or the log of MODULE in it.

    Names of modules are those of `kvedge status`; edgeAgent and edgeHub work too. Times before the
    console's lines are the container runtime's; the local site has only those of reading.
    """
    from kvedge import access, errors, kube, names
    from kvedge.survey import logs as reading

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = access.parse_target(target, namespace=namespace or config.namespace)
    options = reading.LogOptions(
        tail=tail, follow=follow, since_seconds=_seconds(since), timestamps=timestamps
    )

    async def show() -> None:
        async with kube.Client(config) as client:
            if not module:
                async for chunk in reading.console_log(
                    client, found.namespace, found.name, options
                ):
                    _write(chunk)
                return
            vm = await client.get(found.vm_path)
        hub = _common.hub_from_environment()
        if hub is None:
            raise errors.KvedgeError(
                "module logs come through the hub, and none is named",
                hint="KVEDGE_HUB_CONNECTION_STRING_FILE names a file with its connection string",
            )
        annotations = vm["metadata"].get("annotations") or {}
        device = annotations.get(f"{names.ANNOTATION}/device-id", found.name)
        async with hub:
            async for chunk in reading.module_log(hub, device, module, options):
                _write(chunk)

    asyncio.run(show())


def _write(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _seconds(text: str) -> int | None:
    if not text:
        return None
    found = re.fullmatch(r"(\d+)([smhd]?)", text)
    if not found:
        raise click.BadParameter(f"{text!r} is no time like 90s, 10m or 2h", param_hint="--since")
    return int(found[1]) * _UNITS[found[2] or "s"]
