"""SPDY frames as a Go client sends them, cut anywhere."""

from __future__ import annotations

import asyncio
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge.node import spdy


class Client:
    """The other end: writes frames with its own compression state and reads the answers."""

    def __init__(self) -> None:
        dictionary = spdy._dictionary()
        self.deflate = zlib.compressobj(zdict=dictionary)
        self.inflate = zlib.decompressobj(zdict=dictionary)

    def open(self, number, headers, flags=0):
        """Return a SYN_STREAM frame."""
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            for text in (name.encode(), value.encode()):
                block += struct.pack(">I", len(text)) + text
        packed = self.deflate.compress(block) + self.deflate.flush(zlib.Z_SYNC_FLUSH)
        body = struct.pack(">IIH", number, 0, 0) + packed
        return struct.pack(">HHI", 0x8003, 1, flags << 24 | len(body)) + body

    @staticmethod
    def data(number, data, *, fin=False):
        """Return a data frame."""
        return struct.pack(">II", number, int(fin) << 24 | len(data)) + data


def test_dictionary_is_the_drafts():
    """Its checksum is the DICTID in every zlib stream of SPDY/3."""
    assert len(spdy._dictionary()) == 1423
    assert zlib.adler32(spdy._dictionary()) == 0xE3C6A7C2


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60), st.booleans()), max_size=30),
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_streams_keep_apart(steps, cuts):
    """Whatever is mixed and however it is cut, each stream gets its own bytes in order."""

    async def run():
        sent = []

        async def send(data):
            sent.append(data)

        connection, client = spdy.SpdyConnection(send), Client()
        wire, wanted, ended = b"", {}, set()
        for stream, data, fin in steps:
            number = 2 * stream + 1
            if number not in wanted:
                wanted[number] = b""
                wire += client.open(number, {"Streamtype": f"s{number}", "port": "80"})
            if number in ended:
                continue
            wanted[number] += data
            wire += client.data(number, data, fin=fin)
            if fin:
                ended.add(number)
        position, index = 0, 0
        while position < len(wire):
            size = cuts[index % len(cuts)]
            await connection.feed(wire[position : position + size])
            position, index = position + size, index + 1
        connection.end()
        found = {}
        while (stream := await connection.accept()) is not None:
            number = int(stream.headers["streamtype"][1:])
            assert stream.headers["port"] == "80"
            found[number] = b""
            while piece := await stream.read():
                found[number] += piece
        assert found == wanted
        replies = [data for data in sent if struct.unpack_from(">HH", data) == (0x8003, 2)]
        assert [struct.unpack_from(">I", data, 8)[0] for data in replies] == list(wanted)
        for reply in replies:
            assert client.inflate.decompress(reply[12:]) == struct.pack(">I", 0)

    asyncio.run(run())


@given(st.binary(max_size=200))
def test_garbage_is_refused(data):
    """Nothing but a protocol error comes of bytes that are no SPDY."""

    async def run():
        async def send(data):
            pass

        connection = spdy.SpdyConnection(send)
        try:
            await connection.feed(data)
        except spdy.ProtocolError:
            return

    asyncio.run(run())


async def test_pings_are_answered():
    """A ping comes back as it was."""
    sent = []

    async def send(data):
        sent.append(data)

    ping = struct.pack(">HHII", 0x8003, 6, 4, 77)
    await spdy.SpdyConnection(send).feed(ping)
    assert sent == [ping]


async def test_slow_reader_holds_the_connection_back():
    """A stream takes a megabyte ahead of its reader, and no more until that one reads."""

    async def send(data):
        pass

    connection, client = spdy.SpdyConnection(send), Client()
    await connection.feed(client.open(1, {"streamtype": "stdin"}))
    stream = await connection.accept()
    piece = client.data(1, b"x" * 700_000)
    await connection.feed(piece)
    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(connection.feed(piece), name="feed")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not feeding.done()
        assert len(await stream.read()) == 700_000


async def test_other_versions_are_refused():
    """SPDY/2 is not spoken."""

    async def send(data):
        pass

    with pytest.raises(spdy.ProtocolError, match="version 2"):
        await spdy.SpdyConnection(send).feed(struct.pack(">HHI", 0x8002, 1, 0))
