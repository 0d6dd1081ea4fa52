"""A way to a port that can be cut without a word: `python -m kvedge.testing.forwarding PORT`.

Passes connections to 127.0.0.1:PORT on from a port of its own, which it prints. While the process
is stopped (SIGSTOP) both ends see what they see of a network that has fallen apart: silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from kvedge import processes
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    import subprocess
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Way", "way_to"]


class Way:
    """A running forwarder."""

    def __init__(self, child: subprocess.Popen[bytes], port: int) -> None:
        self._child = child
        self.port = port
        """On 127.0.0.1."""

    def cut(self) -> None:
        """Pass nothing on any more."""
        os.kill(self._child.pid, signal.SIGSTOP)

    def mend(self) -> None:
        """Pass on what was held back, and the rest."""
        os.kill(self._child.pid, signal.SIGCONT)


@contextlib.contextmanager
def way_to(port: int, log: Path) -> Iterator[Way]:
    """Run a forwarder to a port of this machine; its output goes to `log`."""
    argv = [sys.executable, "-m", "kvedge.testing.forwarding", str(port)]
    child = processes.popen(argv, log=log)
    try:
        yield Way(child, int(until(lambda: log.read_text().strip(), "the forwarder listens")))
    finally:
        child.kill()
        child.wait()


async def _serve(port: int) -> None:
    async def passed_on(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            back, other = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(OSError):
            await asyncio.gather(_copied(reader, other), _copied(back, writer))
        for end in (writer, other):
            end.close()

    server = await asyncio.start_server(passed_on, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - for the parent
    await server.serve_forever()


async def _copied(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
