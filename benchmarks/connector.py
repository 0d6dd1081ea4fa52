"""The connector at a hub's size: `make -s bench NAME=connector`. No rival exists.

One hub (emulated, with the throttles of tier S1), simulated devices in groups, one connector; hub
and devices are processes of their own. In this order:
- pods for one group each, until all run; from the 80th deployment on they share;
- steady state, then one device reports a failure;
- pods while the hub refuses requests, for it has half of the units that the connector was told, and
  in bursts; then all pods go;
- pods that share deployments, on 50 single devices; then they go.
Steady state, throttling and packing run with the quotas of one unit, the others with those of ten,
which the output says. Options: --deployments N, --devices N, --packed N, --minutes M of steady state,
--throttled N, --seconds N that one step may take.
"""

import argparse
import asyncio
import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import _common
import uvloop
from _hub import Hub

from kvedge import iothub, kube
from kvedge.connector import IotEdgeProvider, Settings
from kvedge.emulator import monitoring
from kvedge.node import NodeSpec, running
from kvedge.redact import Secret
from kvedge.testing.clusters import running_cluster
from kvedge.testing.hubs import base_deployment

NAMESPACE, NODE = "bench", "bench-iotedge"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
GROUPS = 10
TARGETS_PER_GROUP = 5
POLL_SECONDS = 15.0
MANY_UNITS = 10
TOLD_UNITS = 2
"""What the connector believes of the hub of one unit that throttles it."""
AT_ONCE = 16
BURSTS = {"fail_status": 429, "fail_count": 5, "fail_every_seconds": 30.0}
now = time.monotonic


def pod(name, notes):
    """Return a pod with one container."""
    return {
        "metadata": {"name": name, "annotations": notes},
        "spec": {"nodeName": NODE, "containers": [{"name": "m", "image": "reg/m:1"}]},
    }


def group_pod(prefix, index):
    """Return a pod for one group of devices."""
    return pod(
        f"{prefix}{index}", {"kvedge.io/target-condition": f"tags.group='g{index % GROUPS}'"}
    )


def packed_pod(prefix, index):
    """Return a pod for one of 50 single devices that shares a deployment with others."""
    group, number = index % GROUPS, index // GROUPS % TARGETS_PER_GROUP + 1
    notes = {"kvedge.io/devices": f"g{group}-{number}", "kvedge.io/packed": "true"}
    return pod(f"{prefix}{index}", notes)


