"""Pods become deployments, and devices' reports become status: real API server, emulated hub."""

from __future__ import annotations

import contextlib

import pytest

from kvedge import errors
from kvedge.connector.ledger import workload_of
from kvedge.edge import packing
from kvedge.node.provider import LogOptions
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(240)
SITE = "tags.site='lille'"


def pod(name, node, *, workload="", image="reg/sensor:1", env=(), notes=None, **spec):
    """Return a pod for devices in Lille; with `workload` it looks like a Deployment's."""
    metadata = {
        "name": name,
        "annotations": {"kvedge.io/target-condition": SITE, **(notes or {})},
    }
    if workload:
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": f"{workload}-abc",
            "uid": "0",
            "controller": True,
        }
        metadata |= {"labels": {"pod-template-hash": "abc"}, "ownerReferences": [owner]}
    container = {"name": "main", "image": image, "env": list(env)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": [container], **spec},
    }


def ready(found):
    """Tell whether a pod is 1/1 Running."""
    status = found.get("status") or {}
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    return status.get("phase") == "Running" and conditions.get("Ready") == "True"


class World:
    """Short words for what the tests look at."""

    def __init__(self, client, service, namespace):
        self.client, self.service = client, service
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self.namespace = namespace

    async def get(self, name):
        return await self.client.get(f"{self.path}/{name}")

    async def own(self):
        """Return the connector's deployments in this namespace, by rising priority."""
        listed = await self.service.configurations()
        mine = [c for c in listed if workload_of(c)[0] == self.namespace]
        return sorted(mine, key=lambda c: c["priority"])

    async def await_ready(self, name):
        async def check():
            return ready(await self.get(name))

        await until_async(check)

    async def await_own(self, count):
        async def check():
            return len(await self.own()) == count

        await until_async(check)

    async def await_gone(self, name):
        async def check():
            with contextlib.suppress(errors.NotFound):
                await self.get(name)
                return False
            return True

        await until_async(check)


@pytest.fixture
def world(client, service, namespace):
    """The test's namespace, API server and hub."""
    return World(client, service, namespace)


async def test_status_tells_the_truth(world, devices, start_connector):
    """Without devices a pod is Pending with a reason; it runs when they report it; delete retires."""
    async with start_connector("truth"):
        await world.client.post(world.path, pod("a", "truth"))

        async def no_devices():
            found = (await world.get("a")).get("status") or {}
            return found.get("phase") == "Pending" and found.get("reason") == "NoDevices"

        await until_async(no_devices)
        async with devices(2, tags={"site": "lille"}, delay_seconds=0.2) as simulation:
            await world.await_ready("a")
            found = (await world.get("a"))["status"]
            assert found["containerStatuses"][0]["state"]["running"]["startedAt"]
            simulation.devices["sim-2"].override(
                "a-main", runtimeStatus="backoff", statusDescription="Exited", exitCode=3
            )

            async def unready():
                found = await world.get("a")
                return not ready(found) and found["status"].get("message")

            message = await until_async(unready)
            assert "2 targeted, 2 applied, 1 running, 1 failed" in message
            assert "sim-2: Exited (exit code 3)" in message
            simulation.devices["sim-2"].clear_overrides()
            await world.await_ready("a")
            await world.client.delete(f"{world.path}/a")
            await world.await_gone("a")
            assert await world.own() == []


async def test_restart_adopts(world, devices, start_connector):
    """A restarted connector finds its deployment, writes no status and keeps its priority."""
    async with devices(1, tags={"site": "lille"}):
        async with start_connector("adopt"):
            await world.client.post(world.path, pod("a", "adopt"))
            await world.await_ready("a")
        before, deployments = await world.get("a"), await world.own()
        async with start_connector("adopt") as node:
            await until_async(lambda: node.engine.synced.is_set())
            assert node.engine.counters.statuses == 0
            assert node.engine.counters.events == 0
        after = await world.get("a")
        assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
        assert [d["id"] for d in await world.own()] == [d["id"] for d in deployments]


