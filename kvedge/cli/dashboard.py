"""`kvedge dashboard`: the fleet page."""

from __future__ import annotations

import asyncio

import click

from kvedge.cli import _common

__all__ = ["dashboard"]


@click.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8088, show_default=True, help="Port; 0 takes any free one.")
@_common.kubeconfig_option
def dashboard(address, port, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Serve a read-only page with VMs, devices, deployments and roll-outs until interrupted.

    The page has no login: whoever reaches the address sees the fleet, so it listens on this
    machine alone unless told otherwise.
    """
    import contextlib

    from kvedge import kube
    from kvedge.survey import page

    _common.load_environment()
    config = kube.load_config(kubeconfig)

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(kube.Client(config))
            hub = _common.hub_from_environment()
            if hub is not None:
                await stack.enter_async_context(hub)
            url = await stack.enter_async_context(
                page.serve(lambda: page.read_view(client, hub), address=address, port=port)
            )
            click.echo(url)
            await asyncio.Event().wait()

    asyncio.run(run())
