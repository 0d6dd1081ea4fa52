"""Checks of a cluster: reachable, clock, KubeVirt with its gates, CDI, storage, rights."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import aiohttp

from kvedge import errors
from kvedge.survey import clocks
from kvedge.survey.findings import Finding

if TYPE_CHECKING:
    from kvedge import kube

__all__ = ["check_cluster"]

_KUBEVIRT_MINIMUM = (1, 5)
"""Older ones keep stops and starts in the VM's spec, where they fight with the settings."""
_GATES = {
    "ExpandDisks": ((1, 8), "a grown data disk reaches the guest only after a restart without it"),
}
"""Gate -> release from which it is always on, and what is missing without it.
(kubevirt/kubevirt: pkg/virt-config/featuregate/inactive.go)"""
_DEFAULT_CLASS = (
    "storageclass.kubevirt.io/is-default-virt-class",
    "storageclass.kubernetes.io/is-default-class",
)
_WRITE = ("get", "list", "watch", "create", "patch", "delete")
_RIGHTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("kubevirt.io", "virtualmachines", _WRITE),
    ("kubevirt.io", "virtualmachineinstances", ("get", "list", "watch")),
    ("cdi.kubevirt.io", "datavolumes", _WRITE),
    ("", "secrets", _WRITE),
    ("", "services", _WRITE),
    ("", "events", ("list", "watch")),
    ("", "pods", ("get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("subresources.kubevirt.io", "virtualmachines/start", ("update",)),
    ("subresources.kubevirt.io", "virtualmachines/stop", ("update",)),
    ("subresources.kubevirt.io", "virtualmachines/restart", ("update",)),
    ("subresources.kubevirt.io", "virtualmachineinstances/portforward", ("get",)),
    ("subresources.kubevirt.io", "virtualmachineinstances/console", ("get",)),
    ("subresources.kubevirt.io", "virtualmachineinstances/vnc", ("get",)),
)
"""What provisioning, status and access need in the namespace: group, resource, verbs."""


async def check_cluster(client: kube.Client, *, namespace: str = "") -> list[Finding]:
    """Check a cluster for what environments need; rights are asked for in the namespace."""
    try:
        version, skew = await _version_and_skew(client)
    except errors.RemoteError as error:
        fix = error.hint or "does kubectl reach it? kubectl get --raw /version"
        return [Finding(check="cluster", state="fail", found=error.message, fix=fix)]
    findings = [
        Finding(check="cluster", state="ok", found=f"{client.config.server} {version}"),
        clocks.finding("clock of the API server", skew),
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_guarded(name, check), name=name)
            for name, check in (
                ("KubeVirt", _kubevirt(client)),
                ("virt-api", _virt_api(client)),
                ("CDI", _cdi(client)),
                ("storage class", _storage(client)),
                ("rights", _rights(client, namespace or client.config.namespace)),
            )
        ]
    for task in tasks:
        findings += task.result()
    return findings


async def _guarded(name: str, check: Any) -> list[Finding]:
    """Turn a refused or failed read into a finding of that check."""
    try:
        return await check
    except errors.RemoteError as error:
        fix = error.hint or (
            "ask the cluster's administrator for this right"
            if isinstance(error, errors.Unauthorized)
            else "run it again; the API server's log says more"
        )
        return [Finding(check=name, state="fail", found=error.message, fix=fix)]


async def _version_and_skew(client: kube.Client) -> tuple[str, float]:
    version = (await client.get("/version"))["gitVersion"]
    try:
        skew = await clocks.skew(
            client.session, f"{client.config.server}/version", headers=client.headers()
        )
    except (aiohttp.ClientError, TimeoutError) as cause:
        raise errors.RemoteError("GET /version", details=str(cause)) from cause
    return version, skew


