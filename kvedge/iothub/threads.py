"""A few threads for a synchronous client, which never keep the process from ending.

The standard library's pool is joined when the interpreter ends, so one request to a hub that hangs
would hold up a stopped process for as long as the request may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads"]

_T = TypeVar("_T")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", "Callable[[], Any]"]


class Threads:
    """Runs blocking calls on daemon threads that are started when they are needed."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = 0
        self._waiting = 0

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call on a thread and return its result; a cancelled caller does not wait."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()
        self._waiting += 1
        if self._waiting > self._started and self._started < self._count:
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put((loop, done, call))
        try:
            return await done
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let the threads end after what they do now."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, done, call = job
            try:
                result, error = call(), None
            except BaseException as caught:  # noqa: BLE001 - handed to the caller
                result, error = None, caught
            # The loop may have ended meanwhile; then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, done, result, error)


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)
