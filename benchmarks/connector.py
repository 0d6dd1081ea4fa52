"""The connector at a hub's size: `make -s bench NAME=connector`. No rival exists.

One hub (emulated, with the throttles of tier S1), simulated devices in groups, one connector; hub
and devices are processes of their own. In this order:
- pods for one group each, until all run; from the 80th deployment on they share;
- steady: nothing changes for some minutes, then one device reports a failure;
- throttled: pods while the hub has half of the units that the connector was told, and refuses
  everything for 5 of each 30 seconds; then all pods go;
- packed: pods that share deployments, on 50 single devices; then they go.
Steady state, throttling and packing run with the quotas of one unit, the others with those of ten,
which the output says. About six minutes on two quiet cores. Options: --deployments N, --devices N,
--packed N, --throttled N, --minutes M of steady state, --seconds N that one step may take,
--only "steady throttled packed".
"""

import argparse
import asyncio
import collections
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
from kvedge.edge import packing
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
BURSTS = {"fail_status": 429, "fail_count": -1, "fail_seconds": 5.0, "fail_every_seconds": 30.0}
REQUESTS_PER_MINUTE = 12
WRITES_PER_MINUTE = 20
"""Operations on deployments that a hub of one unit takes, and as many at once."""
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


class Budget(iothub.Budget):
    """A budget that counts what the hub refused all the same."""

    def __init__(self, units):
        super().__init__(units)
        self.refusals = collections.Counter()

    def refused(self, kind):
        self.refusals[kind] += 1
        super().refused(kind)


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
    print(figures, file=sys.stderr, flush=True)


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
            Secret(self.hub.connection), ca_file=self.hub.ca, budget=Budget(units)
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

    async def all_gone(self, key, prefixes):
        """Delete all pods; return how long that takes and what is left over in the hub."""
        async with self.connector(MANY_UNITS) as (service, _):
            began = now()
            for prefix, count in prefixes.items():
                await self.clear(prefix, count)
            took = round(now() - began, 1)
            return {key: took, "left_over": len(await service.configurations()) - 1}


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


def modules_of(configurations):
    """Return how many deployments each module is in."""
    return collections.Counter(
        name
        for entry in configurations
        for module, name in packing.parts_of(entry["content"]["modulesContent"])
        if module == "$edgeAgent"
    )


async def throttled(bench, prefixes, options):
    """Return what becomes of pods while the hub has less units than the connector was told.

    Args:
        bench: where it runs.
        prefixes: of the names of all pods to how many there are.
        options: of the command line.
    """
    wanted = {
        f"properties.desired.modules.{prefix}{index}-m"
        for prefix, count in prefixes.items()
        for index in range(count)
    }
    async with bench.connector(TOLD_UNITS) as (service, node):
        await bench.knobs(tier="S1", units=1, **BURSTS)
        took = await bench.bring("t", options.throttled, group_pod)
        refused = service.budget.refusals.total()
        await bench.knobs(tier="S1", units=MANY_UNITS)
        began = now()
        while True:
            found = modules_of(await service.configurations())
            twice = sum(count > 1 for count in found.values())
            # Pods that share are in two deployments until every device has the newer one.
            if not twice or now() - began > 2 * node.provider.poll_interval():
                break
            await asyncio.sleep(5)
    return {
        "pods": options.throttled,
        "hub_units": 1,
        "connector_units": TOLD_UNITS,
        "bursts": BURSTS,
        "refused": refused,
        "all_running_s": took,
        "lost": len(wanted - found.keys()),
        "made_twice": twice,
    }


async def pack(bench, options):
    """Return how long pods that share deployments take, and what that costs the hub."""
    async with bench.connector(1) as (service, _):
        before, cpu = dict(service.budget.spent), time.process_time()
        took = await bench.bring("k", options.packed, packed_pod)
        spent = service.budget.spent
        packs = [e for e in await service.configurations() if packing.pack_of(e)]
        return {
            "packed_pods": bench.seen.count_ready("k"),
            "packed_s": took,
            "packed_deployments": len(packs),
            "packed_targets": len({entry["targetCondition"] for entry in packs}),
            "packed_hub_requests": {
                kind: count - before.get(kind, 0) for kind, count in spent.items()
            },
            "packed_refused": service.budget.refusals.total(),
            "packed_cpu_s": round(time.process_time() - cpu, 1),
        }


def targets(figures, options):
    """Return the limits of all figures that were taken."""
    limits = {}
    if "hub_requests_per_min" in figures:
        limits["hub_requests_per_min"] = ("<=", REQUESTS_PER_MINUTE)
        limits["report_to_status_s"] = ("<=", 2 * figures["poll_interval_s"])
        limits["restart_status_writes"] = ("<=", 0)
    if "throttled" in figures:
        limits["throttled.lost"] = limits["throttled.made_twice"] = ("<=", 0)
        limits["throttled.refused"] = (">=", 1)
    if "packed_pods" in figures:
        writes = WRITES_PER_MINUTE * (1 + figures["packed_s"] / 60)
        limits["packed_pods"] = (">=", options.packed)
        limits["packed_targets"] = (">=", min(options.packed, GROUPS * TARGETS_PER_GROUP))
        limits["packed_hub_requests.configurations"] = ("<=", round(writes))
        limits["packed_refused"] = ("<=", 0)
    limits["left_over"] = ("<=", 0)
    return limits


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
                    figures["hub_deployments"] = len(await service.configurations())
                prefixes = {"p": options.deployments}
                tell(figures)
                if "steady" in options.only:
                    figures |= await steady(bench, devices, options)
                    tell(figures)
                if "throttled" in options.only:
                    prefixes["t"] = options.throttled
                    figures["throttled"] = await throttled(bench, prefixes, options)
                    tell(figures)
                figures |= await bench.all_gone("all_gone_s", prefixes)
                if "packed" in options.only:
                    figures |= await pack(bench, options)
                    tell(figures)
                    left = figures["left_over"]
                    figures |= await bench.all_gone("packed_gone_s", {"k": options.packed})
                    figures["left_over"] += left
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
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=400.0, help="for one step")
    parser.add_argument("--only", type=str.split, default=["steady", "throttled", "packed"])
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
    judged = _common.judged(figures, targets(figures, options))
    _common.emit("connector", before, {**sizes, **figures, "targets": judged})


main()
