"""Fetching containerDisks: a small OCI pull client that trusts digests, not names.

Follows the distribution API (https://github.com/opencontainers/distribution-spec) as far as one
disk needs it: manifest by digest or tag, image index, blobs checked by digest; the disk is the
first file below `disk/` in any layer, as containerDisks have it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import re
import ssl
import tarfile
from typing import TYPE_CHECKING, Any

import aiohttp

from kvedge import errors, processes
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BaseDisk", "ImageStore", "Reference", "inspect_disk", "parse_reference"]

_ACCEPT = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)
_FORM = re.compile(
    r"(?:docker://)?(?P<host>[^/]+)/(?P<repository>[a-z0-9._/-]+)"
    r"(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHUNK = 1024 * 1024
_MANIFEST_LIMIT = 4 * 1024 * 1024
_FORMATS = ("qcow2", "raw")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an image is."""

    host: str
    repository: str
    tag: str
    digest: str
    """Empty when only the tag is given."""

    def __str__(self) -> str:
        """Return it as people write it."""
        return f"{self.host}/{self.repository}" + (
            f"@{self.digest}" if self.digest else f":{self.tag}"
        )


def parse_reference(text: str) -> Reference:
    """Parse `[docker://]host/repository[:tag][@sha256:…]`.

    Raises:
        SiteError: it is something else.
    """
    found = _FORM.fullmatch(text)
    if not found or ("." not in found["host"] and ":" not in found["host"]):
        raise errors.SiteError(
            f"image reference {text!r} is not host/repository[:tag][@sha256:…]",
            hint="name the registry in full",
        )
    return Reference(
        host=found["host"],
        repository=found["repository"],
        tag=found["tag"] or "latest",
        digest=found["digest"] or "",
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BaseDisk:
    """A disk image that is read only and shared by overlays."""

    file: Path
    format: str
    size: int
    """Virtual size in bytes."""


class ImageStore:
    """Disk images by manifest digest, each fetched once."""

    def __init__(self, directory: Path, ca: Path | None) -> None:
        self._directory = directory
        self._ca = ca
        self._locks: dict[str, asyncio.Lock] = {}

    async def disk(
        self, image: str, *, ca_data: str | None = None, progress: Progress = silent
    ) -> BaseDisk:
        """Return the disk of an image, fetching it when its digest is not here yet.

        Args:
            image: reference as `parse_reference` takes it.
            ca_data: PEM certificates to trust instead of the site's CA.
            progress: hears of bytes done and all bytes.

        Raises:
            SiteError: registry or image is not as it should be.
        """
        reference = parse_reference(image)
        lock = self._locks.setdefault(reference.digest or str(reference), asyncio.Lock())
        async with lock:
            kept = self._kept(reference.digest) if reference.digest else None
            if kept:
                return await inspect_disk(kept)
            try:
                async with aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._trust(ca_data)),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
                ) as session:
                    return await self._fetch(session, reference, progress)
            except (aiohttp.ClientError, TimeoutError, OSError) as cause:
                raise errors.SiteError(f"cannot fetch {reference}: {cause}") from cause

    def _trust(self, ca_data: str | None) -> ssl.SSLContext:
        if ca_data:
            return ssl.create_default_context(cadata=ca_data)
        return ssl.create_default_context(cafile=str(self._ca) if self._ca else None)

    def _kept(self, digest: str) -> Path | None:
        stem = digest.removeprefix("sha256:")
        for form in _FORMATS:
            file = self._directory / f"{stem}.{form}"
            if file.exists():
                return file
        return None

    async def _fetch(
        self, session: aiohttp.ClientSession, reference: Reference, progress: Progress
    ) -> BaseDisk:
        digest, manifest = await self._manifest(
            session, reference, reference.digest or reference.tag
        )
        kept = self._kept(digest)
        if kept:
            return await inspect_disk(kept)
        if "manifests" in manifest:
            chosen = next(
                (
                    entry["digest"]
                    for entry in manifest["manifests"]
                    if (entry.get("platform") or {}).get("architecture", "amd64") == "amd64"
                ),
                None,
            )
            if not chosen:
                raise errors.SiteError(f"image {reference} has no amd64 variant")
            _, manifest = await self._manifest(session, reference, chosen)
        self._directory.mkdir(parents=True, exist_ok=True)
        for layer in reversed(manifest.get("layers") or ()):
            part = self._directory / f"{layer['digest'].removeprefix('sha256:')}.layer"
            disk = self._directory / f"{digest.removeprefix('sha256:')}.part"
            try:
                await self._blob(session, reference, layer, part, progress)
                if await asyncio.to_thread(_extract, part, disk):
                    return await self._admit(disk, digest, reference)
            finally:
                part.unlink(missing_ok=True)
                disk.unlink(missing_ok=True)
        raise errors.SiteError(f"image {reference} has no file below disk/: not a containerDisk")

    async def _admit(self, disk: Path, digest: str, reference: Reference) -> BaseDisk:
        found = await inspect_disk(disk)
        if found.format not in _FORMATS:
            raise errors.SiteError(f"disk of {reference} is {found.format!r}, not qcow2 or raw")
        final = self._directory / f"{digest.removeprefix('sha256:')}.{found.format}"
        disk.chmod(0o444)
        disk.replace(final)
        return dataclasses.replace(found, file=final)

    async def _manifest(
        self, session: aiohttp.ClientSession, reference: Reference, name: str
    ) -> tuple[str, dict[str, Any]]:
        url = f"https://{reference.host}/v2/{reference.repository}/manifests/{name}"
        async with session.get(url, headers={"Accept": _ACCEPT}) as answer:
            _check(answer, reference)
            content = await answer.content.read(_MANIFEST_LIMIT)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if name.startswith("sha256:") and name != digest:
            raise errors.SiteError(f"manifest of {reference} has digest {digest}")
        return digest, json.loads(content)

    async def _blob(
        self,
        session: aiohttp.ClientSession,
        reference: Reference,
        layer: dict[str, Any],
        part: Path,
        progress: Progress,
    ) -> None:
        url = f"https://{reference.host}/v2/{reference.repository}/blobs/{layer['digest']}"
        seen = hashlib.sha256()
        done, total = 0, layer.get("size") or None
        async with session.get(url) as answer:
            _check(answer, reference)
            with part.open("wb") as file:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    await asyncio.to_thread(_take, file, seen, chunk)
                    done += len(chunk)
                    progress(str(reference), done, total)
        if f"sha256:{seen.hexdigest()}" != layer["digest"]:
            raise errors.SiteError(f"layer of {reference} does not have digest {layer['digest']}")


