"""KubeVirt and CDI on a cluster that has neither: their operators at pinned versions, and a wait.

The operators' objects are data that `scripts/operators` writes from the Go modules; what is decided
here is the registry and the two custom resources. They belong to the cluster and not to an
environment, so they are applied before the engine runs and stay when an environment goes.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from kvedge import kube, spec
    from kvedge.wire import KubeObject

__all__ = ["PARTS", "controlled", "install", "operator", "version"]

PARTS = ("kubevirt", "cdi")
_PUBLIC = "quay.io/kubevirt"
_OWNER = {"app.kubernetes.io/managed-by": "kvedge"}
_VERSION = "kvedge.io/operator-version"
_POLL_SECONDS = 1.0
_NO_UNINSTALL = "BlockUninstallIfWorkloadsExist"
"""Nobody takes KubeVirt or CDI away while there are VMs or disks."""


def version(part: str) -> str:
    """Return the pinned version of `kubevirt` or `cdi`."""
    return _data()[part]["version"]


def operator(wanted: spec.Operators, part: str) -> list[KubeObject]:
    """Return an operator with its definition and rights, in the order to apply."""
    found = copy.deepcopy(_data()[part]["objects"])
    _move(found, f"{_PUBLIC}/", f"{wanted.registry}/")
    return found


def controlled(wanted: spec.Operators, part: str) -> KubeObject:
    """Return the custom resource from which the operator installs KubeVirt or CDI."""
    metadata: dict[str, Any] = {
        "name": part, "labels": dict(_OWNER), "annotations": {_VERSION: version(part)},
    }  # fmt: skip
    if part == "cdi":
        linux = {"nodeSelector": {"kubernetes.io/os": "linux"}}
        settings: dict[str, Any] = {
            "imagePullPolicy": "IfNotPresent",
            "config": {"featureGates": ["HonorWaitForFirstConsumer", "WebhookPvcRendering"]},
            "infra": linux,
            "workload": dict(linux),
            "uninstallStrategy": _NO_UNINSTALL,
        }
        api_version, kind = "cdi.kubevirt.io/v1beta1", "CDI"
    else:
        metadata["namespace"] = "kubevirt"
        settings = {
            "imagePullPolicy": "IfNotPresent",
            # Without it KubeVirt's own pods want control-plane nodes; a managed cluster hides them.
            "infra": {"nodePlacement": {}},
            "uninstallStrategy": _NO_UNINSTALL,
        }
        if wanted.emulation:
            developer = {"useEmulation": True}
            settings["configuration"] = {"developerConfiguration": developer}
        api_version, kind = "kubevirt.io/v1", "KubeVirt"
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": settings}


async def install(
    client: kube.Client, wanted: spec.Operators, *, seconds: float = 1200.0,
    progress: Progress = silent,
) -> list[str]:  # fmt: skip
    """Apply what is missing and wait until both are available; return the parts that are ours.

    A KubeVirt or CDI that somebody else put there is left alone, whatever its version.

    Raises:
        KvedgeError: ours is of a newer version already, or did not get available; with the reason.
    """
    ours = []
    for part in PARTS:
        found = await _existing(client, controlled(wanted, part))
        metadata = (found or {}).get("metadata") or {}
        if found and not _OWNER.items() <= (metadata.get("labels") or {}).items():
            progress(part, 1, 1, "is there, not by kvedge: left alone")
            continue
        there = (metadata.get("annotations") or {}).get(_VERSION, "")
        if _numbers(there) > _numbers(version(part)):
            raise errors.KvedgeError(
                f"{part} {there} is on the cluster, newer than this kvedge's {version(part)}",
                hint="use a newer kvedge, or take `operators` out of the settings",
            )
        for obj in operator(wanted, part):
            await client.apply(obj)
        ours.append(part)
    try:
        async with asyncio.timeout(seconds):
            for part in ours:
                await _apply_when_known(client, controlled(wanted, part))
            for part in ours:
                await _until_available(client, controlled(wanted, part), progress)
    except TimeoutError as cause:
        raise errors.KvedgeError(
            f"{', '.join(ours)} not available after {seconds:g} s: "
            f"{'; '.join([await _state(client, controlled(wanted, part)) for part in ours])}",
            hint="kubectl get pods -n kubevirt; kubectl get pods -n cdi",
        ) from cause
    return ours


async def _apply_when_known(client: kube.Client, obj: KubeObject) -> None:
    """Apply an object whose definition was made just now."""
    while True:
        try:
            await client.apply(obj)
        except errors.NotFound:
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return


async def _until_available(client: kube.Client, obj: KubeObject, progress: Progress) -> None:
    name = obj["metadata"]["name"]
    progress(name, note="installing")
    while True:
        conditions = await _conditions(client, obj)
        if any(one["type"] == "Available" and one["status"] == "True" for one in conditions):
            progress(name, 1, 1, version(name))
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _state(client: kube.Client, obj: KubeObject) -> str:
    told = [
        f"{one['type']} {one['status']} ({one.get('reason', '')}: {one.get('message', '')})"
        for one in await _conditions(client, obj)
    ]
    return f"{obj['metadata']['name']}: {', '.join(told) or 'its operator says nothing yet'}"


async def _conditions(client: kube.Client, obj: KubeObject) -> list[dict[str, Any]]:
    found = await _existing(client, obj)
    return ((found or {}).get("status") or {}).get("conditions") or []


async def _existing(client: kube.Client, obj: KubeObject) -> dict[str, Any] | None:
    metadata = obj["metadata"]
    try:
        return await client.get(
            await client.path_of(
                obj["apiVersion"], obj["kind"], metadata.get("namespace"), metadata["name"]
            )
        )
    except errors.NotFound:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in re.findall(r"\d+", text)[:3])


@cache
def _data() -> dict[str, Any]:
    text = resources.files("infra").joinpath("operators.json").read_text(encoding="utf-8")
    return json.loads(text)


def _move(value: Any, old: str, new: str) -> None:
    """Replace the registry of every image below a value, wherever it is named."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        if isinstance(inner, dict | list):
            _move(inner, old, new)
        elif isinstance(inner, str) and inner.startswith(old):
            value[key] = new + inner.removeprefix(old)
