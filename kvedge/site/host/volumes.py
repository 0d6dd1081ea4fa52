"""Persistent volumes and DataVolumes: what CDI and a local provisioner do on a real cluster.

A claim of our storage class gets a folder at once. A DataVolume gets a claim, and its disk is a
qcow2 over a base image that is fetched once per digest. Sources: registry, blank, http. Others,
block volumes and credentials are refused with a condition.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import shutil
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp

from kvedge import errors, processes
from kvedge.site.host.disks import CLAIM_DISK, backing_file, create_blank, create_overlay
from kvedge.site.host.quantities import parse_quantity
from kvedge.site.host.registry import inspect_disk
from kvedge.site.host.running import Actors, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvedge import kube
    from kvedge.site.host.podstatus import PodWriter
    from kvedge.site.host.registry import ImageStore
    from kvedge.site.host.running import Crew
    from kvedge.site.host.settings import HostSettings

__all__ = ["STORAGE_CLASS", "Volumes"]

_LOG = logging.getLogger("kvedge.site.host")
_CDI = "/apis/cdi.kubevirt.io/v1beta1"
_PROVISIONER = "kvedge.io/local"
STORAGE_CLASS = "kvedge-local"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_BOUND_SECONDS = 0.2
_PROGRESS_SECONDS = 0.5
_SPARE_IMAGES = 2
"""Unused base images that are kept: the last ones are likely to be wanted again."""
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 2.0, 60.0
_HTTP_CHUNK = 1024 * 1024


class _Refused(Exception):
    """The DataVolume asks for what is not done here."""


@dataclasses.dataclass(slots=True)
class _DataVolume:
    """The actor of one DataVolume."""

    volumes: Volumes
    obj: dict[str, Any]
    restarts: int = 0
    retry_at: float = 0.0

    @property
    def name(self) -> str:
        """Name for the log."""
        metadata = self.obj["metadata"]
        return f"datavolume {metadata['namespace']}/{metadata['name']}"

    async def step(self) -> float | None:
        """Bring the DataVolume nearer to its disk."""
        phase = (self.obj.get("status") or {}).get("phase")
        if phase in {"Succeeded", "Failed"} or self.obj["metadata"].get("deletionTimestamp"):
            return None
        loop = asyncio.get_running_loop()
        if loop.time() < self.retry_at:
            return self.retry_at - loop.time()
        try:
            self._check()
            folder = await self._folder()
            if folder is None:
                await self._tell("Pending", "N/A", bound=False, reason="Pending")
                return _BOUND_SECONDS
            if not (folder / CLAIM_DISK).exists():
                if not self.restarts:
                    await self._tell("ImportInProgress", "0.00%", running=True, reason="Importing")
                await self._make(folder / CLAIM_DISK)
        except _Refused as error:
            await self._tell("Failed", "N/A", bound=False, reason="Unsupported", message=str(error))
            await self.volumes.writer.event(self.obj, "Unsupported", str(error))
            return None
        except errors.RemoteError:
            raise
        except errors.KvedgeError as error:
            self.restarts += 1
            # What is written here wakes the actor, and a disk that cannot be had is asked for less
            # and less often, as CDI does by its importer's restarts.
            pause = _RETRY_SECONDS * 2 ** min(self.restarts - 1, 10)
            self.retry_at = loop.time() + min(pause, _LONGEST_RETRY_SECONDS)
            await self._tell("ImportInProgress", "N/A", reason="Error", message=error.message)
            await self.volumes.writer.event(self.obj, "ImportFailed", error.message)
            raise
        await self._tell("Succeeded", "100.0%", ready=True, reason="Completed")
        return None

    def _check(self) -> None:
        spec = self.obj["spec"]
        source = spec.get("source") or {}
        kind = next(iter(source), "none")
        if kind not in {"registry", "blank", "http"}:
            raise _Refused(f"spec.source.{kind}: only registry, blank and http")
        detail = source[kind] or {}
        for field in ("secretRef", "imageStream", "secretExtraHeaders", "extraHeaders"):
            if detail.get(field):
                raise _Refused(f"spec.source.{kind}.{field}: not done here")
        if detail.get("pullMethod") == "node":
            raise _Refused("spec.source.registry.pullMethod: node has no image cache here")
        if (spec.get("contentType") or "kubevirt") != "kubevirt":
            raise _Refused("spec.contentType: only kubevirt")
        storage = self._storage()
        if (storage.get("volumeMode") or "Filesystem") != "Filesystem":
            raise _Refused("volumeMode: only Filesystem")
        if (storage.get("storageClassName") or STORAGE_CLASS) != STORAGE_CLASS:
            raise _Refused(f"storageClassName: only {STORAGE_CLASS}")

    def _storage(self) -> Mapping[str, Any]:
        return self.obj["spec"].get("storage") or self.obj["spec"].get("pvc") or {}

    def _size(self) -> int:
        resources = self._storage().get("resources") or {}
        text = (resources.get("requests") or {}).get("storage")
        if not text:
            raise _Refused("resources.requests.storage: a size is needed")
        return parse_quantity(text)

    async def _folder(self) -> Path | None:
        """Return the folder of the bound claim, making the claim if it is not there."""
        metadata = self.obj["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/persistentvolumeclaims"
        try:
            claim = await self.volumes.kube.get(f"{path}/{metadata['name']}")
        except errors.NotFound:
            self._size()
            claim = await self.volumes.kube.post(path, self._claim())
        owners = {owner["uid"] for owner in claim["metadata"].get("ownerReferences") or ()}
        if metadata["uid"] not in owners:
            raise _Refused(f"claim {metadata['name']!r} exists and belongs to something else")
        if (claim.get("status") or {}).get("phase") != "Bound":
            return None
        return self.volumes.folder(claim)

    def _claim(self) -> dict[str, Any]:
        metadata, storage = self.obj["metadata"], self._storage()
        return {
            "metadata": {
                "name": metadata["name"],
                "labels": {"app": "containerized-data-importer", **(metadata.get("labels") or {})},
                "annotations": {
                    "cdi.kubevirt.io/storage.contentType": "kubevirt",
                    "cdi.kubevirt.io/storage.preallocation.requested": "false",
                },
                "ownerReferences": [
                    {
                        "apiVersion": "cdi.kubevirt.io/v1beta1",
                        "kind": "DataVolume",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": {
                "accessModes": storage.get("accessModes") or ["ReadWriteOnce"],
                "storageClassName": STORAGE_CLASS,
                "volumeMode": "Filesystem",
                "resources": {"requests": storage["resources"]["requests"]},
            },
        }

    async def _make(self, file: Path) -> None:
        kind, detail = next(iter(self.obj["spec"]["source"].items()))
        size = self._size()
        if kind == "blank":
            await create_blank(file, size)
            return
        trust = await self._trust(detail.get("certConfigMap"))
        shown: dict[str, float] = {"done": 0, "total": 0}

        def hear(task: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
            del task, note
            shown.update(done=done, total=total or 0)

        async with asyncio.TaskGroup() as group:
            teller = group.create_task(self._tell_progress(shown), name=f"{self.name} progress")
            try:
                if kind == "registry":
                    base = await self.volumes.images.disk(
                        detail["url"], ca_data=trust, progress=hear
                    )
                    await create_overlay(file, base, size)
                else:
                    await _download(detail, trust, file, size, shown)
            except errors.KvedgeError as error:
                failed: errors.KvedgeError | None = error
            else:
                failed = None
            teller.cancel()
        if failed:
            raise failed

    async def _trust(self, config_map: str | None) -> str | None:
        if not config_map:
            return None
        namespace = self.obj["metadata"]["namespace"]
        try:
            found = await self.volumes.kube.get(
                f"/api/v1/namespaces/{namespace}/configmaps/{config_map}"
            )
        except errors.NotFound as cause:
            raise errors.SiteError(f"certConfigMap {config_map!r} is not there") from cause
        return "\n".join((found.get("data") or {}).values())

    async def _tell_progress(self, shown: Mapping[str, float]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            if shown["total"]:
                share = 100 * shown["done"] / shown["total"]
                await self._tell(
                    "ImportInProgress", f"{share:.2f}%", running=True, reason="Importing"
                )

    async def _tell(
        self,
        phase: str,
        progress: str,
        *,
        bound: bool = True,
        ready: bool = False,
        running: bool = False,
        reason: str = "",
        message: str = "",
    ) -> None:
        metadata = self.obj["metadata"]
        old = self.obj.get("status") or {}
        known = {item["type"]: item for item in old.get("conditions") or ()}
        wanted = (
            ("Bound", bound, "Bound" if bound else "Pending", ""),
            ("Ready", ready, "", ""),
            ("Running", running, reason, message),
        )
        now = timestamp()
        conditions = []
        for kind, good, why, text in wanted:
            state = "True" if good else "False"
            before = known.get(kind, {})
            moved = before.get("status") != state or not before.get("lastTransitionTime")
            conditions.append(
                {
                    "type": kind,
                    "status": state,
                    "reason": why,
                    "message": text,
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now if moved else before["lastTransitionTime"],
                }
            )
        status = {
            "phase": phase,
            "progress": progress,
            "claimName": metadata["name"],
            "restartCount": self.restarts,
            "conditions": conditions,
        }
        told = {key: old.get(key) for key in ("phase", "progress", "restartCount")}
        if told == {key: status[key] for key in told} and _same(known, conditions):
            return
        path = f"{_CDI}/namespaces/{metadata['namespace']}/datavolumes/{metadata['name']}/status"
        try:
            answer = await self.volumes.kube.patch(path, {"status": status})
        except errors.NotFound:
            return
        if answer["metadata"]["uid"] == metadata["uid"]:
            self.obj = answer


def _same(known: Mapping[str, Any], conditions: list[dict[str, Any]]) -> bool:
    fields = ("status", "reason", "message")
    return all(
        all((known.get(item["type"]) or {}).get(field, "") == item[field] for field in fields)
        for item in conditions
    )


async def _download(
    source: Mapping[str, Any],
    trust: str | None,
    file: Path,
    size: int,
    shown: dict[str, float],
) -> None:
    """Fetch a disk by HTTP, check it and turn it into a qcow2 of the wanted size."""
    url, checksum = source["url"], source.get("checksum") or ""
    kind, _, wanted = checksum.partition(":")
    if checksum and kind not in hashlib.algorithms_available:
        raise errors.SiteError(f"checksum {kind!r} is not known")
    seen = hashlib.new(kind) if checksum else None
    part = file.with_suffix(".part")
    tls: ssl.SSLContext | bool = ssl.create_default_context(cadata=trust) if trust else True
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
            ) as session,
            session.get(url) as answer,
        ):
            if answer.status != 200:
                raise errors.SiteError(f"{url} answered {answer.status}")
            shown["total"] = answer.content_length or 0
            with part.open("wb") as sink:
                async for chunk in answer.content.iter_chunked(_HTTP_CHUNK):
                    sink.write(chunk)
                    shown["done"] += len(chunk)
                    if seen:
                        seen.update(chunk)
        if seen and seen.hexdigest() != wanted:
            raise errors.SiteError(f"{url} has checksum {kind}:{seen.hexdigest()}")
        found = await inspect_disk(part)
        if found.size > size:
            raise errors.SiteError(f"volume of {size} bytes is too small for {found.size} bytes")
        fresh = file.with_suffix(".new")
        await processes.arun(
            ["qemu-img", "convert", "-f", found.format, "-O", "qcow2", str(part), str(fresh)],
            what=f"convert {url}",
        )
        await processes.arun(
            ["qemu-img", "resize", "-q", "-f", "qcow2", str(fresh), str(size)], what="grow disk"
        )
        fresh.replace(file)
    except (aiohttp.ClientError, TimeoutError, OSError) as cause:
        raise errors.SiteError(f"cannot fetch {url}: {cause}") from cause
    finally:
        part.unlink(missing_ok=True)


class Volumes:
    """The site's storage."""

    def __init__(
        self,
        *,
        settings: HostSettings,
        kube: kube.Client,
        crew: Crew,
        images: ImageStore,
        writer: PodWriter,
    ) -> None:
        self.settings = settings
        self.kube = kube
        self.images = images
        self.writer = writer
        self._actors: Actors[_DataVolume] = Actors(crew)

    def folder(self, claim: Mapping[str, Any]) -> Path:
        """Return the folder behind a claim."""
        return self.settings.volumes / f"pvc-{claim['metadata']['uid']}"

    async def ensure_class(self) -> None:
        """Make the storage class and what CDI's users look for, however long it takes."""
        while True:
            try:
                await self._make_class()
            except errors.RemoteError as error:
                _LOG.info("storage class: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _make_class(self) -> None:
        modes = [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}]
        for obj in (
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {
                    "name": STORAGE_CLASS,
                    "annotations": {
                        "storageclass.kubernetes.io/is-default-class": "true",
                        "storageclass.kubevirt.io/is-default-virt-class": "true",
                    },
                },
                "provisioner": _PROVISIONER,
                "volumeBindingMode": "Immediate",
                "allowVolumeExpansion": True,
                "reclaimPolicy": "Delete",
            },
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "CDIConfig",
                "metadata": {"name": "config"},
                "spec": {},
                # A qcow2 grows as it is written, so a disk may be as large as its claim.
                "status": {"filesystemOverhead": {"global": "0"}},
            },
            {
                "apiVersion": "cdi.kubevirt.io/v1beta1",
                "kind": "StorageProfile",
                "metadata": {"name": STORAGE_CLASS},
                "spec": {"claimPropertySets": modes},
            },
        ):
            await self.kube.apply(obj, field_manager="kvedge-host")
        await self.kube.patch(
            f"{_CDI}/storageprofiles/{STORAGE_CLASS}/status",
            {
                "status": {
                    "provisioner": _PROVISIONER,
                    "storageClass": STORAGE_CLASS,
                    "claimPropertySets": modes,
                }
            },
        )

    async def watch_data_volumes(self) -> None:
        """Serve DataVolumes for ever."""
        async for kind, obj in self.kube.watch(f"{_CDI}/datavolumes"):
            if kind == "SYNCED":
                continue
            uid = obj["metadata"]["uid"]
            if kind == "DELETED":
                self._actors.discard(uid)
                continue
            actor = self._actors.get(uid)
            if actor is None:
                restarts = (obj.get("status") or {}).get("restartCount") or 0
                self._actors.add(uid, _DataVolume(self, obj, restarts))
            else:
                actor.obj = obj
                self._actors.wake(uid)

    async def watch_claims(self) -> None:
        """Give each claim of our class a volume."""
        async for kind, claim in self.kube.watch("/api/v1/persistentvolumeclaims"):
            if kind in {"SYNCED", "DELETED"}:
                continue
            spec = claim["spec"]
            if spec.get("storageClassName") == STORAGE_CLASS and spec.get("volumeName"):
                await self._expand(claim)
            elif (
                spec.get("storageClassName") == STORAGE_CLASS
                and not spec.get("volumeName")
                and claim["status"].get("phase") == "Pending"
            ):
                try:
                    await self._provision(claim)
                except errors.Conflict:
                    continue
                except (errors.KvedgeError, ValueError) as error:
                    await self.writer.event(claim, "ProvisioningFailed", str(error))

    async def _expand(self, claim: Mapping[str, Any]) -> None:
        """Tell that a claim has the size that it asks for; its disk grows at the guest's start."""
        metadata = claim["metadata"]
        wanted = claim["spec"]["resources"]["requests"]["storage"]
        given = (claim["status"].get("capacity") or {}).get("storage", wanted)
        if parse_quantity(wanted) <= parse_quantity(given):
            return
        capacity = {"capacity": {"storage": wanted}}
        path = f"/api/v1/namespaces/{metadata['namespace']}/persistentvolumeclaims"
        try:
            volume = f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}"
            await self.kube.patch(volume, {"spec": capacity})
            await self.kube.patch(f"{path}/{metadata['name']}/status", {"status": capacity})
        except errors.KvedgeError as error:
            await self.writer.event(claim, "VolumeResizeFailed", str(error))

    async def _provision(self, claim: Mapping[str, Any]) -> None:
        spec, metadata = claim["spec"], claim["metadata"]
        if (spec.get("volumeMode") or "Filesystem") != "Filesystem":
            raise errors.SiteError("volumeMode Block is not done here")
        folder = self.folder(claim)
        folder.mkdir(parents=True, exist_ok=True)
        size = spec["resources"]["requests"]["storage"]
        owners = metadata.get("ownerReferences") or ()
        if not any(owner["kind"] == "DataVolume" for owner in owners):
            await create_blank(folder / CLAIM_DISK, parse_quantity(size))
        await self.kube.post(
            "/api/v1/persistentvolumes",
            {
                "metadata": {
                    "name": folder.name,
                    "annotations": {_PROVISIONED_BY: _PROVISIONER},
                },
                "spec": {
                    "capacity": {"storage": size},
                    "accessModes": spec["accessModes"],
                    "volumeMode": "Filesystem",
                    "persistentVolumeReclaimPolicy": "Delete",
                    "storageClassName": STORAGE_CLASS,
                    "hostPath": {"path": str(folder)},
                    "claimRef": {
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "namespace": metadata["namespace"],
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    },
                },
            },
        )

    async def watch_volumes(self) -> None:
        """Remove volumes whose claim is gone, and folders without a volume."""
        seen: set[str] = set()
        async for kind, volume in self.kube.watch("/api/v1/persistentvolumes"):
            if kind == "SYNCED":
                self._sweep(seen)
                self._forget_images()
                continue
            if volume["spec"].get("storageClassName") != STORAGE_CLASS:
                continue
            name = volume["metadata"]["name"]
            seen.add(name)
            if kind != "DELETED" and (volume.get("status") or {}).get("phase") == "Released":
                shutil.rmtree(self.settings.volumes / name, ignore_errors=True)
                try:
                    await self.kube.delete(f"/api/v1/persistentvolumes/{name}")
                except errors.RemoteError as error:
                    _LOG.warning("volume %s: %s", name, error)
            elif kind == "DELETED":
                shutil.rmtree(self.settings.volumes / name, ignore_errors=True)
                self._forget_images()

    def _sweep(self, known: set[str]) -> None:
        root = self.settings.volumes
        for folder in root.glob("pvc-*") if root.exists() else ():
            if folder.name not in known:
                _LOG.info("volume %s has no object: removed", folder.name)
                shutil.rmtree(folder, ignore_errors=True)

    def _forget_images(self) -> None:
        """Remove base images that no overlay leans on, all but the newest."""
        overlays = (
            *self.settings.volumes.glob(f"pvc-*/{CLAIM_DISK}"),
            *self.settings.guests.glob("*/disk-*.qcow2"),
        )
        used = {backing_file(file) for file in overlays}
        spare = sorted(
            (
                file
                for file in self.settings.images.glob("*")
                if file.suffix in {".qcow2", ".raw"} and str(file.resolve()) not in used
            ),
            key=lambda file: file.stat().st_mtime,
            reverse=True,
        )
        for file in spare[_SPARE_IMAGES:]:
            _LOG.info("base image %s is no longer used: removed", file.name)
            file.unlink(missing_ok=True)
