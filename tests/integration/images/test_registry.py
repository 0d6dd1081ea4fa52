"""Pushing to a real registry, and to one that fails in every way that real ones do."""

import hashlib
import http.server
import json
import ssl
import threading
import urllib.request

import pytest

from images import oci, registry
from kvedge import errors


@pytest.fixture
def layout(tmp_path):
    """A small containerDisk."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"QFI\xfb" + bytes(range(256)) * 40_000)
    folder = tmp_path / "layout"
    return oci.write_container_disk(disk, folder, arch="amd64", epoch=0, labels={})


def _get(host, ca, path):
    context = ssl.create_default_context(cafile=str(ca))
    request = urllib.request.Request(f"https://{host}{path}", headers={"Accept": oci.MANIFEST})
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        return answer.read()


def test_push_to_a_real_registry(registry_, layout):
    """The manifest comes back by digest and by tag; a second push sends no layer."""
    host, ca = registry_
    where = registry.push(layout.path, f"{host}/kvedge/disk", ca_file=ca, tag="1.0")
    assert where == f"{host}/kvedge/disk@{layout.digest}"
    for name in (layout.digest, "1.0"):
        raw = _get(host, ca, f"/v2/kvedge/disk/manifests/{name}")
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == layout.digest
    layer = layout.manifest["layers"][0]
    assert len(_get(host, ca, f"/v2/kvedge/disk/blobs/{layer['digest']}")) == layer["size"]
    told = []
    registry.push(
        layout.path,
        f"{host}/kvedge/disk",
        ca_file=ca,
        progress=lambda *args, **_: told.append(args),
    )
    assert len(told) == 1 + 2


def test_documents_go_beside_the_image(registry_, layout):
    """A registry that does not know referrers lists them under the tag that is made for that."""
    host, ca = registry_
    oci.attach(layout, {"application/spdx+json": b"{}"}, epoch=0)
    registry.push(layout.path, f"{host}/kvedge/attested", ca_file=ca)
    context = ssl.create_default_context(cafile=str(ca))
    tag = layout.digest.replace(":", "-")
    request = urllib.request.Request(
        f"https://{host}/v2/kvedge/attested/manifests/{tag}", headers={"Accept": oci.INDEX}
    )
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        (listed,) = json.loads(answer.read())["manifests"]
    raw = _get(host, ca, f"/v2/kvedge/attested/manifests/{listed['digest']}")
    assert json.loads(raw)["subject"]["digest"] == layout.digest


@pytest.fixture
def registry_(registry):
    """The real registry under a name that does not hide the module."""
    return registry


def test_wrong_authority_is_told(registry_, layout, other_authority):
    """A certificate that is not trusted is named as such, with the option that helps."""
    host, _ = registry_
    with pytest.raises(errors.RemoteError, match="TLS") as caught:
        registry.push(layout.path, f"{host}/kvedge/disk", ca_file=other_authority)
    assert caught.value.hint


def test_registry_that_is_not_there(layout):
    """A refused connection is told at once."""
    with pytest.raises(errors.RemoteError, match="ConnectionRefusedError"):
        registry.push(layout.path, "localhost:1/kvedge/disk")


@pytest.mark.parametrize("text", ["nohost", "host/UPPER", "host/a:b/c", "host/"])
def test_bad_destinations(text):
    """A destination that is no reference is the user's mistake."""
    with pytest.raises(errors.SpecError):
        registry.parse_reference(text)


