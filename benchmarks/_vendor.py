"""How fast the vendor's own clients find a hub: a process of its own for benchmarks/hub.py.

The device client waits by select(), which takes no more than 1024 open files in a process.
Usage: _vendor.py FOLDER HTTPS_PORT MQTT_PORT; the folder is that of `kvedge hub emulate`.
"""

import asyncio
import dataclasses
import json
import pathlib
import queue
import statistics
import sys
import time

from azure.iot.device import IoTHubDeviceClient, ProxyOptions
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import Twin, TwinProperties

from kvedge import names
from kvedge.testing.hubs import connect_proxy

CHECKS = 20


@dataclasses.dataclass
class Ports:
    """Where the hub listens."""

    https_port: int
    mqtt_port: int


def checked(folder, proxy_port):
    """Return medians of a device's twin reads and of pushes to it, in milliseconds."""
    ca = folder / "pki" / "ca.crt"
    registry = IoTHubRegistryManager.from_connection_string(
        (folder / "service.connection").read_text()
    )
    registry.protocol.config.connection.verify = str(ca)
    made = registry.create_device_with_sas("vendor", "", "", "enabled")
    client = IoTHubDeviceClient.create_from_connection_string(
        f"HostName={names.HUB_HOST};DeviceId=vendor;"
        f"SharedAccessKey={made.authentication.symmetric_key.primary_key}",
        proxy_options=ProxyOptions("HTTP", "127.0.0.1", proxy_port),
        server_verification_cert=ca.read_text(),
    )
    heard = queue.Queue()
    reads, pushes = [], []
    client.connect()
    client.on_twin_desired_properties_patch_received = heard.put
    for number in range(CHECKS):
        began = time.perf_counter()
        client.get_twin()
        reads.append(time.perf_counter() - began)
        began = time.perf_counter()
        desired = Twin(properties=TwinProperties(desired={"n": number}))
        registry.update_twin("vendor", desired, "*")
        while heard.get(timeout=30).get("n") != number:
            pass
        pushes.append(time.perf_counter() - began)
    client.shutdown()
    registry.delete_device("vendor")
    return {
        "vendor_twin_ms": statistics.median(reads) * 1000,
        "vendor_push_ms": statistics.median(pushes) * 1000,
    }


async def main():
    """Print one JSON object."""
    folder, https_port, mqtt_port = sys.argv[1:]
    ports = Ports(int(https_port), int(mqtt_port))
    async with await connect_proxy(ports) as proxy:
        proxy_port = proxy.sockets[0].getsockname()[1]
        print(json.dumps(await asyncio.to_thread(checked, pathlib.Path(folder), proxy_port)))


asyncio.run(main())
