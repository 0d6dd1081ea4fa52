"""Whatever happens in whatever order, the hub ends as a function of the pods."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import types

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvedge import edge, errors, iothub
from kvedge.connector import IotEdgeProvider, Settings
from kvedge.connector.ledger import workload_of
from kvedge.edge import face, packing
from kvedge.emulator import Knobs, catalogue, faults
from kvedge.node.provider import Work

pytestmark = pytest.mark.timeout(120)
BOUND = 4
LATE = 2
"""So many requests may be under way when their sender has given them up."""
SETTINGS = Settings(
    cluster="c1",
    node="n1",
    address="10.0.0.1",
    poll_seconds=0,
    list_seconds=-1,
    handover_seconds=0,
    orphan_seconds=0,
    gather_seconds=0,
    revisions_per_workload=BOUND,
)


class MemoryHub:
    """A hub whose one device, if there is one, runs everything at once. It keeps no twins.

    It can fail, forget to answer, and take a request late, when its sender has given it up.
    """

    host = "memory"

    def __init__(self):
        self.held = {}
        self.failing = False
        self.empty = False
        self.lost_answers = 0
        self.delays = 0
        self.late = []
        self.serial = 0
        self.budget = iothub.Budget(iothub.UNLIMITED)

    def _check(self):
        if self.failing:
            raise errors.RemoteError("ask", status=503)

    def _write(self, act):
        self._check()
        if self.delays and len(self.late) < LATE:
            self.delays -= 1
            self.late.append(act)
            raise errors.RemoteError("write", reason="Unreachable")
        return act()

    def land(self):
        """Take the oldest of the late requests."""
        if self.late:
            with contextlib.suppress(errors.RemoteError):
                self.late.pop(0)()

    def _put(self, wanted):
        self.serial += 1
        self.held[wanted["id"]] = {**copy.deepcopy(wanted), "etag": str(self.serial)}
        return copy.deepcopy(self.held[wanted["id"]])

    async def configurations(self, **_options):
        self._check()
        return copy.deepcopy(list(self.held.values()))

    async def get_configuration(self, name):
        self._check()
        if name not in self.held:
            raise errors.NotFound("get", status=404)
        return copy.deepcopy(self.held[name])

    async def create_configuration(self, wanted):
        def act():
            if wanted["id"] in self.held:
                raise errors.Conflict("create", status=409)
            return self._put(wanted)

        made = self._write(act)
        if self.lost_answers:
            self.lost_answers -= 1
            raise errors.RemoteError("create", reason="Unreachable")
        return made

    async def update_configuration(self, wanted):
        def act():
            if wanted["id"] not in self.held:
                raise errors.NotFound("update", status=404)
            if self.held[wanted["id"]]["etag"] != wanted["etag"]:
                raise errors.Conflict("update", status=412)
            return self._put(wanted)

        return self._write(act)

    async def delete_configuration(self, name):
        def act():
            if self.held.pop(name, None) is None:
                raise errors.NotFound("delete", status=404)

        self._write(act)

    async def query_pages(self, _text, **_options):
        self._check()
        if self.empty:
            yield []
            return
        modules = {}
        for held in sorted(self.held.values(), key=lambda c: c["priority"]):
            for key, entry in held["content"]["modulesContent"]["$edgeAgent"].items():
                modules[key.rpartition(".")[2]] = entry
        yield [
            {
                "deviceId": "d1",
                "connectionState": "Connected",
                "configurations": {name: {"status": "Applied"} for name in self.held},
                "properties": {
                    "desired": {"$version": 1, "modules": modules},
                    "reported": {
                        "lastDesiredVersion": 1,
                        "lastDesiredStatus": {"code": 200},
                        "modules": {
                            name: {**entry, "runtimeStatus": "running"}
                            for name, entry in modules.items()
                        },
                    },
                },
            }
        ]


class Api:
    """The API server's pods, as the engine would tell them."""

    def __init__(self):
        self.held = {}

    def status(self, uid, status):
        if uid in self.held:
            self.held[uid]["status"] = status

    def gone(self, uid):
        self.held.pop(uid, None)

    def event(self, *_args, **_more):
        pass

    def pod(self, uid):
        return self.held.get(uid)

    def pods(self):
        return iter(tuple(self.held.values()))

    def siblings(self, workload):
        return [
            pod["metadata"]["uid"]
            for pod in self.held.values()
            if not pod["metadata"].get("deletionTimestamp")
            and (pod["metadata"]["namespace"], face.workload_of(pod)) == workload
        ]


