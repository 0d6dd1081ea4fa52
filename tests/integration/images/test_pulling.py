"""Pulling from a real registry, and from one that fails in the ways that real ones do."""

import contextlib
import hashlib
import http.server
import json
import threading

import pytest

import images
from images import cache, inspecting, oci, pulling, registry
from kvedge import errors, processes


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The user's cache, in a folder of the test's own."""
    monkeypatch.setenv("KVEDGE_CACHE", str(tmp_path / "cache"))
    return cache.default_store()


@pytest.fixture
def layout(tmp_path):
    """A containerDisk of a small qcow2 disk, with a document beside it."""
    disk = tmp_path / "disk"
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], what="make a disk")
    made = oci.write_container_disk(disk, tmp_path / "layout", arch="amd64", epoch=0, labels={})
    oci.attach(made, {"application/spdx+json": b'{"spdxVersion": "SPDX-2.3"}'}, epoch=0)
    return oci.read_layout(made.path)


def test_what_was_pushed_comes_back(registry_, layout, store):
    """By tag and by digest the same image is pulled once, with its disk and its documents."""
    host, ca = registry_
    where = registry.push(layout.path, f"{host}/kvedge/pulled", ca_file=ca, tag="1")
    pulled = pulling.pull(where, ca_file=ca)
    assert pulled.digest == layout.digest
    assert pulled.disk.read_bytes()[:4] == b"QFI\xfb"
    assert pulling.pull(f"{host}/kvedge/pulled:1", ca_file=ca) == pulled
    assert len(list(store.entries())) == 1
    attached = oci.read_layout(pulled.layout).attached
    assert [one["artifactType"] for one in attached] == ["application/spdx+json"]
    again = registry.push(pulled.layout, f"{host}/kvedge/copied", ca_file=ca)
    assert again.endswith(layout.digest)


@pytest.mark.timeout(600)
def test_a_pulled_disk_is_looked_into_like_a_built_one(registry_, tmp_path, monkeypatch):
    """Scan, packages and the guest's schema come from the very disk, with no recipe at hand."""
    host, ca = registry_
    built = images.build("debian-12-edge")
    packages = inspecting.packages_of("debian-12-edge")
    schema = inspecting.schema("debian-12-edge")
    where = registry.push(built.layout, f"{host}/kvedge/edge", ca_file=ca)
    monkeypatch.setenv("KVEDGE_CACHE", str(tmp_path / "cache"))
    pulling.pull(where, ca_file=ca)
    assert inspecting.scan(where) == []
    assert inspecting.packages_of(where) == packages
    assert inspecting.schema(where) == schema
    assert [one["type"] for one in inspecting.inspect(where)["attached"]] == [
        "application/spdx+json",
        "application/vnd.in-toto+json",
    ]


def test_an_image_that_is_not_there(registry_, store):
    """The registry's answer is told with the name that was asked for."""
    host, ca = registry_
    with pytest.raises(errors.NotFound, match="nothing"):
        pulling.pull(f"{host}/kvedge/nothing:1", ca_file=ca)
    with pytest.raises(errors.KvedgeError, match="is not pulled") as caught:
        inspecting.inspect(f"{host}/kvedge/nothing:1")
    assert "kvedge image pull" in caught.value.hint


@pytest.fixture
def registry_(registry):
    """The real registry under a name that does not hide the module."""
    return registry


class _Faulty(http.server.BaseHTTPRequestHandler):
    """A registry of one image that fails as its script says; understands pulls only."""

    protocol_version = "HTTP/1.1"
    faults: list[str]
    seen: list[str]
    image: oci.Layout

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.seen.append(f"{self.path} {first}")
        fault = ""
        if self.faults and self.path.startswith(self.faults[0].partition(" ")[2] or "/"):
            fault = self.faults.pop(0).partition(" ")[0]
        if fault == "401" and self.headers.get("Authorization") == "Basic dTpw":
            fault = ""
        if fault.isdigit():
            challenge = [("WWW-Authenticate", 'Basic realm="x"')] if fault == "401" else []
            self._answer(int(fault), b"", challenge)
            return
        name = self.image.digest if name == "latest" else name
        file = self.image.blob(name) if name.startswith("sha256:") else None
        if "/referrers/" in self.path or file is None or not file.exists():
            self._answer(404, b"")
            return
        data = file.read_bytes()[first:]
        if fault == "lie":
            data = bytes(len(data))
        self._answer(206 if first else 200, data, half=fault == "drop")

    def _answer(self, status, data, headers=(), *, half=False):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Type", oci.MANIFEST)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        self.close_connection = half

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def faulty(layout):
    """A function that starts a failing registry and returns its host and handler class."""
    with contextlib.ExitStack() as stack:

        def start(*faults):
            marks = {"faults": list(faults), "seen": [], "image": layout}
            handler = type("Handler", (_Faulty,), marks)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            return f"127.0.0.1:{server.server_port}/x", handler

        yield start


@pytest.mark.parametrize("fault", ["500", "429", "503 /v2/x/blobs", "drop /v2/x/blobs"])
def test_passing_faults_are_overcome(faulty, layout, store, fault):
    """Errors that pass and connections that drop half way end in the very image."""
    reference, handler = faulty(fault)
    pulled = pulling.pull(reference)
    assert handler.faults == []
    for blob in oci.read_layout(pulled.layout).manifest["layers"]:
        data = layout.blob(blob["digest"]).read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == blob["digest"]


def test_a_dropped_download_goes_on_where_it_stopped(faulty, layout, store):
    """What came of a broken download is not asked for again."""
    layer = layout.manifest["layers"][0]
    reference, handler = faulty(f"drop /v2/x/blobs/{layer['digest']}")
    pulling.pull(reference)
    starts = [int(one.split()[1]) for one in handler.seen if layer["digest"] in one]
    assert starts == [0, layer["size"] // 2]


@pytest.mark.parametrize("what", ["blobs", "manifests/sha256"])
def test_other_content_is_refused(faulty, store, what):
    """What does not match its digest is refused, and nothing of it is kept."""
    reference, _ = faulty(f"lie /v2/x/{what}")
    with pytest.raises(errors.RemoteError, match="digest"):
        pulling.pull(reference)
    assert list(store.entries()) == []


def test_a_login_is_dockers(faulty, layout, store, tmp_path, monkeypatch):
    """A registry that wants a login gets the one of docker's configuration, else that is told."""
    reference, _ = faulty("401", "401", "401")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(errors.Unauthorized, match="401") as caught:
        pulling.pull(reference)
    assert "docker login" in caught.value.hint
    host = reference.partition("/")[0]
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": "dTpw"}}}))
    assert pulling.pull(reference).digest == layout.digest


def test_lasting_faults_end(faulty, store, monkeypatch):
    """A registry that never recovers is given up with its status."""
    monkeypatch.setattr("images.registry_client.time.sleep", lambda _: None)
    reference, _ = faulty(*["429"] * 50)
    with pytest.raises(errors.Throttled, match="429"):
        pulling.pull(reference)