async def _kubevirt(client: kube.Client) -> list[Finding]:
    install = (
        "install KubeVirt: kubectl apply -f kubevirt-operator.yaml -f kubevirt-cr.yaml of a "
        "release (https://github.com/kubevirt/kubevirt/releases)"
    )
    try:
        found = (await client.get("/apis/kubevirt.io/v1/kubevirts"))["items"]
    except errors.NotFound:
        return [Finding(check="KubeVirt", state="fail", found="not installed", fix=install)]
    if not found:
        return [
            Finding(
                check="KubeVirt", state="fail", fix=install,
                found="its kinds are there, but no KubeVirt object: nothing runs VMs",
            )
        ]  # fmt: skip
    status, name = found[0].get("status") or {}, found[0]["metadata"]["name"]
    namespace = found[0]["metadata"]["namespace"]
    release, phase = str(status.get("observedKubeVirtVersion", "")), status.get("phase", "unknown")
    if phase != "Deployed":
        return [
            Finding(
                check="KubeVirt", state="fail", found=f"phase is {phase!r}, not 'Deployed'",
                fix=f"kubectl describe kubevirt {name} -n {namespace}",
            )
        ]  # fmt: skip
    numbers = _numbers(release)
    lowest = ".".join(map(str, _KUBEVIRT_MINIMUM))
    if numbers and numbers < _KUBEVIRT_MINIMUM:
        version = Finding(
            check="KubeVirt", state="warn", found=f"{release}, older than {lowest}",
            fix=f"upgrade KubeVirt to {lowest} or later, one minor release at a time",
        )  # fmt: skip
    else:
        version = Finding(check="KubeVirt", state="ok", found=release or "version unknown")
    settings = (found[0].get("spec") or {}).get("configuration") or {}
    developer = settings.get("developerConfiguration") or {}
    return [
        version,
        _gates(developer, numbers, f"kubevirt {name} -n {namespace}"),
        await _acceleration(client, developer, f"kubevirt {name} -n {namespace}"),
    ]