def pod(uid, workload, image, packed):
    """Return a pod of a workload, as a ReplicaSet makes it."""
    owner = {"kind": "ReplicaSet", "name": f"{workload}-h", "controller": True}
    return {
        "metadata": {
            "name": f"{workload}-h-{uid}",
            "namespace": "ns",
            "uid": uid,
            "labels": {"pod-template-hash": "h"},
            "annotations": {"kvedge.io/target-condition": "*", "kvedge.io/packed": packed},
            "creationTimestamp": f"{int(uid):06}",
            "ownerReferences": [owner],
        },
        "spec": {"containers": [{"name": "m", "image": image}]},
    }


def revision_of(pod):
    """Return the revision that a pod wants."""
    return edge.revision_of(edge.Inputs(pod=pod, cluster="c1", node="n1"))


class Convergence(RuleBasedStateMachine):
    """Pods come, change and go; the hub fails; one replica after the other leads.

    What a replica has sent may arrive when it leads no more, or when it has long tried again.
    """

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.hub, self.api = MemoryHub(), Api()
        self.serial = 0
        self.owed = set()
        self.worker = None
        self.restart()

    def run(self, work, *, polling=False):
        """Run a piece of work; with `polling` the provider goes on reading the hub meanwhile."""

        async def poll():
            for _ in range(6):
                with contextlib.suppress(errors.RemoteError):
                    await self.provider._round()
                await asyncio.sleep(0.001)

        async def both():
            task = asyncio.ensure_future(work)
            reading = asyncio.ensure_future(poll() if polling else asyncio.sleep(5))
            await asyncio.wait({task, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=0.01)
            for each in (task, reading):
                each.cancel()
            await asyncio.wait({task, reading})
            if task.cancelled():
                raise errors.RemoteError("wait", reason="TooLong")
            return task.result()

        return self.loop.run_until_complete(both())

    def teardown(self):
        try:
            self.settle()
            lone, parts = set(), {}
            for p in sorted(self.api.held.values(), key=lambda p: int(p["metadata"]["uid"])):
                revision = revision_of(p)
                if revision.face.packed:
                    parts |= packing.parts_of(revision.content)
                else:
                    lone.add(revision.id)
            packs = [c for c in self.hub.held.values() if packing.pack_of(c)]
            assert set(self.hub.held) - {c["id"] for c in packs} == lone
            assert len(packs) == len({packing.pack_of(c) for c in packs})
            held = [packing.parts_of(c["content"]["modulesContent"]) for c in packs]
            assert {k: v for one in held for k, v in one.items()} == parts
            priorities = [c["priority"] for c in self.hub.held.values()]
            assert len(set(priorities)) == len(priorities)
        finally:
            self.worker.cancel()
            self.loop.run_until_complete(asyncio.wait({self.worker}))
            self.loop.close()

    def settle(self):
        """Let everything that is owed happen with a healthy hub."""
        self.hub.failing, self.hub.lost_answers, self.hub.delays = False, 0, 0
        while self.hub.late:
            self.hub.land()
        for _ in range(4):
            self.poll()
            self.retry()
        self.poll()
        self.poll()

    def place(self, uid):
        async def place():
            work = Work(pod=self.api.held[uid], env={}, objects={})
            await self.provider.create(work)

        try:
            self.run(place())
            self.owed.discard(uid)
        except errors.RemoteError:
            self.owed.add(uid)

    @rule(workload=st.sampled_from("abpq"), image=st.sampled_from(["1", "2", "3"]))
    def create(self, workload, image):
        """Workloads p and q share a deployment, a and b have their own."""
        self.serial += 1
        uid = str(self.serial)
        self.api.held[uid] = pod(uid, workload, image, str(workload in "pq").lower())
        self.place(uid)

    @precondition(lambda self: self.api.held)
    @rule(data=st.data(), image=st.sampled_from(["4", "5", "6", "7"]))
    def change(self, data, image):
        self.turn(data.draw(st.sampled_from(sorted(self.api.held))), image)

    def turn(self, uid, image):
        self.api.held[uid]["spec"]["containers"][0]["image"] = image
        self.place(uid)

    @precondition(lambda self: self.api.held)
    @rule(data=st.data())
    def delete(self, data):
        uid = data.draw(st.sampled_from(sorted(self.api.held)))
        self.api.held[uid]["metadata"]["deletionTimestamp"] = "now"
        self.end(uid)

    def end(self, uid):
        try:
            if self.run(self.provider.delete(self.api.held[uid]), polling=True):
                self.api.held.pop(uid)
                self.owed.discard(uid)
        except errors.RemoteError:
            self.owed.add(uid)

    @precondition(lambda self: self.api.held)
    @rule(data=st.data())
    def vanish(self, data):
        """Force deletion while nobody looks: the provider is never asked."""
        uid = data.draw(st.sampled_from(sorted(self.api.held)))
        self.api.held.pop(uid)
        self.owed.discard(uid)
        self.restart()

    @rule()
    def retry(self):
        for uid in sorted(self.owed):
            found = self.api.held.get(uid)
            if found is None:
                self.owed.discard(uid)
            elif found["metadata"].get("deletionTimestamp"):
                self.end(uid)
            else:
                self.place(uid)

    @rule()
    def poll(self):
        async def poll():
            await self.provider._round()

        with contextlib.suppress(errors.RemoteError):
            self.run(poll())

    @rule()
    def restart(self):
        """Another replica leads: nothing is remembered, all pods are handed over again."""
        if self.worker:
            self.worker.cancel()
            self.loop.run_until_complete(asyncio.wait({self.worker}))
        self.provider = IotEdgeProvider(self.hub, SETTINGS)
        self.worker = self.loop.create_task(self.provider._packs.run())
        self.provider._reporter = self.api
        # A provider takes no pods before it has read the hub.
        failing, self.hub.failing = self.hub.failing, False
        self.poll()
        self.hub.failing = failing
        self.owed = set(self.api.held)
        self.retry()
        self.run(self.provider.listed(frozenset(self.api.held)))

    @rule()
    def fail(self):
        self.hub.failing = not self.hub.failing

    @rule()
    def lose_an_answer(self):
        self.hub.lost_answers = 1

    @rule()
    def delay_a_write(self):
        self.hub.delays = 1

    @precondition(lambda self: self.hub.late)
    @rule()
    def land(self):
        self.hub.land()

    @invariant()
    def bounded(self):
        """No workload ever has more deployments than its pods and the bound."""
        counts = {}
        for held in self.hub.held.values():
            counts[workload_of(held)[1]] = counts.get(workload_of(held)[1], 0) + 1
        for workload, count in counts.items():
            pods = sum(f"{workload}-h-" in p["metadata"]["name"] for p in self.api.held.values())
            assert count <= BOUND + pods + 1 + LATE


Convergence.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestConvergence = Convergence.TestCase
TestConvergence.__doc__ = "Random interleavings converge to the deployments that the pods ask for."


def test_unanswered_revisions_make_room_for_the_one_that_is_wanted():
    """As many as may wait were made without an answer, and no pod wants any of them."""
    machine = Convergence()
    machine.lose_an_answer()
    machine.create("a", "1")
    for image in "234":
        machine.poll()
        machine.lose_an_answer()
        machine.turn("1", image)
    assert len(machine.hub.held) == BOUND
    machine.turn("1", "5")
    assert machine.owed == {"1"}
    machine.teardown()


def test_a_new_leader_retires_no_revision_that_a_pod_may_want():
    """It finds as many as may wait, and has not been told of the pod that wants one of them."""
    machine = Convergence()
    machine.hub.empty = True
    machine.create("a", "1")
    machine.turn("1", "2")
    machine.create("a", "3")
    machine.turn("2", "4")
    assert len(machine.hub.held) == BOUND
    wanted = revision_of(machine.api.held["1"]).id
    before = machine.hub.held[wanted]
    machine.restart()
    assert machine.hub.held[wanted] is before
    machine.hub.empty = False
    machine.teardown()


def test_an_older_revision_gets_a_priority_of_its_own_again():
    """Two pods of a workload differ for long, and the older one's late deployment met another's."""
    machine = Convergence()
    machine.delay_a_write()
    machine.create("a", "1")
    machine.poll()
    machine.land()
    machine.delay_a_write()
    machine.create("b", "1")
    machine.create("b", "2")
    machine.land()
    priorities = [entry["priority"] for entry in machine.hub.held.values()]
    assert len(set(priorities)) < len(priorities)
    machine.teardown()
    newer, older = (machine.hub.held[revision_of(machine.api.held[uid]).id] for uid in "32")
    assert newer["priority"] > older["priority"]


def test_revisions_without_a_device_make_room_for_newer_ones():
    """A target without a device takes more updates than revisions may wait; no device ever had one.

    The one before all updates stays, for a device that comes could have run it.
    """
    machine = Convergence()
    machine.create("a", "1")
    (first,) = machine.hub.held
    machine.hub.empty = True
    for image in "23456723":
        machine.turn("1", image)
        machine.poll()
        machine.retry()
        machine.bounded()
        assert machine.owed == set()
        assert first in machine.hub.held
    machine.hub.empty = False
    machine.teardown()


class ThrottledHub:
    """A memory hub that refuses as a real one does, behind kvedge's own budget and back-off.

    A poll takes ten requests, as with a thousand devices.
    """

    host = "throttled"

    _call = iothub.Hub._call

    def __init__(self, knobs, *, told_units):
        self.memory = MemoryHub()
        self.budget, self._backoff = iothub.Budget(told_units), iothub.Backoff()
        self.refused = 0
        self._faults = faults.Faults(knobs, lambda: None)

    async def _once(self, what, send):
        await asyncio.sleep(0.02)
        try:
            await self._faults.admit(what)
        except catalogue.HubError as error:
            self.refused += 1
            raise errors.Throttled(what, status=429) from error
        return await send(self.memory)

    def _write(self, send, lane=iothub.Lane.BULK):
        return self._call("ConfigurationWrite", "configurations", send, lane=lane)

    async def configurations(self, **options):
        return await self._call(
            "ConfigurationRead", "configurations", lambda hub: hub.configurations(), **options
        )

    async def get_configuration(self, name):
        return await self._write(lambda hub: hub.get_configuration(name))

    async def create_configuration(self, wanted):
        return await self._write(lambda hub: hub.create_configuration(wanted))

    async def update_configuration(self, wanted):
        return await self._write(lambda hub: hub.update_configuration(wanted))

    async def delete_configuration(self, name):
        await self._write(lambda hub: hub.delete_configuration(name), iothub.Lane.URGENT)

    async def query_pages(self, text, **options):
        async def rows(hub):
            return [row async for page in hub.query_pages(text) for row in page]

        for number in range(10):
            page = await self._call("Query", "query", rows, **options)
            yield page if number == 0 else []


@pytest.mark.looptime
async def test_converges_on_a_hub_of_half_the_units(monkeypatch):
    """Told twice the quota, and refused everything now and then, it loses and doubles nothing."""
    clock = types.SimpleNamespace(monotonic=asyncio.get_running_loop().time)
    monkeypatch.setattr(faults, "time", clock)
    bursts = Knobs(
        tier="S1", fail_status=429, fail_count=-1, fail_seconds=5.0, fail_every_seconds=30.0
    )
    hub, api = ThrottledHub(bursts, told_units=2), Api()
    provider = IotEdgeProvider(
        hub, dataclasses.replace(SETTINGS, poll_seconds=15.0, list_seconds=60.0, gather_seconds=2.0)
    )
    await provider.start(api)
    await provider.listed(frozenset())

    async def persist(act):
        while True:
            with contextlib.suppress(errors.RemoteError):
                return await act()
            await asyncio.sleep(5.0)

    def ready(uid):
        found = api.held[uid].get("status", {}).get("conditions", ())
        return any(c["type"] == "Ready" and c["status"] == "True" for c in found)

    for number in range(40):
        packed = str(number % 4 == 0).lower()
        api.held[str(number)] = pod(str(number), f"w{number}", "1", packed)
    async with asyncio.timeout(900), asyncio.TaskGroup() as group:
        for found in api.held.values():
            work = Work(pod=found, env={}, objects={})
            group.create_task(persist(lambda work=work: provider.create(work)))
    for _ in range(300):
        await asyncio.sleep(1.0)
        if all(map(ready, api.held)):
            break
    modules = [
        key
        for entry in hub.memory.held.values()
        for key in entry["content"]["modulesContent"]["$edgeAgent"]
    ]
    assert sorted(modules) == sorted(f"properties.desired.modules.w{n}-m" for n in range(40))
    priorities = [entry["priority"] for entry in hub.memory.held.values()]
    assert len(set(priorities)) == len(priorities)
    assert all(map(ready, api.held))
    assert hub.refused
    for found in api.held.values():
        found["metadata"]["deletionTimestamp"] = "now"
    async with asyncio.timeout(900), asyncio.TaskGroup() as group:
        for found in api.held.values():
            group.create_task(persist(lambda found=found: provider.delete(found)))
    assert not hub.memory.held
    await provider.stop()
