"""The connector at a hub's size: `make -s bench NAME=connector`.

100 deployments in groups of devices, all devices simulated, the hub emulated, quotas of one S1
unit. Then pods that share deployments, on 50 disjoint targets. Options: --deployments N,
--devices N, --minutes M of steady state, --packed N.
"""

import argparse
import asyncio
import contextlib
import pathlib
import shutil
import tempfile
import threading
import time

import _common
import uvloop

from kvedge import iothub, kube
from kvedge.connector import IotEdgeProvider, Settings
from kvedge.emulator import certificates, simulation
from kvedge.node import NodeSpec, running
from kvedge.redact import Secret
from kvedge.testing.clusters import running_cluster
from kvedge.testing.hubs import running_hub

NAMESPACE, NODE = "bench", "bench-iotedge"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
GROUPS = 10
TARGETS_PER_GROUP = 5
POLL_SECONDS = 15.0
now = time.monotonic


def pod(index):
    """Return a pod for one group of devices."""
    return {
        "metadata": {
            "name": f"p{index}",
            "annotations": {"kvedge.io/target-condition": f"tags.group='g{index % GROUPS}'"},
        },
        "spec": {"nodeName": NODE, "containers": [{"name": "m", "image": "reg/m:1"}]},
    }


def packed_pod(index):
    """Return a pod for one of 50 single devices that shares a deployment with others."""
    group, number = index % GROUPS, index // GROUPS % TARGETS_PER_GROUP + 1
    notes = {"kvedge.io/devices": f"g{group}-{number}", "kvedge.io/packed": "true"}
    return {
        "metadata": {"name": f"k{index}", "annotations": notes},
        "spec": {"nodeName": NODE, "containers": [{"name": "m", "image": "reg/m:1"}]},
    }


def base():
    """Return the deployment below all layers."""
    system = {
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "settings": {"image": "runtime", "createOptions": "{}"},
    }
    agent = {
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {}},
        "systemModules": {"edgeAgent": system, "edgeHub": system},
        "modules": {},
    }
    return {
        "id": "base",
        "targetCondition": "*",
        "priority": 0,
        "content": {"modulesContent": {"$edgeAgent": {"properties.desired": agent}}},
    }


class Devices(threading.Thread):
    """Simulated devices in a loop of their own."""

    def __init__(self, hub, count):
        super().__init__(daemon=True)
        self.hub, self.count = hub, count
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.sets = []

    def run(self):
        """Run all groups."""
        self.loop.run_until_complete(self._run())

    async def _run(self):
        async with contextlib.AsyncExitStack() as stack:
            for group in range(GROUPS):
                plan = simulation.Plan(
                    connection_string=self.hub.connection_string,
                    mqtt=("127.0.0.1", self.hub.mqtt_port),
                    host=self.hub.host,
                    ca=self.hub.ca,
                    devices=self.count // GROUPS,
                    prefix=f"g{group}",
                    tags={"group": f"g{group}"},
                )
                self.sets.append(await stack.enter_async_context(simulation.Simulation(plan)))
            for made in self.sets:
                await made.connected()
            self.ready.set()
            await asyncio.Event().wait()

    def override(self, device, module, **fields):
        """Let a device report something else."""
        found = self.sets[0].devices[device]
        self.loop.call_soon_threadsafe(lambda: found.override(module, **fields))


@contextlib.asynccontextmanager
async def connector(config, hub, units):
    """Run the connector in this process; yield its service face and engine."""
    async with iothub.Hub.from_connection_string(
        Secret(hub.connection_string), ca_file=hub.ca, budget=iothub.Budget(units)
    ) as service:
        settings = Settings(
            cluster="bench", node=NODE, address="10.0.0.1", poll_seconds=POLL_SECONDS
        )
        provider = IotEdgeProvider(service, settings)
        node = running.VirtualNode(
            config=config,
            spec=NodeSpec(name=NODE, address="127.0.0.1", provider="iotedge"),
            provider=provider,
        )
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(node.run(stop))
            try:
                await node.registered.wait()
                yield service, node
            finally:
                stop.set()
                await task


async def count_ready(client, prefix):
    """Return how many pods whose names begin so are Ready."""
    listed = await client.get(PODS)
    return sum(
        any(
            c["type"] == "Ready" and c["status"] == "True"
            for c in p["status"].get("conditions", ())
        )
        for p in listed["items"]
        if p["metadata"]["name"].startswith(prefix)
    )


async def wait(condition, seconds):
    """Await a coroutine's condition and return the seconds that it took."""
    began = now()
    while not await condition():
        if now() - began > seconds:
            raise SystemExit("not in time")
        await asyncio.sleep(0.5)
    return now() - began


async def measure(options, folder):
    """Return all figures."""
    figures = {}
    with (
        running_cluster(folder / "cluster") as cluster,
        running_hub(None, certificates.ensure(folder / "pki", ["hub.kvedge.test"])) as hub,
    ):
        config = kube.load_config(cluster.kubeconfig)
        devices = Devices(hub, options.devices)
        devices.start()
        await asyncio.to_thread(devices.ready.wait)
        async with kube.Client(config) as client:
            await client.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            async with connector(config, hub, iothub.UNLIMITED) as (service, _):
                await service.create_configuration(base())
                began = now()
                for index in range(options.deployments):
                    await client.post(PODS, pod(index))

                async def all_ready():
                    return await count_ready(client, "p") >= options.deployments

                await wait(all_ready, options.seconds)
                figures["all_running_s"] = round(now() - began, 1)
            async with connector(config, hub, 1) as (service, node):
                await asyncio.wait_for(node.engine.synced.wait(), 120)
                await asyncio.sleep(5)
                figures["restart_status_writes"] = node.engine.counters.statuses
                before, began = sum(service.budget.spent.values()), now()
                cpu = time.process_time()
                await asyncio.sleep(options.minutes * 60)
                minutes = (now() - began) / 60
                sent = sum(service.budget.spent.values()) - before
                figures["hub_requests_per_min"] = round(sent / minutes, 1)
                figures["cpu_share"] = round((time.process_time() - cpu) / (now() - began), 3)
                figures["cpu_share_note"] = "hub, devices and connector share one process"
                devices.override("g0-1", "p0-m", runtimeStatus="failed")

                async def told():
                    return await count_ready(client, "p") < options.deployments

                figures["report_to_status_s"] = round(await wait(told, 300), 1)
                figures["poll_interval_s"] = round(node.provider.poll_interval(), 1)
                figures |= await pack(client, service, options)
    return figures


async def pack(client, service, options):
    """Return how long pods that share deployments take, and what that costs the hub."""
    before, began = service.budget.spent.get("configurations", 0), now()
    for index in range(options.packed):
        await client.post(PODS, packed_pod(index))

    async def all_ready():
        return await count_ready(client, "k") >= options.packed

    await wait(all_ready, options.seconds)
    took = now() - began
    listed = await service.configurations()
    return {
        "packed_pods": await count_ready(client, "k"),
        "packed_s": round(took, 1),
        "packed_deployments": sum("-pack-" in entry["id"] for entry in listed),
        "packed_hub_writes": service.budget.spent["configurations"] - before,
    }


def main():
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deployments", type=int, default=100)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--packed", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=900.0, help="until all pods run")
    options = parser.parse_args()
    before = _common.machine()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvedge-bench-"))
    for name in ("cluster", "pki"):
        (folder / name).mkdir()
    try:
        figures = uvloop.run(measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {"deployments": options.deployments, "devices": options.devices}
    _common.emit("connector", before, {**sizes, **figures})


main()
