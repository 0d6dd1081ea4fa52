"""The web providers between a real API server and backends in the two dialects."""

from __future__ import annotations

import contextlib

import pytest
from aiohttp import web

from kvedge.node.provider import LogOptions
from kvedge.node.web import BrokerProvider, InterLinkProvider
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(180)

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
READY = [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")]


class Broker:
    """A backend of Virtual Kubelet's web provider that keeps pods in memory."""

    def __init__(self) -> None:
        self.pods = {}
        self.asked = []
        self.refuse = 0

    def routes(self):
        return [
            web.post("/createPod", self.put),
            web.put("/updatePod", self.put),
            web.delete("/deletePod", self.delete),
            web.get("/getPod", self.one),
            web.get("/getPodStatus", self.status),
            web.get("/getPods", self.all),
            web.get("/getContainerLogs", self.logs),
            web.get("/capacity", self.capacity),
            web.get("/nodeConditions", self.conditions),
        ]

    async def put(self, request):
        pod = await request.json()
        self.asked.append((request.path, pod))
        if self.refuse:
            return web.Response(status=self.refuse, text="no room")
        pod["status"] = {
            "phase": "Running",
            "podIP": "10.9.8.7",
            "conditions": READY,
            "containerStatuses": [
                {"name": c["name"], "image": c["image"], "imageID": "", "ready": True,
                 "restartCount": 0, "state": RUNNING}
                for c in pod["spec"]["containers"]
            ],
        }  # fmt: skip
        self.pods[pod["metadata"]["namespace"], pod["metadata"]["name"]] = pod
        return web.Response()

    async def delete(self, request):
        pod = await request.json()
        self.pods.pop((pod["metadata"]["namespace"], pod["metadata"]["name"]), None)
        self.asked.append((request.path, pod))
        return web.Response()

    def _found(self, request):
        key = request.query["namespace"], request.query["name"]
        if key not in self.pods:
            raise web.HTTPNotFound
        return self.pods[key]

    async def one(self, request):
        return web.json_response(self._found(request))

    async def status(self, request):
        return web.json_response(self._found(request)["status"])

    async def all(self, request):
        return web.json_response(list(self.pods.values()))

    async def logs(self, request):
        return web.Response(text=f"{request.query['containerName']} {request.query['tail']}\n")

    async def capacity(self, request):
        return web.json_response({"cpu": "7", "memory": "9Gi", "pods": "11"})

    async def conditions(self, request):
        return web.json_response([{"type": "Ready", "status": "True", "reason": "Fine"}])


class Plugin:
    """An interLink plugin that keeps jobs in memory."""

    def __init__(self) -> None:
        self.jobs = {}
        self.created = []
        self.exit_code = None

    def routes(self):
        return [
            web.post("/create", self.create),
            web.post("/delete", self.delete),
            web.get("/status", self.status),
            web.get("/getLogs", self.logs),
        ]

    async def create(self, request):
        assert request.headers["Authorization"] == "Bearer secret"
        for entry in await request.json():
            self.created.append(entry)
            self.jobs[entry["pod"]["metadata"]["uid"]] = entry["pod"]
        return web.json_response([{"PodUID": uid, "PodJID": f"job-{uid}"} for uid in self.jobs])

    async def delete(self, request):
        self.jobs.pop((await request.json())["metadata"]["uid"], None)
        return web.json_response("OK")

    async def status(self, request):
        found = []
        for pod in await request.json():
            uid = pod["metadata"]["uid"]
            if uid not in self.jobs:
                continue
            ended = {"terminated": {"exitCode": self.exit_code}}
            state = RUNNING if self.exit_code is None else ended
            found.append({
                "name": pod["metadata"]["name"], "UID": uid, "JID": f"job-{uid}",
                "namespace": pod["metadata"]["namespace"],
                "containers": [
                    {"name": c["name"], "image": c["image"], "imageID": "", "restartCount": 0,
                     "ready": self.exit_code is None, "state": state}
                    for c in pod["spec"]["containers"]
                ],
            })  # fmt: skip
        return web.json_response(found)

    async def logs(self, request):
        asked = await request.json()
        return web.Response(text=f"{asked['ContainerName']} {asked['Opts']['Tail']}\n")


@contextlib.asynccontextmanager
async def serving(backend):
    """Serve a backend on loopback and yield its URL."""
    app = web.Application()
    app.add_routes(backend.routes())
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def pod(name, node, **spec):
    """Return a pod with a variable from its own metadata."""
    source = {"fieldRef": {"fieldPath": "metadata.name"}}
    env = [{"name": "ME", "valueFrom": source}, {"name": "HI", "value": "hi $(ME)"}]
    containers = [{"name": "c", "image": "i", "env": env, **spec.pop("container", {})}]
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeName": node, "enableServiceLinks": False, "containers": containers, **spec,
        },
    }  # fmt: skip


