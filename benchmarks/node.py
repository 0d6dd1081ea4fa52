"""The virtual node beside the strongest Go Virtual Kubelet: `make -s bench NAME=node`.

Both run on the same API server in turns; stock Virtual Kubelet comes last. About a quarter of an
hour on two quiet cores, of which --rounds 5 are eight minutes. Options: --rounds N, --pods N,
--restart N, --skip-rival, --only "rate burst latency restart many churn throttled stock".
Latencies run from the intended send time to the watch event at this generator.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time

import _common
import uvloop

from kvedge import errors, kube, processes, tools
from kvedge.node import NodeSpec, mock, running
from kvedge.testing.clusters import running_cluster
from kvedge.testing.faults import FaultyServer

NAMESPACE = "bench"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
NODES, PODS_OF_A_NODE = 100, 50
INFLIGHT = ["--max-requests-inflight=4000", "--max-mutating-requests-inflight=2000"]
RIVALS = {
    "tsf": ["-strip", "-fast-delete"],
    # What the library does when nobody opens its throttles.
    "stock": ["-qps=5", "-burst=10", "-workers=10", "-limiters"],
}
now = time.monotonic


def percentile(values, share):
    """Return a percentile in the values' unit."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Process:
    """A node process and what it uses."""

    def __init__(self, argv, env, log):
        self.child = processes.popen(argv, env=env, log=log)
        self.peak = 0.0

    def _stat(self):
        with open(f"/proc/{self.child.pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()

    def cpu(self):
        """Return CPU seconds so far."""
        fields = self._stat()
        self.peak = max(self.peak, int(fields[21]) * PAGE / 2**20)
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stop(self, number=signal.SIGTERM):
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, number)
        self.child.wait()


class Seen:
    """What the watch on pods has shown."""

    def __init__(self):
        self.running, self.gone, self.touched = {}, {}, {}

    def clear(self):
        """Forget everything."""
        for found in (self.running, self.gone, self.touched):
            found.clear()

    async def follow(self, client):
        """Watch for ever."""
        async for kind, obj in client.watch("/api/v1/pods", keep=lambda o: {"metadata": {
                "uid": o["metadata"]["uid"], "name": o["metadata"]["name"],
                "resourceVersion": o["metadata"]["resourceVersion"]}}):  # fmt: skip
            if kind == "SYNCED":
                continue
            name = obj["metadata"]["name"]
            if kind == "DELETED":
                self.gone.setdefault(name, now())
                continue
            if kind == "MODIFIED":
                self.touched.setdefault(name, now())
            if (obj.get("status") or {}).get("phase") == "Running":
                self.running.setdefault(name, now())


async def wait(condition, seconds=300.0):
    """Poll a condition; return whether it became true."""
    end = now() + seconds
    while now() < end:
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def counters(client):
    """Return the API server's counts of writes on pods, events and nodes."""
    found = {}
    text = (await client.request("GET", "/metrics", raw=True)).decode()
    for line in text.splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels, _, value = line.rpartition(" ")
        fields = dict(part.split("=", 1) for part in labels[24:-1].split(",") if "=" in part)
        fields = {key: text.strip('"') for key, text in fields.items()}
        if fields.get("resource") in ("pods", "events") and fields["verb"] in (
            "POST", "PUT", "PATCH", "APPLY", "DELETE",
        ):  # fmt: skip
            key = f"{fields['verb']} {fields['resource']}/{fields.get('subresource', '')}"
            found[key] = found.get(key, 0) + float(value)
    return found


def pod(name, node):
    """Return the usual pod of the comparison."""
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "c",
                    "image": "bench/none:1",
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                }
            ],
        },
    }


