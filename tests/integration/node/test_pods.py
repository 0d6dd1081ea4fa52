"""The pod engine against a real API server."""

from __future__ import annotations

import asyncio

import pytest

from kvedge import errors
from kvedge.node.mock import MockProvider
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(180)


def pod(name: str, node: str, **spec) -> dict:
    """Return a pod that is bound to a node."""
    container = {"name": "c", "image": "i", **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "enableServiceLinks": False,
            "containers": [container],
            **spec,
        },
    }


class Recording(MockProvider):
    """The mock, which also remembers what it was asked and can be told to fail."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.calls = []
        self.works = {}
        self.fail = []

    async def create(self, work):
        name = work.pod["metadata"]["name"]
        self.calls.append(("create", name))
        self.works[name] = work
        if self.fail:
            raise self.fail.pop(0)
        return await super().create(work)

    async def update(self, work):
        self.calls.append(("update", work.pod["metadata"]["name"]))
        return await super().update(work)

    async def delete(self, pod) -> bool:
        self.calls.append(("delete", pod["metadata"]["name"]))
        return await super().delete(pod)


async def _phase(client, namespace, name):
    found = await client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    return (found.get("status") or {}).get("phase")


async def _events(client, namespace):
    listed = await client.get(f"/api/v1/namespaces/{namespace}/events")
    return [event["reason"] for event in listed["items"]]


async def _gone(client, namespace, name):
    try:
        await client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    except errors.NotFound:
        return True
    return False


async def test_life_of_a_pod(client, namespace, start_node):
    """A pod runs, is changed and leaves at once although its grace period is 30 seconds."""
    provider = Recording()
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with start_node("life", provider) as node:
        await client.post(pods, pod("a", "life"))

        async def running():
            return await _phase(client, namespace, "a") == "Running"

        await until_async(running)
        await client.patch(f"{pods}/a", {"metadata": {"labels": {"x": "y"}}})
        await until_async(lambda: ("update", "a") in provider.calls)
        found = await client.get(f"{pods}/a")
        assert found["metadata"]["labels"] == {"x": "y"}
        began = asyncio.get_running_loop().time()
        await client.delete(f"{pods}/a")

        async def gone():
            return await _gone(client, namespace, "a")

        await until_async(gone)
        assert asyncio.get_running_loop().time() - began < 10
        await node.engine.events.flush()
        assert provider.calls == [("create", "a"), ("update", "a"), ("delete", "a")]
        assert {"ProviderCreateSuccess", "ProviderDeleteSuccess"} <= set(
            await _events(client, namespace)
        )


async def test_restart_writes_nothing(client, namespace, start_node):
    """A node that starts again leaves the status of running pods as it is."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with start_node("again"):
        await client.post(pods, pod("a", "again"))

        async def running():
            return await _phase(client, namespace, "a") == "Running"

        await until_async(running)
    before = await client.get(f"{pods}/a")
    provider = Recording()
    async with start_node("again", provider) as node:
        await until_async(lambda: node.engine.synced.is_set())
        assert node.engine.counters.statuses == 0
        assert node.engine.counters.events == 0
    after = await client.get(f"{pods}/a")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert provider.calls == [("create", "a")]


async def test_missing_config_map_wakes_the_pod(client, namespace, start_node):
    """A pod waits with a reason for a mandatory ConfigMap and runs as soon as it arrives."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    env = [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]
    provider = Recording()
    async with start_node("waiting", provider) as node:
        await client.post(pods, pod("a", "waiting", container={"env": env}))

        async def waiting():
            found = await client.get(f"{pods}/a")
            states = [c["state"] for c in found["status"].get("containerStatuses", ())]
            return [s["waiting"]["reason"] for s in states] == ["CreateContainerConfigError"]

        await until_async(waiting)
        assert provider.calls == []
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "late"},
            "data": {"k": "v"},
        }
        await client.post(f"/api/v1/namespaces/{namespace}/configmaps", config)

        async def running():
            return await _phase(client, namespace, "a") == "Running"

        await until_async(running)
        assert provider.works["a"].env == {"c": {"K": "v"}}
        await node.engine.events.flush()
        assert "MandatoryConfigMapNotFound" in await _events(client, namespace)


async def test_force_deleted_pod_ends_at_the_provider(client, namespace, start_node):
    """A pod whose object vanishes is ended at the provider and no longer listed as running."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    provider = Recording()
    async with start_node("force", provider) as node:
        await client.post(pods, pod("a", "force"))

        async def running():
            return await _phase(client, namespace, "a") == "Running"

        await until_async(running)
        assert b'"a"' in node.engine.pod_list(running=True)
        await client.delete(f"{pods}/a", gracePeriodSeconds=0)
        await until_async(lambda: ("delete", "a") in provider.calls)
        await until_async(lambda: b'"a"' not in node.engine.pod_list(running=True))


