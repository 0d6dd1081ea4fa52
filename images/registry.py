"""Pushing and pulling images by digest, with the documents beside them (distribution-spec v1.1)."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

from images import oci
from images.registry_client import Client
from images.registry_login import Reference
from kvedge import errors
from kvedge.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from kvedge.progress import Progress

__all__ = ["is_reference", "parse_reference", "pull", "push", "resolve"]

_NAME = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES = (oci.INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")


def is_reference(name: str) -> bool:
    """Whether a name is an image's in a registry, not a recipe's or a recipe's path."""
    return "/" in name and not name.endswith(".toml") and ".toml@" not in name


def parse_reference(text: str) -> Reference:
    """Parse `host[:port]/repository[:tag][@sha256:…]`.

    Raises:
        SpecError: it is no such text.
    """
    host, slash, rest = text.partition("/")
    rest, at, digest = rest.partition("@")
    repository, _, tag = rest.partition(":")
    if (
        not slash
        or not host
        or not _NAME.fullmatch(repository)
        or (tag and not _TAG.fullmatch(tag))
        or (at and not _DIGEST.fullmatch(digest))
    ):
        message = "must be host[:port]/repository[:tag] or …@sha256:…"
        raise errors.SpecError("image reference", [errors.Problem(path=text, message=message)])
    return Reference(host=host, repository=repository, tag=tag, digest=digest)


def push(
    layout: Path,
    destination: str,
    *,
    ca_file: Path | None = None,
    tag: str = "",
    progress: Progress = silent,
) -> str:
    """Push the layout's image and return it as `host/repository@sha256:…`.

    Args:
        layout: an OCI layout folder with one image.
        destination: `host[:port]/repository`, or with `:tag`.
        ca_file: PEM of the authority that signed the registry's certificate; else the system's.
        tag: a name to give the image beside its digest.

    Raises:
        Unauthorized: the registry wants other credentials.
        RemoteError: it cannot be reached or refuses the image.
    """
    image = oci.read_layout(layout)
    where = parse_reference(destination)
    tag = tag or where.tag
    blobs = [*image.manifest["layers"], image.manifest["config"]]
    total = sum(blob["size"] for blob in blobs)
    task = f"push {where.repository}"
    client = Client(where, ca_file, doing="push to")
    done = 0
    with contextlib.closing(client):
        progress(task, 0, total)
        for blob in blobs:
            start = done

            def told(sent: int, start: int = start) -> None:
                progress(task, start + sent, total)

            if not client.has(f"blobs/{blob['digest']}"):
                client.upload(image.blob(blob["digest"]), blob["digest"], blob["size"], told)
            done += blob["size"]
            progress(task, done, total)
        raw = image.blob(image.digest).read_bytes()
        for name in [image.digest, *([tag] if tag else [])]:
            if name != image.digest or not client.has(f"manifests/{name}"):
                client.put_manifest(name, raw)
        if image.attached:
            _push_attached(client, image)
    return f"{where.host}/{where.repository}@{image.digest}"


def pull(
    reference: str,
    layout: Path,
    *,
    arch: str = "amd64",
    ca_file: Path | None = None,
    progress: Progress = silent,
) -> oci.Layout:
    """Pull an image and what is attached to it into a layout folder; every digest is checked.

    Args:
        reference: `host[:port]/repository`, with `:tag` or `@sha256:…`.
        layout: a folder, made if need be.
        arch: picked where the reference is of several images.
        ca_file: PEM of the authority that signed the registry's certificate; else the system's.

    Raises:
        NotFound: the registry has no such image.
        Unauthorized: the registry wants other credentials.
        RemoteError: it cannot be reached, or sends something else than it says.
    """
    where = parse_reference(reference)
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Client(where, ca_file, doing="pull from")) as client:
        digest, raw = _image_manifest(client, where, arch)
        manifest = json.loads(raw)
        blobs = [manifest["config"], *manifest["layers"]]
        (folder / digest.removeprefix("sha256:")).write_bytes(raw)
        total, done = sum(blob["size"] for blob in blobs), 0
        task = f"pull {where.repository}"
        progress(task, 0, total)
        for blob in blobs:
            start = done

            def told(got: int, start: int = start) -> None:
                progress(task, start + got, total)

            _get(client, folder, blob, told)
            done += blob["size"]
        progress(task, total, total)
        attached = [_pull_attached(client, folder, one) for one in client.referrers(digest)]
    oci.write_index(layout, digest, len(raw), attached)
    return oci.read_layout(layout)


def resolve(reference: str, *, arch: str = "amd64", ca_file: Path | None = None) -> str:
    """Return the digest of the image that a reference means now.

    Raises:
        NotFound: the registry has no such image.
        RemoteError: it cannot be reached.
    """
    where = parse_reference(reference)
    with contextlib.closing(Client(where, ca_file, doing="pull from")) as client:
        return _image_manifest(client, where, arch)[0]


def _image_manifest(client: Client, where: Reference, arch: str) -> tuple[str, bytes]:
    """Return digest and bytes of one image's manifest, picked out of an index if it is one."""
    name = where.digest or where.tag or "latest"
    for _ in range(2):
        found = client.manifest(name)
        if found is None:
            raise errors.NotFound(f"pull from {where}", status=404, reason=f"no manifest {name!r}")
        kind, raw = found
        if kind not in _INDEXES:
            return oci.digest_of(raw), raw
        several = json.loads(raw).get("manifests", [])
        fitting = [
            one["digest"]
            for one in several
            if one.get("platform", {}).get("architecture", arch) == arch
        ]
        if not fitting:
            raise errors.NotFound(f"pull from {where}", status=404, reason=f"nothing for {arch!r}")
        name = fitting[0]
    raise errors.RemoteError(f"pull from {where}", reason="an index of indexes")


def _get(client: Client, folder: Path, blob: dict[str, Any], told: Any) -> None:
    target = folder / str(blob["digest"]).removeprefix("sha256:")
    client.download(blob["digest"], blob["size"], target, told)


def _pull_attached(client: Client, folder: Path, one: dict[str, Any]) -> dict[str, Any]:
    found = client.manifest(one["digest"])
    if found is None:
        raise errors.NotFound("pull", status=404, reason=f"attached {one['digest']} is gone")
    manifest = json.loads(found[1])
    (folder / str(one["digest"]).removeprefix("sha256:")).write_bytes(found[1])
    for blob in [manifest["config"], *manifest["layers"]]:
        _get(client, folder, blob, _untold)
    return one


def _push_attached(client: Client, image: oci.Layout) -> None:
    """Push the documents beside an image (distribution-spec v1.1, manifests with a subject).

    A registry that does not know referrers gets their list under the tag that the specification
    names for this case.
    """
    missing = [one for one in image.attached if not client.has(f"manifests/{one['digest']}")]
    if not missing:
        return
    known = False
    for one in missing:
        raw = image.blob(one["digest"]).read_bytes()
        manifest = json.loads(raw)
        for blob in [manifest["config"], *manifest["layers"]]:
            if not client.has(f"blobs/{blob['digest']}"):
                client.upload(image.blob(blob["digest"]), blob["digest"], blob["size"], _untold)
        known = client.put_manifest(one["digest"], raw)
    if not known:
        index = {
            "schemaVersion": 2,
            "mediaType": oci.INDEX,
            "manifests": list(image.attached),
        }
        raw = json.dumps(index, sort_keys=True, separators=(",", ":")).encode()
        client.put_manifest(image.digest.replace(":", "-"), raw, media_type=oci.INDEX)


def _untold(sent: int) -> None:
    """Say nothing: these are small."""
