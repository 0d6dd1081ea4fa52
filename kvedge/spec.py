"""What an environment is: the frozen model that stack settings are parsed into.

`kvedge.settings` makes it from raw settings and refuses everything that is wrong; the provisioning
program, `validate` and `render` only read it. Sizes are Kubernetes quantities such as `1Gi`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kvedge import names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvedge.redact import Secret

__all__ = [
    "Cluster",
    "Connector",
    "EdgeRuntime",
    "Environment",
    "Hub",
    "Image",
    "Platform",
    "Registry",
    "Rollout",
    "Ssh",
    "Vm",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Kubernetes cluster that carries the VMs."""

    kubeconfig: Path | None = None
    """Kubeconfig file; without it, the one that kubectl would use."""
    context: str | None = None
    """Context of the kubeconfig; without it, its current one."""
    namespace: str = "default"
    """Namespace of all objects; it must exist."""
    identifier: str = ""
    """Names the cluster for good; only its change may replace objects. A local site gives the
    UID of the namespace kube-system."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """The IoT Hub that the devices are registered in."""

    connection_string: Secret
    """Of a service policy with registry read, registry write and service connect."""
    device_host: str
    """The hub's name as devices and pods know it."""
    ca_file: Path | None = None
    """Authority of the hub's certificate, if it is not a public one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The OCI registry that images go through."""

    push: str
    """Host and port as this machine reaches it."""
    pull: str
    """Host and port as the cluster and the guests reach it; the same as `push` if not given."""
    ca_file: Path | None = None
    """Authority of the registry's certificate, if it is not a public one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the VMs boot."""

    recipe: str = "debian-12-edge"
    """A file of images/recipes; built here and pushed."""
    reference: str = ""
    """A containerDisk by digest instead of a recipe: nothing is built then."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """How people reach the VMs."""

    authorized_keys: tuple[str, ...] = ()
    """OpenSSH public keys of user `edge`; none means a key pair made for this environment."""
    service_type: str = "LoadBalancer"
    """`LoadBalancer`, `ClusterIP`, `NodePort`, or `None` for no Service at all."""
    port: int = 22
    """The Service's port; in the guest it is always 22."""
    source_ranges: tuple[str, ...] = ()
    """Networks that may connect to the LoadBalancer; empty means no limit."""
    annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Annotations of the ssh Services, for the cluster's load balancer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One edge VM, which is also one device of the hub."""

    name: str
    """DNS label of at most 40 characters; the device id is `<environment>-<name>`."""
    vcpus: int = 2
    """Cores of the guest."""
    memory: str = "1Gi"
    """What the guest sees."""
    instancetype: str = ""
    """A VirtualMachineClusterInstancetype in place of `vcpus` and `memory`."""
    preference: str = ""
    """A VirtualMachineClusterPreference."""
    os_disk: str = "4Gi"
    """Size of the disk that the image is put on; made anew with each image."""
    data_disk: str = "4Gi"
    """Size of the disk that outlives VM and OS disk; it can grow, and never shrinks."""
    storage_class: str = ""
    """Of both disks; empty is the cluster's default."""
    access_mode: str = "ReadWriteOnce"
    """Of both disks; live migration needs ReadWriteMany."""
    volume_mode: str = ""
    """Of both disks; empty is what CDI knows to be best for the storage class."""
    mac: str = ""
    """Empty: derived from namespace and name."""
    key_version: int = 1
    """Another number gives the VM a new device key and a new ssh host key."""
    firmware: str = "bios"
    """`bios`, `efi`, or `secure-boot`, which is EFI that starts signed loaders only."""
    tpm: bool = False
    """A TPM whose state is kept on a volume of its own."""
    eviction_strategy: str = ""
    """What a drain of the node does to the VM; empty is the cluster's choice."""
    priority_class: str = ""
    """A PriorityClass for the VM's pod."""
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Labels that a node must have to run the VM."""
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Tags of the device's twin, beside `kvedge`."""
    cloud_init: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """A cloud-config of the VM's own; cloud-init runs it once, when the OS disk is new."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a change that needs restarts goes over the fleet."""

    max_unavailable: str = "1"
    """VMs that may be down at once: a number, or a share of the fleet such as 25%."""
    ready_seconds: int = 600
    """How long a restarted VM may take until it is ready, connected and its modules are right."""

    def at_once(self, vms: int) -> int:
        """Return how many of so many VMs may be down at once, at least one."""
        share = self.max_unavailable.partition("%")
        found = vms * int(share[0]) // 100 if share[1] else int(share[0])
        return max(1, found)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRuntime:
    """Images of the system modules, for the hub's base deployment and the devices' first start."""

    agent_image: str = "mcr.microsoft.com/azureiotedge-agent:1.6"
    """Image of `$edgeAgent`."""
    hub_image: str = "mcr.microsoft.com/azureiotedge-hub:1.6"
    """Image of `$edgeHub`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """The virtual node that turns pods into deployments."""

    node_name: str = "iot-edge-connector"
    """Name of the virtual node, and of the connector's objects."""
    replicas: int = 2
    """Pods of the connector; one of them leads."""
    image: str = ""
    """Empty: kvedge's own image, built here and pushed."""
    exec: bool = False
    """`kubectl exec` into modules of the environment's VMs, by an ssh key for nothing else."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What exactly one environment of a hub carries for all."""

    connector: Connector = dataclasses.field(default_factory=Connector)
    """The virtual node that serves this hub's devices."""
    base_target: str = "tags.kvedge.managed=true"
    """Target condition of the hub's base deployment; empty means no base deployment is made."""
    module_images: tuple[str, ...] = ()
    """Module images that are built here and pushed, such as `temperature-sensor`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Everything that one stack describes."""

    name: str
    """The stack's name."""
    site: str
    """Place of the VMs, for tags and selectors; the stack's name if not given."""
    cluster: Cluster
    """Where the VMs are."""
    hub: Hub
    """Where the devices are registered."""
    registry: Registry
    """Where images go through."""
    image: Image
    """What the VMs boot: a recipe, or a reference by digest."""
    ssh: Ssh
    """How people reach the VMs."""
    edge: EdgeRuntime
    """Images of the system modules."""
    fleet: tuple[Vm, ...]
    """The VMs: a list of them, or a mapping with `template`, `count` and `overrides`."""
    rollout: Rollout = dataclasses.field(default_factory=Rollout)
    """How changes that need restarts go over the fleet."""
    hosts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Host name to address: lines of the guests' /etc/hosts."""
    platform: Platform | None = None
    """What exactly one environment of a hub carries for all of them."""
    key_seed: Secret | None = None
    """Random text that the VMs' host keys are derived from; None until the stack has one."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More labels for every object."""

    def device_id(self, vm: Vm) -> str:
        """Return the hub's device id of a VM of this environment."""
        return names.device_id(self.name, vm.name)
