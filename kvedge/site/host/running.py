"""How the host's work is kept going: named tasks and actors that survive their own mistakes.

An actor serves one object. It is woken when something about the object changed, looks at the
whole state and acts (level-based), and is never run twice at once. A failed step is repeated
with back-off; it ends nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

__all__ = ["Actor", "Actors", "Crew", "Finished", "timestamp"]

_LOG = logging.getLogger("kvedge.site.host")
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 20.0
_DEAF_SECONDS = 1.0


def timestamp(*, micro: bool = False) -> str:
    """Return this moment as Kubernetes writes it: whole seconds, or MicroTime."""
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


class Crew:
    """Named tasks of one TaskGroup; a task that fails is logged and ends alone."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task."""
        return self._group.create_task(_alone(name, work), name=name)

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Begin a task that is begun again whenever it ends."""
        return self._group.create_task(_for_ever(name, work), name=name)


async def _alone(name: str, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except errors.KvedgeError as error:
        _LOG.error("%s: %s", name, error)
    except Exception:  # noqa: BLE001 - it ends nobody else
        _LOG.exception("%s", name)


async def _for_ever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    pause = _FIRST_PAUSE
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        try:
            await work()
        except errors.KvedgeError as error:
            _LOG.error("%s: %s", name, error)
        except Exception:  # noqa: BLE001 - it ends nobody else
            _LOG.exception("%s", name)
        if loop.time() - begun > _LONGEST_PAUSE:
            pause = _FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


class Actor(Protocol):
    """What serves one object."""

    @property
    def name(self) -> str:
        """Name for the log."""
        ...

    async def step(self) -> float | None:
        """Bring the world one step nearer to the object; return seconds until the next look.

        None means: not before somebody wakes me. Raises `Finished` to end.
        """
        ...


class Finished(Exception):
    """Raised by a step: this actor has nothing left to do, ever."""


_A = TypeVar("_A", bound=Actor)


class Actors(Generic[_A]):
    """Actors by key, each with one task."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._actors: dict[str, _A] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[_A]:
        return iter(list(self._actors.values()))

    def get(self, key: str) -> _A | None:
        """Return the actor of a key."""
        return self._actors.get(key)

    def add(self, key: str, actor: _A) -> _A:
        """Take an actor in and let it look at once."""
        self._actors[key] = actor
        wake = self._wakes[key] = asyncio.Event()
        self._tasks[key] = self._crew.start(actor.name, self._run(key, actor, wake))
        return actor

    def wake(self, key: str) -> None:
        """Let the actor of a key look again; unknown keys are nobody's."""
        if key in self._wakes:
            self._wakes[key].set()

    def discard(self, key: str) -> None:
        """Forget an actor and cancel what it does."""
        self._actors.pop(key, None)
        self._wakes.pop(key, None)
        task = self._tasks.pop(key, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _run(self, key: str, actor: _A, wake: asyncio.Event) -> None:
        pause = _FIRST_PAUSE
        try:
            while True:
                wake.clear()
                failed = True
                try:
                    again = await actor.step()
                    pause, failed = _FIRST_PAUSE, False
                except Finished:
                    return
                except errors.KvedgeError as error:
                    _LOG.warning("%s: %s", actor.name, error)
                    again, pause = pause, min(pause * 2, _LONGEST_PAUSE)
                except Exception:  # noqa: BLE001 - it ends nobody else
                    _LOG.exception("%s", actor.name)
                    again, pause = pause, min(pause * 2, _LONGEST_PAUSE)
                if failed:
                    # What a failed step wrote comes back as an event; it shall not cut the pause.
                    await asyncio.sleep(min(pause, _DEAF_SECONDS))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(again):
                        await wake.wait()
        finally:
            if self._actors.get(key) is actor:
                self._actors.pop(key)
                self._wakes.pop(key, None)
                self._tasks.pop(key, None)
