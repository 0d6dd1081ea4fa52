"""The hub emulator under load: `make -s bench NAME=hub`. No rival exists.

KVEDGE_BENCH_SIZES="100 1000" takes other numbers of devices than 100, 1000 and 5000; figures of one
number are those of 1000, or of the largest number below it. `growth` tells of each cost how many
times as much the largest number of devices pays for a device as the second largest: 1 is linear.
"""

import asyncio
import json
import os
import pathlib
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time

import _common
import aiohttp
import uvloop
from _hub import Hub

from kvedge import names
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
CONFIGURATIONS = 100


def full(mark):
    """Return a base deployment's content."""
    modules = {"sensor": {"type": "docker", "settings": {"image": mark}}}
    return {
        "modulesContent": {
            "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": modules}},
            "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {}}},
        }
    }


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

    async def call(self, method, path, body=None, headers=None):
        """Send a request; returns the answer's body and headers."""
        url = f"https://{self.host}{path}?api-version=2021-04-12"
        async with self.session.request(method, url, json=body, headers=headers) as response:
            answer = await response.read()
            assert response.status < 300, answer
            return answer, response.headers


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


async def read_all(client):
    """Return the seconds to page through all devices, 100 a page."""
    began = time.perf_counter()
    headers = {}
    while True:
        body = {"query": "SELECT * FROM devices"}
        _, answered = await client.call("POST", "/devices/query", body, headers)
        if "x-ms-continuation" not in answered:
            return time.perf_counter() - began
        headers = {"x-ms-continuation": answered["x-ms-continuation"]}


async def vendor_check(hub):
    """Return what the vendor's own clients see of the hub meanwhile."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", pathlib.Path(__file__).with_name("_vendor.py"),
        hub.folder, str(hub.https_port), str(hub.mqtt_port), stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await child.communicate()
    assert child.returncode == 0, "the vendor's clients failed"
    return json.loads(out)


async def loaded(size):
    """Return the figures of one hub with so many connected devices."""
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(folder)
        try:
            figures = {"devices": size, "idle_rss_kib": hub.rss_kib()}
            plan = Plan(
                connection_string=hub.connection,
                mqtt=("127.0.0.1", hub.mqtt_port),
                host=names.HUB_HOST,
                ca=hub.ca,
                devices=size,
            )
            client = Client(hub)
            began = time.perf_counter()
            async with Simulation(plan) as running:
                await running.connected()
                figures["connect_s"] = time.perf_counter() - began
                await push(client, running, "c1")
                figures["push_s"] = await push(client, running, "c2")
                figures["rss_kib"] = hub.rss_kib()
                figures["twin_read_p99_ms"] = await read_p99(client, [*running.devices])
                figures["query_all_s"] = await read_all(client)
                figures |= await vendor_check(hub)
                figures["cpu_s"] = hub.cpu_seconds()
            await client.session.close()
            return figures
        finally:
            hub.stop()


async def evaluated(devices):
    """Return the costs of evaluating many configurations, and again without news."""
    with tempfile.TemporaryDirectory() as folder:
        memory = store.Store(pathlib.Path(folder) / "hub.db")
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
        for number in range(CONFIGURATIONS):
            module = f"properties.desired.modules.m{number % 40}"
            layer = {"modulesContent": {"$edgeAgent": {module: {"settings": {"image": "x"}}}}}
            body = {
                "content": layer if number else full("x"),
                "targetCondition": "*" if number % 2 else f"tags.site != {number % 10}",
                "priority": number,
            }
            writes.put(f"c{number}", body, None)
        figures = {}
        for kind in ("evaluate", "evaluate_again"):
            engine.configurations_changed()
            began, cpu = time.perf_counter(), time.process_time()
            await engine.evaluate()
            figures[f"{kind}_s"] = time.perf_counter() - began
            figures[f"{kind}_cpu_s"] = time.process_time() - cpu
        memory.close()
        return figures


COSTS = ("connect_s", "push_s", "query_all_s", "evaluate_s", "evaluate_again_s", "evaluate_cpu_s")


async def measure():
    """Measure everything."""
    # First, while this process holds no thousand devices of its own to collect garbage of.
    evaluations = [await evaluated(size) for size in SIZES]
    rows = [
        {name: round(value, 3) for name, value in (await loaded(size) | costs).items()}
        for size, costs in zip(SIZES, evaluations, strict=True)
    ]
    chosen = ([row for row in rows if row["devices"] <= 1000] or rows)[-1]
    figures = {
        "devices": chosen["devices"],
        "twin_read_p99_ms": chosen["twin_read_p99_ms"],
        "push_1000_s": chosen["push_s"],
        "evaluate_100x1000_s": chosen["evaluate_s"],
        "rows": rows,
    }
    if len(rows) > 1:
        low, high = rows[-2], rows[-1]
        more = high["devices"] - low["devices"]
        figures["rss_kib_per_device"] = round((high["rss_kib"] - low["rss_kib"]) / more, 1)
        times = high["devices"] / low["devices"]
        figures["growth"] = {name: round(high[name] / low[name] / times, 2) for name in COSTS}
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