async def test_passing_failure_is_tried_again(client, namespace, start_node):
    """A provider's passing failure keeps the pod Pending with its words, then it runs."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    provider = Recording()
    provider.fail = [errors.Throttled("write to the backend", status=429)]
    async with start_node("flaky", provider) as node:
        await client.post(pods, pod("a", "flaky", restartPolicy="Never"))

        async def running():
            return await _phase(client, namespace, "a") == "Running"

        await until_async(running)
        assert provider.calls == [("create", "a"), ("create", "a")]
        await node.engine.events.flush()
        assert {"ProviderCreateFailed", "ProviderCreateSuccess"} <= set(
            await _events(client, namespace)
        )


async def test_refused_pod_is_not_tried_again(client, namespace, start_node):
    """What a provider refuses stays Pending with every reason and is not retried."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    provider = Recording()
    problem = errors.Problem(path="spec.x", message="cannot be done", hint="leave it out")
    provider.fail = [errors.SpecError("cannot place pod 'a'", [problem])]
    async with start_node("strict", provider):
        await client.post(pods, pod("a", "strict"))

        async def told():
            found = await client.get(f"{pods}/a")
            return found["status"].get("reason") == "ProviderFailed" and found

        found = await until_async(told)
        assert "spec.x: cannot be done (leave it out)" in found["status"]["message"]
        assert found["status"]["phase"] == "Pending"
        assert provider.calls == [("create", "a")]


async def test_foreign_status_write_is_mended(client, namespace, start_node):
    """When somebody else marks a pod not ready, the node writes the truth again."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with start_node("mending"):
        await client.post(pods, pod("a", "mending"))

        async def ready():
            found = await client.get(f"{pods}/a")
            conditions = found["status"].get("conditions", ())
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        await until_async(ready)
        body = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
        await client.patch(f"{pods}/a/status", body, "strategic")
        await until_async(ready)


async def test_slow_provider_does_not_queue_pods(client, namespace, start_node):
    """Fifty pods on a provider that takes a second run after about one second, not fifty."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with start_node("slow", MockProvider(latency_seconds=1.0)) as node:
        async with asyncio.TaskGroup() as group:
            for index in range(50):
                group.create_task(client.post(pods, pod(f"p{index}", "slow")))
        began = asyncio.get_running_loop().time()
        await until_async(lambda: node.engine.counters.statuses >= 50)
        assert asyncio.get_running_loop().time() - began < 10


async def test_node_is_made_again(client, start_node):
    """A node object that somebody deletes comes back with labels and taint."""
    async with start_node("lost"):
        before = await client.get("/api/v1/nodes/lost")
        await client.delete("/api/v1/nodes/lost")

        async def back():
            try:
                found = await client.get("/api/v1/nodes/lost")
            except errors.NotFound:
                return None
            return found["metadata"]["uid"] != before["metadata"]["uid"] and found

        found = await until_async(back)
        assert found["metadata"]["labels"]["type"] == "virtual-kubelet"
        assert {"key": "virtual-kubelet.io/provider", "value": "mock", "effect": "NoSchedule"} in (
            found["spec"]["taints"]
        )


async def test_node_is_put_right(client, start_node):
    """Labels, taint and capacity that somebody changes come back; others' own additions stay."""
    async with start_node() as node:
        path = f"/api/v1/nodes/{node.spec.name}"
        await client.patch(path, {"metadata": {"labels": {"mine": "1", "type": None}}})
        await client.patch(path, {"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}})
        capacity = {"status": {"capacity": {"cpu": "1"}}}
        await client.patch(f"{path}/status", capacity, "strategic")

        async def right():
            found = await client.get(path)
            labels, taints = found["metadata"]["labels"], found["spec"]["taints"]
            assert labels["type"] == "virtual-kubelet"
            assert labels["mine"] == "1"
            assert {taint["key"] for taint in taints} == {"other", "virtual-kubelet.io/provider"}
            assert found["status"]["capacity"]["cpu"] == "100"
            return True

        await until_async(right)


async def test_stopping_node_says_so(client, start_node):
    """A node that ends in good order is not Ready at once, with a reason."""
    async with start_node() as node:
        path = f"/api/v1/nodes/{node.spec.name}"
    found = await client.get(path)
    ready = next(c for c in found["status"]["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "NodeShutdown")


async def test_what_cannot_fit_is_refused(client, namespace, start_node):
    """A pod that is too large has failed with the kubelet's reason, and room comes back."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    provider = Recording()

    def sized(name, cpu):
        return pod(name, node.spec.name, container={"resources": {"requests": {"cpu": cpu}}})

    async with start_node(provider=provider) as node:
        await until_async(node.engine.synced.is_set)
        await client.post(pods, sized("large", "80"))
        await client.post(pods, sized("too-much", "30"))

        async def phases():
            listed = await client.get(pods)
            return {
                p["metadata"]["name"]: (p["status"].get("phase"), p["status"].get("reason"))
                for p in listed["items"]
            }

        async def decided():
            found = await phases()
            return "Pending" not in {phase for phase, _ in found.values()} and found

        found = await until_async(decided)
        assert found == {"large": ("Running", None), "too-much": ("Failed", "OutOfcpu")}
        assert ("create", "too-much") not in provider.calls
        await client.delete(f"{pods}/large")

        async def left():
            return "large" not in await phases()

        await until_async(left)
        await client.post(pods, sized("next", "90"))

        async def runs():
            return (await phases())["next"] == ("Running", None)

        await until_async(runs)
        await node.engine.events.flush()
        assert "OutOfcpu" in await _events(client, namespace)
