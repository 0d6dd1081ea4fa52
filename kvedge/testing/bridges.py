"""A way from inside a local site to ports of this machine, such as to the hub of another site.

A socket belongs to the network namespace it was made in, wherever it is carried: a short process
inside makes listening sockets and hands them out. The test cuts the way and mends it. Limits: TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from typing import TYPE_CHECKING

from kvedge import processes
from kvedge.site import namespace, publishing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvedge.site import state

__all__ = ["Bridge", "bridge"]

_SECONDS = 20.0
_INSIDE = """
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as channel:
    for place in sys.argv[2:]:
        host, _, port = place.rpartition(":")
        with socket.create_server((host, int(port))) as listener:
            socket.send_fds(channel, [b"."], [listener.fileno()])
"""


class Bridge:
    """Ways that are all open or all cut."""

    def __init__(self, folder: state.Folder, routes: Mapping[str, int]) -> None:
        self._folder, self._routes = folder, routes
        self._open: list[publishing.Published] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bridge", daemon=True)
        self._thread.start()

    def mend(self) -> None:
        """Open the ways."""
        for listener, port in zip(self._listeners(), self._routes.values(), strict=True):
            led = publishing.lead(listener, ("127.0.0.1", port))
            self._open.append(asyncio.run_coroutine_threadsafe(led, self._loop).result(_SECONDS))

    def cut(self) -> None:
        """Close the ways and end every connection over them."""
        while self._open:
            closed = self._open.pop().aclose()
            asyncio.run_coroutine_threadsafe(closed, self._loop).result(_SECONDS)

    def close(self) -> None:
        """Cut the ways for good."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SECONDS)

    def _listeners(self) -> list[socket.socket]:
        found = namespace.find(self._folder)
        assert found is not None, "the site's namespaces are gone"
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = processes.popen(
                [
                    *found.enter(),
                    sys.executable,
                    "-c",
                    _INSIDE,
                    str(theirs.fileno()),
                    *self._routes,
                ],
                pass_fds=[theirs.fileno()],
            )
            listeners: list[socket.socket] = []
            ours.settimeout(_SECONDS)
            for _ in self._routes:
                _, handles, _, _ = socket.recv_fds(ours, 1, 1)
                listeners.append(socket.socket(fileno=handles[0]))
                listeners[-1].setblocking(False)
            assert child.wait(_SECONDS) == 0
        return listeners


@contextlib.contextmanager
def bridge(folder: state.Folder, routes: Mapping[str, int]) -> Iterator[Bridge]:
    """Lead addresses of a site to ports of this machine's 127.0.0.1.

    Args:
        folder: of the site.
        routes: `ADDRESS:PORT` inside -> port outside.
    """
    made = Bridge(folder, routes)
    try:
        made.mend()
        yield made
    finally:
        made.close()
