"""Whatever happens to pods, replicas and the API server: in the end the provider has its pods.

Scripts are drawn by hypothesis and played on a real API server; every replica reaches it through a
server of its own that fails requests as the script says.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import secrets

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from kvedge import errors, kube
from kvedge.node import NodeSpec, Outcome, Provider, running
from kvedge.testing.faults import FaultyServer
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(600)

NAMES = ("a", "b", "c")
FAULTS = ("throttle", "error", "cut", "lose-answer")
STEPS = st.one_of(
    st.tuples(st.just("create"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("create"), st.sampled_from(NAMES), st.just(False)),
    st.tuples(st.just("change"), st.sampled_from(NAMES)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("force"), st.sampled_from(NAMES)),
    st.tuples(st.just("config"), st.booleans()),
    st.tuples(st.just("faults"), st.floats(0, 0.6)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("partition")),
    st.tuples(st.just("pause"), st.floats(0, 0.3)),
)


class World:
    """Where pods run; it outlives every replica."""

    def __init__(self) -> None:
        self.pods = {}
        """What was given for each UID last."""
        self.busy = collections.Counter()
        self.created = set()


class Recording(Provider):
    """A provider that keeps its pods in the world and takes its time."""

    name = "world"

    def __init__(self, world) -> None:
        self.world = world

    @contextlib.asynccontextmanager
    async def alone(self, uid):
        self.world.busy[id(self), uid] += 1
        assert self.world.busy[id(self), uid] == 1, "called twice at once for a pod"
        try:
            await asyncio.sleep(random.random() * 0.02)
            yield
        finally:
            self.world.busy[id(self), uid] -= 1

    async def create(self, work):
        async with self.alone(work.uid):
            adopted = work.uid in self.world.pods
            self.world.pods[work.uid] = (work.pod["metadata"].get("labels"), work.env)
            self.world.created.add(work.uid)
        return Outcome(status={"phase": "Running", "podIP": "10.1.1.1"}, adopted=adopted)

    async def update(self, work):
        async with self.alone(work.uid):
            assert work.uid in self.world.pods, "updated what was not created"
            self.world.pods[work.uid] = (work.pod["metadata"].get("labels"), work.env)
        return Outcome()

    async def delete(self, pod):
        async with self.alone(pod["metadata"]["uid"]):
            self.world.pods.pop(pod["metadata"]["uid"], None)
        return True

    async def listed(self, uids):
        """Collect what nobody wants any more, as a provider with a memory does."""
        for uid in self.world.pods.keys() - uids:
            del self.world.pods[uid]


class Play:
    """One script on one node with two replicas."""

    def __init__(self, config, client, namespace) -> None:
        self.config, self.client, self.namespace = config, client, namespace
        self.node = f"play-{secrets.token_hex(4)}"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.world = World()
        self.rate = 0.0
        self.random = random.Random(1)
        self.replicas = []

    def decide(self, replica):
        """Return what decides on the faults of one replica."""

        def one(method, path):
            if replica["cut"]:
                return "cut"
            if self.random.random() >= self.rate * (0.1 if method == "WATCH" else 1.0):
                return None
            return self.random.choice(FAULTS)

        return one

    async def replica(self, stack):
        """Run one replica again and again, as a Deployment does."""
        state = {"cut": False, "stop": asyncio.Event(), "ended": False, "leads": bool}
        server = await stack.enter_async_context(FaultyServer(self.config, self.decide(state)))
        self.replicas.append(state)
        while not state["ended"]:
            state["stop"].clear()
            node = running.VirtualNode(
                config=server.config,
                spec=NodeSpec(name=self.node, address="127.0.0.1", provider="world"),
                provider=Recording(self.world),
                leader_namespace=self.namespace,
                lease_seconds=1.5,
            )
            state["leads"] = node.registered.is_set
            await node.run(state["stop"])

    async def step(self, kind, *arguments):
        """Play one step."""
        with contextlib.suppress(errors.NotFound, errors.Conflict):
            if kind == "create":
                name, waits = arguments
                source = {"configMapKeyRef": {"name": "needed", "key": "k"}}
                env = [{"name": "K", "valueFrom": source}] if waits else []
                container = {"name": "c", "image": "i", "env": env}
                spec = {
                    "nodeName": self.node, "enableServiceLinks": False, "containers": [container],
                }  # fmt: skip
                await self.client.post(self.pods, {"metadata": {"name": name}, "spec": spec})
            elif kind == "change":
                labels = {"metadata": {"labels": {"x": secrets.token_hex(2)}}}
                await self.client.patch(f"{self.pods}/{arguments[0]}", labels)
            elif kind in ("delete", "force"):
                grace = 0 if kind == "force" else 30
                path = f"{self.pods}/{arguments[0]}"
                await self.client.delete(path, gracePeriodSeconds=grace)
            elif kind == "config":
                path = f"/api/v1/namespaces/{self.namespace}/configmaps"
                if arguments[0]:
                    body = {"metadata": {"name": "needed"}, "data": {"k": "v"}}
                    await self.client.post(path, body)
                else:
                    await self.client.delete(f"{path}/needed")
            elif kind == "faults":
                self.rate = arguments[0]
            elif kind == "restart":
                for replica in self.replicas:
                    replica["stop"].set()
            elif kind == "partition":
                self.replicas[0]["cut"] = not self.replicas[0]["cut"]
            else:
                await asyncio.sleep(*arguments)

    async def settled(self):
        """Tell whether world and API server agree."""
        listed = await self.client.get(self.pods)
        living = {pod["metadata"]["uid"]: pod for pod in listed["items"]}
        assert not any("deletionTimestamp" in pod["metadata"] for pod in living.values())
        assert self.world.pods.keys() == living.keys()
        for uid, pod in living.items():
            labels, env = self.world.pods[uid]
            assert labels == pod["metadata"].get("labels")
            wanted = {"K": "v"} if pod["spec"]["containers"][0].get("env") else {}
            assert env.get("c", {}) == wanted
            assert pod["status"]["phase"] == "Running"
        return True

    async def run(self, script):
        """Play a script, let all faults end, and wait until everything is as it should be."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(self.replica(stack), name=f"replica-{number}")
            await until_async(lambda: any(r["leads"]() for r in self.replicas), "a replica leads")
            for step in script:
                await self.step(*step)
            self.rate, self.replicas[0]["cut"] = 0.0, False
            await self.step("config", True)
            try:
                await until_async(self.settled, seconds=60)
            finally:
                for replica in self.replicas:
                    replica["ended"] = True
                    replica["stop"].set()


@settings(
    deadline=None, max_examples=25, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(script=st.lists(STEPS, min_size=4, max_size=14))
@example(script=[("create", "a", False), ("partition",), ("delete", "a"), ("create", "a", True)])
@example(script=[("create", "a", False), ("pause", 0.3), ("force", "a"), ("create", "a", False)])
@example(script=[("create", "a", False), ("pause", 0.3), ("restart",), ("change", "a")])
@example(script=[("faults", 0.6), ("create", "a", True), ("config", True), ("config", False)])
def test_provider_ends_with_its_pods(cluster, script):
    """After any script the provider runs exactly the API server's pods, each in its last form."""

    async def play():
        config = kube.load_config(cluster.kubeconfig)
        async with kube.Client(config) as client:
            namespace = f"play{secrets.token_hex(4)}"
            await client.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
            played = Play(config, client, namespace)
            await played.run(script)
            pods = f"/api/v1/namespaces/{namespace}/pods"
            await client.delete(pods, gracePeriodSeconds=0)

    asyncio.run(play())
