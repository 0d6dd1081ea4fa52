"""A guest's disks as files: overlays over container disks, claims, ISOs of secrets and seeds."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudinit import seeding
from kvedge import errors, processes
from kvedge.site.host.qemu import AttachedDisk
from kvedge.site.host.quantities import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge import kube
    from kvedge.site.host.registry import BaseDisk, ImageStore
    from kvedge.site.host.vmspec import DiskPlan, GuestPlan

__all__ = [
    "CLAIM_DISK",
    "DiskMaker",
    "backing_file",
    "create_blank",
    "create_overlay",
    "grow",
    "seed_files",
]

CLAIM_DISK = "disk.qcow2"
"""The disk's file in a persistent volume's folder."""
_QCOW2_HEADER = struct.Struct(">4sIQIIQ")
_CONFIG_LABEL = "cfgdata"
"""KubeVirt's label of secret and configMap disks that name none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskMaker:
    """Makes the disks of guests."""

    kube: kube.Client
    """Node identity: it may read what the launcher pod names."""
    images: ImageStore

    async def make(self, plan: GuestPlan, directory: Path) -> list[AttachedDisk]:
        """Return the files of all disks, making those that live as long as the guest.

        Raises:
            KvedgeError: a disk cannot be had; says which and why.
        """
        made = []
        for disk in plan.disks:
            file, form = await self._one(plan, disk, directory)
            made.append(AttachedDisk(plan=disk, file=file, format=form))
        return made

    async def _one(self, plan: GuestPlan, disk: DiskPlan, directory: Path) -> tuple[Path, str]:
        kind = next(key for key in disk.volume if key != "name")
        source: Mapping[str, Any] = disk.volume[kind] or {}
        target = directory / f"disk-{disk.name}"
        if kind == "containerDisk":
            overlay = target.with_suffix(".qcow2")
            await create_overlay(overlay, await self.images.disk(source["image"]))
            return overlay, "qcow2"
        if kind == "emptyDisk":
            blank = target.with_suffix(".qcow2")
            await create_blank(blank, parse_quantity(source["capacity"]))
            return blank, "qcow2"
        if kind in {"dataVolume", "persistentVolumeClaim"}:
            claim = source.get("name") or source["claimName"]
            return await self._claim(plan.namespace, claim), "qcow2"
        iso = target.with_suffix(".iso")
        if kind == "cloudInitNoCloud":
            _write_iso(iso, seeding.SEED_LABEL, await self._seed(plan, source))
        else:
            name = source.get("secretName") or source["name"]
            content = await self._content(plan.namespace, kind, name)
            _write_iso(iso, source.get("volumeLabel") or _CONFIG_LABEL, content)
        return iso, "raw"

    async def _content(self, namespace: str, kind: str, name: str) -> dict[str, bytes]:
        if kind == "secret":
            return await self.secret(namespace, name)
        found = await self.kube.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
        plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        binary = {
            key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()
        }
        return plain | binary

    async def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """Return a Secret's content."""
        found = await self.kube.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}

    async def _seed(self, plan: GuestPlan, source: Mapping[str, Any]) -> dict[str, bytes]:
        secrets = {
            field: await self.secret(plan.namespace, source[field]["name"])
            for field in ("secretRef", "networkDataSecretRef")
            if source.get(field)
        }
        return seed_files(plan, source, secrets)

    async def _claim(self, namespace: str, claim: str) -> Path:
        found = await self.kube.get(
            f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"
        )
        name = found["spec"].get("volumeName")
        if not name:
            raise errors.SiteError(f"claim {namespace}/{claim} is not bound to a volume yet")
        volume = await self.kube.get(f"/api/v1/persistentvolumes/{name}")
        folder = (volume["spec"].get("hostPath") or {}).get("path")
        file = Path(folder) / CLAIM_DISK if folder else None
        if file is None or not file.exists():
            raise errors.SiteError(f"volume {name} of claim {namespace}/{claim} holds no disk")
        await grow(file, parse_quantity(found["spec"]["resources"]["requests"]["storage"]))
        return file