def _numbers(release: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else None


def _gates(developer: dict[str, Any], numbers: tuple[int, int] | None, where: str) -> Finding:
    given = set(developer.get("featureGates") or ())
    off = [
        gate for gate, (always_on, _) in _GATES.items()
        if gate not in given and numbers is not None and numbers < always_on
    ]  # fmt: skip
    if not off:
        return Finding(check="KubeVirt gates", state="ok", found="all that are needed are on")
    return Finding(
        check="KubeVirt gates",
        state="warn",
        found="; ".join(f"{gate} is off: {_GATES[gate][1]}" for gate in off),
        fix=f"kubectl edit {where}: add {', '.join(off)} to "
        "spec.configuration.developerConfiguration.featureGates",
    )


async def _acceleration(client: kube.Client, developer: dict[str, Any], where: str) -> Finding:
    """Check that a node can run VMs: by KVM, or by emulation where that is allowed."""
    check = "virtualization on nodes"
    nodes = (await client.get("/api/v1/nodes"))["items"]
    able = [
        node["metadata"]["name"] for node in nodes
        if (node["metadata"].get("labels") or {}).get("kubevirt.io/schedulable") == "true"
    ]  # fmt: skip
    if not able:
        return Finding(
            check=check, state="fail",
            found=f"none of {len(nodes)} nodes is labelled kubevirt.io/schedulable=true",
            fix="does virt-handler run? kubectl get pods -n kubevirt -l kubevirt.io=virt-handler",
        )  # fmt: skip
    if developer.get("useEmulation"):
        return Finding(check=check, state="ok", found=f"{len(able)} nodes, emulation is allowed")
    kvm = [
        node["metadata"]["name"] for node in nodes
        if node["metadata"]["name"] in able and _has_kvm(node)
    ]  # fmt: skip
    if kvm:
        return Finding(check=check, state="ok", found=f"{len(kvm)} nodes with KVM")
    return Finding(
        check=check, state="fail", found=f"no KVM on {', '.join(able)}, and emulation is off",
        fix="switch virtualization on in the nodes' firmware or hypervisor, or accept slow VMs: "
        f"kubectl edit {where}: spec.configuration.developerConfiguration.useEmulation: true",
    )  # fmt: skip


def _has_kvm(node: dict[str, Any]) -> bool:
    amount = ((node.get("status") or {}).get("allocatable") or {}).get("devices.kubevirt.io/kvm")
    return str(amount or "0") != "0"


async def _virt_api(client: kube.Client) -> list[Finding]:
    path = "/apis/subresources.kubevirt.io/v1"
    try:
        await client.get(path)
    except errors.RemoteError as error:
        found = "not served" if isinstance(error, errors.NotFound) else error.message
        fix = (
            "ssh, console and start go through it: kubectl get apiservice "
            "v1.subresources.kubevirt.io -o yaml; kubectl get pods -n kubevirt"
        )
        return [Finding(check="virt-api", state="fail", found=found, fix=fix)]
    return [Finding(check="virt-api", state="ok", found=f"{path} is served")]


async def _cdi(client: kube.Client) -> list[Finding]:
    install = (
        "install the Containerized Data Importer: kubectl apply -f cdi-operator.yaml -f "
        "cdi-cr.yaml of a release (https://github.com/kubevirt/containerized-data-importer/releases)"
    )
    try:
        disks = (await client.get("/apis/cdi.kubevirt.io/v1beta1/datavolumes"))["items"]
    except errors.NotFound:
        return [Finding(check="CDI", state="fail", found="not installed", fix=install)]
    try:
        found = (await client.get("/apis/cdi.kubevirt.io/v1beta1/cdis"))["items"]
    except errors.NotFound:
        found = []
    if not found and any((one.get("status") or {}).get("phase") == "Succeeded" for one in disks):
        # The local site's VM host imports disks itself.
        return [Finding(check="CDI", state="ok", found="no CDI object, but disks are imported")]
    if not found:
        return [
            Finding(
                check="CDI", state="fail", found="no CDI object: nothing imports disks", fix=install
            )
        ]
    status, name = found[0].get("status") or {}, found[0]["metadata"]["name"]
    phase, release = status.get("phase", "unknown"), status.get("observedVersion", "")
    if phase != "Deployed":
        return [
            Finding(
                check="CDI", state="fail", found=f"phase is {phase!r}, not 'Deployed'",
                fix=f"kubectl describe cdi {name}; kubectl get pods -n cdi",
            )
        ]  # fmt: skip
    return [Finding(check="CDI", state="ok", found=release or "version unknown")]


async def _storage(client: kube.Client) -> list[Finding]:
    classes = (await client.get("/apis/storage.k8s.io/v1/storageclasses"))["items"]
    for mark in _DEFAULT_CLASS:
        for item in classes:
            if (item["metadata"].get("annotations") or {}).get(mark) == "true":
                name = item["metadata"]["name"]
                return [Finding(check="storage class", state="ok", found=f"default is {name!r}")]
    known = ", ".join(item["metadata"]["name"] for item in classes)
    return [
        Finding(
            check="storage class",
            state="warn" if classes else "fail",
            found=f"none is the default of {known}" if classes else "there is none",
            fix="name one in the settings (storageClass), or make one the default: kubectl "
            f"annotate storageclass NAME {_DEFAULT_CLASS[1]}=true"
            if classes
            else "install a storage provisioner, such as rancher/local-path-provisioner",
        )
    ]


async def _rights(client: kube.Client, namespace: str) -> list[Finding]:
    """Ask the API server itself, one SelfSubjectAccessReview a right."""
    asked = [(group, resource, verb) for group, resource, verbs in _RIGHTS for verb in verbs]
    async with asyncio.TaskGroup() as tasks:
        answers = [
            tasks.create_task(_allowed(client, namespace, *right), name="access-review")
            for right in asked
        ]
    missing: dict[tuple[str, str], list[str]] = {}
    for (group, resource, verb), answer in zip(asked, answers, strict=True):
        if not answer.result():
            missing.setdefault((group, resource), []).append(verb)
    if not missing:
        found = f"all {len(asked)} that are needed in namespace {namespace!r}"
        return [Finding(check="rights", state="ok", found=found)]
    return [
        Finding(
            check=f"right to {', '.join(verbs)} {resource}{'.' + group if group else ''}",
            state="fail",
            found=f"refused in namespace {namespace!r}",
            fix=f"add to a Role there: apiGroups: [{group!r}], resources: [{resource!r}], "
            f"verbs: {verbs!r}",
        )
        for (group, resource), verbs in missing.items()
    ]


async def _allowed(
    client: kube.Client, namespace: str, group: str, resource: str, verb: str
) -> bool:
    name, _, subresource = resource.partition("/")
    attributes = {
        "namespace": namespace,
        "group": group,
        "resource": name,
        "subresource": subresource,
        "verb": verb,
    }
    answer = await client.post(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        },
    )
    return bool(answer["status"].get("allowed"))
