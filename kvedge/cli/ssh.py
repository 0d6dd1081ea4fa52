"""`kvedge ssh` and `kvedge port-forward`."""

from __future__ import annotations

import asyncio
import shlex
import sys
from pathlib import Path

import click

from kvedge.cli import _common

__all__ = ["port_forward", "ssh"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("target")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--identity", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              multiple=True, help="Private key; the local site's by default.")  # fmt: skip
@click.option("-l", "--user", default="", help="User to log in as (default: edge).")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("--host-key", default="", help="Public host key to expect (default: the VM's own).")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to try a booting VM.")
@_common.namespace_option
@_common.kubeconfig_option
def ssh(target, command, identity, user, tty, host_key, wait, namespace, kubeconfig) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Log in to TARGET ([user@]NAME, vm/NAME or vm/NAME/NAMESPACE), or run COMMAND there.

    The way leads through the Kubernetes API; the host key is the one that was pinned when the VM
    was provisioned. Options come before TARGET; what follows it is the command.
    """
    from kvedge import access, kube
    from kvedge.access import sessions

    _common.load_environment()
    config = kube.load_config(kubeconfig)
    found = access.parse_target(target, namespace=namespace or config.namespace, user=user)
    if not host_key:

        async def ask() -> str:
            async with kube.Client(config) as client:
                return await sessions.host_key(client, found)

        host_key = asyncio.run(ask())
    keys = list(identity)
    own = _common.site_directory() / "keys" / "id_ed25519"
    if not keys and own.exists():
        keys = [own]
    with access.connect(
        config, found, public_host_key=host_key, identities=keys, deadline_seconds=wait
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
                await access.serve_stdio(client, found, pairs[0][1])
                return
            import contextlib

            async with contextlib.AsyncExitStack() as stack:
                for local, remote in pairs:
                    port = await stack.enter_async_context(
                        access.forward(client, found, remote, local=(address, local))
                    )
                    click.echo(f"Forwarding from {address}:{port} -> {remote}")
                await asyncio.Event().wait()

    asyncio.run(serve())
