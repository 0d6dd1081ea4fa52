"""OCI image layouts, written without a container engine (image-spec v1.1, image-layout.md).

A disk becomes a containerDisk: one layer with `disk/disk.img` (KubeVirt pkg/container-disk, CDI
pkg/importer/transport.go). A program becomes a container image of tar layers. The same input
always gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from typing import IO, TYPE_CHECKING, Any, cast

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Blob",
    "ContainerConfig",
    "Layout",
    "attach",
    "digest_of",
    "disk_in",
    "read_layout",
    "write_container_disk",
    "write_image",
    "write_index",
    "write_layer",
]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
_QEMU_ID = 107
"""KubeVirt reads the disk as this user and group."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A descriptor: what a manifest says about a blob."""

    media_type: str
    digest: str
    size: int
    diff_id: str = ""
    """Digest of the uncompressed layer."""

    def facts(self) -> dict[str, Any]:
        """Return all fields, to be kept and given to the constructor again."""
        return dataclasses.asdict(self)

    def descriptor(self) -> dict[str, Any]:
        """Return the descriptor's JSON."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """How a container is started."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An OCI layout folder with one image in it."""

    path: Path
    digest: str
    """Of the image's manifest."""
    manifest: dict[str, Any]
    attached: tuple[dict[str, Any], ...] = ()
    """Descriptors of artifact manifests whose subject is the image."""

    @property
    def size(self) -> int:
        """Return the bytes of config and layers."""
        blobs = [self.manifest["config"], *self.manifest["layers"]]
        return sum(blob["size"] for blob in blobs)

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.path / "blobs" / digest.replace(":", "/")


def write_container_disk(
    disk: Path, layout: Path, *, arch: str, epoch: int, labels: Mapping[str, str]
) -> Layout:
    """Write a containerDisk; the disk is compressed already, so its layer is a plain tar."""
    total = disk.stat().st_size
    folder = tarfile.TarInfo("disk/")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o555
    image = tarfile.TarInfo("disk/disk.img")
    image.mode, image.size = 0o444, total

    def fill(sink: IO[bytes]) -> None:
        for info in (folder, image):
            info.uid = info.gid = _QEMU_ID
            info.uname = info.gname = "qemu"
            info.mtime = epoch
        sink.write(folder.tobuf(tarfile.USTAR_FORMAT))
        # The size of a disk above 8 GiB does not fit into ustar's octal field.
        sink.write(image.tobuf(tarfile.USTAR_FORMAT if total < 1 << 33 else tarfile.GNU_FORMAT))
        with disk.open("rb") as source:
            while chunk := source.read(1 << 20):
                sink.write(chunk)
        sink.write(bytes(-total % 512 + 1024))

    layer = _write_layer(layout, fill)
    config = {
        "architecture": arch,
        "os": "linux",
        "created": _time(epoch),
        "config": {"Entrypoint": ["no-entrypoint"], "Labels": dict(sorted(labels.items()))},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created": _time(epoch), "created_by": "kvedge image build"}],
    }
    return _finish(layout, config, [layer], labels)


def write_layer(folder: Path, fill: Callable[[IO[bytes]], None]) -> Blob:
    """Write one compressed layer as a blob of a layout; `fill` writes an uncompressed tar."""
    return _write_layer(folder, fill, compress=True)


def write_image(
    layout: Path,
    layers: Sequence[tuple[Blob, Path]],
    *,
    arch: str,
    epoch: int,
    config: ContainerConfig,
    labels: Mapping[str, str],
) -> Layout:
    """Write a container image of layers that were written before, each with its layout folder."""
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    for blob, source in layers:
        name = blob.digest.removeprefix("sha256:")
        _link(source / "blobs" / "sha256" / name, folder / name)
    blobs = [blob for blob, _ in layers]
    run: dict[str, Any] = {
        "Entrypoint": list(config.entrypoint),
        "Env": list(config.env),
        "Labels": dict(sorted({**dict(config.labels), **labels}.items())),
    }
    if config.command:
        run["Cmd"] = list(config.command)
    if config.user:
        run["User"] = config.user
    if config.working_dir:
        run["WorkingDir"] = config.working_dir
    text = {
        "architecture": arch,
        "os": "linux",
        "created": _time(epoch),
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [blob.diff_id for blob in blobs]},
        "history": [{"created": _time(epoch), "created_by": "kvedge image build"} for _ in blobs],
    }
    return _finish(layout, text, blobs, labels)