class Devices:
    """Simulated devices as a process."""

    def __init__(self, hub, count):
        program = pathlib.Path(__file__).with_name("_devices.py")
        words = [str(hub.folder), str(hub.mqtt_port), str(count), str(GROUPS)]
        self.child = subprocess.Popen(
            [sys.executable, str(program), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def connected(self):
        """Block until all devices are connected."""
        if self.child.stdout.readline() != "connected\n":
            raise SystemExit("the simulated devices did not start")

    def report(self, device, module, status):
        """Let a device report another status of a module."""
        self.child.stdin.write(f"report {device} {module} {status}\n")
        self.child.stdin.flush()

    def stop(self):
        self.child.kill()
        self.child.wait()


class Seen:
    """What a watch on pods shows: which are there, and which of them are Ready."""

    def __init__(self):
        self.all, self.ready, self.changed = set(), set(), asyncio.Event()

    async def follow(self, client):
        """Watch for ever."""
        async for kind, obj in client.watch(PODS, keep=_identity):
            if kind == "SYNCED":
                continue
            name = obj["metadata"]["name"]
            self.all.discard(name)
            self.ready.discard(name)
            if kind != "DELETED":
                self.all.add(name)
                conditions = (obj.get("status") or {}).get("conditions") or ()
                if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
                    self.ready.add(name)
            self.changed.set()

    def count_ready(self, prefix):
        """Return how many pods whose names begin so are Ready."""
        return sum(name.startswith(prefix) for name in self.ready)

    def count(self, prefix):
        """Return how many pods there are whose names begin so."""
        return sum(name.startswith(prefix) for name in self.all)

    async def until(self, fact, seconds, what):
        """Await a fact and return the seconds that it took."""
        began = now()
        while not fact():
            if now() - began > seconds:
                raise SystemExit(f"not within {seconds:g} s: {what}; {len(self.ready)} are ready")
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.changed.wait()
        return round(now() - began, 1)


def tell(figures):
    """Show what is known so far on standard error, for a run takes minutes."""
    print({key: figures[key] for key in list(figures)[-3:]}, file=sys.stderr, flush=True)


def _identity(obj):
    metadata = obj["metadata"]
    return {"metadata": {key: metadata[key] for key in ("uid", "name", "resourceVersion")}}


class Bench:
    """One API server, one hub, its devices."""

    def __init__(self, client, config, hub, seconds):
        self.client, self.config, self.hub, self.seconds = client, config, hub, seconds
        self.seen = Seen()

    async def knobs(self, **knobs):
        """Make the hub as awkward as told, and no more."""
        await monitoring.ask(self.hub.connection, "PUT", "knobs", ca=self.hub.ca, body=knobs or {})

    @contextlib.asynccontextmanager
    async def connector(self, units):
        """Run the connector in this process on a hub of so many units."""
        await self.knobs(tier="S1", units=units)
        async with iothub.Hub.from_connection_string(
            Secret(self.hub.connection), ca_file=self.hub.ca, budget=iothub.Budget(units)
        ) as service:
            settings = Settings(
                cluster="bench", node=NODE, address="10.0.0.1", poll_seconds=POLL_SECONDS
            )
            provider = IotEdgeProvider(service, settings)
            node = running.VirtualNode(
                config=self.config,
                spec=NodeSpec(name=NODE, address="127.0.0.1", provider="iotedge"),
                provider=provider,
            )
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                task = group.create_task(node.run(stop))
                try:
                    await asyncio.wait_for(node.registered.wait(), 120)
                    await asyncio.wait_for(node.engine.synced.wait(), 120)
                    yield service, node
                finally:
                    stop.set()
                    await task

    async def each(self, count, act):
        """Call a function of a number so often, a few at once."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(index):
            async with slots:
                await act(index)

        async with asyncio.TaskGroup() as group:
            for index in range(count):
                group.create_task(one(index))

    async def bring(self, prefix, count, made):
        """Create pods; return the seconds until all are Ready."""
        began = now()
        await self.each(count, lambda index: self.client.post(PODS, made(prefix, index)))
        await self.seen.until(
            lambda: self.seen.count_ready(prefix) >= count, self.seconds, f"pods {prefix}* ready"
        )
        return round(now() - began, 1)

    async def clear(self, prefix, count):
        """Delete pods; return the seconds until all have gone."""
        began = now()
        await self.each(count, lambda index: self.client.delete(f"{PODS}/{prefix}{index}"))
        await self.seen.until(
            lambda: not self.seen.count(prefix), self.seconds, f"pods {prefix}* gone"
        )
        return round(now() - began, 1)


async def steady(bench, devices, options):
    """Return what the hub is asked while nothing changes, and how soon a report is told."""
    async with bench.connector(1) as (service, node):
        interval = node.provider.poll_interval()
        await asyncio.sleep(interval / 2)
        figures = {"restart_status_writes": node.engine.counters.statuses}
        before, began, cpu = sum(service.budget.spent.values()), now(), time.process_time()
        await asyncio.sleep(options.minutes * 60)
        minutes = (now() - began) / 60
        sent = sum(service.budget.spent.values()) - before
        figures["hub_requests_per_min"] = round(sent / minutes, 1)
        figures["steady_cpu_share"] = round((time.process_time() - cpu) / (now() - began), 3)
        devices.report("g0-1", "p0-m", "failed")
        figures["report_to_status_s"] = await bench.seen.until(
            lambda: "p0" not in bench.seen.ready, 300, "the failure is told"
        )
        figures["poll_interval_s"] = round(interval, 1)
        devices.report("g0-1", "p0-m", "running")
        return figures


async def pack(bench, options):
    """Return how long pods that share deployments take, and what that costs the hub."""
    async with bench.connector(1) as (service, _):
        before, cpu = dict(service.budget.spent), time.process_time()
        took = await bench.bring("k", options.packed, packed_pod)
        spent = service.budget.spent
        listed = await service.configurations()
        return {
            "packed_pods": bench.seen.count_ready("k"),
            "packed_s": took,
            "packed_deployments": sum("-pack-" in entry["id"] for entry in listed),
            "packed_hub_requests": {
                kind: count - before.get(kind, 0) for kind, count in spent.items()
            },
            "packed_cpu_s": round(time.process_time() - cpu, 1),
        }


async def throttled(bench, options):
    """Return what becomes of pods while the hub has less units than the connector was told."""
    async with bench.connector(TOLD_UNITS) as (service, _):
        await bench.knobs(tier="S1", units=1, **BURSTS)
        took = await bench.bring("t", options.throttled, group_pod)
        await bench.knobs(tier="S1", units=MANY_UNITS)
        owners = [
            (entry.get("labels") or {}).get("kvedge-workload", "")
            for entry in await service.configurations()
        ]
    lone = [name for name in owners if name.startswith("t")]
    return {
        "pods": options.throttled,
        "hub_units": 1,
        "connector_units": TOLD_UNITS,
        "bursts": BURSTS,
        "all_running_s": took,
        "made_twice": len(lone) - len(set(lone)),
    }


async def measure(options, folder):
    """Return all figures."""
    figures = {"units": {"steady": 1, "throttled": 1, "packed": 1, "others": MANY_UNITS}}
    hub = Hub(folder / "hub")
    devices = Devices(hub, options.devices)
    try:
        with running_cluster(folder / "cluster") as cluster:
            config = kube.load_config(cluster.kubeconfig)
            async with kube.Client(config) as client, asyncio.TaskGroup() as group:
                await client.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
                bench = Bench(client, config, hub, options.seconds)
                await asyncio.to_thread(devices.connected)
                follow = group.create_task(bench.seen.follow(client))
                async with bench.connector(MANY_UNITS) as (service, _):
                    await service.create_configuration(base_deployment())
                    began = time.process_time()
                    figures["all_running_s"] = await bench.bring(
                        "p", options.deployments, group_pod
                    )
                    figures["all_running_cpu_s"] = round(time.process_time() - began, 1)
                tell(figures)
                figures |= await steady(bench, devices, options)
                tell(figures)
                figures["throttled"] = await throttled(bench, options)
                tell(figures)
                async with bench.connector(MANY_UNITS) as (service, _):
                    figures["throttled"]["gone_s"] = await bench.clear("t", options.throttled)
                    figures["all_gone_s"] = await bench.clear("p", options.deployments)
                    figures["left_over"] = len(await service.configurations()) - 1
                tell(figures)
                figures |= await pack(bench, options)
                tell(figures)
                async with bench.connector(MANY_UNITS) as (service, _):
                    figures["packed_gone_s"] = await bench.clear("k", options.packed)
                    figures["left_over"] += len(await service.configurations()) - 1
                figures["hub_cpu_s"] = round(hub.cpu_seconds(), 1)
                follow.cancel()
    finally:
        devices.stop()
        hub.stop()
    return figures


def main():
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deployments", type=int, default=100)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--packed", type=int, default=2000)
    parser.add_argument("--throttled", type=int, default=15)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=400.0, help="for one step")
    options = parser.parse_args()
    before, began = _common.machine(), now()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvedge-bench-"))
    for name in ("cluster", "hub"):
        (folder / name).mkdir()
    try:
        figures = uvloop.run(measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["whole_s"] = round(now() - began)
    sizes = {"deployments": options.deployments, "devices": options.devices}
    _common.emit("connector", before, {**sizes, **figures})


main()
