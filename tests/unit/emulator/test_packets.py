"""MQTT packets and IoT Hub's topics."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator.mqtt import packets, topics

PARSERS = (
    lambda flags, body: packets.parse_connect(1, flags, body),
    packets.parse_publish,
    packets.parse_subscribe,
    packets.parse_unsubscribe,
    lambda flags, body: packets.parse_id(body),
)
text = st.text(st.characters(exclude_characters="\0#+", exclude_categories=["Cs"]), min_size=1)


@given(st.integers(0, 15), st.binary(max_size=60))
def test_no_bytes_crash_a_parser(flags, body):
    """All bytes are a packet or Malformed."""
    for parse in PARSERS:
        try:
            parse(flags, body)
        except packets.Malformed:
            continue


@given(text, st.binary(max_size=300), st.booleans(), st.integers(0, 65535))
def test_a_publish_comes_back(topic, payload, retain, packet_id):
    """What is written is what is read, for every length."""
    message = packets.Publish(
        topic=topic, payload=payload, retain=retain, qos=1 if packet_id else 0, packet_id=packet_id
    )
    raw = packets.publish(message)
    size, shift, at = 0, 0, 1
    while True:
        size |= (raw[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 128:
            break
    assert len(raw) == at + size
    assert packets.parse_publish(raw[0] & 15, raw[at:]) == message


def test_connect():
    """A CONNECT packet with a will, a user name and a password."""

    def field(value):
        return len(value).to_bytes(2, "big") + value

    body = field(b"MQTT") + bytes((4, 0b11101110)) + b"\0\x3c"
    body += field(b"d/m") + field(b"devices/d/messages/events/") + field(b"bye")
    body += field(b"hub/d/m/?api-version=x") + field(b"secret")
    connect = packets.parse_connect(1, 0, body)
    assert (connect.client_id, connect.keep_alive, connect.clean) == ("d/m", 60, True)
    assert connect.will == packets.Publish(
        topic="devices/d/messages/events/", payload=b"bye", qos=1, retain=True
    )
    assert "secret" not in repr(connect)
    with pytest.raises(packets.Malformed):
        packets.parse_connect(1, 0, body + b"x")


def test_subscriptions():
    """A client may subscribe to what is its own."""
    may = {
        "$iothub/twin/res/#": topics.RESPONSES,
        "$iothub/methods/POST/#": topics.METHODS,
        "$iothub/twin/PATCH/properties/desired/#": topics.DESIRED,
        "devices/d 1/messages/devicebound/#": topics.MESSAGES,
        "devices/d%201/messages/devicebound/#": topics.MESSAGES,
    }
    for topic, what in may.items():
        assert topics.subscription(topic, "d 1", "") == what
    for topic in ("#", "devices/other/messages/devicebound/#", "devices/d 1/messages/events/#"):
        assert topics.subscription(topic, "d 1", "") == ""
    assert topics.subscription("devices/d/modules/m/inputs/#", "d", "m") == topics.INPUTS
    assert topics.subscription("devices/d/messages/devicebound/#", "d", "m") == ""


@given(st.dictionaries(text, st.text(max_size=8), max_size=4))
def test_telemetry_properties_come_back(properties):
    """Properties in a topic are decoded as the vendor's client encodes them."""
    encodable = all(
        "\udfff" >= c < "\ud800" or c > "\udfff" for v in properties.values() for c in v
    )
    if not encodable:
        return
    bag = urllib.parse.urlencode(properties, quote_via=urllib.parse.quote, safe="")
    meant = topics.parse_published(f"devices/d/modules/%24edgeHub/messages/events/{bag}")
    assert meant == topics.Telemetry(device_id="d", module_id="$edgeHub", properties=properties)


@given(st.text(max_size=80))
def test_no_topic_crashes(topic):
    """Every text is a topic that the hub has, or None."""
    topics.parse_published(topic)
    topics.parse_published(f"$iothub/{topic}")
    topics.parse_published(f"devices/d/messages/events/{topic}")


def test_requests():
    """Requests carry their id."""
    assert topics.parse_published("$iothub/twin/GET/?$rid=a%20b") == topics.TwinRequest(
        request_id="a b"
    )
    assert topics.parse_published("$iothub/methods/res/200/?$rid=1f") == topics.MethodAnswer(
        request_id="1f", status=200
    )
    assert topics.parse_published("$iothub/methods/res/x/?$rid=1f") is None