def _take(file: Any, seen: Any, chunk: bytes) -> None:
    file.write(chunk)
    seen.update(chunk)


def _check(answer: aiohttp.ClientResponse, reference: Reference) -> None:
    if answer.status == 404:
        raise errors.SiteError(f"image {reference} is not in the registry", hint="push it first")
    if answer.status in {401, 403}:
        raise errors.SiteError(f"registry of {reference} wants credentials; none are sent here")
    if answer.status != 200:
        raise errors.SiteError(f"registry of {reference} answered {answer.status}")


def _extract(layer: Path, disk: Path) -> bool:
    """Write the first regular file below `disk/` to `disk`; False when there is none."""
    try:
        with tarfile.open(layer, "r:*") as archive:
            for member in archive:
                if not member.isfile() or not member.name.lstrip("./").startswith("disk/"):
                    continue
                source = archive.extractfile(member)
                if source is None:
                    continue
                with disk.open("wb") as file:
                    while chunk := source.read(_CHUNK):
                        file.write(chunk)
                return True
    except tarfile.TarError as cause:
        raise errors.SiteError(
            f"layer is not a tar, plain or gzip: {cause}", hint="zstd layers are not read"
        ) from cause
    return False


async def inspect_disk(file: Path) -> BaseDisk:
    """Ask qemu-img what a disk image is.

    Raises:
        SiteError: it leans on another file, so it could read this machine's own files.
    """
    done = await processes.arun(
        ["qemu-img", "info", "--output=json", str(file)], what=f"look into {file.name!r}"
    )
    found = json.loads(done.stdout)
    special = (found.get("format-specific") or {}).get("data") or {}
    if found.get("backing-filename") or special.get("data-file"):
        raise errors.SiteError(f"disk image {file.name!r} leans on another file")
    return BaseDisk(file=file, format=found["format"], size=found["virtual-size"])
