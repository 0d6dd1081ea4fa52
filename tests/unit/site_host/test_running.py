"""Actors: one at a time, level-based, with back-off."""

import asyncio

from kvedge import errors
from kvedge.site.host.running import Actors, Crew, Finished


class _Counter:
    name = "counter"

    def __init__(self, *, fail=0):
        self.steps = 0
        self.busy = 0
        self.most = 0
        self.fail = fail
        self.done = asyncio.Event()

    async def step(self):
        self.steps += 1
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if self.steps <= self.fail:
            raise errors.SiteError("not yet")
        self.done.set()


async def test_an_actor_never_runs_twice_at_once():
    """Wakes while a step runs lead to one more step, not to a second one beside it."""
    async with asyncio.TaskGroup() as group:
        actors = Actors(Crew(group))
        actor = actors.add("k", _Counter())
        for _ in range(50):
            actors.wake("k")
            await asyncio.sleep(0)
        assert actor.most == 1
        assert actor.steps > 1
        actors.discard("k")


async def test_a_failed_step_is_repeated_and_ends_nobody():
    """The other actors and the group go on."""
    async with asyncio.TaskGroup() as group:
        actors = Actors(Crew(group))
        actor = actors.add("k", _Counter(fail=1))
        async with asyncio.timeout(5):
            await actor.done.wait()
        assert actor.steps == 2
        actors.discard("k")


async def test_own_writes_do_not_cut_the_back_off():
    """A failing actor that is woken all the time is not run all the time."""
    async with asyncio.TaskGroup() as group:
        actors = Actors(Crew(group))
        actor = actors.add("k", _Counter(fail=1000))
        for _ in range(20):
            actors.wake("k")
            await asyncio.sleep(0.01)
        assert actor.steps <= 2
        actors.discard("k")


async def test_a_finished_actor_is_forgotten():
    """Finished ends the actor's task and its place."""

    class Once:
        name = "once"

        async def step(self):
            raise Finished

    async with asyncio.TaskGroup() as group:
        actors = Actors(Crew(group))
        actors.add("k", Once())
        for _ in range(5):
            await asyncio.sleep(0)
        assert actors.get("k") is None
