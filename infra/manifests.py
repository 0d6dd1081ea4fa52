"""Pure builders: from the environment's model to the Kubernetes objects of its VMs.

No pulumi here. Empty maps are left out where the provider would prune them (they would differ for
ever), and no VM carries `waitFor`: after an edit of a running VM it could never be satisfied.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from infra import guest
from kvedge import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvedge import spec
    from kvedge.wire import KubeObject

__all__ = [
    "ANNOTATION_DATA_DISK",
    "ANNOTATION_DEVICE",
    "ANNOTATION_HOST_KEY",
    "LABEL_ROLE",
    "cloudinit_secret_name",
    "data_disk",
    "data_disk_name",
    "edge_secret_name",
    "encoded",
    "labels",
    "needs_trust",
    "os_disk",
    "os_disk_name",
    "registry_trust",
    "secret",
    "ssh_service",
    "user_keys",
    "user_keys_name",
    "virtual_machine",
]

ANNOTATION_HOST_KEY = f"{names.ANNOTATION}/host-key"
"""On the VM: its public ssh host key, pinned by everything that logs in."""
ANNOTATION_DATA_DISK = f"{names.ANNOTATION}/data-disk"
"""Size of the data disk: on the VM's template, so that growth needs a restart, and on the claim."""
ANNOTATION_DEVICE = f"{names.ANNOTATION}/device-id"
LABEL_ROLE = f"{names.ANNOTATION}/role"
"""On disks: `os-disk` or `data-disk`."""
_SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}
_KEY_DIGITS = 12
_GRACE_SECONDS = 60
_USER = "edge"
"""Who logs in; the image has this user."""

_FLUX_ONCE = {
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
    "kustomize.toolkit.fluxcd.io/ssa": "IfNotPresent",
}
"""Flux makes such an object and never changes or deletes it, as `up` does with a data disk."""


def labels(environment: spec.Environment, vm: spec.Vm | None = None) -> dict[str, str]:
    """Return the labels of every object of an environment, or of one of its VMs."""
    found = {
        **environment.labels,
        names.LABEL_MANAGED: "kvedge",
        names.LABEL_ENVIRONMENT: environment.name,
    }
    if vm is not None:
        found[names.LABEL_VM] = vm.name
    return found


def os_disk_name(vm: spec.Vm, image_key: str) -> str:
    """Return the OS disk's name, known before the image is built and new for each image."""
    return f"{vm.name}-os-{image_key.rpartition('-')[2][:_KEY_DIGITS]}"


def data_disk_name(vm: spec.Vm) -> str:
    """Return the data disk's name, the same for good."""
    return f"{vm.name}-data"


def edge_secret_name(vm: spec.Vm) -> str:
    """Return the name of the Secret that becomes the secret disk."""
    return f"{vm.name}-edge"


def cloudinit_secret_name(vm: spec.Vm) -> str:
    """Return the name of the Secret with cloud-init's documents."""
    return f"{vm.name}-cloudinit"


def user_keys_name(environment: spec.Environment) -> str:
    """Return the name of the Secret with the keys that may log in to the environment's VMs."""
    return f"{environment.name}-user-keys"


def user_keys(environment: spec.Environment, authorized: Iterable[str]) -> KubeObject:
    """Return the Secret that KubeVirt hands to running guests through their agents."""
    files = {"authorized_keys": "".join(f"{key}\n" for key in authorized)}
    return secret(environment, None, user_keys_name(environment), encoded(files))


def needs_trust(environment: spec.Environment) -> bool:
    """Tell whether CDI must be given an authority to import the image."""
    image = environment.image.reference
    ours = not image or image.startswith(f"{environment.registry.pull}/")
    return environment.registry.ca_file is not None and ours


def registry_trust(environment: spec.Environment, authority: str) -> KubeObject:
    """Return the ConfigMap by which CDI trusts the registry."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(environment, None, _trust_name(environment)),
        "data": {"ca.pem": authority},
    }


def os_disk(environment: spec.Environment, vm: spec.Vm, image_key: str, url: Any) -> KubeObject:
    """Return the DataVolume of the OS disk.

    Args:
        image_key: the recipe's key, or the digest of a given image.
        url: containerDisk by digest, `docker://HOST/REPOSITORY@sha256:…`.
    """
    registry: dict[str, Any] = {"url": url}
    if needs_trust(environment):
        registry["certConfigMap"] = _trust_name(environment)
    name = os_disk_name(vm, image_key)
    return _disk(environment, vm, name, "os-disk", vm.os_disk, {"registry": registry})


def data_disk(environment: spec.Environment, vm: spec.Vm) -> KubeObject:
    """Return the DataVolume of the data disk, which outlives the VM."""
    name = data_disk_name(vm)
    found = _disk(environment, vm, name, "data-disk", vm.data_disk, {"blank": {}})
    found["metadata"]["annotations"] |= _FLUX_ONCE
    return found


def secret(
    environment: spec.Environment, vm: spec.Vm | None, name: str, data: Mapping[str, Any]
) -> KubeObject:
    """Return a Secret; values are base64 already."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(environment, vm, name),
        "type": "Opaque",
        "data": dict(data),
    }


