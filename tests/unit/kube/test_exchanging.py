"""Requests and answers on real sockets, cut anywhere."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvedge.kube.exchanging import Broken, Pool


@contextlib.asynccontextmanager
async def serving(answers, *, cuts=(4096,), closes=False):
    """Serve prepared answers, one a request, sent in pieces; yield a pool and what was asked."""
    asked, left = [], list(answers)

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                asked.append((head, await reader.readexactly(int(size or 0))))
                answer, position, index = left.pop(0), 0, 0
                while position < len(answer):
                    piece = answer[position : position + cuts[index % len(cuts)]]
                    writer.write(piece)
                    await writer.drain()
                    position, index = position + len(piece), index + 1
                if closes:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", True, 4)
    try:
        yield pool, asked
    finally:
        pool.close()
        server.close()
        await server.wait_closed()


def chunked(body, sizes):
    """Return an answer in chunks."""
    wire, position = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0
    for size in sizes:
        piece = body[position : position + size]
        if piece:
            wire += b"%x\r\n%s\r\n" % (len(piece), piece)
        position += size
    if rest := body[position:]:
        wire += b"%x\r\n%s\r\n" % (len(rest), rest)
    return wire + b"0\r\n\r\n"


@settings(deadline=None, max_examples=50)
@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 100), max_size=5),
    cuts=st.lists(st.integers(1, 70), min_size=1, max_size=6),
)
def test_bodies_come_whole(bodies, sizes, cuts):
    """However an answer is chunked and cut, its body is the server's, one after the other."""

    async def run():
        plain = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b) for b in bodies]
        answers = [a for b, p in zip(bodies, plain, strict=True) for a in (p, chunked(b, sizes))]
        async with serving(answers, cuts=cuts) as (pool, _):
            for body in bodies:
                for _ in range(2):
                    answer = await pool.exchange("GET", "/x", {}, b"")
                    assert (answer.status, answer.body) == (200, body)

    asyncio.run(run())


async def test_request_on_the_wire():
    """Method, target, headers and body go out as given; interim answers are skipped."""
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 429 Too\r\nRetry-After: 3\r\n"
    answer += b"Content-Length: 2\r\n\r\n{}"
    async with serving([answer]) as (pool, asked):
        got = await pool.exchange("PATCH", "/a?b=c", {"X-Y": "z"}, b"body")
    assert (got.status, got.headers["retry-after"], got.body) == (429, "3", b"{}")
    ((head, body),) = asked
    assert head.startswith(b"PATCH /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Y: z\r\n" in head
    assert body == b"body"


async def test_body_until_the_end_of_the_connection():
    """Without a length the body ends with the connection."""
    async with serving([b"HTTP/1.0 200 OK\r\n\r\nall of it"], closes=True) as (pool, _):
        assert (await pool.exchange("GET", "/", {}, b"")).body == b"all of it"


async def test_closed_connections_are_replaced():
    """A server that closes after each answer is asked again on a new connection."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    async with serving([answer] * 5, closes=True) as (pool, asked):
        for _ in range(5):
            assert (await pool.exchange("GET", "/", {}, b"")).body == b"x"
    assert len(asked) == 5


async def test_cut_answer_is_an_error():
    """An answer that ends before its length is no answer."""
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxyz"
    async with serving([cut], closes=True) as (pool, _):
        with pytest.raises(Broken):
            await pool.exchange("POST", "/", {}, b"")


async def test_line_breaks_cannot_be_smuggled():
    """A header value with a line break is refused before anything is sent."""
    async with serving([]) as (pool, asked):
        with pytest.raises(Broken, match="line break"):
            await pool.exchange("GET", "/", {"Authorization": "a\r\nX: y"}, b"")
        assert asked == []


async def test_no_more_connections_than_allowed():
    """Requests beyond the limit wait for a connection."""
    active, most = 0, 0

    async def serve(reader, writer):
        nonlocal active, most
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                active += 1
                most = max(most, active)
                await asyncio.sleep(0.005)
                active -= 1
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", True, 3)
    await asyncio.gather(*(pool.exchange("GET", "/", {}, b"") for _ in range(20)))
    assert most == 3
    pool.close()
    server.close()
