"""Commands, terminals and forwarded ports: the streaming half of the kubelet API.

API servers up to 1.35 reach a kubelet by SPDY/3.1; later ones hand WebSockets through to nodes that
say so. Both carry the same channels: input, output, standard error, the command's result and the
terminal's sizes. Protocols: https://kubernetes.io/docs/reference/using-api/ (websockets) and
k8s.io/apimachinery/pkg/util/remotecommand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
from typing import TYPE_CHECKING, Any

from aiohttp import web

from kvedge import errors
from kvedge.node.provider import TerminalSize
from kvedge.node.runtime import Tasks
from kvedge.node.spdy import Inbox, SpdyConnection, SpdyStream
from kvedge.node.upgrading import SPDY, fed, messages, upgraded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from kvedge.node.provider import Stream, Terminal

    Run = Callable[[Terminal], Awaitable[int]]
    Connect = Callable[[int, Stream], Awaitable[None]]

__all__ = ["forward_ports", "run_terminal"]

_log = logging.getLogger(__name__)
_COMMAND_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_FORWARD_PROTOCOL = "portforward.k8s.io"
_TUNNEL_PROTOCOL = f"{SPDY}+{_FORWARD_PROTOCOL}"
_CHANNEL_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_STREAMS_SECONDS = 30.0
"""How long a caller may take to open the streams that it asked for."""
_MAX_MESSAGE = 32 * 1024 * 1024


async def run_terminal(request: web.Request, run: Run) -> web.StreamResponse:
    """Serve exec and attach: run a command on the caller's streams and tell its result.

    Raises:
        Unsupported: the request names no stream, or is no upgrade to a known protocol.
    """
    wanted = {name for name in ("input", "output", "error", "tty") if _is_true(request, name)}
    if "tty" in wanted:
        wanted.discard("error")
    if not wanted & {"input", "output", "error"}:
        raise errors.Unsupported("query", "needs at least one of input, output and error")
    if _is_websocket(request):
        return await _websocket_terminal(request, wanted, run)
    async with upgraded(request, _COMMAND_PROTOCOLS) as (answer, connection):
        await _spdy_terminal(connection, wanted, run)
    return answer


async def forward_ports(request: web.Request, connect: Connect) -> web.StreamResponse:
    """Serve portForward: carry connections until the caller goes away.

    Raises:
        Unsupported: the request is no upgrade to a known protocol, or names no port.
    """
    if not _is_websocket(request):
        async with upgraded(request, (_FORWARD_PROTOCOL,)) as (answer, connection):
            await _spdy_ports(connection, connect)
        return answer
    ports = [_port(text) for text in request.query.getall("port", [])]
    answer = web.WebSocketResponse(
        protocols=(_TUNNEL_PROTOCOL, *((_CHANNEL_PROTOCOL,) if ports else ())),
        max_msg_size=_MAX_MESSAGE,
    )
    await answer.prepare(request)
    if answer.ws_protocol == _TUNNEL_PROTOCOL:
        connection = SpdyConnection(answer.send_bytes)
        async with fed(connection, messages(answer)):
            await _spdy_ports(connection, connect)
    elif ports:
        await _channel_ports(answer, ports, connect)
    await answer.close()
    return answer


# What a provider is given


class _Terminal:
    """A caller's terminal on whatever protocol."""

    def __init__(self, wanted: set[str], stdin: Inbox, sizes: Inbox) -> None:
        self.tty, self.stdin = "tty" in wanted, "input" in wanted
        self._stdin, self._sizes = stdin, sizes
        self._text = ""
        self.stdout: Callable[[bytes], Awaitable[None]] | None = None
        self.stderr: Callable[[bytes], Awaitable[None]] | None = None
        if not self.stdin:
            stdin.end()

    async def read(self) -> bytes:
        """Return the next piece of input; empty when the caller has closed it."""
        return await self._stdin.read()

    async def write(self, data: bytes) -> None:
        """Send standard output."""
        if self.stdout is not None and data:
            await self.stdout(data)

    async def write_error(self, data: bytes) -> None:
        """Send standard error; a terminal has but one output."""
        target = self.stdout if self.tty else self.stderr
        if target is not None and data:
            await target(data)

    async def resized(self) -> TerminalSize:
        """Wait for the terminal's next size."""
        while True:
            with contextlib.suppress(ValueError):
                found, end = json.JSONDecoder().raw_decode(self._text)
                self._text = self._text[end:].lstrip()
                return TerminalSize(int(found["Width"]), int(found["Height"]))
            piece = await self._sizes.read()
            if not piece:
                await asyncio.get_running_loop().create_future()
            self._text = (self._text + piece.decode(errors="replace")).lstrip()