async def test_changed_config_map_is_rolled_out_without_a_gap(world, devices, start_connector):
    """A changed ConfigMap brings a higher revision; the old one goes when the new one runs."""
    config = {"metadata": {"name": "conf"}, "data": {"mode": "slow"}}
    configs = f"/api/v1/namespaces/{world.namespace}/configmaps"
    await world.client.post(configs, config)
    env = [{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "mode"}}}]
    async with (
        devices(1, tags={"site": "lille"}, delay_seconds=0.8) as simulation,
        start_connector("roll"),
    ):
        await world.client.post(world.path, pod("a", "roll", env=env))
        await world.await_ready("a")
        (first,) = await world.own()
        device = simulation.devices["sim-1"]
        await world.client.patch(f"{configs}/conf", {"data": {"mode": "fast"}})
        await world.await_own(2)
        old, new = await world.own()
        assert old["id"] == first["id"]
        assert new["priority"] > old["priority"]
        assert "a-main" in device.reported["modules"]
        await world.await_own(1)
        assert device.reported["modules"]["a-main"]["env"] == {"MODE": {"value": "fast"}}
        assert [d["id"] for d in await world.own()] == [new["id"]]
        await world.await_ready("a")


async def test_rolling_update_hands_over(world, devices, start_connector):
    """A Deployment's next pod takes over; its predecessor's modules run until it does."""
    async with (
        devices(1, tags={"site": "lille"}, delay_seconds=0.5) as simulation,
        start_connector("hand", handover_seconds=10),
    ):
        await world.client.post(world.path, pod("a", "hand", workload="app"))
        await world.await_ready("a")
        await world.client.delete(f"{world.path}/a")
        await world.client.post(world.path, pod("b", "hand", workload="app", image="reg/sensor:2"))
        await world.await_gone("a")
        assert "app-main" in simulation.devices["sim-1"].reported["modules"]
        await world.await_ready("b")
        await world.await_own(1)
        await world.client.delete(f"{world.path}/b")
        await world.await_gone("b")
        assert await world.own() == []


async def test_equal_pods_share_one_deployment(world, devices, start_connector):
    """Replicas on one node share a deployment; the last one to go retires it."""
    async with devices(1, tags={"site": "lille"}), start_connector("share"):
        for name in ("a", "b"):
            await world.client.post(world.path, pod(name, "share", workload="app"))
            await world.await_ready(name)
        assert len(await world.own()) == 1
        await world.client.delete(f"{world.path}/a")
        await world.await_gone("a")
        assert len(await world.own()) == 1
        await world.client.delete(f"{world.path}/b")
        await world.await_gone("b")
        assert await world.own() == []


async def test_orphan_is_collected(world, devices, start_connector):
    """A deployment whose pod vanished while the connector was away is collected after a while."""
    async with devices(1, tags={"site": "lille"}):
        async with start_connector("orphan"):
            await world.client.post(world.path, pod("a", "orphan"))
            await world.await_ready("a")
        await world.client.delete(f"{world.path}/a", gracePeriodSeconds=0)
        assert len(await world.own()) == 1
        async with start_connector("orphan"):
            await world.await_own(0)
        foreign = {"id": "foreign", "targetCondition": "*", "priority": 5}
        foreign["content"] = {"modulesContent": {"$edgeAgent": {}}}
        await world.service.create_configuration(foreign)
        async with start_connector("orphan", orphan_seconds=0.1) as node:
            await until_async(lambda: node.engine.synced.is_set())
            assert "foreign" in {c["id"] for c in await world.service.configurations()}


