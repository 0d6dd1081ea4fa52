"""The device side on the wire, for what the vendor's client never does."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import struct
import time

import pytest
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvedge.emulator import Knobs, monitoring, tokens
from kvedge.testing.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")


def field(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(raw)) + raw


class Wire:
    """A bare MQTT connection."""

    def __init__(self, hub):
        context = ssl.create_default_context(cafile=hub.ca)
        plain = socket.create_connection(("127.0.0.1", hub.mqtt_port), timeout=10)
        self.socket = context.wrap_socket(plain, server_hostname=hub.host)
        self.hub = hub

    def send(self, kind, body):
        size, digits = len(body), b""
        while True:
            size, digit = divmod(size, 128)
            digits += bytes((digit | (128 if size else 0),))
            if not size:
                break
        self.socket.sendall(bytes((kind,)) + digits + body)

    def connect(self, client_id, key, *, seconds=600, keep_alive=60, flags=0xC0, will=b"",
                username="", resource=""):  # fmt: skip
        device, _, module = client_id.partition("/")
        resource = resource or f"{self.hub.host}/devices/{device}" + (
            f"/modules/{module}" if module else ""
        )
        token = tokens.issue(resource, key, expiry=int(time.time()) + seconds)
        username = username or f"{self.hub.host}/{client_id}/?api-version=2021-04-12"
        body = field("MQTT") + bytes((4, flags)) + struct.pack("!H", keep_alive)
        body += field(client_id) + will + field(username) + field(token)
        self.send(0x10, body)
        return self.read()

    def read(self):
        """Return the next packet's first byte and body, None at the end."""
        try:
            head = self.socket.recv(2)
            if len(head) < 2:
                head += self.socket.recv(1) if head else b""
            if len(head) < 2:
                return None
            body = b""
            while len(body) < head[1]:
                body += self.socket.recv(head[1] - len(body))
        except (ConnectionError, ssl.SSLError):
            return None
        return head[0], body

    def publish(self, topic, payload=b"", flags=0, packet_id=b""):
        self.send(0x30 | flags, field(topic) + packet_id + payload)


@pytest.fixture
def wire(hub):
    """Open bare connections."""
    made = []

    def make():
        made.append(Wire(hub))
        return made[-1]

    yield make
    for item in made:
        item.socket.close()


@pytest.fixture
def device(hub):
    """A device's id and key."""
    identity = hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    return "d", identity.authentication.symmetric_key.primary_key


@pytest.fixture
def events(hub):
    """Read the messages that the hub has received."""

    def read(count):
        async def collect():
            found = []
            async for event in monitoring.events(hub.connection_string, ca=hub.ca, after=0):
                found.append(event)
                if len(found) == count:
                    return found
            return found

        return hub.run(collect())

    return read


def test_good_and_bad_connections(hub, wire, device):
    """A right token is taken, others are answered with code 5 or 2 and the end."""
    name, key = device
    assert wire().connect(name, key) == (0x20, b"\0\0")
    for options, code in (
        ({"seconds": -1}, 5),
        ({"username": f"other.test/{name}/?api-version=2021-04-12"}, 5),
        ({"username": f"{hub.host}/{name}"}, 5),
        ({"username": f"{hub.host}/other/?api-version=2021-04-12"}, 2),
        ({"resource": f"{hub.host}/devices/other"}, 5),
        ({"resource": hub.host}, 5),
    ):
        connection = wire()
        assert connection.connect(name, key, **options) == (0x20, bytes((0, code))), options
        assert connection.read() is None
    assert wire().connect("nobody", key) == (0x20, b"\0\5")
    assert wire().connect(name, tokens.new_key()) == (0x20, b"\0\5")


def test_too_many_connections_a_second(hub, wire, device):
    """Above the tier's budget CONNECT is answered with code 3, and the client may come again."""
    made = [wire() for _ in range(6)]
    hub.run(turned(hub, Knobs(tier="S1", throttle_scale=0.01)))
    codes = [connection.connect(*device)[1] for connection in made]
    assert codes[0] == b"\0\0"
    assert b"\0\3" in codes
    hub.run(turned(hub, Knobs()))
    assert wire().connect(*device)[1] == b"\0\0"


