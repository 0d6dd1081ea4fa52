"""The face over the vendor's client, against a small HTTPS server on loopback."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import ipaddress
import json
import ssl
import sys
import threading

import looptime
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from kvedge import errors, iothub, processes
from kvedge.redact import Secret

KEY = "c2VjcmV0LWtleQ=="


class _Scripted(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        status, headers, answer = self.server.script.pop(0)
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost."""
    folder = tmp_path_factory.mktemp("pki")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "hub.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "hub.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder


@pytest.fixture
def server(certificate):
    """A hub that answers from a script and remembers what it was asked."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Scripted)
    made.seen, made.script = [], []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "hub.crt", certificate / "hub.key")
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
async def hub(server, certificate):
    """A connection to the scripted hub with short pauses."""
    text = (
        f"HostName=localhost:{server.server_port};SharedAccessKeyName=owner;SharedAccessKey={KEY}"
    )
    async with iothub.Hub.from_connection_string(
        Secret(text),
        ca_file=certificate / "hub.crt",
        backoff=iothub.Backoff(base_seconds=0.01, tries=3),
    ) as made:
        yield made


async def test_query_follows_the_continuation(server, hub):
    """All pages of a query arrive, and the second request carries the token."""
    server.script += [
        (200, {"x-ms-continuation": "t1", "x-ms-item-type": "Raw"}, [{"deviceId": "a", "n": None}]),
        (200, {}, [{"deviceId": "b"}]),
    ]
    assert await hub.query("SELECT deviceId FROM devices") == [
        {"deviceId": "a", "n": None},
        {"deviceId": "b"},
    ]
    assert server.seen[1][2]["x-ms-continuation"] == "t1"
    assert server.seen[0][2]["x-ms-max-item-count"] == "100"
    assert server.seen[0][1].startswith("/devices/query?api-version=")


async def test_throttled_request_is_sent_again(server, hub):
    """A 429 without Retry-After is retried, also for a write."""
    server.script += [(429, {}, {"Message": "ErrorCode:ThrottlingBacklogTimeout;wait"})] * 2
    server.script += [(200, {}, {"id": "d1", "etag": "MQ=="})]
    made = await hub.create_configuration(
        {"id": "d1", "content": {"modulesContent": {"$edgeAgent": {}}}, "targetCondition": "*"}
    )
    assert made["etag"] == "MQ=="
    assert len(server.seen) == 3
    assert "If-Match" not in server.seen[0][2]
    assert server.seen[0][3]["content"] == {"modulesContent": {"$edgeAgent": {}}}


async def test_update_quotes_the_etag_and_keeps_content(server, hub):
    """An update sends a quoted If-Match and refuses a changed content without writing."""
    current = {"id": "d", "etag": "MQ==", "content": {"modulesContent": {"$edgeAgent": {}}}}
    server.script += [(200, {}, current), (200, {}, current), (200, {}, current)]
    await hub.update_configuration({**current, "priority": 7})
    assert server.seen[1][2]["If-Match"] == '"MQ=="'
    with pytest.raises(errors.SpecError, match="never changes the content"):
        await hub.update_configuration({**current, "content": {"modulesContent": {"x": {}}}})
    assert [seen[0] for seen in server.seen] == ["GET", "PUT", "GET"]


async def test_errors_carry_code_and_tracking_id(server, hub):
    """The hub's own code, text and tracking id are in the error; the key never is."""
    server.script.append(
        (
            404,
            {"iothub-errorcode": "DeviceNotFound"},
            {
                "Message": "ErrorCode:DeviceNotFound;gone",
                "ExceptionMessage": "Tracking ID:ab12-G:1-TimeStamp:01/01/2026 00:00:00",
            },
        )
    )
    with pytest.raises(errors.NotFound) as caught:
        await hub.get_twin("x")
    assert caught.value.reason == "DeviceNotFound"
    assert "gone (tracking id ab12-G)" in str(caught.value)
    assert KEY not in str(caught.value)


async def test_offline_device_is_told_at_once(server, hub):
    """A direct method on a device that is away fails without a second try."""
    inner = json.dumps({"errorCode": 404103, "trackingId": "t", "message": "not online"})
    server.script.append((404, {}, {"Message": inner}))
    with pytest.raises(errors.NotFound, match="not online"):
        await hub.invoke_method("d", "ping", module_id="$edgeAgent")
    assert server.seen[0][1].startswith("/twins/d/modules/%24edgeAgent/methods?")


