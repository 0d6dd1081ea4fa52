"""`kvedge console`, `vnc`, `start`, `stop` and `restart`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time

import click

from kvedge.cli import _common

__all__ = ["console", "restart", "start", "stop", "vnc"]

_ESCAPE = b"\x1d"
_VIEWERS = (("remote-viewer", "vnc://{host}:{port}"), ("vncviewer", "{host}::{port}"))


@click.command()
@click.argument("target")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds to wait for the VM.")
@_common.namespace_option
@_common.kubeconfig_option
def console(target, timeout, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Open the serial console of TARGET; Ctrl-] leaves it.

    A VM takes one console at a time: this one puts another one out.
    """
    from kvedge import access, errors, kube
    from kvedge.access import terminals

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = access.parse_target(target, namespace=namespace or config.namespace)
    end = time.monotonic() + timeout
    told = False
    while True:
        try:
            with access.local_socket(config, found, access.CONSOLE) as stream:
                click.echo(f"console of {found.alias}; Ctrl-] leaves it", err=True)
                terminals.join(stream, escape=_ESCAPE)
                return
        except errors.RemoteError as refused:
            # 404 and 400: the guest is not running (yet).
            if refused.status not in (400, 404, 500) or time.monotonic() > end:
                raise
            if not told:
                click.echo(f"waiting for {found.alias} to run", err=True)
                told = True
        time.sleep(0.5)


@click.command()
@click.argument("target")
@click.option("--proxy-only", is_flag=True, help="Only listen; start no viewer.")
@click.option("--port", default=0, help="Local port; any free one by default.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@_common.namespace_option
@_common.kubeconfig_option
def vnc(target, proxy_only, port, address, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Open the screen of TARGET in a VNC viewer, or offer it on a local port.

    A VM shows its screen to one viewer at a time; VMs that kvedge provisions have a serial console
    and a screen.
    """
    from kvedge import access, errors, kube, processes

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = access.parse_target(target, namespace=namespace or config.namespace)
    viewer = next(((name, form) for name, form in _VIEWERS if shutil.which(name)), None)
    if viewer is None and not proxy_only:
        raise errors.ToolMissing(
            "vncviewer",
            "no VNC viewer found",
            hint="apt-get install virt-viewer, or use --proxy-only and any viewer",
        )

    async def serve() -> None:
        async with (
            kube.Client(config) as client,
            access.forward(client, found, access.SCREEN, local=(address, port)) as listening,
        ):
            if proxy_only or viewer is None:
                click.echo(f"{address}:{listening}")
                await asyncio.Event().wait()
            else:
                name, form = viewer
                place = form.format(host=address, port=listening)
                await processes.arun([name, place], what=f"run {name}")

    asyncio.run(serve())


_wait = click.option("--wait/--no-wait", default=True, help="Come back when it is done.")
_timeout = click.option("--timeout", default=300.0, show_default=True, help="Seconds to wait.")


@click.command()
@click.argument("target")
@_wait
@_timeout
@_common.namespace_option
@_common.kubeconfig_option
def start(target, wait, timeout, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Start TARGET and wait until it is ready."""
    _act("start", "started", target, wait, timeout, None, namespace, kubeconfig)


@click.command()
@click.argument("target")
@click.option("--grace", type=click.IntRange(min=0), help="Seconds for the guest to go down.")
@_wait
@_timeout
@_common.namespace_option
@_common.kubeconfig_option
def stop(target, grace, wait, timeout, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Stop TARGET; its guest is asked to shut down, and after the grace time cut off."""
    _act("stop", "stopped", target, wait, timeout, grace, namespace, kubeconfig)


@click.command()
@click.argument("target")
@click.option("--force", is_flag=True, help="Cut the power instead of asking the guest.")
@_wait
@_timeout
@_common.namespace_option
@_common.kubeconfig_option
def restart(target, force, wait, timeout, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Restart TARGET and wait until it is ready again."""
    grace = 0 if force else None
    _act("restart", "restarted", target, wait, timeout, grace, namespace, kubeconfig)


def _act(act, done, target, wait, timeout, grace, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    from kvedge import access, kube
    from kvedge.access import lifecycle

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = access.parse_target(target, namespace=namespace or config.namespace)

    async def run() -> None:
        async with kube.Client(config) as client:
            before = await lifecycle.request(client, found, act, grace_seconds=grace)
            if wait:
                await lifecycle.wait_for(client, found, act, before=before, seconds=timeout)

    asyncio.run(run())
    click.echo(f"{found.namespace}/{found.name} {done if wait else act + ' requested'}")
    sys.stdout.flush()
