"""Fills a fresh API server: KubeVirt's and CDI's definitions, RBAC, admission, our own roles.

It plays virt-operator's part once, with the admin identity. Three steps, because order matters:
CDI's definitions must be there before virt-api and virt-controller start (both exit by design when
they appear later), and webhooks must not be there before virt-api answers (each VM write would
fail). A digest in a ConfigMap tells that a step has been done with these very objects.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from kvedge import errors, names
from kvedge.site import parts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvedge.kube import Client
    from kvedge.site.state import Folder

__all__ = ["Bootstrap", "own_roles"]

_NAMESPACE = "kubevirt"
_MARKER = f"/api/v1/namespaces/{_NAMESPACE}/configmaps/kvedge-site"
_AT_ONCE = 4
_PAUSE_SECONDS = 0.05
_CORE = "api/v1"
_COLLECTIONS = {
    "APIService": "apis/apiregistration.k8s.io/v1/apiservices",
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ConfigMap": f"{_CORE}/namespaces/{{}}/configmaps",
    "CustomResourceDefinition": "apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "KubeVirt": "apis/kubevirt.io/v1/namespaces/{}/kubevirts",
    "MutatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    ),
    "Namespace": f"{_CORE}/namespaces",
    "PriorityClass": "apis/scheduling.k8s.io/v1/priorityclasses",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "Service": f"{_CORE}/namespaces/{{}}/services",
    "ServiceAccount": f"{_CORE}/namespaces/{{}}/serviceaccounts",
    "ValidatingWebhookConfiguration": (
        "apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    ),
    "VirtualMachineClusterInstancetype": (
        "apis/instancetype.kubevirt.io/v1beta1/virtualmachineclusterinstancetypes"
    ),
    "VirtualMachineClusterPreference": (
        "apis/instancetype.kubevirt.io/v1beta1/virtualmachineclusterpreferences"
    ),
}
"""Kind -> collection; asking discovery would cost more than the whole of the RBAC objects."""


class Bootstrap:
    """The steps that the plan names; each may be run again at any time."""

    def __init__(self, folder: Folder, manifests: Path, client: Client) -> None:
        self._folder = folder
        self._path = manifests
        self._client = client
        self._manifests: dict[str, Any] = {}
        self._digest = ""
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self.cluster_id = ""
        """UID of the namespace kube-system, known after `definitions`."""

    async def run(self, step: str) -> None:
        """Do one step to its end.

        Raises:
            RemoteError: the API server refused or did not answer; try again.
            SiteError: the manifests cannot be read.
        """
        if not self._manifests:
            self._manifests, self._digest = self._read()
        await {
            "definitions": self._definitions,
            "defaults": self._defaults,
            "admission": self._admission,
        }[step]()

    def forget(self) -> None:
        """Give the memory of the manifests back until they are needed again."""
        self._manifests = {}

    async def _definitions(self) -> None:
        """Everything that virt-api, virt-controller and the VM host must find when they start."""
        system = await self._client.get("/api/v1/namespaces/kube-system")
        self.cluster_id = system["metadata"]["uid"]
        if await self._has_been_done("definitions"):
            return
        manifests = self._manifests
        namespace = _object("v1", "Namespace", _NAMESPACE)
        namespace["metadata"]["labels"] = {"kubevirt.io": ""}
        crds = [_bare(item) for item in (*manifests["crds"], *manifests["cdiCrds"])]
        rights = [
            *manifests["priorityClasses"],
            *manifests["serviceAccounts"],
            *manifests["clusterRoles"],
            *manifests["clusterRoleBindings"],
            *manifests["roles"],
            *manifests["roleBindings"],
            *own_roles(),
        ]
        rights = [
            _bare(item)
            for item in rights
            if item["metadata"].get("namespace", _NAMESPACE) == _NAMESPACE
        ]
        await self._apply([namespace])
        await self._apply([*crds, *rights, *self._trust(), _virt_api_service()])
        await self._until_established()
        await self._until_served(_kubevirt())
        await self._mark("definitions")

    async def _defaults(self) -> None:
        """Instance types and preferences, and the status that tools look for."""
        if await self._has_been_done("defaults"):
            return
        types = (*self._manifests["instancetypes"], *self._manifests["preferences"])
        await self._apply([_bare(item) for item in types])
        await self._client.patch(
            f"/apis/kubevirt.io/v1/namespaces/{_NAMESPACE}/kubevirts/kubevirt/status",
            {"status": _kubevirt_status()},
        )
        await self._mark("defaults")

    async def _admission(self) -> None:
        """KubeVirt's webhooks, and the wait until its aggregated API is served."""
        # The API server looks at an unavailable service again after 5 to 30 s, but at once after a
        # change of it: hence the annotation, and hence no APIService before virt-api answers.
        services = self._api_services()
        await self._apply(services)
        if not await self._has_been_done("admission"):
            await self._apply(self._webhooks())
            await self._mark("admission")
        for service in services:
            path = f"/{_COLLECTIONS['APIService']}/{service['metadata']['name']}"
            # Two short-lived waits at start; a watch would cost more than it saves.
            while not _is_true(await self._client.get(path), "Available"):  # noqa: ASYNC110
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _apply(self, objects: Iterable[dict[str, Any]]) -> None:
        async with asyncio.TaskGroup() as group:
            for item in objects:
                name = f"apply {item['kind']} {item['metadata']['name']}"
                group.create_task(self._apply_one(item), name=name)

    async def _apply_one(self, item: dict[str, Any]) -> None:
        metadata = item["metadata"]
        collection = _COLLECTIONS[item["kind"]].format(metadata.get("namespace", _NAMESPACE))
        async with self._limit:
            await self._client.patch(
                f"/{collection}/{metadata['name']}",
                item,
                "apply",
                fieldManager=names.FIELD_MANAGER,
                force=True,
            )

    async def _until_established(self) -> None:
        """Wait until discovery names every defined resource.

        The definitions themselves would tell as well, but all of them are 2 MB an answer.
        """
        missing: dict[str, set[str]] = {}
        for item in (*self._manifests["crds"], *self._manifests["cdiCrds"]):
            spec = item["spec"]
            for version in spec["versions"]:
                if version["served"]:
                    group_version = f"{spec['group']}/{version['name']}"
                    missing.setdefault(group_version, set()).add(spec["names"]["plural"])
        while missing:
            for group_version in list(missing):
                with contextlib.suppress(errors.NotFound):
                    found = await self._client.get(f"/apis/{group_version}")
                    missing[group_version] -= {entry["name"] for entry in found["resources"]}
                if not missing[group_version]:
                    del missing[group_version]
            await asyncio.sleep(_PAUSE_SECONDS * 2)

    async def _until_served(self, item: dict[str, Any]) -> None:
        while True:
            try:
                await self._apply_one(item)
            except errors.NotFound:
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    def _read(self) -> tuple[dict[str, Any], str]:
        """Return KubeVirt's objects, and a digest of all that decides what the steps apply."""
        try:
            content = self._path.read_bytes()
            manifests = orjson.loads(content)
        except (OSError, ValueError) as cause:
            raise errors.SiteError(
                f"cannot read KubeVirt's manifests {str(self._path)!r}: {cause}",
                hint="kvedge tools build kubevirt-manifests",
            ) from cause
        digest = hashlib.sha256(content)
        for part in (Path(__file__).read_bytes(), self._authority().encode()):
            digest.update(part)
        return manifests, digest.hexdigest()

    async def _has_been_done(self, step: str) -> bool:
        try:
            marker = await self._client.get(_MARKER)
        except errors.NotFound:
            return False
        return marker.get("data", {}).get(step) == self._digest

    async def _mark(self, step: str) -> None:
        marker = _object("v1", "ConfigMap", "kvedge-site", _NAMESPACE)
        marker["data"] = {step: self._digest}
        await self._client.patch(
            _MARKER, marker, "apply", fieldManager=f"{names.FIELD_MANAGER}-{step}", force=True
        )

    def _authority(self) -> str:
        return (self._folder.pki / "kubevirt-ca.crt").read_text(encoding="ascii")

    def _bundle(self) -> str:
        return base64.b64encode(self._authority().encode()).decode()

    def _trust(self) -> list[dict[str, Any]]:
        maps = []
        for name in (
            "kubevirt-ca",
            "kubevirt-export-ca",
            "kubevirt-backup-ca",
            "kubevirt-external-ca",
        ):
            item = _object("v1", "ConfigMap", name, _NAMESPACE)
            item["data"] = {"ca-bundle": self._authority()}
            maps.append(item)
        return maps

    def _api_services(self) -> list[dict[str, Any]]:
        services = []
        for found in self._manifests["apiServices"]:
            item = _bare(found)
            item["metadata"]["annotations"] = {f"{names.ANNOTATION}/checked": str(time.time())}
            item["spec"]["service"]["port"] = parts.VIRT_API_PORT
            item["spec"]["caBundle"] = self._bundle()
            services.append(item)
        return services

    def _webhooks(self) -> list[dict[str, Any]]:
        hooks = []
        for found in (
            *self._manifests["mutatingWebhooks"],
            *self._manifests["validatingWebhooks"],
        ):
            # The operator's own webhook has no server here: there is no operator.
            if found["metadata"]["name"] == "virt-operator-validator":
                continue
            item = _bare(found)
            for hook in item["webhooks"]:
                hook["clientConfig"]["caBundle"] = self._bundle()
                hook["clientConfig"]["service"]["port"] = parts.VIRT_API_PORT
            hooks.append(item)
        return hooks


