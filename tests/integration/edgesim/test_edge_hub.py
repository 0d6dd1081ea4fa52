"""The edge hub: modules with the vendor's client below it, our hub above it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from kvedge.testing.waiting import until

ROOT = Path(__file__).parents[3]
SENSOR = [sys.executable, str(ROOT / "images/modules/temperature_sensor/main.py")]
IMAGE = "registry.test/sensor:1.0"
pytestmark = pytest.mark.timeout(180)

# Sends numbered messages to an output, one every 0.2 s, and goes on after a reconnect.
COUNTER = """
import itertools, json, signal, sys, time
from azure.iot.device import IoTHubModuleClient, Message
client = IoTHubModuleClient.create_from_edge_environment(connection_retry_interval=1)
for number in itertools.count():
    while True:
        try:
            client.send_message_to_output(Message(json.dumps({"number": number})), "out")
            break
        except Exception:
            time.sleep(0.5)
    print(number, flush=True)
    time.sleep(0.2)
"""
RECEIVER = """
import signal
from azure.iot.device import IoTHubModuleClient
client = IoTHubModuleClient.create_from_edge_environment(connection_retry_interval=1)
client.on_message_received = lambda m: print(m.input_name, m.data.decode(), flush=True)
client.connect()
signal.pause()
"""


def module(image=IMAGE, **more):
    """Return a module of a deployment."""
    return {
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "settings": {"image": image},
        **more,
    }


def running(name):
    """Return a probe: the module runs in the newest deployment."""
    return lambda found: found["modules"][name]["runtimeStatus"] == "running"


def events(hub, device):
    """Return the device's messages that the hub has got."""
    return [event for event in hub.events() if event["deviceId"] == device]


def test_sensor_reaches_the_hub_through_the_edge_hub(hub, edge):
    """Telemetry, twin in both directions and methods pass as the module's own identity."""
    edge.engine.images[IMAGE] = SENSOR
    hub.deploy(edge.device, {"sensor": module(env={"MESSAGE_INTERVAL_SECONDS": {"value": "0.2"}})})
    edge.start()
    edge.wait_report(running("sensor"))
    (event, *_) = until(lambda: events(hub, edge.device), seconds=60)
    assert event["moduleId"] == "sensor"
    until(lambda: hub.reported(edge.device, "sensor").get("intervalSeconds") == 0.2, seconds=60)
    status, answer = hub.invoke(edge.device, "sensor", "reset")
    assert (status, answer["status"]) == (200, 200)
    patch = {"properties": {"desired": {"intervalSeconds": 0.5}}}
    assert hub.call("PATCH", f"/twins/{edge.device}/modules/sensor", patch, etag="*")[0] == 200
    until(lambda: hub.reported(edge.device, "sensor").get("intervalSeconds") == 0.5, seconds=60)
    name = f"{edge.device}/sensor"
    clients = until(
        lambda: hub.reported(edge.device, "$edgeHub")["clients"]
        if name in hub.reported(edge.device, "$edgeHub").get("clients", {})
        else None
    )
    assert clients[name]["status"] == "Connected"
    edge.engine.containers["sensor"].stop()
    log = edge.engine.containers["sensor"].log.read_text()
    assert "sent reading 1:" in log
    assert edge.engine.containers["sensor"].exit_code == 0


@pytest.mark.timeout(240)
def test_messages_survive_outage_of_the_hub_and_kill_of_the_runtime(hub, edge):
    """Every message that the module got acknowledged arrives at the hub once it is back."""
    edge.engine.images[IMAGE] = [sys.executable, "-c", COUNTER]
    hub.deploy(edge.device, {"counter": module()})
    edge.start()
    until(lambda: len(events(hub, edge.device)) >= 3, seconds=60)
    container = edge.engine.containers["counter"]

    def sent():
        lines = container.log.read_text().splitlines()
        return max((int(line) for line in lines if line.isdigit()), default=-1)

    hub.stop()
    try:
        before = sent()
        until(lambda: sent() > before + 5, seconds=60)
        edge.stop(signal.SIGKILL)
        edge.start()
        again = sent()
        until(lambda: sent() > again + 5, seconds=60)
        last = sent()
    finally:
        hub.start()

    def numbers():
        return {json.loads(event["body"])["number"] for event in events(hub, edge.device)}

    # The hub's message log is in memory, so what came before the outage is gone with it.
    until(lambda: set(range(before + 1, last + 1)) <= numbers(), seconds=120)


def test_message_goes_to_another_modules_input(hub, edge):
    """A route by BrokeredEndpoint stays in the VM."""
    edge.engine.images |= {
        IMAGE: [sys.executable, "-c", COUNTER],
        "registry.test/receiver:1": [sys.executable, "-c", RECEIVER],
    }
    hub.deploy(
        edge.device,
        {"counter": module(), "receiver": module("registry.test/receiver:1")},
        routes={
            "inner": "FROM /messages/modules/counter/outputs/out INTO"
            ' BrokeredEndpoint("/modules/receiver/inputs/numbers")'
        },
    )
    edge.start()
    edge.wait_report(running("receiver"))
    log = until(
        lambda: edge.engine.containers["receiver"].log.read_text().count("numbers") > 3
        and edge.engine.containers["receiver"].log.read_text()
    )
    assert 'numbers {"number": 0}' in log
    assert events(hub, edge.device) == []


def test_unknown_route_is_reported(hub, edge):
    """A condition that cannot be judged is a 400 of `$edgeHub`."""
    hub.deploy(edge.device, {}, routes={"r": "FROM /* WHERE a = 1 INTO $upstream"})
    edge.start()

    def code():
        return hub.reported(edge.device, "$edgeHub").get("lastDesiredStatus", {}).get("code")

    assert until(code, seconds=60) == 400