@dataclasses.dataclass
class Bench:
    """One API server and the nodes on it."""

    client: kube.Client
    cluster: object
    folder: pathlib.Path
    seen: Seen
    serial: int = 0

    def start(self, subject, *extra):
        """Start a node; return its name and process."""
        self.serial += 1
        name = f"{subject}-{self.serial}"
        return name, self.process(subject, name, *extra)

    def process(self, subject, name, *extra):
        """Start a node's process."""
        config = self.folder / f"{name}.json"
        config.write_text(f'{{"{name}": {{"cpu": "1000", "memory": "4Ti", "pods": "20000"}}}}')
        env = {"KUBECONFIG": str(self.cluster.kubeconfig), "KUBELET_PORT": "0"}
        log = self.folder / f"{name}.log"
        if subject == "ours":
            argv = [sys.executable, "-m", "kvedge", "node", "run", "--nodename", name,
                    "--provider-config", str(config), "--log-level", "warning"]  # fmt: skip
            options = {"latency": "--latency"}
        else:
            argv = [str(tools.path("vktuned")), "-nodename", name, *RIVALS[subject]]
            options = {"latency": "-latency"}
        for key, value in extra:
            argv += [options[key], value if subject == "ours" else f"{value}s"]
        return Process(argv, env, log)

    async def ready(self, name, seconds=60.0):
        """Wait until a node is Ready."""
        end = now() + seconds
        while now() < end:
            with contextlib.suppress(errors.NotFound):
                node = await self.client.get(f"/api/v1/nodes/{name}")
                conditions = node["status"].get("conditions") or ()
                if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
                    return
            await asyncio.sleep(0.05)
        raise SystemExit(f"node {name} is not ready: see {self.folder}/{name}.log")

    async def send(self, count, rate, one):
        """Call `one(index)` for each index, at a rate or 64 at a time; return intended times."""
        sent, began = {}, now()
        if rate:

            async def at(index):
                await asyncio.sleep(max(0.0, began + index / rate - now()))
                await one(index)

            sent = {index: began + index / rate for index in range(count)}
            await asyncio.gather(*(at(index) for index in range(count)))
            return began, sent
        left = iter(range(count))

        async def work():
            for index in left:
                sent[index] = now()
                await one(index)

        await asyncio.gather(*(work() for _ in range(64)))
        return began, sent

    async def load(self, subject, count, *, rate=0.0, extra=(), delete=True):
        """Create and delete pods on a fresh node and return the figures."""
        self.seen.clear()
        name, process = self.start(subject, *extra)
        try:
            await self.ready(name)
            before, cpu = await counters(self.client), process.cpu()

            async def create(index):
                await self.client.request("POST", PODS, pod(f"{name}-{index}", name), raw=True)

            began, sent = await self.send(count, rate, create)
            complete = await wait(lambda: len(self.seen.running) >= count)
            times = [self.seen.running[f"{name}-{i}"] - sent[i] for i in range(count)
                     if f"{name}-{i}" in self.seen.running]  # fmt: skip
            figures = {
                "complete": complete,
                "running_s": max(self.seen.running.values()) - began,
                "create_p50_ms": percentile(times, 0.5) * 1000,
                "create_p99_ms": percentile(times, 0.99) * 1000,
            }
            await self.quiet(process)
            figures["cpu_ms_per_create"] = (process.cpu() - cpu) * 1000 / count
            figures["rss_mib"] = process.peak
            middle, cpu = await counters(self.client), process.cpu()
            figures["writes_per_create"] = self.writes(before, middle, count)
            if not delete:
                return figures

            async def remove(index):
                path = f"{PODS}/{name}-{index}"
                await self.client.request("DELETE", path, raw=True)

            began, sent = await self.send(count, rate, remove)
            figures["complete"] &= await wait(lambda: len(self.seen.gone) >= count)
            times = [self.seen.gone[f"{name}-{i}"] - sent[i] for i in range(count)
                     if f"{name}-{i}" in self.seen.gone]  # fmt: skip
            figures["gone_s"] = max(self.seen.gone.values()) - began
            figures["delete_p50_ms"] = percentile(times, 0.5) * 1000
            await self.quiet(process)
            figures["cpu_ms_per_delete"] = (process.cpu() - cpu) * 1000 / count
            after = await counters(self.client)
            figures["writes_per_delete"] = self.writes(middle, after, count)
            return figures
        finally:
            process.stop()
            await self.clean(name, count)

    def writes(self, before, after, count):
        """Return writes per pod, the generator's own one taken out."""
        return round(sum(after.values()) - sum(before.values()) - count, 1) / count

    async def quiet(self, process, seconds=1.0):
        """Wait until a node uses next to no CPU, which is when its events are written."""
        last = process.cpu()
        for _ in range(60):
            await asyncio.sleep(seconds)
            used = process.cpu()
            if used - last < 0.03:
                return
            last = used

    async def clean(self, name, count):
        """Remove what is left of a node."""

        async def remove(index):
            with contextlib.suppress(errors.NotFound):
                await self.client.delete(f"{PODS}/{name}-{index}", gracePeriodSeconds=0)

        left = [index for index in range(count) if f"{name}-{index}" not in self.seen.gone]
        await asyncio.gather(*(remove(index) for index in left))
        with contextlib.suppress(errors.NotFound):
            await self.client.delete(f"/api/v1/nodes/{name}")

    async def restart(self, subject, count):
        """Start a node whose pods run already, and send it one new pod at the same moment."""
        name, head = f"{subject}-restart", "" if subject == "ours" else "rival_"
        status = {
            "phase": "Running", "hostIP": "1.2.3.4", "podIP": "5.6.7.8",
            "podIPs": [{"ip": "5.6.7.8"}], "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": kind, "status": "True"} for kind in ("Initialized", "Ready")],
            "containerStatuses": [{
                "name": "c", "image": "bench/none:1", "imageID": "", "ready": True,
                "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        }  # fmt: skip

        async def fill(index):
            path = f"{PODS}/{name}-{index}"
            await self.client.request("POST", PODS, pod(f"{name}-{index}", name), raw=True)
            await self.client.patch(f"{path}/status", {"status": status})

        await self.send(count, 0.0, fill)
        await wait(lambda: sum(n.startswith(name) for n in self.seen.running) >= count)
        await asyncio.sleep(2)
        self.seen.clear()
        before = await counters(self.client)
        began = now()
        process = self.process(subject, name)
        try:
            body = pod("canary", name)
            await self.client.request("POST", PODS, body, raw=True)
            await wait(lambda: "canary" in self.seen.running, 60)
            canary = self.seen.running["canary"] - began
            await self.ready(name)
            ready = now() - began
            await self.quiet(process)
            after = await counters(self.client)
            gained = {key: count - before.get(key, 0) for key, count in after.items()}
            events = gained.pop("POST events/", 0)
            # The rival makes every pod anew and owes each an event; ours adopts them.
            owed = 1 if subject == "ours" else count + 1
            last = max(self.seen.touched.values(), default=began) - began
            figures = {
                f"{head}restart{count}_canary_s": round(canary, 3),
                f"{head}restart{count}_steady_s": round(max(ready, last), 3),
                # The canary's own two: its POST and its status.
                f"{head}restart{count}_writes": int(sum(gained.values()) - 2),
                f"{head}restart{count}_lost_events": int(owed - events),
                f"{head}rss{count}_mib": round(process.peak, 1),
            }
        finally:
            process.stop()
            with contextlib.suppress(errors.NotFound):
                await self.client.delete(f"{PODS}/canary", gracePeriodSeconds=0)
            await self.clean(name, count)
        return figures

    async def many(self, nodes, each):
        """Create pods on many nodes of one process."""
        self.seen.clear()
        config = self.folder / "many.json"
        room = {"cpu": "1000", "memory": "4Ti", "pods": "20000"}
        config.write_text(json.dumps({f"many-{index}": room for index in range(nodes)}))
        argv = [sys.executable, "-m", "kvedge", "node", "run", "--nodename", "many",
                "--provider-config", str(config), "--nodes", str(nodes), "--log-level", "warning"]  # fmt: skip
        env = {"KUBECONFIG": str(self.cluster.kubeconfig), "KUBELET_PORT": "0"}
        process = Process(argv, env, self.folder / "many.log")
        try:
            for index in range(nodes):
                await self.ready(f"many-{index}")

            async def create(index):
                node = f"many-{index % nodes}"
                await self.client.request("POST", PODS, pod(f"many-p{index}", node), raw=True)

            began, _ = await self.send(nodes * each, 0.0, create)
            await wait(lambda: len(self.seen.running) >= nodes * each)
            took = max(self.seen.running.values()) - began
            process.cpu()
            return {"nodes": nodes, "pods": len(self.seen.running), "running_s": round(took, 2),
                    "rss_mib": round(process.peak, 1)}  # fmt: skip
        finally:
            process.stop()
            for index in range(nodes):
                with contextlib.suppress(errors.NotFound):
                    await self.client.delete(f"/api/v1/nodes/many-{index}")
            await self.client.delete(PODS, gracePeriodSeconds=0)

    async def churn(self, seconds=20.0, rate=25.0, alive=100):
        """Create pods at a rate and delete each when `alive` younger ones are there."""
        self.seen.clear()
        name, process = self.start("ours")
        try:
            await self.ready(name)
            cpu, count = process.cpu(), int(seconds * rate)

            async def step(index):
                body = pod(f"{name}-{index}", name)
                await self.client.request("POST", PODS, body, raw=True)
                if index >= alive:
                    path = f"{PODS}/{name}-{index - alive}"
                    await self.client.request("DELETE", path, raw=True)

            _, sent = await self.send(count, rate, step)
            gone = count - alive
            complete = await wait(
                lambda: len(self.seen.running) >= count and len(self.seen.gone) >= gone, 60
            )
            times = [self.seen.running[f"{name}-{index}"] - sent[index] for index in sent
                     if f"{name}-{index}" in self.seen.running]  # fmt: skip
            await self.quiet(process)
            return {"pods": count, "per_second": rate, "complete": complete,
                    "create_p99_ms": round(percentile(times, 0.99) * 1000, 1),
                    "cpu_ms_per_pod": round((process.cpu() - cpu) * 1000 / count, 2)}  # fmt: skip
        finally:
            process.stop()
            await self.clean(name, int(seconds * rate))

    async def throttled(self, count=500, share=0.3):
        """Create and delete pods while a share of the node's requests is answered 429."""
        self.seen.clear()
        draw = random.Random(1)

        def decide(method, _):
            return "throttle" if method != "WATCH" and draw.random() < share else None

        config = kube.load_config(self.cluster.kubeconfig)
        async with FaultyServer(config) as server:
            room = {"cpu": "1000", "memory": "4Ti", "pods": "20000"}
            node = running.VirtualNode(
                config=server.config, provider=mock.MockProvider(),
                spec=NodeSpec(name="throttled", address="127.0.0.1", provider="mock",
                              capacity=room),
            )  # fmt: skip
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(node.run(stop), name="node")
                await self.ready("throttled")
                server.decide = decide

                async def create(index):
                    body = pod(f"throttled-{index}", "throttled")
                    await self.client.request("POST", PODS, body, raw=True)

                async def remove(index):
                    await self.client.request("DELETE", f"{PODS}/throttled-{index}", raw=True)

                began, _ = await self.send(count, 0.0, create)
                created = await wait(lambda: len(self.seen.running) >= count, 60)
                took = now() - began
                began, _ = await self.send(count, 0.0, remove)
                removed = await wait(lambda: len(self.seen.gone) >= count, 60)
                figures = {
                    "pods": count, "share": share, "answered_429": server.failed,
                    "all_running": created, "running_s": round(took, 2),
                    "all_gone": removed, "gone_s": round(now() - began, 2),
                    "events_lost": node.engine.counters.events_lost,
                }  # fmt: skip
                stop.set()
        await self.clean("throttled", count)
        return figures


def median(rounds, key, digits=1):
    """Return the median of a figure over rounds."""
    found = [one[key] for one in rounds if key in one]
    return round(statistics.median(found), digits) if found else None


async def measure(options, folder):
    """Return all figures."""
    subjects = ["ours"] if options.skip_rival else ["ours", "tsf"]
    figures = {}
    want = (options.only or "rate burst latency restart many churn throttled stock").split()
    with running_cluster(folder, INFLIGHT) as cluster:
        async with kube.Client(kube.load_config(cluster.kubeconfig), connections=200) as client:
            await client.post("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            seen = Seen()
            follow = asyncio.get_running_loop().create_task(seen.follow(client))
            bench = Bench(client, cluster, folder, seen)
            rates = {subject: [] for subject in subjects}
            bursts = {subject: [] for subject in subjects}
            for _ in range(options.rounds):
                for subject in subjects:
                    if "rate" in want:
                        rates[subject].append(await bench.load(subject, 120, rate=10.0))
                    if "burst" in want:
                        bursts[subject].append(await bench.load(subject, options.pods))
            for subject in subjects:
                head = "" if subject == "ours" else "rival_"
                if rates[subject]:
                    figures |= {
                        f"{head}rate10_{key}": median(rates[subject], key)
                        for key in ("create_p50_ms", "create_p99_ms", "delete_p50_ms")
                    }
                if bursts[subject]:
                    rounds, count = bursts[subject], options.pods
                    figures |= {
                        f"{head}burst{count}_complete": all(one["complete"] for one in rounds),
                        f"{head}burst{count}_running_s": median(rounds, "running_s", 2),
                        f"{head}burst{count}_gone_s": median(rounds, "gone_s", 2),
                        f"{head}api_calls_per_pod": {
                            "create": median(rounds, "writes_per_create", 2),
                            "delete": median(rounds, "writes_per_delete", 2),
                        },
                        f"{head}cpu_ms_per_create": median(rounds, "cpu_ms_per_create", 2),
                        f"{head}cpu_ms_per_delete": median(rounds, "cpu_ms_per_delete", 2),
                        f"{head}rss{count}_mib": median(rounds, "rss_mib"),
                        f"{head}burst_rounds_s": [
                            [round(one["running_s"], 2), round(one.get("gone_s", 0), 2)]
                            for one in rounds
                        ],
                    }
                if "latency" in want:
                    slow = await bench.load(subject, 500, extra=[("latency", "2")], delete=False)
                    figures[f"{head}latency2s_burst500_s"] = round(slow["running_s"], 2)
            if "restart" in want:
                for subject in subjects:
                    figures |= await bench.restart(subject, options.restart)
            if "many" in want:
                figures["many_nodes"] = await bench.many(NODES, PODS_OF_A_NODE)
            if "churn" in want:
                figures["churn"] = await bench.churn()
            if "throttled" in want:
                figures["throttled"] = await bench.throttled()
            if "stock" in want and not options.skip_rival:
                # A hundred pods, for a thousand take it ten minutes.
                one = await bench.load("stock", 100)
                figures["stock_burst100_running_s"] = round(one["running_s"], 1)
                figures["stock_burst100_gone_s"] = round(one["gone_s"], 1)
            follow.cancel()
    return figures


def targets(figures, options):
    """Return the limits of all figures that were taken; the rival's where it ran, too."""
    burst, again = f"burst{options.pods}", f"restart{options.restart}"
    limits = {
        "rate10_create_p50_ms": ("<=", 20),
        "rate10_create_p99_ms": ("<=", 45),
        "rate10_delete_p50_ms": ("<=", 16),
        "latency2s_burst500_s": ("<=", 3.5),
        f"{burst}_complete": (">=", True),
        f"{again}_canary_s": ("<=", 1),
        f"{again}_steady_s": ("<=", 3),
        f"{again}_writes": ("<=", 0),
        f"{again}_lost_events": ("<=", 0),
        f"rss{options.pods}_mib": ("<=", 100),
        f"rss{options.restart}_mib": ("<=", 200),
        "cpu_ms_per_create": ("<=", 1),
        "cpu_ms_per_delete": ("<=", 1),
        "throttled.all_running": (">=", True),
        "throttled.all_gone": (">=", True),
        "throttled.events_lost": ("<=", 0),
        "churn.complete": (">=", True),
        "many_nodes.pods": (">=", NODES * PODS_OF_A_NODE),
    }
    measured = {name for name in limits if name.partition(".")[0] in figures}
    limits = {name: limits[name] for name in limits if name in measured}
    for name in (f"{burst}_running_s", f"{burst}_gone_s"):
        if f"rival_{name}" in figures:
            limits[name] = ("<=", figures[f"rival_{name}"])
    for verb, count in figures.get("rival_api_calls_per_pod", {}).items():
        limits[f"api_calls_per_pod.{verb}"] = ("<=", count)
    return limits


def main():
    """Run and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--restart", type=int, default=5000)
    parser.add_argument("--only", default="")
    parser.add_argument("--skip-rival", action="store_true")
    options = parser.parse_args()
    before, began = _common.machine(), now()
    if not options.skip_rival:
        tools.ensure(["vktuned"])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kvedge-bench-"))
    try:
        figures = uvloop.run(measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["whole_s"] = round(now() - began)
    figures["rival"] = "not run" if options.skip_rival else "Virtual Kubelet 1.13.0, vktuned"
    figures["targets"] = _common.judged(figures, targets(figures, options))
    _common.emit("node", before, figures)


main()