async def turned(hub, knobs):
    hub.emulator.turn(knobs)


def test_the_token_s_end_is_the_connections_end(wire, device):
    """When the token expires the hub closes."""
    connection = wire()
    assert connection.connect(*device, seconds=2)[1] == b"\0\0"
    begun = time.monotonic()
    assert connection.read() is None
    assert time.monotonic() - begun < 5


def test_silence_ends_a_connection(wire, device):
    """A client that says nothing for one and a half keep-alive times is put out."""
    connection = wire()
    connection.connect(*device, keep_alive=1)
    begun = time.monotonic()
    assert connection.read() is None
    assert 1.2 < time.monotonic() - begun < 5


def test_a_ping_keeps_it(wire, device):
    """PINGREQ is answered."""
    connection = wire()
    connection.connect(*device)
    connection.send(0xC0, b"")
    assert connection.read() == (0xD0, b"")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (0x34, field("devices/d/messages/events/") + b"\0\1x"),  # QoS 2
        (0x36, field("devices/d/messages/events/") + b"\0\1x"),  # QoS 3
        (0x30, field("devices/other/messages/events/") + b"x"),
        (0x30, field("somewhere/else") + b"x"),
        (0x30, field("$iothub/nothing") + b"x"),
        (0x10, field("MQTT") + b"\4\0\0\0" + field("d")),
        (0x20, b"\0\0"),
        (0x80, b"\0\1" + field("$iothub/twin/res/#") + b"\0"),
        (0x82, b"\0\1"),
        (0xF0, b""),
        (0x30, field("devices/d/messages/events/") + b"x" * (256 * 1024 + 1)),
        (0x82, b"\0\1" + (field("$iothub/twin/res/#") + b"\0") * 20_000),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_ends_a_connection(wire, device, kind, body):
    """Packets that the service does not take close the connection."""
    connection = wire()
    connection.connect(*device)
    connection.send(kind, body)
    assert connection.read() is None


def test_too_large_packets_end_a_connection(wire, device):
    """More than 256 KB is not read."""
    connection = wire()
    connection.connect(*device)
    connection.socket.sendall(b"\x30\xff\xff\xff\x7f")
    assert connection.read() is None


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.binary(min_size=1, max_size=80), st.booleans())
def test_no_bytes_bring_it_down(hub, junk, connected):
    """After any bytes the hub still serves the next client."""
    name = "fuzz"
    registry = hub.registry_manager()
    if not hasattr(hub, "fuzz_key"):
        made = registry.create_device_with_sas(name, "", "", "enabled")
        hub.fuzz_key = made.authentication.symmetric_key.primary_key
    connection = Wire(hub)
    if connected:
        connection.connect(name, hub.fuzz_key)
    with contextlib.suppress(OSError):
        connection.socket.sendall(junk)
    connection.socket.close()
    after = Wire(hub)
    assert after.connect(name, hub.fuzz_key) == (0x20, b"\0\0")
    after.socket.close()


def test_a_will_is_a_message(wire, device, events):
    """A lost connection sends its will as telemetry; an orderly end does not."""
    will = field("devices/d/messages/events/a=b") + field("gone")
    orderly = wire()
    orderly.connect(*device, flags=0xC4, will=will)
    orderly.send(0xE0, b"")
    assert orderly.read() is None
    lost = wire()
    lost.connect(*device, flags=0xC4, will=will)
    lost.socket.close()
    (event,) = events(1)
    assert event["body"] == "gone"
    assert event["properties"] == {"a": "b", "iothub-MessageType": "Will"}


def test_retained_messages_are_marked(wire, device, events):
    """RETAIN becomes a property."""
    connection = wire()
    connection.connect(*device)
    connection.publish("devices/d/messages/events/", b"x", flags=1)
    assert events(1)[0]["properties"] == {"mqtt-retain": "true"}


