"""Puts the host together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from aiohttp import web

from kvedge import kube, names
from kvedge.site.host.addresses import AddressPool
from kvedge.site.host.disks import DiskMaker
from kvedge.site.host.endpoints import handler_app, server_context
from kvedge.site.host.kubelet import kubelet_app
from kvedge.site.host.loadbalancers import LoadBalancers
from kvedge.site.host.node import Node
from kvedge.site.host.pods import Pods
from kvedge.site.host.podstatus import PodWriter
from kvedge.site.host.qemu import kvm_works
from kvedge.site.host.registry import ImageStore
from kvedge.site.host.running import Crew
from kvedge.site.host.vmis import Guests
from kvedge.site.host.volumes import Volumes
from kvedge.site.host.workloads import Workloads

if TYPE_CHECKING:
    import ssl

    from kvedge.site.host.settings import HostSettings

__all__ = ["serve"]

_LOG = logging.getLogger("kvedge.site.host")
_CLOSE_SECONDS = 1.0


class _Stop(Exception):
    """The host was told to stop."""


async def serve(settings: HostSettings) -> None:
    """Be the node until SIGTERM or SIGINT.

    Guests and local processes go on and the next host adopts them, unless the whole site goes
    down: then they are ended first.
    """
    for folder in (settings.guests, settings.pods, settings.volumes):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    accelerator = "kvm" if await kvm_works() else "tcg"
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(
                kube.Client(kube.load_config(settings.identity(name)))
            )
            for name in ("node", "handler", "volumes")
        }
        try:
            async with asyncio.TaskGroup() as group:
                await _run(settings, clients, Crew(group), accelerator, stack)
                raise _Stop  # noqa: TRY301 - this is how a task group is ended
        except* _Stop:
            _LOG.info("stopped")


async def _run(
    settings: HostSettings,
    clients: dict[str, kube.Client],
    crew: Crew,
    accelerator: str,
    stack: contextlib.AsyncExitStack,
) -> None:
    state = settings.directory / "host"
    pool = AddressPool(names.POD_NETWORK, state / "pod-addresses.json")
    balanced = AddressPool(names.LOAD_BALANCER_NETWORK, state / "balancer-addresses.json")
    images = ImageStore(settings.images, settings.pki("site-ca.crt"))
    writer = PodWriter(kube=clients["node"], node=settings.node, address=settings.address)
    node = Node(
        settings=settings,
        kube=clients["node"],
        handler=clients["handler"],
        accelerator=accelerator,
    )
    guests = Guests(
        settings=settings,
        handler=clients["handler"],
        crew=crew,
        pool=pool,
        disks=DiskMaker(kube=clients["node"], images=images),
        accelerator=accelerator,
    )
    workloads = Workloads(
        settings=settings, kube=clients["node"], crew=crew, writer=writer, pool=pool
    )
    pods = Pods(
        kube=clients["node"],
        crew=crew,
        writer=writer,
        guests=guests,
        workloads=workloads,
        images=images,
        pool=pool,
    )
    recorder = PodWriter(kube=clients["volumes"], node=settings.node, address=settings.address)
    volumes = Volumes(
        settings=settings, kube=clients["volumes"], crew=crew, images=images, writer=recorder
    )
    balancers = LoadBalancers(
        settings=settings, kube=clients["volumes"], crew=crew, pool=balanced, writer=recorder
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await _listen(stack, handler_app(guests, settings), settings.address, settings.handler_port,
                  server_context(settings.pki("handler-server.crt"),
                                 settings.pki("handler-server.key"),
                                 settings.pki("kubevirt-ca.crt")))  # fmt: skip

    async def live() -> None:
        await node.register()
        _LOG.info("node %s is registered, guests run under %s", settings.node, accelerator)
        await node.keep()

    crew.keep("node", live)
    crew.keep("guests", guests.watch)
    crew.keep("pods", pods.watch)
    crew.start("storage class", volumes.ensure_class())
    crew.keep("datavolumes", volumes.watch_data_volumes)
    crew.keep("claims", volumes.watch_claims)
    crew.keep("volumes", volumes.watch_volumes)
    crew.keep("services", balancers.watch_services)
    crew.keep("endpoints", balancers.watch_slices)
    # The supervisor takes this port for the sign that the host is there.
    await _listen(stack, kubelet_app(pods), settings.address, settings.kubelet_port,
                  server_context(settings.pki("kubelet.crt"), settings.pki("kubelet.key"),
                                 settings.pki("cluster-ca.crt")))  # fmt: skip
    await stop.wait()
    workloads.quiet = guests.quiet = True
    if not settings.stopping:
        _LOG.info("stopping: guests and local processes go on")
        return
    _LOG.info("stopping: guests and local processes are ended")
    async with asyncio.TaskGroup() as group:
        group.create_task(guests.shut_down(), name="stop guests")
        group.create_task(workloads.shut_down(), name="stop local processes")


async def _listen(
    stack: contextlib.AsyncExitStack,
    app: web.Application,
    address: str,
    port: int,
    context: ssl.SSLContext,
) -> None:
    runner = web.AppRunner(app, shutdown_timeout=_CLOSE_SECONDS, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, address, port, ssl_context=context).start()
