"""Commands, terminals and ports through a real API server, by unmodified kubectl."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from kvedge import errors, tools
from kvedge.node import running
from kvedge.node.mock import MockProvider
from kvedge.testing.clusters import free_ports
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(300)


class LocalProvider(MockProvider):
    """The mock, whose containers are processes of this machine in a folder."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.folder = folder
        self.ended = 0
        """Commands that have ended or were cancelled."""
        self.ports = {}
        """Ports of this machine by ports of a pod."""

    async def execute(self, pod, container, command, terminal) -> int:
        try:
            if terminal.tty:
                return await self._in_terminal(command, terminal)
            return await self._plain(command, terminal)
        except FileNotFoundError as cause:
            raise errors.KvedgeError(f"no program {command[0]!r} in {container!r}") from cause
        finally:
            self.ended += 1

    async def attach(self, pod, container, terminal) -> int:
        script = "echo attached; while read -r line; do echo got $line; done; exit 0"
        return await self.execute(pod, container, ["sh", "-c", script], terminal)

    async def _plain(self, command, terminal) -> int:
        pipe = subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.folder
        )

        async def give():
            with contextlib.suppress(ConnectionError):
                while data := await terminal.read():
                    child.stdin.write(data)
                    await child.stdin.drain()
            child.stdin.close()

        async def take(stream, write):
            while data := await stream.read(65536):
                await write(data)

        giving = asyncio.get_running_loop().create_task(give(), name="give")
        try:
            await asyncio.gather(
                take(child.stdout, terminal.write), take(child.stderr, terminal.write_error)
            )
            return await child.wait()
        finally:
            giving.cancel()
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def _in_terminal(self, command, terminal) -> int:
        ours, theirs = pty.openpty()
        size = await terminal.resized()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
        child = await asyncio.create_subprocess_exec(
            *command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=self.folder,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        loop = asyncio.get_running_loop()

        async def give():
            while data := await terminal.read():
                os.write(ours, data)

        giving = asyncio.get_running_loop().create_task(give(), name="give")
        try:
            while True:
                try:
                    data = await loop.run_in_executor(None, os.read, ours, 4096)
                except OSError:  # the other end is closed
                    break
                if not data:
                    break
                await terminal.write(data)
            return await child.wait()
        finally:
            giving.cancel()
            if child.returncode is None:
                child.kill()
                await child.wait()
            os.close(ours)

    async def forward(self, pod, port, stream) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[port])
        except (KeyError, OSError) as cause:
            raise errors.KvedgeError(f"nobody listens on port {port}") from cause

        async def give():
            while data := await stream.read():
                writer.write(data)
                await writer.drain()
            writer.write_eof()

        giving = asyncio.get_running_loop().create_task(give(), name="give")
        try:
            while data := await reader.read(65536):
                await stream.write(data)
        finally:
            giving.cancel()
            writer.close()


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, cluster, namespace) -> None:
        program = str(tools.ensure(["kubectl"])["kubectl"])
        self.head = [program, f"--kubeconfig={cluster.kubeconfig}", "-n", namespace]

    async def start(self, *words, **options):
        """Start kubectl."""
        pipe = subprocess.PIPE
        streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe, **options}
        return await asyncio.create_subprocess_exec(*self.head, *words, **streams)

    async def run(self, *words, given=b""):
        """Run kubectl and return exit code, output and errors."""
        child = await self.start(*words)
        async with asyncio.timeout(60):
            out, err = await child.communicate(given)
        return child.returncode, out.decode(), err.decode()


@pytest.fixture(params=["spdy", "websocket"])
async def kubectl(request, start_node, client, namespace, cluster, tmp_path):
    """kubectl, and the provider of a node with the pod `a`, reached by either protocol."""
    provider = LocalProvider(tmp_path)
    (port,) = free_ports(1)
    features = ("ExtendWebSocketsToKubelet",) if request.param == "websocket" else ()
    serving = running.Serving(listen="127.0.0.1", port=port, client_ca=cluster.kubelet_client)
    spec = {"port": port, "declared_features": features}
    async with start_node(provider=provider, serving=serving, spec=spec) as node:
        pods = f"/api/v1/namespaces/{namespace}/pods"
        containers = [{"name": "c", "image": "i"}]
        body = {"nodeName": node.spec.name, "enableServiceLinks": False, "containers": containers}
        await client.post(pods, {"metadata": {"name": "a"}, "spec": body})

        async def running_pod():
            found = await client.get(f"{pods}/a")
            return (found.get("status") or {}).get("phase") == "Running"

        await until_async(running_pod)
        await until_async(lambda: node.api is not None)
        yield Kubectl(cluster, namespace), provider


