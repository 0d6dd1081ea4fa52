"""Clients that misbehave: slow ones, half-open ones, and such as send anything at all."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from azure.iot.hub import IoTHubRegistryManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvedge.emulator import tokens
from kvedge.testing.hubs import running_hub

PATIENCE = 0.5


@pytest.fixture(scope="module")
def hasty(hub_certificates):
    """A hub that waits for nobody."""
    with running_hub(None, hub_certificates, patience_seconds=PATIENCE) as running:
        yield running


def dialled(hub, port, *, tls=True):
    """Open a connection to one of the hub's ports."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    if not tls:
        return plain
    context = ssl.create_default_context(cafile=hub.ca)
    return context.wrap_socket(plain, server_hostname=hub.host)


def rest(connection):
    """Return all that comes until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := connection.recv(65536):
            found += data
    connection.close()
    return found


def served(hub):
    """Ask the hub something."""
    return hub.registry_manager().get_device_registry_statistics().total_device_count


@pytest.mark.parametrize(
    ("side", "tls", "sent"),
    [
        ("https", False, b""),
        ("https", False, b"\x16\x03\x01"),
        ("https", True, b""),
        ("https", True, b"GET /devices?api-version=2021-04-12 HTTP/1.1\r\nHost: x\r\nX-A: "),
        ("mqtt", False, b""),
        ("mqtt", False, b"\x16\x03\x01\x02\x00"),
        ("mqtt", True, b""),
        ("mqtt", True, b"\x10\x40\x00\x04MQ"),
    ],
)
def test_slow_clients_are_put_out(hasty, side, tls, sent):
    """Neither a handshake, nor headers, nor CONNECT may take for ever; others are served."""
    port = hasty.mqtt_port if side == "mqtt" else hasty.emulator.https_port
    connection = dialled(hasty, port, tls=tls)
    connection.sendall(sent)
    begun = time.monotonic()
    assert served(hasty) == 0
    assert rest(connection) in (b"", rest_of_alert(tls))
    assert time.monotonic() - begun < 5 * PATIENCE + 10


def rest_of_alert(tls):
    """A client without a finished handshake may hear a TLS alert."""
    return b"" if tls else b"\x15\x03\x03\x00\x02\x02\x00"


def test_a_slow_body_is_answered(hasty):
    """A body that does not come is 408, and the connection ends."""
    connection = dialled(hasty, hasty.emulator.https_port)
    head = (
        "PUT /devices/slow?api-version=2021-04-12 HTTP/1.1\r\nHost: hub\r\n"
        f"Authorization: {hasty.token()}\r\nContent-Length: 100\r\n\r\n{{"
    )
    connection.sendall(head.encode())
    answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"iothub-errorcode: RequestTimeout" in answer


def test_a_body_without_end_is_refused(hub):
    """A chunked body larger than any request is 413, however it is announced."""
    head = (
        "PUT /devices/d?api-version=2021-04-12 HTTP/1.1\r\nHost: hub\r\n"
        f"Authorization: {hub.token()}\r\n"
    )
    for announced in ("Transfer-Encoding: chunked", "Content-Length: 999999999999"):
        connection = dialled(hub, hub.emulator.https_port)
        connection.sendall(f"{head}{announced}\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(64 if announced.startswith("T") else 0):
                connection.sendall(chunk)
        assert rest(connection).startswith(b"HTTP/1.1 413 "), announced


words = st.sampled_from(
    [b"GET", b"PUT", b"POST", b"PATCH", b" ", b"/devices", b"/devices/%00", b"/twins/d",
     b"/configurations/a%2Fb", b"/devices/query", b"?api-version=2021-04-12", b" HTTP/1.1\r\n",
     b"Host: hub\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"\r\n", b"\r\n\r\n",
     b"Transfer-Encoding: chunked\r\n", b"Authorization: SharedAccessSignature sr=x&sig=y&se=1\r\n",
     b"fffffffff\r\n", b"{}", b"[[[[", b"\xff\xfe", b"Upgrade: websocket\r\n", b"%", b"\0"]
)  # fmt: skip


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(words, min_size=1, max_size=12).map(b"".join) | st.binary(min_size=1, max_size=99))
def test_no_bytes_bring_the_service_side_down(hasty, caplog, junk):
    """Any request is answered by an error of the client's, or the connection ends."""
    connection = dialled(hasty, hasty.emulator.https_port)
    with contextlib.suppress(OSError):
        connection.sendall(junk)
        connection.sendall(b"\r\n\r\n")
    connection.settimeout(0.3)
    answer = b""
    with contextlib.suppress(OSError):
        answer = connection.recv(64)
    connection.close()
    assert answer == b"" or answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 401",
                                            b"HTTP/1.0 401", b"HTTP/1.1 404", b"HTTP/1.1 405",
                                            b"HTTP/1.1 408")  # fmt: skip
    assert served(hasty) == 0
    assert not [item for item in caplog.records if item.levelno >= logging.ERROR]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize("side", ["https", "mqtt"])