async def test_foreign_device_is_not_adopted(server, hub):
    """A device of another owner is refused and stays untouched."""
    server.script += [
        (409, {}, {"Message": "ErrorCode:DeviceAlreadyExists;x"}),
        (200, {}, {"deviceId": "d", "capabilities": {"iotEdge": True}}),
        (200, {}, {"tags": {"kvedge": {"environment": "other"}}}),
    ]
    with pytest.raises(errors.Conflict, match="belongs to"):
        await hub.ensure_device("d", owner={"environment": "dev"}, tags={})
    assert "PATCH" not in [seen[0] for seen in server.seen]


async def test_unreachable_hub_names_the_certificate(server, certificate):
    """A hub whose certificate is not trusted says which setting is missing."""
    text = f"HostName=localhost:{server.server_port};SharedAccessKeyName=o;SharedAccessKey={KEY}"
    backoff = iothub.Backoff(base_seconds=0.01, tries=1)
    async with iothub.Hub.from_connection_string(Secret(text), backoff=backoff) as untrusting:
        with pytest.raises(errors.RemoteError) as caught:
            await untrusting.configurations()
    assert "CA file" in caught.value.hint


def test_incomplete_connection_string_names_the_part():
    """A connection string without a key is refused without being shown."""
    with pytest.raises(errors.SpecError) as caught:
        iothub.Hub.from_connection_string(Secret("HostName=h;SharedAccessKeyName=secretname"))
    assert "SharedAccessKey: is missing" in str(caught.value)
    assert "secretname" not in str(caught.value)


@pytest.mark.looptime
async def test_budget_serves_urgent_requests_first():
    """When a kind's tokens are used up, a later urgent request overtakes a waiting poll."""
    budget = iothub.Budget(units=1)
    for _ in range(19):
        await budget.spend("query", iothub.Lane.STATUS)
    order = []

    async def ask(lane):
        await budget.spend("query", lane)
        order.append((lane, asyncio.get_running_loop().time()))

    async with asyncio.TaskGroup() as group:
        group.create_task(ask(iothub.Lane.STATUS))
        await asyncio.sleep(0)
        group.create_task(ask(iothub.Lane.URGENT))
    assert [lane for lane, _ in order] == [iothub.Lane.URGENT, iothub.Lane.STATUS]
    assert 3.1 < order[0][1] < 3.4
    assert 6.2 < order[1][1] < 6.6


async def test_entra_id_instead_of_a_key(server, certificate, monkeypatch):
    """Without a key, requests carry the token that azure-identity gives for IoT Hub's scope."""
    import azure.identity
    from azure.core.credentials import AccessToken

    asked = []

    class Signed:
        def get_token(self, *scopes, **_options):
            asked.extend(scopes)
            return AccessToken("the-token", 9_999_999_999)

    monkeypatch.setattr(azure.identity, "DefaultAzureCredential", Signed)
    server.script += [(200, {}, []), (200, {}, [])]
    text = f"HostName=localhost:{server.server_port};Authentication=EntraId"
    async with iothub.Hub.from_connection_string(
        Secret(text), ca_file=certificate / "hub.crt"
    ) as made:
        assert made.host == f"localhost:{server.server_port}"
        await made.configurations()
        await made.query("SELECT * FROM devices")
    assert [seen[2]["Authorization"] for seen in server.seen] == ["Bearer the-token"] * 2
    assert set(asked) == {"https://iothubs.azure.net/.default"}


async def test_a_failed_sign_in_says_what_to_do(server, certificate, monkeypatch):
    """Where azure-identity has no token the request is not sent and the hint names the way."""
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    text = f"HostName=localhost:{server.server_port};Authentication=EntraId"
    async with iothub.Hub.from_connection_string(
        Secret(text), ca_file=certificate / "hub.crt"
    ) as made:
        with pytest.raises(errors.Unauthorized) as caught:
            await made.configurations()
    assert "az login" in caught.value.hint
    assert server.seen == []


@pytest.mark.looptime
async def test_twins_have_a_budget_by_the_second():
    """Twin requests above 50 a second wait, whatever the units."""
    budget = iothub.Budget(units=10)
    begun = asyncio.get_running_loop().time()
    for _ in range(60):
        await budget.spend("twins", iothub.Lane.BULK)
    assert 0.19 < asyncio.get_running_loop().time() - begun < 0.3