def phase_of(client, namespace, name):
    """Return what reads a pod's phase."""

    async def read():
        found = await client.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        return (found.get("status") or {}).get("phase")

    return read


async def test_broker(client, namespace, start_node):
    """A pod is handed over with its variables, shown as the broker says, and ended."""
    broker = Broker()
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with serving(broker) as url:
        assert await BrokerProvider(url).describe() == {"cpu": "7", "memory": "9Gi", "pods": "11"}
        provider = BrokerProvider(url, poll_seconds=0.1)
        async with start_node(provider=provider) as node:
            await client.post(pods, pod("a", node.spec.name))
            phase = phase_of(client, namespace, "a")

            async def running():
                return await phase() == "Running"

            await until_async(running)
            env = broker.asked[0][1]["spec"]["containers"][0]["env"]
            assert {"name": "HI", "value": "hi a"} in env
            found = await client.get(f"{pods}/a")
            assert found["status"]["podIP"] == "10.9.8.7"
            lines = [line async for line in provider.logs(found, "c", LogOptions(tail=3))]
            assert lines == [b"c 3\n"]
            await client.patch(f"{pods}/a", {"metadata": {"labels": {"x": "y"}}})
            await until_async(lambda: "/updatePod" in [path for path, _ in broker.asked])
            await until_async(lambda: provider.health().reason == "Fine")
        assert broker.pods, "what runs goes on without the node"
        async with start_node(node.spec.name, BrokerProvider(url, poll_seconds=0.1)) as again:
            await until_async(again.engine.synced.is_set)
            assert [path for path, _ in broker.asked].count("/createPod") == 1
            await client.delete(f"{pods}/a")
            await until_async(lambda: not broker.pods)


async def test_broker_loses_and_refuses(client, namespace, start_node):
    """A pod that the broker forgets has failed; one that it refuses waits with its words."""
    broker = Broker()
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with (
        serving(broker) as url,
        start_node(provider=BrokerProvider(url, poll_seconds=0.1)) as node,
    ):
        await client.post(pods, pod("lost", node.spec.name))
        phase = phase_of(client, namespace, "lost")

        async def running():
            return await phase() == "Running"

        await until_async(running)
        broker.pods.clear()

        async def failed():
            return await phase() == "Failed"

        await until_async(failed)
        broker.refuse = 422
        await client.post(pods, pod("refused", node.spec.name))

        async def told():
            found = await client.get(f"{pods}/refused")
            return "422 no room" in found["status"].get("message", "")

        await until_async(told)
        assert [path for path, _ in broker.asked].count("/createPod") == 2


async def test_unreachable_endpoint_makes_the_node_not_ready(client, start_node):
    """A node without its backend says so."""
    provider = BrokerProvider("http://127.0.0.1:1", poll_seconds=0.1)
    async with start_node(provider=provider) as node:

        async def said():
            found = await client.get(f"/api/v1/nodes/{node.spec.name}")
            ready = next(c for c in found["status"]["conditions"] if c["type"] == "Ready")
            return (ready["status"], ready["reason"]) == ("False", "EndpointUnreachable")

        await until_async(said)


async def test_interlink_plugin(client, namespace, start_node):
    """A job runs with its mounted ConfigMap, and its end is the pod's."""
    plugin = Plugin()
    pods = f"/api/v1/namespaces/{namespace}/pods"
    config = {"metadata": {"name": "settings"}, "data": {"k": "v"}}
    await client.post(f"/api/v1/namespaces/{namespace}/configmaps", config)
    volumes = [{"name": "v", "configMap": {"name": "settings"}}]
    container = {"volumeMounts": [{"name": "v", "mountPath": "/etc/v"}]}
    async with serving(plugin) as url:
        provider = InterLinkProvider(url, token="secret", poll_seconds=0.1)
        async with start_node(provider=provider) as node:
            body = pod("job", node.spec.name, container=container, volumes=volumes)
            body["spec"]["restartPolicy"] = "Never"
            await client.post(pods, body)
            phase = phase_of(client, namespace, "job")

            async def running():
                return await phase() == "Running"

            await until_async(running)
            (created,) = plugin.created
            (maps,) = created["container"][0]["configMaps"]
            assert maps == {"metadata": {"name": "settings"}, "data": {"k": "v"}}
            found = await client.get(f"{pods}/job")
            lines = [line async for line in provider.logs(found, "c", LogOptions(tail=2))]
            assert lines == [b"c 2\n"]
            plugin.exit_code = 3

            async def failed():
                return await phase() == "Failed"

            await until_async(failed)
            await client.delete(f"{pods}/job")
            await until_async(lambda: not plugin.jobs)