def test_old_tls_is_refused(hub, side):
    """TLS 1.2 and 1.3 are spoken, 1.0 and 1.1 are not."""
    port = hub.mqtt_port if side == "mqtt" else hub.emulator.https_port

    def spoken(version):
        context = ssl.create_default_context(cafile=hub.ca)
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=hub.host) as wrapped,
        ):
            return wrapped.version()

    assert spoken(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert spoken(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            spoken(version)


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")
def test_no_key_in_the_logs_of_devices(hub, caplog):
    """Connections, refusals and methods are logged without tokens or keys."""
    from azure.iot.device import IoTHubDeviceClient, exceptions

    caplog.set_level(logging.DEBUG, logger="kvedge")
    made = hub.registry_manager().create_device_with_sas("d", "", "", "enabled")
    key = made.authentication.symmetric_key.primary_key
    wrong = tokens.new_key()
    for used in (key, wrong):
        client = IoTHubDeviceClient.create_from_connection_string(
            hub.device_connection_string("d", used), **hub.device_options(connection_retry=False)
        )
        with contextlib.suppress(exceptions.CredentialError, exceptions.ConnectionFailedError):
            client.connect()
        client.shutdown()
    logged = "\n".join(item.getMessage() for item in caplog.records if "kvedge" in item.name)
    assert "connected" in logged
    for secret in (key, wrong, "sig="):
        assert secret not in logged


class Process:
    """A hub of its own, since a thousand files belong to one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.child = subprocess.Popen(
            [sys.executable, "-m", "kvedge", "hub", "emulate", "--dir", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        words = self.child.stdout.readline().replace(",", "").split()
        self.ports = [int(word) for word in words if word.isdigit()]

    def files(self):
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def rss_mib(self):
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

    def count(self):
        text = (self.folder / "service.connection").read_text()
        manager = IoTHubRegistryManager.from_connection_string(text)
        manager.protocol.config.connection.verify = str(self.folder / "pki" / "ca.crt")
        return manager.get_device_registry_statistics().total_device_count


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_half_open_connections(tmp_path):
    """While 10,000 clients begin and never go on, others are served; then all are put out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.fail("the test needs 12,000 open files: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, hard))
    hub = Process(tmp_path)
    held = []
    try:
        before, memory = hub.files(), hub.rss_mib()
        for number in range(10_000):
            held.append(socket.create_connection(("127.0.0.1", hub.ports[number % 2]), timeout=60))
            if number % 3 == 0:
                held[-1].sendall(b"\x16\x03\x01\x02\x00\x01")
            if number % 2500 == 2499:
                assert hub.count() == 0
        assert hub.count() == 0
        assert hub.rss_mib() - memory < 1000
        deadline = time.monotonic() + 120
        while hub.files() > before + 5:
            assert time.monotonic() < deadline, hub.files()
            time.sleep(0.2)
        assert hub.count() == 0
    finally:
        for connection in held:
            connection.close()
        hub.child.send_signal(signal.SIGTERM)
        hub.child.wait(30)
        hub.child.stdout.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert hub.child.returncode == 0