def own_roles() -> list[dict[str, Any]]:
    """Return the roles of the VM host's volume half and of the API server towards kubelets."""
    user = "kvedge:site:volumes"
    role = _object("rbac.authorization.k8s.io/v1", "ClusterRole", user)
    everything = ["get", "list", "watch", "create", "update", "patch", "delete"]
    reading = ["get", "list", "watch"]
    role["rules"] = [
        _rule("", ["persistentvolumes", "persistentvolumeclaims"], everything),
        _rule(
            "",
            ["persistentvolumes/status", "persistentvolumeclaims/status", "services/status"],
            ["get", "update", "patch"],
        ),
        _rule("", ["nodes", "pods", "services", "namespaces", "endpoints"], reading),
        _rule("", ["secrets", "configmaps"], reading),
        _rule("", ["events"], ["create", "update", "patch"]),
        _rule("events.k8s.io", ["events"], ["create", "update", "patch"]),
        _rule("discovery.k8s.io", ["endpointslices"], reading),
        _rule("storage.k8s.io", ["storageclasses"], everything),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update", "patch"]),
        _rule(
            "cdi.kubevirt.io",
            [
                *("datavolumes", "datavolumes/status", "datavolumes/finalizers", "cdiconfigs"),
                *("cdiconfigs/status", "storageprofiles", "storageprofiles/status"),
                *("datasources", "datasources/status"),
            ],
            everything,
        ),
        _rule("kubevirt.io", ["virtualmachines", "virtualmachineinstances"], reading),
    ]
    return [
        role,
        _binding(user, "kvedge:site:volumes", user),
        # Without it a kubelet that asks the API server about its caller would refuse logs and exec.
        _binding(
            "kvedge:site:kubelet-client",
            "system:kubelet-api-admin",
            "kube-apiserver-kubelet-client",
        ),
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _binding(name: str, role: str, user: str) -> dict[str, Any]:
    item = _object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", name)
    item["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    item["subjects"] = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]
    return item


def _virt_api_service() -> dict[str, Any]:
    # The API server calls an ExternalName as it stands, for webhooks and for aggregation alike;
    # a Service with endpoints could not point to loopback.
    item = _object("v1", "Service", "virt-api", _NAMESPACE)
    item["spec"] = {"type": "ExternalName", "externalName": "127.0.0.1"}
    return item


def _kubevirt() -> dict[str, Any]:
    item = _object("kubevirt.io/v1", "KubeVirt", "kubevirt", _NAMESPACE)
    item["spec"] = {
        "imagePullPolicy": "IfNotPresent",
        # Launcher pods then ask for no kvm device; the VM host decides about acceleration itself.
        "configuration": {"developerConfiguration": {"useEmulation": True}},
    }
    return item


def _kubevirt_status() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    version, registry = parts.KUBEVIRT_VERSION, "kvedge.local/kubevirt"
    conditions = (
        ("Available", "True", "AllComponentsReady"),
        ("Progressing", "False", "AllComponentsReady"),
        ("Degraded", "False", "AllComponentsReady"),
        ("Created", "True", "AllResourcesCreated"),
    )
    deployment = {
        "id": "kvedge",
        "namespace": _NAMESPACE,
        "registry": registry,
        "kubeVirtVersion": version,
    }
    return {
        "phase": "Deployed",
        "defaultArchitecture": "amd64",
        "observedKubeVirtVersion": version,
        "targetKubeVirtVersion": version,
        "operatorVersion": version,
        "observedKubeVirtRegistry": registry,
        "observedDeploymentConfig": json.dumps(deployment),
        "observedDeploymentID": deployment["id"],
        "observedGeneration": 1,
        "outdatedVirtualMachineInstanceWorkloads": 0,
        "conditions": [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "lastProbeTime": now,
                "lastTransitionTime": now,
            }
            for kind, status, reason in conditions
        ],
    }


def _object(api_version: str, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _bare(item: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without what generators leave behind and server-side apply refuses."""
    item = copy.deepcopy(item)
    item["metadata"].pop("creationTimestamp", None)
    item.pop("status", None)
    return item


def _is_true(item: dict[str, Any], condition: str) -> bool:
    found = item.get("status", {}).get("conditions") or ()
    return any(entry["type"] == condition and entry["status"] == "True" for entry in found)