def test_strange_subscriptions_are_refused(wire, device):
    """A topic of another device, or no topic of the hub, fails; QoS 2 becomes 1."""
    connection = wire()
    connection.connect(*device)
    topics = ("devices/other/messages/devicebound/#", "#", "$iothub/methods/POST/#")
    connection.send(0x82, b"\0\7" + b"".join(field(topic) + b"\2" for topic in topics))
    assert connection.read() == (0x90, b"\0\7\x80\x80\1")


def test_sessions_are_kept(wire, device):
    """With CleanSession 0 the next connection finds its session, with 1 it does not."""
    first = wire()
    assert first.connect(*device, flags=0xC0)[1] == b"\0\0"
    first.send(0x82, b"\0\1" + field("$iothub/methods/POST/#") + b"\0")
    first.read()
    assert wire().connect(*device, flags=0xC0)[1] == b"\1\0"
    assert wire().connect(*device, flags=0xC2)[1] == b"\0\0"
    assert wire().connect(*device, flags=0xC0)[1] == b"\0\0"


def test_telemetry_of_the_vendors_client(hub, events):
    """Messages of devices, of modules and relayed by the edge hub can be read in order."""
    registry = hub.registry_manager()
    device = registry.create_device_with_sas("e", "", "", "enabled", iot_edge=True)
    key = device.authentication.symmetric_key
    keys = (key.primary_key, key.secondary_key)
    registry.update_module_with_sas("e", "$edgeHub", "iotEdge", "*", *keys)
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string("e", keys[0]), **hub.device_options()
    )
    message = Message('{"t": 21}', content_type="application/json", content_encoding="utf-8")
    message.message_id = "m 1"
    message.custom_properties["alarm & co"] = "yes=1"
    client.send_message(message)
    client.send_message(b"\xff\xfe")
    client.shutdown()
    module = registry.create_module_with_sas("e", "m", "me", "", "")
    client = IoTHubModuleClient.create_from_connection_string(
        hub.device_connection_string("e", module.authentication.symmetric_key.primary_key, "m"),
        **hub.device_options(),
    )
    client.send_message_to_output("hi", "out")
    client.shutdown()
    relay = Wire(hub)
    relay.connect("e/$edgeHub", keys[0])
    relay.publish("devices/e/modules/m/messages/events/", b"relayed", flags=2, packet_id=b"\0\1")
    assert relay.read() == (0x40, b"\0\1")
    relay.socket.close()
    first, second, third, fourth = events(4)
    assert first["body"] == '{"t": 21}'
    assert first["properties"] == {"alarm & co": "yes=1"}
    assert first["systemProperties"]["content-type"] == "application/json"
    assert first["systemProperties"]["message-id"] == "m 1"
    assert (second["bodyEncoding"], second["body"]) == ("base64", "//4=")
    assert (third["deviceId"], third["moduleId"]) == ("e", "m")
    assert third["systemProperties"]["output-name"] == "out"
    assert fourth["moduleId"] == "m"


def test_messages_to_a_device(hub, device):
    """A message waits for its device, arrives with its properties and is then gone."""
    name, key = device

    def send(body):
        assert hub.ask("POST", f"/kvedge/v1/devices/{name}/messages", body)[0] == 201

    send({"body": "first", "properties": {"$.mid": "1", "own": "a b"}})
    registry = hub.registry_manager()
    assert registry.get_device(name).cloud_to_device_message_count == 1
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(name, key), **hub.device_options()
    )
    heard = queue.Queue()
    client.on_message_received = heard.put
    message = heard.get(timeout=10)
    assert (message.data, message.message_id) == (b"first", "1")
    assert message.custom_properties == {"own": "a b"}
    send({"body": "second"})
    assert heard.get(timeout=10).data == b"second"
    until(lambda: not registry.get_device(name).cloud_to_device_message_count, seconds=10)
    client.shutdown()