class _Faulty(http.server.BaseHTTPRequestHandler):
    """A registry in memory that fails as its script says; understands pushes only."""

    protocol_version = "HTTP/1.1"
    faults: list[str]
    blobs: dict[str, bytes]
    uploads: dict[str, bytearray]
    seen: list[str]

    def _answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _faulted(self):
        self.seen.append(f"{self.command} {self.path}")
        if not self.faults:
            return False
        kind, _, where = self.faults[0].partition(" ")
        if where and not f"{self.command} {self.path}".startswith(where):
            return False
        self.faults.pop(0)
        if kind == "401":
            if self.headers.get("Authorization") == "Basic dTpw":
                return False
            self._answer(401, [("WWW-Authenticate", 'Basic realm="x"')])
        elif kind == "drop":
            upload = self.uploads.setdefault("1", bytearray())
            upload += self.rfile.read(100_000)
            self.connection.close()
            self.close_connection = True
        else:
            self._read()
            self._answer(int(kind), [("Retry-After", "0")])
        return True

    def _read(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self):
        if not self._faulted():
            name = self.path.rsplit("/", 1)[1]
            self._answer(200 if name in self.blobs else 404)

    def do_GET(self):
        if not self._faulted():
            size = len(self.uploads.get("1", b""))
            self._answer(204, [("Location", "/v2/x/up/1"), ("Range", f"0-{max(size - 1, 0)}")])

    def do_POST(self):
        if not self._faulted():
            self._read()
            self.uploads["1"] = bytearray()
            self._answer(202, [("Location", "/v2/x/up/1?state=s")])

    def do_PATCH(self):
        if not self._faulted():
            self.uploads["1"] += self._read()
            self._answer(202, [("Location", "/v2/x/up/1")])

    def do_PUT(self):
        if self._faulted():
            return
        data = self._read()
        if "/up/" in self.path:
            data = bytes(self.uploads.get("1", b"")) + data
            name = self.path.rpartition("sha256%3A")[2]
            if hashlib.sha256(data).hexdigest() != name:
                self._answer(
                    400, body=json.dumps({"errors": [{"code": "DIGEST_INVALID"}]}).encode()
                )
                return
            self.blobs[f"sha256:{name}"] = data
        else:
            self.blobs[self.path.rsplit("/", 1)[1]] = data
        self._answer(201)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def faulty():
    """A function that starts a failing registry and returns its host and handler class."""
    servers = []

    def start(*faults):
        handler = type(
            "Handler",
            (_Faulty,),
            {"faults": list(faults), "blobs": {}, "uploads": {}, "seen": []},
        )
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"127.0.0.1:{server.server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "faults",
    [
        ["500"],
        ["429 HEAD"],
        ["503 POST", "503 POST"],
        ["429 PUT"],
        ["drop PUT"],
        ["drop PUT", "drop PATCH"],
        ["502 PUT /v2/x/manifests"],
    ],
    ids=" ".join,
)
def test_passing_faults_are_overcome(faulty, layout, faults):
    """Errors that pass and connections that drop half way end in a complete image."""
    host, handler = faulty(*faults)
    registry.push(layout.path, f"{host}/x")
    assert handler.faults == []
    layer = layout.manifest["layers"][0]
    assert hashlib.sha256(handler.blobs[layer["digest"]]).hexdigest() == layer["digest"][7:]
    assert layout.digest in handler.blobs


def test_a_dropped_upload_goes_on_where_it_stopped(faulty, layout):
    """What the registry kept of a broken upload is not sent again."""
    host, handler = faulty("drop PUT /v2/x/up")
    registry.push(layout.path, f"{host}/x")
    assert any(line.startswith("PATCH") for line in handler.seen)


def test_credentials_are_dockers(faulty, layout, tmp_path, monkeypatch):
    """A registry that wants a login gets the one of docker's configuration."""
    host, handler = faulty("401 HEAD")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": "dTpw"}}}))
    registry.push(layout.path, f"{host}/x")
    assert layout.digest in handler.blobs


@pytest.mark.parametrize(
    ("fault", "kind"), [("403", errors.Unauthorized), ("400", errors.RemoteError)]
)
def test_final_refusals_are_told(faulty, layout, fault, kind):
    """What will not pass is told at once and not tried again."""
    host, handler = faulty(f"{fault} POST")
    with pytest.raises(kind, match=fault):
        registry.push(layout.path, f"{host}/x")
    assert sum(line.startswith("POST") for line in handler.seen) == 1


def test_lasting_faults_end(faulty, layout, monkeypatch):
    """A registry that never recovers is given up with its status."""
    monkeypatch.setattr("images.registry_client.time.sleep", lambda _: None)
    host, _ = faulty(*["429"] * 50)
    with pytest.raises(errors.Throttled, match="429"):
        registry.push(layout.path, f"{host}/x")
