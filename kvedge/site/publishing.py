"""Ports of the host's loopback that lead to addresses inside the site's network namespace.

A socket belongs to the network namespace it was made in, wherever it is carried. So a small process
outside (the publisher) makes listening sockets on 127.0.0.1 and hands them over a unix socket
(SCM_RIGHTS, unix(7)) to a process inside, which accepts and splices. The publisher keeps nothing:
when it dies, published ports go on; only new ones need a new publisher (`kvedge site up`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kvedge import errors
from kvedge.site import state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Published", "is_alive", "lead", "publish", "request", "serve"]

_CHUNK = 256 * 1024
_ANSWER_BYTES = 4096
_PATIENCE_SECONDS = 5.0


class Published:
    """One published port; an async context manager."""

    def __init__(
        self, server: asyncio.Server, port: int, writers: set[asyncio.StreamWriter]
    ) -> None:
        self._server = server
        self._writers = writers
        self.port = port
        """The port on the host's 127.0.0.1."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the port and every connection that came through it."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()


async def publish(socket_path: Path, target: tuple[str, int], *, host_port: int = 0) -> Published:
    """Publish an address of the site on the host's loopback.

    Args:
        socket_path: the publisher's socket, `<site>/run/publisher.sock`.
        target: address and port inside.
        host_port: the wanted port outside; 0 takes a free one.

    Raises:
        SiteError: the publisher is gone, or the port is taken.
    """
    listener, _ = await asyncio.to_thread(request, socket_path, host_port)
    return await lead(listener, target)


async def lead(listener: socket.socket, target: tuple[str, int]) -> Published:
    """Lead what comes in at a listening socket to an address as this process sees it."""
    port = listener.getsockname()[1]
    writers: set[asyncio.StreamWriter] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(*target, limit=_CHUNK)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, there[1])
        writers.update(ends)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, there[1]), name=f"publish {port} in")
                group.create_task(_pump(there[0], writer), name=f"publish {port} out")
        except* OSError:
            pass
        finally:
            writers.difference_update(ends)
            for end in ends:
                end.transport.abort() if end.transport.is_closing() else end.close()

    server = await asyncio.start_server(accept, sock=listener, limit=_CHUNK, backlog=128)
    return Published(server, port, writers)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def request(socket_path: Path, port: int) -> tuple[socket.socket, int]:
    """Ask the publisher for a listening socket on the host's 127.0.0.1 (blocks).

    Returns:
        The socket and its port.

    Raises:
        SiteError: the publisher is gone, or the port is taken.
    """
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel,
            _short_path(socket_path) as path,
        ):
            channel.settimeout(_PATIENCE_SECONDS)
            channel.connect(path)
            channel.sendall(json.dumps({"port": port}).encode() + b"\n")
            data, handles, _, _ = socket.recv_fds(channel, _ANSWER_BYTES, 1)
    except OSError as cause:
        raise errors.SiteError(
            f"cannot publish a port: the publisher does not answer ({cause})",
            hint="'kvedge site up' starts it again",
        ) from cause
    answer = json.loads(data or b'{"error": "no answer"}')
    if not handles:
        raise errors.SiteError(
            f"cannot publish port {port} of 127.0.0.1: {answer.get('error')}",
            hint="end the program that listens there, or choose another port",
        )
    listener = socket.socket(fileno=handles[0])
    listener.setblocking(False)
    return listener, int(answer["port"])


def is_alive(socket_path: Path) -> bool:
    """Tell whether a publisher answers on the socket."""
    try:
        listener, _ = request(socket_path, 0)
    except errors.SiteError:
        return False
    listener.close()
    return True


def serve(folder: state.Folder) -> None:
    """Be the publisher until SIGTERM; runs in the host's network namespace."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    path = folder.publisher_socket
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        with _short_path(path) as short:
            server.bind(short)
        path.chmod(0o600)
        server.listen(16)
        while True:
            channel, _ = server.accept()
            with channel, contextlib.suppress(OSError, ValueError):
                channel.settimeout(_PATIENCE_SECONDS)
                if _peer_uid(channel) == os.getuid():
                    _answer(channel)


def _answer(channel: socket.socket) -> None:
    wanted = int(json.loads(channel.recv(_ANSWER_BYTES))["port"])
    try:
        with socket.create_server(("127.0.0.1", wanted), backlog=128) as listener:
            answer = json.dumps({"port": listener.getsockname()[1]}).encode()
            socket.send_fds(channel, [answer], [listener.fileno()])
    except (OSError, OverflowError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        channel.sendall(json.dumps({"error": reason.lower()}).encode())


def _peer_uid(channel: socket.socket) -> int:
    size = struct.calcsize("3i")
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return struct.unpack("3i", credentials)[1]


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Yield a name of the socket that fits into the 107 bytes of a unix address."""
    handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)


async def _forward(folder: state.Folder, routes: Sequence[str]) -> None:
    """Keep the site's own ports published: `PORT=ADDRESS:PORT` each; runs inside."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        for route in routes:
            port, _, target = route.partition("=")
            address, _, target_port = target.rpartition(":")
            await stack.enter_async_context(
                await publish(
                    folder.publisher_socket, (address, int(target_port)), host_port=int(port)
                )
            )
        state.write_atomically(
            folder.run / "ports.json", json.dumps({"pid": os.getpid(), "since": time.time()})
        )
        await stop.wait()


def _main(argv: Sequence[str]) -> None:
    role, root, *rest = argv
    folder = state.Folder(root=Path(root))
    try:
        if role == "serve":
            serve(folder)
        else:
            asyncio.run(_forward(folder, rest))
    except errors.KvedgeError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(1)


if __name__ == "__main__":
    _main(sys.argv[1:])