async def test_refused_pod_writes_nothing(world, start_connector):
    """A pod that devices cannot run is refused by field path and never reaches the hub."""
    async with start_connector("strict"):
        bad = pod("a", "strict", activeDeadlineSeconds=5, notes={"kvedge.io/priority": "x"})
        await world.client.post(world.path, bad)

        async def told():
            return (await world.get("a")).get("status", {}).get("reason") == "ProviderFailed"

        await until_async(told)
        message = (await world.get("a"))["status"]["message"]
        assert "spec.activeDeadlineSeconds: modules run until they are removed" in message
        assert "metadata.annotations[kvedge.io/priority]" in message
        assert await world.own() == []


async def test_two_workloads_with_one_module_name(world, devices, start_connector):
    """A module name that two workloads claim on one device is reported by the one that loses."""
    name = {"main.kvedge.io/module": "same"}
    async with devices(1, tags={"site": "lille"}), start_connector("clash"):
        await world.client.post(world.path, pod("a", "clash", notes=name))
        await world.await_ready("a")
        other = pod("b", "clash", image="reg/other:1", notes={**name, "kvedge.io/priority": "20"})
        await world.client.post(world.path, other)
        await world.await_ready("b")

        async def conflict():
            return (await world.get("a"))["status"].get("reason") == "ModuleConflict"

        await until_async(conflict)


async def test_failing_revisions_do_not_pile_up(world, devices, start_connector):
    """Of several revisions that never ran only the newest stays, beside the last good one."""
    async with (
        devices(1, tags={"site": "lille"}) as simulation,
        start_connector("pile"),
    ):
        await world.client.post(world.path, pod("a", "pile"))
        await world.await_ready("a")
        (good,) = await world.own()
        simulation.devices["sim-1"].override("a-main", runtimeStatus="failed")
        for number in range(2, 5):
            body = {"spec": {"containers": [{"name": "main", "image": f"reg/sensor:{number}"}]}}
            await world.client.patch(f"{world.path}/a", body, "strategic")

            async def placed(wanted=number):
                found = [d for d in await world.own() if f"sensor:{wanted}" in str(d["content"])]
                return found and (await world.get("a"))["status"]["containerStatuses"]

            await until_async(placed)
        await world.await_own(2)
        left = await world.own()
        assert left[0]["id"] == good["id"]
        assert "sensor:4" in str(left[1]["content"])
        simulation.devices["sim-1"].clear_overrides()
        await world.await_own(1)
        await world.await_ready("a")


async def test_hub_outage_removes_nothing(world, devices, start_connector, knobs):
    """While the hub is away nothing is taken from devices; pods say what is not known."""
    async with devices(1, tags={"site": "lille"}) as simulation, start_connector("outage"):
        await world.client.post(world.path, pod("a", "outage"))
        await world.await_ready("a")
        knobs(fail_status=503, fail_count=-1)

        async def unknown():
            conditions = (await world.get("a"))["status"]["conditions"]
            return any(
                c["type"] == "kvedge.io/Deployment" and c["status"] == "Unknown" for c in conditions
            )

        await until_async(unknown)
        node = await world.client.get("/api/v1/nodes/outage")
        states = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert (states["Ready"], states["HubReachable"]) == ("True", "False")
        # A pod that is made or deleted meanwhile is seen to when the hub is back.
        await world.client.post(world.path, pod("b", "outage"))
        await world.client.delete(f"{world.path}/a")
        knobs()
        await world.await_ready("b")
        await world.await_gone("a")
        assert [workload_of(d)[1] for d in await world.own()] == ["b"]
        assert simulation.devices["sim-1"].reported["modules"].keys() == {"b-main"}


async def test_throttled_hub_loses_nothing(world, devices, start_connector, knobs):
    """Pods that meet refusals are placed in the end, each exactly once."""
    async with devices(1, tags={"site": "lille"}), start_connector("throttled"):
        knobs(fail_status=429, fail_count=12)
        for number in range(6):
            await world.client.post(world.path, pod(f"p{number}", "throttled"))
        for number in range(6):
            await world.await_ready(f"p{number}")
        assert sorted(workload_of(d)[1] for d in await world.own()) == [f"p{n}" for n in range(6)]
        priorities = [d["priority"] for d in await world.own()]
        assert len(set(priorities)) == 6