async def grow(file: Path, size: int) -> None:
    """Make a disk that no guest has open as large as its claim asks for; never smaller.

    Raises:
        BuildFailed: qemu-img cannot.
    """
    with file.open("rb") as disk:
        header = disk.read(_QCOW2_HEADER.size)
    # qcow2 (docs/interop/qcow2.txt of QEMU): magic, version, backing file, cluster bits, size.
    magic, *_, now = _QCOW2_HEADER.unpack(header)
    if magic == b"QFI\xfb" and now < size:
        await processes.arun(
            ["qemu-img", "resize", "-q", "-f", "qcow2", str(file), str(size)], what="grow disk"
        )


def _write_iso(file: Path, label: str, content: Mapping[str, bytes]) -> None:
    """Write a disk that only its owner may read.

    Raises:
        SiteError: the label or a name does not fit into ISO9660.
    """
    try:
        data = seeding.iso(label, content)
    except ValueError as cause:
        raise errors.SiteError(f"cannot make disk {file.name!r}: {cause}") from cause
    file.touch(mode=0o600)
    file.write_bytes(data)


def seed_files(
    plan: GuestPlan, source: Mapping[str, Any], secrets: Mapping[str, Mapping[str, bytes]]
) -> dict[str, bytes]:
    """Return the files of a NoCloud seed as KubeVirt writes them.

    Args:
        source: the VMI's cloudInitNoCloud.
        secrets: content of the Secrets behind `secretRef` and `networkDataSecretRef`.
    """
    user = _data(source, "userData", secrets.get("secretRef"), ("userdata", "userData"))
    network = _data(
        source, "networkData", secrets.get("networkDataSecretRef"), ("networkdata", "networkData")
    )
    # The instance id is the firmware's UUID, so a VM that comes back is not set up again.
    meta = {"instance-id": plan.uuid, "local-hostname": plan.hostname}
    files = {"meta-data": json.dumps(meta).encode(), "user-data": user or b""}
    if network:
        files["network-config"] = network
    return files


def _data(
    source: Mapping[str, Any],
    field: str,
    secret: Mapping[str, bytes] | None,
    keys: tuple[str, ...],
) -> bytes:
    if source.get(field):
        return source[field].encode()
    if source.get(f"{field}Base64"):
        try:
            return base64.b64decode(source[f"{field}Base64"], validate=True)
        except binascii.Error as cause:
            raise errors.SiteError(f"{field}Base64 is not base64") from cause
    if secret is not None:
        for key in keys:
            if key in secret:
                return secret[key]
        raise errors.SiteError(f"Secret of the cloud-init volume has no key {keys[0]!r}")
    return b""


async def create_overlay(file: Path, base: BaseDisk, size: int | None = None) -> None:
    """Make a qcow2 that begins as the base and takes all writes.

    Raises:
        SiteError: `size` (bytes) is less than the base's.
    """
    if size is not None and size < base.size:
        raise errors.SiteError(
            f"volume of {size} bytes is too small for an image of {base.size} bytes",
            hint="ask for more storage",
        )
    fresh = file.with_suffix(".new")
    await processes.arun(
        [
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base.file.resolve()),
            "-F", base.format, str(fresh), *([str(size)] if size else []),
        ],
        what=f"make disk {file.name!r}",
    )  # fmt: skip
    fresh.replace(file)


async def create_blank(file: Path, size: int) -> None:
    """Make an empty qcow2 of `size` bytes."""
    fresh = file.with_suffix(".new")
    await processes.arun(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(fresh), str(size)],
        what=f"make disk {file.name!r}",
    )
    fresh.replace(file)


def backing_file(file: Path) -> str:
    """Return the file that a qcow2 leans on, empty for none.

    Reads the header itself (https://www.qemu.org/docs/master/interop/qcow2.html): a program
    would refuse a disk that is in use.
    """
    try:
        with file.open("rb") as disk:
            magic, _, offset, size = struct.unpack(">4sIQI", disk.read(20))
            if magic != b"QFI\xfb" or not offset:
                return ""
            disk.seek(offset)
            return disk.read(size).decode(errors="replace")
    except (OSError, struct.error):
        return ""