@pytest.mark.timeout(60)
def test_threads_may_open_the_first_connections_at_once():
    """Pulumi's provider does so with every fleet of more than one VM."""
    code = """
import concurrent.futures
from kvedge.iothub import sdk
from kvedge.redact import Secret
secret = Secret("HostName=h;SharedAccessKeyName=n;SharedAccessKey=a2V5")
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(lambda _: sdk.connect(secret, None), range(8)))
"""
    done = processes.run([sys.executable, "-c", code], what="connect", check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(60)
def test_it_needs_no_uamqp():
    """Where that package has no wheel it cannot be imported, and nothing asks for it."""
    code = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "uamqp":
            raise ImportError("no wheel")
sys.meta_path.insert(0, Absent())
from kvedge.iothub import sdk
from kvedge.redact import Secret
assert sdk.connect(Secret("HostName=h;SharedAccessKeyName=n;SharedAccessKey=a2V5"), None).devices
assert "uamqp" not in sys.modules
"""
    done = processes.run([sys.executable, "-c", code], what="connect", check=False)
    assert done.returncode == 0, done.stderr


@given(st.lists(st.sampled_from(iothub.Lane), min_size=1, max_size=20))
def test_waiters_are_served_by_lane_and_then_by_arrival(lanes):
    """Whatever waits for an empty budget, each grant goes to the first of the lowest lane."""

    async def served():
        budget = iothub.Budget(units=1)
        budget.refused("configurations")
        done = []

        async def wait(number, lane):
            await budget.spend("configurations", lane)
            done.append((lane, number))

        async with asyncio.TaskGroup() as group:
            for number, lane in enumerate(lanes):
                group.create_task(wait(number, lane))
        return done

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        done = runner.run(served())
    assert done == sorted(done)
    assert len(done) == len(lanes)


@given(st.integers(0, 40), st.floats(0.1, 100), st.floats(0.1, 100))
def test_pauses_grow_with_jitter_up_to_the_cap(attempt, base_seconds, cap_seconds):
    """A pause lies below its ceiling, which doubles with each try and ends at the cap."""
    pause = iothub.Backoff(base_seconds=base_seconds, cap_seconds=cap_seconds).pause(attempt)
    ceiling = min(cap_seconds, base_seconds * 2**attempt)
    assert 0.1 * ceiling <= pause <= ceiling


def test_the_hubs_own_pause_is_the_first():
    """By default a refused request waits up to the 10 seconds that the hub asks for."""
    backoff = iothub.Backoff()
    assert (backoff.base_seconds, backoff.cap_seconds) == (10.0, 60.0)


async def test_renewed_key_is_taken_when_the_old_one_is_refused(server, certificate):
    """The connection string is read again on 401, and tried once; without a new one it stays 401."""
    head = f"HostName=localhost:{server.server_port};SharedAccessKeyName=owner;SharedAccessKey="
    current = [Secret(head + KEY)]
    refused = (401, {}, {"Message": "ErrorCode:IotHubUnauthorizedAccess;Unauthorized"})
    async with iothub.Hub.from_connection_string(
        current[0], ca_file=certificate / "hub.crt", renewed=lambda: current[0]
    ) as hub:
        server.script += [refused]
        with pytest.raises(errors.Unauthorized):
            await hub.get_device("d")
        current[0] = Secret(head + "bmV3LWtleQ==")
        server.script += [refused, (200, {}, {"deviceId": "d"})]
        assert await hub.get_device("d") == {"deviceId": "d"}
        old, new = (headers["Authorization"] for _, _, headers, _ in server.seen[-2:])
        assert old != new
        # A string for another hub is not this hub's.
        current[0] = Secret(
            f"HostName=other.example.net;SharedAccessKeyName=o;SharedAccessKey={KEY}"
        )
        server.script += [refused]
        with pytest.raises(errors.Unauthorized):
            await hub.get_device("d")


async def test_who_asks_again_anyway_still_waits_where_it_is_throttled(server, certificate):
    """A page that is refused is asked for again, so a poll goes on; an outage is told at once."""
    text = f"HostName=localhost:{server.server_port};SharedAccessKeyName=o;SharedAccessKey={KEY}"
    async with iothub.Hub.from_connection_string(
        Secret(text),
        ca_file=certificate / "hub.crt",
        budget=iothub.Budget(iothub.UNLIMITED),
        backoff=iothub.Backoff(base_seconds=0.01, tries=3),
    ) as hub:
        server.script += [(429, {}, {"Message": "x"}), (200, {}, [{"deviceId": "d"}])]
        found = [page async for page in hub.query_pages("SELECT * FROM devices", retry=False)]
        assert found == [[{"deviceId": "d"}]]
        server.script += [(503, {}, {"Message": "x"})]
        with pytest.raises(errors.RemoteError):
            [page async for page in hub.query_pages("SELECT * FROM devices", retry=False)]
        server.script += [(429, {}, {"Message": "x"})]
        with pytest.raises(errors.Throttled):
            await hub.invoke_method("d", "ping")
        assert not server.script