async def test_logs_of_several_devices(world, devices, start_connector):
    """Logs come through the edge agents, with the device's name before each line."""
    async with devices(2, tags={"site": "lille"}), start_connector("logs") as node:
        await world.client.post(world.path, pod("a", "logs"))
        await world.await_ready("a")
        options = LogOptions(tail=2)
        stream = node.provider.logs(await world.get("a"), "main", options)
        text = b"".join([piece async for piece in stream]).decode()
        assert text.splitlines() == [
            f"[sim-{device}] a-main of sim-{device}: line {line}"
            for device in (1, 2)
            for line in (9, 10)
        ]
        with pytest.raises(errors.Unsupported):
            [
                piece
                async for piece in node.provider.logs(
                    await world.get("a"), "main", LogOptions(previous=True)
                )
            ]


async def test_legacy_pod_gets_its_full_deployment(world, devices, start_connector):
    """The predecessor's annotations and ConfigMaps make a full deployment that follows them."""
    notes = {"isEdgeDeployment": "true", "targetCondition": SITE, "priority": "15"}
    configs = f"/api/v1/namespaces/{world.namespace}/configmaps"
    settings = {"metadata": {"name": "main"}, "data": {"restartPolicy": "always"}}
    await world.client.post(configs, settings)
    legacy = pod("a", "legacy")
    legacy["metadata"]["annotations"] = notes
    async with devices(1, tags={"site": "lille"}) as simulation, start_connector("legacy"):
        await world.client.post(world.path, legacy)
        await world.await_ready("a")
        (made,) = await world.own()
        desired = made["content"]["modulesContent"]["$edgeAgent"]["properties.desired"]
        assert desired["modules"]["main"]["restartPolicy"] == "always"
        assert made["priority"] // 1000 == 15
        await world.client.patch(f"{configs}/main", {"data": {"status": "stopped"}})
        device = simulation.devices["sim-1"]
        await until_async(
            lambda: device.reported["modules"].get("main", {}).get("runtimeStatus") == "stopped"
        )


async def test_packed_pods_share_one_deployment(world, devices, start_connector):
    """Pods that opt in share a deployment; each has its status; the last one takes it away."""
    notes = {"kvedge.io/packed": "true"}
    async with (
        devices(1, tags={"site": "lille"}) as simulation,
        start_connector("pack", gather_seconds=0.3),
    ):
        names = [f"p{number}" for number in range(6)]
        for name in names:
            await world.client.post(world.path, pod(name, "pack", notes=notes))
        for name in names:
            await world.await_ready(name)
        await until_async(lambda: one_pack(world))
        assert simulation.devices["sim-1"].reported["modules"].keys() == {
            f"{n}-main" for n in names
        }
        body = {"spec": {"containers": [{"name": "main", "image": "reg/sensor:2"}]}}
        await world.client.patch(f"{world.path}/p0", body, "strategic")
        modules = simulation.devices["sim-1"].reported["modules"]
        started = modules["p1-main"]["lastStartTimeUtc"]

        def changed():
            found = simulation.devices["sim-1"].reported["modules"]["p0-main"]
            return found["settings"]["image"] == "reg/sensor:2"

        await until_async(changed)
        await world.client.delete(f"{world.path}/p5")
        await world.await_gone("p5")
        await until_async(lambda: "p5-main" not in simulation.devices["sim-1"].reported["modules"])
        modules = simulation.devices["sim-1"].reported["modules"]
        assert modules["p1-main"]["lastStartTimeUtc"] == started
        assert ready(await world.get("p1"))
        for name in names[:5]:
            await world.client.delete(f"{world.path}/{name}")
        for name in names[:5]:
            await world.await_gone(name)
        assert await all_packs(world) == []


async def all_packs(world):
    """Return the packs of all nodes of these tests."""
    listed = await world.service.configurations()
    return [c for c in listed if packing.pack_of(c)]


