"""`kvedge ssh` and `kvedge port-forward`."""

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

__all__ = ["port_forward", "ssh"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("target")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_common.identity_option
@click.option("-l", "--user", default="", help="User to log in as (default: edge).")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("--host-key", default="", help="Public host key to expect (default: the VM's own).")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to try a booting VM.")
@_common.via_option
@_common.namespace_option
@_common.kubeconfig_option
def ssh(
    target: str,
    command: tuple[str, ...],
    identity: tuple[Path, ...],
    user: str,
    tty: bool,
    host_key: str,
    wait: float,
    via: str,
    namespace: str | None,
    kubeconfig: Path | None,
) -> None:
    """Log in to TARGET ([user@]NAME, NAME.NAMESPACE or vm/NAME/NAMESPACE), or run COMMAND there.

    The way leads through the Kubernetes API or to the VM's address; on both, the host key is the
    one that was pinned when the VM was provisioned. Options come before TARGET; what follows it is
    the command.
    """
    from kvedge import access, kube

    _common.load_environment()
    # What ssh and kubectl exec take as the end of their own options.
    command = command[1:] if command[:1] == ("--",) else command
    config = kube.load_config(kubeconfig)
    wanted = access.parse_target(target, namespace=namespace or config.namespace, user=user)

    async def ask() -> access.Guest:
        async with kube.Client(config) as client:
            return await access.find_guest(client, wanted)

    guest = asyncio.run(ask())
    if host_key:
        guest = dataclasses.replace(guest, host_key=host_key)
    with access.connect(
        config,
        wanted,
        public_host_key=guest.pinned_key(),
        address=guest.service() if via == "address" else None,
        identities=_common.site_identities(identity),
        deadline_seconds=wait,
    ) as session:
        line = " ".join(command) if len(command) == 1 else shlex.join(command)
        if not command:
            code = session.shell() if sys.stdin.isatty() else _pipe(session, "exec $SHELL -l")
        elif tty and sys.stdin.isatty():
            code = session.interactive(line)
        else:
            code = _pipe(session, line)
    sys.exit(code)


def _pipe(session, line: str) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
    try:
        stdin = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer
        if stdin is not None:
            # A stream of this process alone, with no file behind it, cannot be waited for.
            stdin.fileno()
    except ValueError:
        stdin = None
    return session.run(line, stdin=stdin, stdout=sys.stdout.buffer, stderr=sys.stderr.buffer)


@click.command("port-forward")
@click.argument("target")
@click.argument("ports", nargs=-1, required=True)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--stdio", is_flag=True, help="Use stdin and stdout (for ssh's ProxyCommand).")
@_common.namespace_option
@_common.kubeconfig_option
def port_forward(target, ports, address, stdio, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Reach PORTS ([LOCAL:]REMOTE) of TARGET through the Kubernetes API."""
    from kvedge import access, errors, kube

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = access.parse_target(target, namespace=namespace or config.namespace)
    pairs = []
    for text in ports:
        local, _, remote = text.rpartition(":")
        if not remote.isdigit() or (local and not local.isdigit()):
            problem = errors.Problem(path="PORTS", message=f"{text!r} is not [LOCAL:]REMOTE")
            raise errors.SpecError("cannot read the ports", [problem])
        pairs.append((int(local or remote), int(remote)))

    async def serve() -> None:
        async with kube.Client(config) as client:
            if stdio:
                await access.serve_stdio(client, found, access.tcp(pairs[0][1]))
                return
            import contextlib

            async with contextlib.AsyncExitStack() as stack:
                for local, remote in pairs:
                    port = await stack.enter_async_context(
                        access.forward(client, found, access.tcp(remote), local=(address, local))
                    )
                    click.echo(f"Forwarding from {address}:{port} -> {remote}")
                await asyncio.Event().wait()

    asyncio.run(serve())
