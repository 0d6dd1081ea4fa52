"""Taking away what is left of an environment, found by label, tag and owner.

Runs after `pulumi destroy`, and also when a killed run left no state: it trusts no record.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from infra import hub_content, node_manifests, publishing
from kvedge import edge, errors, iothub, kube, names
from kvedge.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvedge import spec

__all__ = ["foreign_devices", "sweep"]

_NODE_LEASES = "kube-node-lease"
_GONE_SECONDS = 120.0
_POLL_SECONDS = 0.5
# What owns others first, so that nothing is made anew while we delete.
_NAMESPACED = (
    ("apps/v1", "Deployment"),
    ("kubevirt.io/v1", "VirtualMachine"),
    ("kubevirt.io/v1", "VirtualMachineInstance"),
    ("cdi.kubevirt.io/v1beta1", "DataVolume"),
    ("v1", "Service"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)
_CLUSTERWIDE = (
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
)


async def foreign_devices(hub: iothub.Hub, environment: spec.Environment) -> list[str]:
    """Return ids of devices of other environments that this one's platform serves."""
    rows = await hub.query(
        "SELECT deviceId, tags FROM devices WHERE tags.kvedge.managed = true",
        lane=iothub.Lane.URGENT,
    )
    found = []
    for row in rows:
        owner = ((row.get("tags") or {}).get("kvedge") or {}).get("environment")
        if owner != environment.name:
            found.append(row["deviceId"])
    return sorted(found)


async def sweep(
    environment: spec.Environment,
    client: kube.Client,
    hub: iothub.Hub,
    *,
    keep_data: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Remove every object, device, deployment and image of the environment; return what it was.

    Raises:
        KvedgeError: something refused to go.
    """
    gone = await _cluster(environment, client, keep_data=keep_data)
    progress("left-overs in the cluster", 1, 1, note=f"{len(gone)} removed")
    in_hub = await _hub(environment, hub)
    progress("left-overs in the hub", 1, 1, note=f"{len(in_hub)} removed")
    if environment.platform:
        await asyncio.to_thread(_registry, environment)
    return [*gone, *in_hub]


async def _cluster(
    environment: spec.Environment, client: kube.Client, *, keep_data: bool
) -> list[str]:
    selector = f"{names.LABEL_ENVIRONMENT}={environment.name}"
    namespace = environment.cluster.namespace
    pending: list[str] = []
    removed: list[str] = []
    places: list[tuple[str, str, str | None]] = [(*kind, namespace) for kind in _NAMESPACED]
    if environment.platform:
        places += [(*kind, None) for kind in _CLUSTERWIDE]
        rbac = "rbac.authorization.k8s.io/v1"
        places += [(rbac, kind, _NODE_LEASES) for kind in ("RoleBinding", "Role")]
    for api_version, kind, place in places:
        try:
            path = await client.path_of(api_version, kind, place)
            listed = await client.get(path, labelSelector=selector)
        except errors.NotFound:
            continue
        for obj in listed.get("items") or ():
            if (
                keep_data
                and (obj["metadata"].get("labels") or {}).get("kvedge.io/role") == "data-disk"
            ):
                continue
            name = obj["metadata"]["name"]
            with contextlib.suppress(errors.NotFound):
                await client.delete(f"{path}/{name}", propagationPolicy="Background")
            pending.append(f"{path}/{name}")
            removed.append(f"{kind} {name}")
    if environment.platform:
        pending += await _node(environment, client)
    await _until_gone(client, pending)
    return removed


async def _node(environment: spec.Environment, client: kube.Client) -> list[str]:
    """Remove the virtual node and its leases, which the connector made by itself."""
    name = node_manifests.connector(environment).node_name
    found = []
    for path in (
        f"/api/v1/nodes/{name}",
        f"/apis/coordination.k8s.io/v1/namespaces/{_NODE_LEASES}/leases/{name}",
        f"/apis/coordination.k8s.io/v1/namespaces/{environment.cluster.namespace}/leases/{name}",
    ):
        with contextlib.suppress(errors.NotFound):
            await client.delete(path)
            found.append(path)
    return found


async def _until_gone(client: kube.Client, paths: Sequence[str]) -> None:
    left = list(paths)
    try:
        async with asyncio.timeout(_GONE_SECONDS):
            while left:
                still = []
                for path in left:
                    with contextlib.suppress(errors.NotFound):
                        await client.get(path)
                        still.append(path)
                left = still
                if left:
                    await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as cause:
        raise errors.KvedgeError(
            f"still there after {_GONE_SECONDS:g} s: {', '.join(left)}",
            hint="look at metadata.finalizers of these objects",
        ) from cause


async def _hub(environment: spec.Environment, hub: iothub.Hub) -> list[str]:
    removed: list[str] = []
    rows = await hub.query(
        "SELECT deviceId, tags FROM devices WHERE tags.kvedge.managed = true",
        lane=iothub.Lane.URGENT,
    )
    for row in rows:
        if _mine(environment, row):
            with contextlib.suppress(errors.NotFound):
                await hub.delete_device(row["deviceId"])
                removed.append(f"device {row['deviceId']}")
    if environment.platform:
        for configuration in await hub.configurations(lane=iothub.Lane.URGENT):
            if _serves(environment, configuration.get("labels") or {}):
                name = configuration.get("id", "")
                with contextlib.suppress(errors.NotFound):
                    await hub.delete_configuration(name)
                    removed.append(f"deployment {name}")
    return removed


def _mine(environment: spec.Environment, row: dict[str, Any]) -> bool:
    owner = (row.get("tags") or {}).get("kvedge") or {}
    return (
        owner.get("environment") == environment.name
        and owner.get("cluster") == environment.cluster.identifier
    )


def _serves(environment: spec.Environment, labels: dict[str, str]) -> bool:
    """Tell whether a deployment is this platform's base or a layer of its connector."""
    base = labels.get(hub_content.OWNER_LABEL) == hub_content.base_owner(environment)
    cluster = environment.cluster.identifier
    node = node_manifests.connector(environment).node_name
    layer = labels.get(edge.LABEL_CLUSTER) == cluster and labels.get(edge.LABEL_NODE) == node
    return base or (bool(cluster) and layer)


def _registry(environment: spec.Environment) -> None:
    by = publishing.builder()
    for wanted in publishing.wanted_images(environment, by):
        by.remove(wanted, environment.registry, "")
