"""The hub emulator under load: `make -s bench NAME=hub`. No rival exists.

KVEDGE_BENCH_SIZES="100 1000" takes other numbers of devices than 100, 1000 and 5000; figures of one
number are measured at 1000, or at the largest number below it.
"""

import asyncio
import os
import pathlib
import resource
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time

import _common
import aiohttp
import uvloop

from kvedge.emulator import (
    configurations,
    deploying,
    presence,
    querying,
    registry,
    store,
    tokens,
    twins,
)
from kvedge.emulator.monitoring import connection_parts
from kvedge.emulator.simulation import Plan, Simulation

SIZES = [int(word) for word in os.environ.get("KVEDGE_BENCH_SIZES", "100 1000 5000").split()]
READS_PER_SECOND = 200
READ_SECONDS = 10


def full(mark):
    """Return a base deployment's content."""
    modules = {"sensor": {"type": "docker", "settings": {"image": mark}}}
    return {
        "modulesContent": {
            "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": modules}},
            "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
        }
    }


class Hub:
    """The emulator as a process of its own."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.child = subprocess.Popen(
            [sys.executable, "-m", "kvedge", "hub", "emulate", "--dir", folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.child.stdout.readline()
        self.mqtt_port = int(line.rpartition(" ")[2])
        self.connection = (self.folder / "service.connection").read_text()
        self.ca = self.folder / "pki" / "ca.crt"

    def rss_kib(self):
        text = pathlib.Path(f"/proc/{self.child.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(30)


class Client:
    """The hub's service side over a few kept connections."""

    def __init__(self, hub):
        self.host, policy, key = connection_parts(hub.connection)
        token = tokens.issue(self.host, key, expiry=int(time.time()) + 7200, policy=policy)
        context = ssl.create_default_context(cafile=hub.ca)
        self.session = aiohttp.ClientSession(
            headers={"Authorization": token},
            connector=aiohttp.TCPConnector(ssl=context, limit=16),
        )

    async def call(self, method, path, body=None):
        url = f"https://{self.host}{path}?api-version=2021-04-12"
        async with self.session.request(method, url, json=body) as response:
            answer = await response.read()
            assert response.status < 300, answer
            return answer


async def push(client, running, mark):
    """Return the seconds from a new deployment until every device runs it."""
    body = {"content": full(mark), "targetCondition": "*", "priority": int(mark[1:])}
    began = time.perf_counter()
    await client.call("PUT", f"/configurations/{mark}", body)
    for device in running.devices.values():
        while (
            device.reported.get("modules", {}).get("sensor", {}).get("settings", {}).get("image")
            != mark
        ):
            await asyncio.sleep(0.02)
            assert time.perf_counter() - began < 300, "devices never heard"
    return time.perf_counter() - began


async def read_p99(client, names):
    """Return the 99th percentile of twin reads at a steady rate, in milliseconds."""
    times = []

    async def one(name):
        began = time.perf_counter()
        await client.call("GET", f"/twins/{name}/modules/%24edgeAgent")
        times.append(time.perf_counter() - began)

    count = READS_PER_SECOND * READ_SECONDS
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0, start + number / READS_PER_SECOND - time.perf_counter()))
            group.create_task(one(names[number % len(names)]))
    return statistics.quantiles(times, n=100)[98] * 1000


async def loaded(size):
    """Return the figures of one hub with so many connected devices."""
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(folder)
        try:
            idle = hub.rss_kib()
            plan = Plan(
                connection_string=hub.connection,
                mqtt=("127.0.0.1", hub.mqtt_port),
                host="hub.kvedge.test",
                ca=hub.ca,
                devices=size,
            )
            client = Client(hub)
            began = time.perf_counter()
            async with Simulation(plan) as running:
                await running.connected()
                figures = {"devices": size, "connect_s": time.perf_counter() - began}
                await push(client, running, "c1")
                figures["push_s"] = await push(client, running, "c2")
                figures["rss_kib"] = hub.rss_kib()
                figures["idle_rss_kib"] = idle
                if size <= 1000:
                    figures["twin_read_p99_ms"] = await read_p99(client, [*running.devices])
                figures["cpu_s"] = hub.cpu_seconds()
            await client.session.close()
            return {name: round(value, 3) for name, value in figures.items()}
        finally:
            hub.stop()


async def evaluated(devices, count):
    """Return the CPU seconds of one evaluation of many configurations, and of one without news."""
    memory = store.Store(None)
    here = presence.Presence(lambda _device: None)
    known = twins.Twins(memory, here)
    identities = registry.Registry(memory, here)
    queries = querying.Queries(memory, here, lambda: 0.0)
    engine = deploying.Engine(memory, here, known, queries, seconds=0)
    writes = configurations.Configurations(memory, engine.configurations_changed)
    for number in range(devices):
        name = f"d{number}"
        identities.put(name, "", {"capabilities": {"iotEdge": True}}, None)
        known.write(known.find(name), {"tags": {"site": number % 10}}, None, replace=False)
    for number in range(count):
        layer = {
            "modulesContent": {
                "$edgeAgent": {
                    f"properties.desired.modules.m{number % 40}": {"settings": {"image": "x"}}
                }
            }
        }
        body = {
            "content": layer if number else full("x"),
            "targetCondition": "*" if number % 2 else f"tags.site != {number % 10}",
            "priority": number,
        }
        writes.put(f"c{number}", body, None)
    times = []
    for _ in range(2):
        engine.configurations_changed()
        began = time.process_time()
        await engine.evaluate()
        times.append(time.process_time() - began)
    return times


async def measure():
    """Measure everything."""
    # First, while this process holds no thousand devices of its own to collect garbage of.
    first, again = await evaluated(1000, 100)
    rows = [await loaded(size) for size in SIZES]
    chosen = [row for row in rows if row["devices"] <= 1000] or rows
    figures = {
        "devices": chosen[-1]["devices"],
        "twin_read_p99_ms": chosen[-1].get("twin_read_p99_ms"),
        "push_1000_s": chosen[-1]["push_s"],
        "evaluate_100x1000_s": round(first, 3),
        "evaluate_100x1000_again_s": round(again, 3),
        "rows": rows,
    }
    if len(rows) > 1:
        low, high = rows[-2], rows[-1]
        slope = (high["rss_kib"] - low["rss_kib"]) / (high["devices"] - low["devices"])
        figures["rss_kib_per_device"] = round(slope, 1)
    return figures


def main():
    """Print one JSON object."""
    before = _common.machine()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16384)), hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure())
    _common.emit("hub", before, figures)


main()