async def _result(terminal: _Terminal, run: Run) -> dict[str, Any]:
    """Run a command and return its result as a metav1.Status."""
    try:
        code = await run(terminal)
    except errors.KvedgeError as error:
        return _failure(error.message)
    except Exception as error:  # noqa: BLE001 - the caller has to learn of it, whatever it is
        _log.exception("a command failed")
        return _failure(f"the provider failed: {type(error).__name__}")
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}}
    if code == 0:
        return {**status, "status": "Success"}
    return {
        **status,
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _failure(message: str) -> dict[str, Any]:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": "InternalError", "message": message, "code": 500,
    }  # fmt: skip


async def _until_gone(work: Coroutine[Any, Any, Any], gone: Coroutine[Any, Any, Any]) -> Any:
    """Return the work's result, or None with the work cancelled when the caller has gone."""
    async with Tasks() as tasks:
        done = tasks.spawn(work, "caller's-work")
        left = tasks.spawn(gone, "caller-gone")
        await asyncio.wait((done, left), return_when=asyncio.FIRST_COMPLETED)
        return done.result() if done.done() else None


# SPDY


async def _spdy_terminal(connection: SpdyConnection, wanted: set[str], run: Run) -> None:
    kinds = {"input": "stdin", "output": "stdout", "error": "stderr", "tty": "resize"}
    awaited = {"error", *(kinds[name] for name in wanted)}
    streams: dict[str, SpdyStream] = {}
    try:
        async with asyncio.timeout(_STREAMS_SECONDS):
            while awaited - streams.keys():
                stream = await connection.accept()
                if stream is None:
                    return
                streams[stream.headers.get("streamtype", "")] = stream
    except TimeoutError:
        _log.warning("a caller has not opened its streams in %g s", _STREAMS_SECONDS)
        return
    nothing = Inbox()
    terminal = _Terminal(
        wanted,
        streams["stdin"].inbox if "stdin" in streams else nothing,
        streams["resize"].inbox if "resize" in streams else nothing,
    )
    terminal.stdout = streams["stdout"].write if "stdout" in streams else None
    terminal.stderr = streams["stderr"].write if "stderr" in streams else None
    status = await _until_gone(_result(terminal, run), connection.accept())
    if status is None:
        return
    for name in ("stdout", "stderr"):
        if name in streams:
            await streams[name].close()
    await streams["error"].write(json.dumps(status).encode())
    for stream in streams.values():
        await stream.close()


async def _spdy_ports(connection: SpdyConnection, connect: Connect) -> None:
    """Serve pairs of streams, one for data and one for an error, until the caller goes."""
    halves: dict[str, dict[str, SpdyStream]] = {}
    async with Tasks() as tasks:
        while (stream := await connection.accept()) is not None:
            request = stream.headers.get("requestid", "")
            pair = halves.setdefault(request, {})
            pair[stream.headers.get("streamtype", "")] = stream
            if {"data", "error"} <= pair.keys():
                del halves[request]
                work = _spdy_port(connection, pair["data"], pair["error"], connect)
                tasks.spawn(work, f"forward-{request}")