def encoded(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files as a Secret's `data`."""
    return {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}


def virtual_machine(
    environment: spec.Environment, vm: spec.Vm, image_key: str, host_key: str
) -> KubeObject:
    """Return the VirtualMachine.

    Args:
        image_key: part of the OS disk's name.
        host_key: the public ssh host key.
    """
    metadata = _metadata(environment, vm, vm.name)
    metadata["annotations"] = {
        ANNOTATION_DEVICE: environment.device_id(vm),
        ANNOTATION_HOST_KEY: host_key,
    }
    spec: dict[str, Any] = {
        # Start and stop go through the VM's status with this strategy, so nobody edits our spec.
        "runStrategy": "RerunOnFailure",
        "template": {
            "metadata": {
                "labels": labels(environment, vm),
                "annotations": {ANNOTATION_DATA_DISK: vm.data_disk},
            },
            "spec": _guest_spec(environment, vm, image_key),
        },
    }
    for kind in ("instancetype", "preference"):
        if name := getattr(vm, kind):
            spec[kind] = {"kind": f"VirtualMachineCluster{kind.capitalize()}", "name": name}
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": metadata,
        "spec": spec,
    }


def _guest_spec(environment: spec.Environment, vm: spec.Vm, image_key: str) -> dict[str, Any]:
    disks = [
        {"name": "os", "bootOrder": 1, "disk": {"bus": "virtio"}},
        {"name": "data", "disk": {"bus": "virtio"}, "serial": names.DATA_DISK_SERIAL},
        {"name": "config", "disk": {"bus": "virtio"}, "serial": names.CONFIG_DISK_SERIAL},
        {"name": "cloudinit", "disk": {"bus": "virtio"}},
    ]
    cloudinit = {"name": cloudinit_secret_name(vm)}
    volumes = [
        {"name": "os", "dataVolume": {"name": os_disk_name(vm, image_key)}},
        {"name": "data", "dataVolume": {"name": data_disk_name(vm)}},
        {
            "name": "config",
            "secret": {"secretName": edge_secret_name(vm), "volumeLabel": "EDGECONFIG"},
        },
        {
            "name": "cloudinit",
            "cloudInitNoCloud": {"secretRef": cloudinit, "networkDataSecretRef": dict(cloudinit)},
        },
    ]
    interface = {
        "name": "default",
        "masquerade": {},
        "macAddress": guest.mac_address(environment, vm),
        "ports": [{"name": "ssh", "port": 22, "protocol": "TCP"}],
    }
    found: dict[str, Any] = {
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "accessCredentials": [
            {
                "sshPublicKey": {
                    "source": {"secret": {"secretName": user_keys_name(environment)}},
                    "propagationMethod": {"qemuGuestAgent": {"users": [_USER]}},
                }
            }
        ],
        "readinessProbe": {
            "guestAgentPing": {}, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 5,
        },
        "domain": {
            "firmware": {
                "uuid": guest.firmware_uuid(environment, vm),
                "serial": environment.device_id(vm),
            },
            "cpu": {"cores": vm.vcpus},
            "memory": {"guest": vm.memory},
            "devices": {"disks": disks, "interfaces": [interface], "rng": {}},
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": volumes,
    }  # fmt: skip
    domain = found["domain"]
    if vm.instancetype:
        del domain["cpu"], domain["memory"]
    if vm.firmware != "bios":
        secure = vm.firmware == "secure-boot"
        domain["firmware"]["bootloader"] = {"efi": {"secureBoot": secure}}
        if secure:
            domain["features"] = {"smm": {"enabled": True}}
    if vm.tpm:
        domain["devices"]["tpm"] = {"persistent": True}
    if vm.eviction_strategy:
        found["evictionStrategy"] = vm.eviction_strategy
    if vm.priority_class:
        found["priorityClassName"] = vm.priority_class
    if vm.node_selector:
        found["nodeSelector"] = dict(vm.node_selector)
    return found


def ssh_service(environment: spec.Environment, vm: spec.Vm) -> KubeObject | None:
    """Return the Service for ssh into the VM; None if the settings want none."""
    ssh = environment.ssh
    if ssh.service_type == "None":
        return None
    metadata = _metadata(environment, vm, f"{vm.name}-ssh")
    # An address may come late or never; what counts is told by the fleet's own waiting.
    metadata["annotations"] = {**ssh.annotations, **_SKIP_AWAIT}
    found: dict[str, Any] = {
        "type": ssh.service_type,
        "selector": {names.LABEL_ENVIRONMENT: environment.name, names.LABEL_VM: vm.name},
        "ports": [{"name": "ssh", "port": ssh.port, "targetPort": 22, "protocol": "TCP"}],
    }
    if ssh.service_type == "LoadBalancer" and ssh.source_ranges:
        found["loadBalancerSourceRanges"] = list(ssh.source_ranges)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": found}


def _disk(
    environment: spec.Environment, vm: spec.Vm, name: str, role: str, size: str, source: Any
) -> KubeObject:
    metadata = _metadata(environment, vm, name)
    metadata["labels"][LABEL_ROLE] = role
    metadata["annotations"] = dict(_SKIP_AWAIT)
    storage: dict[str, Any] = {
        "accessModes": [vm.access_mode],
        "resources": {"requests": {"storage": size}},
    }
    if vm.storage_class:
        storage["storageClassName"] = vm.storage_class
    if vm.volume_mode:
        storage["volumeMode"] = vm.volume_mode
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": metadata,
        "spec": {"source": source, "storage": storage},
    }


def _metadata(environment: spec.Environment, vm: spec.Vm | None, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": environment.cluster.namespace,
        "labels": labels(environment, vm),
    }


def _trust_name(environment: spec.Environment) -> str:
    return f"{environment.name}-registry-ca"