async def one_pack(world):
    """Tell whether superseded packs have been retired."""
    return len(await all_packs(world)) == 1


async def test_packed_pods_are_adopted(world, devices, start_connector):
    """A restarted connector finds packed pods in the hub and writes neither hub nor status."""
    notes = {"kvedge.io/packed": "true"}
    async with devices(1, tags={"site": "lille"}):
        async with start_connector("adoptpack", gather_seconds=0.3):
            for name in ("a", "b"):
                await world.client.post(world.path, pod(name, "adoptpack", notes=notes))
            for name in ("a", "b"):
                await world.await_ready(name)
            await until_async(lambda: one_pack(world))
        before = await all_packs(world)
        async with start_connector("adoptpack", orphan_seconds=0.1) as node:
            await until_async(lambda: node.engine.synced.is_set())
            assert node.engine.counters.statuses == 0
            assert [c["id"] for c in await all_packs(world)] == [c["id"] for c in before]
            for name in ("a", "b"):
                await world.client.delete(f"{world.path}/{name}")
            for name in ("a", "b"):
                await world.await_gone(name)
        assert await all_packs(world) == []


async def test_failing_revision_is_rolled_back(world, devices, start_connector):
    """A revision that fails gives way to the last good one, says so, and a new one may follow."""
    notes = {"kvedge.io/rollback-after": "1s"}
    async with (
        devices(1, tags={"site": "lille"}) as simulation,
        start_connector("back"),
    ):
        await world.client.post(world.path, pod("a", "back", notes=notes))
        await world.await_ready("a")
        (good,) = await world.own()
        device = simulation.devices["sim-1"]
        device.override("a-main", runtimeStatus="failed", settings={"image": "reg/sensor:2"})
        body = {"spec": {"containers": [{"name": "main", "image": "reg/sensor:2"}]}}
        await world.client.patch(f"{world.path}/a", body, "strategic")

        async def back():
            return (await world.get("a"))["status"].get("reason") == "RolledBack"

        await until_async(back)
        device.clear_overrides()
        assert (await world.own())[-1]["id"] == good["id"]
        assert not ready(await world.get("a"))
        await until_async(
            lambda: device.reported["modules"]["a-main"]["settings"]["image"] == "reg/sensor:1"
        )
        events = await world.client.get(f"/api/v1/namespaces/{world.namespace}/events")
        assert "RolledBack" in {event["reason"] for event in events["items"]}
        body["spec"]["containers"][0]["image"] = "reg/sensor:3"
        await world.client.patch(f"{world.path}/a", body, "strategic")
        await until_async(
            lambda: device.reported["modules"]["a-main"]["settings"]["image"] == "reg/sensor:3"
        )
        await world.await_ready("a")
        await world.await_own(1)


async def test_deployment_that_somebody_removed_comes_back(world, devices, start_connector):
    """A deployment that is deleted in the hub by hand is made again, and the pod says so."""
    async with devices(1, tags={"site": "lille"}), start_connector("lost"):
        await world.client.post(world.path, pod("a", "lost"))
        await world.await_ready("a")
        (made,) = await world.own()
        await world.service.delete_configuration(made["id"])
        await world.await_own(1)
        await world.await_ready("a")


async def test_condition_that_the_hub_refuses(world, start_connector):
    """A target condition that the hub does not understand is told at its annotation."""
    async with start_connector("condition"):
        for name, packed in (("a", "false"), ("b", "true")):
            notes = {"kvedge.io/target-condition": "tags.x ===", "kvedge.io/packed": packed}
            await world.client.post(world.path, pod(name, "condition", notes=notes))

            async def told(name=name):
                found = (await world.get(name)).get("status") or {}
                return found.get("message")

            message = await until_async(told)
            assert "metadata.annotations[kvedge.io/target-condition]: the hub refuses it" in message
        assert await world.own() == []
        assert await all_packs(world) == []
