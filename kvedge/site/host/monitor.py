"""Talking to a guest's QEMU (QMP) and to the agent inside the guest (QGA) over unix sockets.

Both speak JSON lines (https://www.qemu.org/docs/master/interop/qmp-spec.html and qemu-ga-ref.html).
Sockets are reached through the folder's file descriptor, because a unix socket's path may have
no more than 107 bytes and a site's folder may be deep.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["GuestAgent", "Monitor", "open_socket"]

_LIMIT = 64 * 1024 * 1024
_SYNC = b"\xff"


async def open_socket(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a unix socket whatever the length of its path."""
    handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return await asyncio.open_unix_connection(
            f"/proc/self/fd/{handle}/{path.name}", limit=_LIMIT
        )
    finally:
        os.close(handle)


class Monitor:
    """One QMP session; `run` must be going on for commands to be answered."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._closed = False

    @classmethod
    async def connect(
        cls,
        path: Path,
        on_event: Callable[[str, dict[str, Any]], None],
        *,
        alive: Callable[[], bool],
        seconds: float = 10.0,
    ) -> Monitor:
        """Open the session, waiting for QEMU to make its socket as long as it is `alive`.

        Raises:
            SiteError: nothing answers at the socket in time.
        """
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        reader, writer = await open_socket(path)
                        break
                    except OSError as cause:
                        if not alive():
                            raise errors.SiteError("QEMU ended at once") from cause
                        await asyncio.sleep(0.02)
                greeting = json.loads(await reader.readline() or b"{}")
        except TimeoutError as cause:
            raise errors.SiteError(f"QEMU does not answer at {path.name!r}") from cause
        if "QMP" not in greeting:
            raise errors.SiteError(f"no QMP greeting at {path.name!r}")
        return cls(reader, writer, on_event)

    async def run(self) -> None:
        """Read answers and events until QEMU ends the session."""
        try:
            async for line in self._reader:
                message = json.loads(line)
                if "event" in message:
                    self._on_event(message["event"], message.get("data", {}))
                    continue
                future = self._waiting.pop(message.get("id", 0), None)
                if future is None or future.done():
                    continue
                if "error" in message:
                    future.set_exception(
                        errors.SiteError(f"QEMU refused: {message['error'].get('desc', '')}")
                    )
                else:
                    future.set_result(message.get("return"))
        except (ConnectionError, json.JSONDecodeError):
            pass
        finally:
            self.close()

    async def command(self, name: str, seconds: float = 10.0, **arguments: Any) -> Any:
        """Run one QMP command and return what it returns.

        Raises:
            SiteError: QEMU refused, is gone, or did not answer in time.
        """
        if self._closed:
            raise errors.SiteError(f"QEMU is gone: {name!r} not sent")
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        body: dict[str, Any] = {"execute": name, "id": number}
        if arguments:
            body["arguments"] = arguments
        self._writer.write(json.dumps(body).encode() + b"\n")
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError as cause:
            raise errors.SiteError(f"QEMU did not answer {name!r} in {seconds:g} s") from cause
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """End the session; waiting commands fail."""
        self._closed = True
        with contextlib.suppress(RuntimeError):
            self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(errors.SiteError("QEMU is gone"))
        self._waiting.clear()


class GuestAgent:
    """The QEMU guest agent of one guest; commands run one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def command(self, name: str, seconds: float = 5.0, **arguments: Any) -> Any:
        """Run one agent command and return what it returns.

        Raises:
            SiteError: no agent answers in time, or it refused.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(seconds):
                    reader, writer = await self._session()
                    writer.write(_request(name, arguments))
                    message = json.loads(await reader.readline() or b"{}")
            except (TimeoutError, OSError, json.JSONDecodeError) as cause:
                self.close()
                raise errors.SiteError(f"the guest agent does not answer {name!r}") from cause
            except asyncio.CancelledError:
                self.close()
                raise
            if "return" not in message:
                if "error" not in message:
                    self.close()
                why = message.get("error", {}).get("desc", "no answer")
                raise errors.SiteError(f"the guest agent refused {name!r}: {why}")
            return message["return"]

    async def _session(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            reader, writer = self._streams = await open_socket(self._path)
            number = random.randrange(1, 2**31)  # noqa: S311 - tells answers apart, no secret
            # A late answer to an earlier client may still be in the channel: everything up to
            # the 0xff byte of this answer is not for us.
            writer.write(_SYNC + _request("guest-sync-delimited", {"id": number}))
            while True:
                await reader.readuntil(_SYNC)
                answer = json.loads(await reader.readline() or b"{}")
                if answer.get("return") == number:
                    break
        return self._streams

    def close(self) -> None:
        """Drop the channel; the next command opens it anew."""
        if self._streams is not None:
            with contextlib.suppress(RuntimeError):
                self._streams[1].close()
            self._streams = None


def _request(name: str, arguments: dict[str, Any]) -> bytes:
    body: dict[str, Any] = {"execute": name}
    if arguments:
        body["arguments"] = arguments
    return json.dumps(body).encode() + b"\n"
