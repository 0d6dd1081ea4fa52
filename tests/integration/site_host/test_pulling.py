"""Fetching containerDisks from a small registry over TLS."""

import gzip
import hashlib
import io
import json
import ssl
import tarfile

import pytest
from aiohttp import web

from kvedge import errors
from kvedge.site import pki
from kvedge.site.host.registry import ImageStore, parse_reference

_DISK = b"\0" * 1024 * 512


def _layer(name="disk/disk.img", content=_DISK, *, packed=False):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        folder = tarfile.TarInfo("disk")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue()) if packed else out.getvalue()


def _digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry:
    """Blobs and manifests in memory; counts what is asked for."""

    def __init__(self):
        self.blobs, self.manifests, self.asked = {}, {}, []

    def put(self, tag, layer):
        self.blobs[_digest(layer)] = layer
        manifest = json.dumps({"layers": [{"digest": _digest(layer), "size": len(layer)}]}).encode()
        self.manifests[tag] = self.manifests[_digest(manifest)] = manifest
        return _digest(manifest)

    async def manifest(self, request):
        return self._answer(self.manifests, request)

    async def blob(self, request):
        return self._answer(self.blobs, request)

    def _answer(self, kept, request):
        name = request.match_info["name"]
        self.asked.append(name)
        if name not in kept:
            return web.Response(status=404)
        return web.Response(body=kept[name])


@pytest.fixture
async def registry(tmp_path):
    """A registry at localhost with a certificate of the site's authority."""
    pki.ensure(tmp_path / "pki")
    made = Registry()
    app = web.Application()
    app.router.add_get("/v2/kvedge/disk/manifests/{name}", made.manifest)
    app.router.add_get("/v2/kvedge/disk/blobs/{name}", made.blob)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "pki" / "registry.crt", tmp_path / "pki" / "registry.key")
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    made.host = f"localhost:{runner.addresses[0][1]}"
    made.store = ImageStore(tmp_path / "base", tmp_path / "pki" / "site-ca.crt")
    yield made
    await runner.cleanup()


@pytest.mark.parametrize("packed", [False, True])
async def test_a_disk_is_fetched_once_per_digest(registry, packed):
    """The second time nothing is asked of the registry."""
    digest = registry.put("1", _layer(packed=packed))
    image = f"docker://{registry.host}/kvedge/disk@{digest}"
    base = await registry.store.disk(image)
    assert base.file.read_bytes() == _DISK
    assert (base.format, base.size) == ("raw", len(_DISK))
    asked = len(registry.asked)
    assert (await registry.store.disk(image)).file == base.file
    assert len(registry.asked) == asked


async def test_a_tag_is_looked_up_each_time(registry):
    """The same tag may name another image later."""
    registry.put("1", _layer())
    first = await registry.store.disk(f"{registry.host}/kvedge/disk:1")
    registry.put("1", _layer(content=_DISK + _DISK))
    assert (await registry.store.disk(f"{registry.host}/kvedge/disk:1")).size == 2 * first.size


async def test_bytes_that_are_not_the_digest_are_refused(registry, tmp_path):
    """A wrong layer leaves nothing behind."""
    digest = registry.put("1", _layer())
    blob = next(iter(registry.blobs))
    registry.blobs[blob] = b"other"
    with pytest.raises(errors.SiteError, match="does not have digest"):
        await registry.store.disk(f"{registry.host}/kvedge/disk@{digest}")
    assert list((tmp_path / "base").iterdir()) == []


async def test_an_image_without_a_disk_is_refused(registry):
    """A container image is no containerDisk."""
    registry.put("1", _layer(name="usr/bin/x"))
    with pytest.raises(errors.SiteError, match="not a containerDisk"):
        await registry.store.disk(f"{registry.host}/kvedge/disk:1")


async def test_a_missing_image_is_told(registry):
    """The message names image and next act."""
    with pytest.raises(errors.SiteError, match="is not in the registry") as found:
        await registry.store.disk(f"{registry.host}/kvedge/disk:none")
    assert found.value.hint


async def test_an_unknown_authority_is_refused(registry, tmp_path):
    """Only the site's authority, or the one that the DataVolume names, is trusted."""
    pki.ensure(tmp_path / "other")
    store = ImageStore(tmp_path / "base", tmp_path / "other" / "site-ca.crt")
    with pytest.raises(errors.SiteError, match="cannot fetch"):
        await store.disk(f"{registry.host}/kvedge/disk:1")


@pytest.mark.parametrize("text", ["disk", "kvedge/disk:1", "host.test/disk@sha256:12", ""])
def test_references_without_a_registry_are_refused(text):
    """No registry is assumed."""
    with pytest.raises(errors.SiteError, match="image reference"):
        parse_reference(text)
