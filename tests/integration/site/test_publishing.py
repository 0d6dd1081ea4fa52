"""Publishing ports, with real sockets and without any namespace."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys

import pytest

from kvedge import errors, processes
from kvedge.site import publishing, state
from kvedge.testing.waiting import until


@pytest.fixture
def publisher(tmp_path):
    """A running publisher in a folder whose path is too long for a unix socket."""
    root = tmp_path / ("long" * 30)
    folder = state.Folder(root=root)
    folder.run.mkdir(parents=True)
    child = processes.popen([sys.executable, "-m", "kvedge.site.publishing", "serve", str(root)])
    try:
        until(lambda: publishing.is_alive(folder.publisher_socket), what="publisher")
        yield folder.publisher_socket
    finally:
        child.kill()
        child.wait()


@contextlib.asynccontextmanager
async def _echo():
    """A server that answers, once its caller has said all, with a digest of what it heard."""

    async def answer(reader, writer):
        writer.write(hashlib.sha256(await reader.read()).hexdigest().encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def test_bytes_and_half_closed_ends_come_through(publisher):
    """A caller may close its sending end and still read the answer."""
    payload = os.urandom(3 * 1024 * 1024)
    async with _echo() as target, await publishing.publish(publisher, target) as published:
        reader, writer = await asyncio.open_connection("127.0.0.1", published.port)
        writer.write(payload)
        writer.write_eof()
        assert (await reader.read()).decode() == hashlib.sha256(payload).hexdigest()
        writer.close()


async def test_a_closed_publication_frees_its_port(publisher):
    """The same port can be published again at once."""
    async with _echo() as target:
        first = await publishing.publish(publisher, target)
        port = first.port
        await first.aclose()
        async with await publishing.publish(publisher, target, host_port=port) as again:
            assert again.port == port


async def test_a_taken_port_is_told(publisher):
    """The reason is the kernel's, the port is named."""
    async with _echo() as target:
        with pytest.raises(errors.SiteError, match=f"port {target[1]} .*in use"):
            await publishing.publish(publisher, target, host_port=target[1])


async def test_a_missing_publisher_is_told(tmp_path):
    """Without a publisher the hint says how to get it back."""
    with pytest.raises(errors.SiteError, match="does not answer") as caught:
        await publishing.publish(tmp_path / "none.sock", ("127.0.0.1", 1))
    assert "site up" in caught.value.hint


async def test_a_target_that_is_not_there_ends_the_connection(publisher):
    """A caller sees a reset or an end, not a hanging connection."""
    async with await publishing.publish(publisher, ("127.0.0.1", 1)) as published:
        reader, writer = await asyncio.open_connection("127.0.0.1", published.port)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