def attach(layout: Layout, documents: Mapping[str, bytes], *, epoch: int) -> None:
    """Put documents beside an image: one artifact manifest each, whose subject is the image.

    Args:
        layout: the image.
        documents: media type to content.
        epoch: time of the documents, seconds since 1970.
    """
    subject = {
        "mediaType": MANIFEST,
        "digest": layout.digest,
        "size": layout.blob(layout.digest).stat().st_size,
    }
    manifests = [subject]
    empty = _write_bytes(layout.path, b"{}", EMPTY)
    for media_type, data in sorted(documents.items()):
        blob = _write_bytes(layout.path, data, media_type)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": media_type,
            "config": empty.descriptor(),
            "layers": [blob.descriptor()],
            "subject": subject,
            "annotations": {"org.opencontainers.image.created": _time(epoch)},
        }
        written = _write_json(layout.path, manifest, MANIFEST)
        manifests.append({**written.descriptor(), "artifactType": media_type})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    (layout.path / "index.json").write_bytes(_json(index))


def digest_of(raw: bytes) -> str:
    """Return a blob's digest, `sha256:…`."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def write_index(
    layout: Path, digest: str, size: int, attached: Sequence[Mapping[str, Any]]
) -> None:
    """Complete a layout folder whose blobs are there: one image and what is attached to it."""
    image = {"mediaType": MANIFEST, "digest": digest, "size": size}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [image, *attached]}
    (layout / "index.json").write_bytes(_json(index))
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def disk_in(layout: Layout, target: Path) -> bool:
    """Copy the disk of a containerDisk into a file; False if the image holds none.

    As CDI does (pkg/importer/transport.go), the first file below `disk/` of any layer is taken.
    """
    for layer in layout.manifest["layers"]:
        with tarfile.open(layout.blob(layer["digest"]), "r:*") as tar:
            for member in tar:
                if member.isfile() and member.name.removeprefix("./").startswith("disk/"):
                    source = tar.extractfile(member)
                    assert source is not None
                    with target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    return True
    return False


def read_layout(path: Path) -> Layout:
    """Read a layout that holds one image.

    Raises:
        KvedgeError: it is not there or damaged.
    """
    try:
        index = json.loads((path / "index.json").read_bytes())
        digest = index["manifests"][0]["digest"]
        raw = (path / "blobs" / digest.replace(":", "/")).read_bytes()
        if digest != f"sha256:{hashlib.sha256(raw).hexdigest()}":
            raise ValueError("manifest does not match its digest")  # noqa: TRY301
        return Layout(
            path=path,
            digest=digest,
            manifest=json.loads(raw),
            attached=tuple(index["manifests"][1:]),
        )
    except (OSError, ValueError, KeyError, IndexError) as cause:
        raise errors.KvedgeError(
            f"cannot read image layout {str(path)!r}: {cause}", hint="build the image again"
        ) from cause


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class _Hashing(io.BufferedIOBase):
    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.size += len(data)
        self._sink.write(data)
        return len(data)


def _write_layer(
    layout: Path, fill: Callable[[IO[bytes]], None], *, compress: bool = False
) -> Blob:
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".layer"
    with temporary.open("wb") as file:
        outer = _Hashing(file)
        if compress:
            with gzip.GzipFile(
                filename="", fileobj=outer, mode="wb", compresslevel=6, mtime=0
            ) as z:
                inner = _Hashing(z)
                fill(cast("IO[bytes]", inner))
        else:
            inner = outer
            fill(cast("IO[bytes]", inner))
    digest = outer.hash.hexdigest()
    temporary.replace(folder / digest)
    return Blob(
        media_type=LAYER_GZIP if compress else LAYER,
        digest=f"sha256:{digest}",
        size=outer.size,
        diff_id=f"sha256:{inner.hash.hexdigest()}",
    )


def _finish(
    layout: Path, config: dict[str, Any], layers: list[Blob], annotations: Mapping[str, str]
) -> Layout:
    config_blob = _write_json(layout, config, CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config_blob.descriptor(),
        "layers": [layer.descriptor() for layer in layers],
        "annotations": dict(sorted(annotations.items())),
    }
    blob = _write_json(layout, manifest, MANIFEST)
    write_index(layout, blob.digest, blob.size, ())
    return Layout(path=layout, digest=blob.digest, manifest=manifest)


def _write_json(layout: Path, value: dict[str, Any], media_type: str) -> Blob:
    return _write_bytes(layout, _json(value), media_type)


def _write_bytes(layout: Path, raw: bytes, media_type: str) -> Blob:
    digest = hashlib.sha256(raw).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(raw)
    return Blob(media_type=media_type, digest=f"sha256:{digest}", size=len(raw))


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _time(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