async def _spdy_port(
    connection: SpdyConnection, data: SpdyStream, error: SpdyStream, connect: Connect
) -> None:
    failure = await _connected(data.headers.get("port", ""), data, connect)
    if failure:
        await error.write(failure.encode())
    for stream in (data, error):
        await stream.close()
        connection.forget(stream)


async def _connected(port: str, stream: Stream, connect: Connect) -> str:
    """Carry one connection; return why it failed, if it did."""
    try:
        await connect(_port(port), stream)
    except errors.KvedgeError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - one connection's failure must not end the others
        _log.exception("forwarding port %s failed", port)
        return f"the provider failed: {type(error).__name__}"
    return ""


# WebSocket


async def _websocket_terminal(
    request: web.Request, wanted: set[str], run: Run
) -> web.StreamResponse:
    answer = web.WebSocketResponse(protocols=_COMMAND_PROTOCOLS, max_msg_size=_MAX_MESSAGE)
    await answer.prepare(request)
    stdin, sizes = Inbox(), Inbox()
    terminal = _Terminal(wanted, stdin, sizes)
    if "output" in wanted:
        terminal.stdout = _channel(answer, _STDOUT)
    if "error" in wanted:
        terminal.stderr = _channel(answer, _STDERR)
    # Old clients wait for a first message.
    await answer.send_bytes(bytes([_STDOUT if "output" in wanted else _ERROR]))

    async def receive() -> None:
        inboxes = {_STDIN: stdin, _RESIZE: sizes}
        async for message in messages(answer):
            if message[:1] == bytes([_CLOSE]):
                number = message[1] if len(message) > 1 else _CLOSE
                if number in inboxes:
                    inboxes[number].end()
            elif message and message[0] in inboxes:
                inboxes[message[0]].put(message[1:])
                await inboxes[message[0]].room()

    status = await _until_gone(_result(terminal, run), receive())
    if status is not None and not answer.closed:
        await _channel(answer, _ERROR)(json.dumps(status).encode())
    await answer.close()
    return answer


def _channel(answer: web.WebSocketResponse, number: int) -> Callable[[bytes], Awaitable[None]]:
    head = bytes([number])

    async def write(data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await answer.send_bytes(head + data)

    return write


class _PortChannel:
    """One of a WebSocket's forwarded ports."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        self.inbox, self._write = Inbox(), write

    async def read(self) -> bytes:
        """Return the next piece; empty at the end."""
        return await self.inbox.read()

    async def write(self, data: bytes) -> None:
        """Send a piece."""
        await self._write(data)


async def _channel_ports(answer: web.WebSocketResponse, ports: list[int], connect: Connect) -> None:
    """Serve the older dialect: for each port a channel for data and one for errors."""
    streams = [_PortChannel(_channel(answer, 2 * index)) for index in range(len(ports))]

    async def serve(index: int, port: int) -> None:
        failure = await _connected(str(port), streams[index], connect)
        if failure:
            await _channel(answer, 2 * index + 1)(failure.encode())

    async def receive() -> None:
        async for message in messages(answer):
            if message and message[0] % 2 == 0 and message[0] // 2 < len(streams):
                inbox = streams[message[0] // 2].inbox
                inbox.put(message[1:])
                await inbox.room()
        for stream in streams:
            stream.inbox.end()

    for index, port in enumerate(ports):
        number = struct.pack("<H", port)
        await _channel(answer, 2 * index)(number)
        await _channel(answer, 2 * index + 1)(number)

    async def serve_all() -> None:
        async with asyncio.TaskGroup() as group:
            for index, port in enumerate(ports):
                group.create_task(serve(index, port), name=f"forward-{port}")

    await _until_gone(serve_all(), receive())


# Requests


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


def _is_true(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() in ("1", "true")


def _port(text: str) -> int:
    port = int(text) if text.isdigit() else 0
    if not 0 < port < 65536:
        raise errors.Unsupported("port", f"{text!r} is no port")
    return port