async def test_command_with_output_errors_and_code(kubectl):
    """Output, standard error and the exit code arrive apart from each other."""
    run, _ = kubectl
    script = "echo out; echo err >&2; exit 7"
    code, out, err = await run.run("exec", "a", "--", "sh", "-c", script)
    assert (code, out) == (7, "out\n")
    assert err.startswith("err\n")
    assert (await run.run("exec", "a", "--", "true"))[0] == 0


async def test_input_reaches_the_command(kubectl):
    """Input goes in whole, its end is told, and much output comes back unharmed."""
    run, _ = kubectl
    given = os.urandom(3_000_000).hex().encode()
    code, out, _ = await run.run("exec", "-i", "a", "--", "sh", "-c", "cat; echo end", given=given)
    assert code == 0
    assert out == given.decode() + "end\n"


async def test_unknown_program_is_told(kubectl):
    """What the provider says about a command that cannot start is what the user reads."""
    run, _ = kubectl
    code, _, err = await run.run("exec", "a", "--", "no-such-program")
    assert code != 0
    assert "no program 'no-such-program' in 'c'" in err


async def test_terminal(kubectl):
    """With -it the command has a terminal of the caller's size and lines are edited there."""
    run, _ = kubectl
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    script = "stty size; read -r name; echo hello $name; exit 3"
    child = await run.start(
        "exec", "-it", "a", "--", "sh", "-c", script, stdin=theirs, stdout=theirs
    )
    os.close(theirs)
    loop = asyncio.get_running_loop()
    text = b""
    async with asyncio.timeout(60):
        while b"31 97" not in text:
            text += await loop.run_in_executor(None, os.read, ours, 4096)
        os.write(ours, b"you\r")
        with contextlib.suppress(OSError):
            while piece := await loop.run_in_executor(None, os.read, ours, 4096):
                text += piece
        assert await child.wait() == 3
    os.close(ours)
    assert b"hello you" in text


async def test_attach(kubectl):
    """Attach carries input and output of the main process."""
    run, _ = kubectl
    code, out, _ = await run.run("attach", "-i", "a", given=b"one\ntwo\n")
    assert code == 0
    assert out.splitlines() == ["attached", "got one", "got two"]


async def test_copy(kubectl, tmp_path):
    """Kubectl cp brings a file in and out again."""
    run, provider = kubectl
    content = os.urandom(2_000_000)
    source, back = tmp_path / "source.bin", tmp_path / "back.bin"
    source.write_bytes(content)
    (provider.folder / "inside").mkdir()
    inside = provider.folder / "inside"
    code, _, err = await run.run("cp", str(source), f"a:{inside}/copy.bin")
    assert code == 0, err
    assert (inside / "copy.bin").read_bytes() == content
    code, _, err = await run.run("cp", f"a:{inside}/copy.bin", str(back))
    assert code == 0, err
    assert back.read_bytes() == content


async def test_command_ends_with_its_caller(kubectl):
    """A caller that dies takes its command along.

    An API server that speaks SPDY notices only when it has something to write to the caller.
    """
    run, provider = kubectl
    child = await run.start(
        "exec", "a", "--", "sh", "-c", "echo begun; while sleep 0.3; do echo on; done"
    )
    async with asyncio.timeout(30):
        assert await child.stdout.readline() == b"begun\n"
    child.kill()
    await child.communicate()
    await until_async(lambda: provider.ended == 1)


async def test_forwarded_port(kubectl):
    """Many connections through one port-forward, much data, and an error for a closed port."""
    run, provider = kubectl

    async def answer(reader, writer):
        data = await reader.read()
        writer.write(data[::-1])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    provider.ports[8080] = server.sockets[0].getsockname()[1]
    child = await run.start("port-forward", "a", ":8080", ":81")
    try:
        async with asyncio.timeout(60):
            ports = {}
            while len(ports) < 2:
                line = (await child.stdout.readline()).decode()
                if found := re.match(r"Forwarding from 127.0.0.1:(\d+) -> (\d+)", line):
                    ports[int(found[2])] = int(found[1])

            async def ask(data):
                reader, writer = await asyncio.open_connection("127.0.0.1", ports[8080])
                writer.write(data)
                writer.write_eof()
                answered = await reader.read()
                writer.close()
                return answered

            pieces = [os.urandom(200_000) for _ in range(5)]
            assert await asyncio.gather(*map(ask, pieces)) == [piece[::-1] for piece in pieces]
            reader, writer = await asyncio.open_connection("127.0.0.1", ports[81])
            assert await reader.read() == b""
            writer.close()
            assert "nobody listens on port 81" in (await child.stderr.readline()).decode()
    finally:
        child.kill()
        await child.communicate()
        server.close()
        await server.wait_closed()
