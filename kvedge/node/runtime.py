"""Task discipline: what asyncio.TaskGroup lacks, added once.

A TaskGroup cannot be cancelled from outside and ends with its first failure. `Tasks` holds
background work whose members come and go: every task is named, a failure is reported to one place,
and closing cancels and awaits all.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Tasks"]

_log = logging.getLogger(__name__)


class Tasks:
    """Background tasks of one owner; an async context manager."""

    def __init__(self, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure or _report
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a named task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        if self._closed:
            task.cancel()
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(task.get_name(), error)

    async def aclose(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self._closed = True
        while self._tasks:
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _report(name: str, error: BaseException) -> None:
    _log.error("task %s failed", name, exc_info=error)
