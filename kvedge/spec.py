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
    "Aks",
    "Arc",
    "Azure",
    "AzureDps",
    "AzureHub",
    "Cluster",
    "Connector",
    "Dps",
    "EdgeRuntime",
    "Environment",
    "Flux",
    "Hub",
    "Image",
    "Operators",
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
class Dps:
    """An enrollment group of a Device Provisioning Service that leads to the hub."""

    id_scope: str
    """The service's ID scope, such as `0ne00123ABC`."""
    group_key: Secret
    """The enrollment group's primary key, in base64; each device gets a key derived from it."""
    endpoint: str = "https://global.azure-devices-provisioning.net"
    """Where devices register."""


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
    connection_string: Secret | None = None
    """Of a hub policy of the connector's own; without one it uses the environment's."""


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
class Operators:
    """KubeVirt and CDI, put on a cluster that has neither."""

    registry: str = "quay.io/kubevirt"
    """Where the cluster pulls their images from; a mirror keeps the images' names and tags."""
    emulation: bool = False
    """VMs run without hardware virtualization, slowly; for tries."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AzureHub:
    """An IoT Hub, with a policy for provisioning and one for the connector."""

    name: str
    """Unique in the world; devices reach it as `<name>.azure-devices.net`."""
    sku: str = "S1"
    """Its edition; automatic deployments need a standard one."""
    units: int = 1
    """How many units of the edition."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AzureDps:
    """A Device Provisioning Service that leads to the hub; it fills in the section `dps`."""

    name: str
    """Unique in the world."""
    group: str = "kvedge"
    """The enrollment group that the devices belong to."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Aks:
    """An AKS cluster whose nodes can run VMs."""

    name: str
    """Of the cluster, and of its address."""
    node_size: str = "Standard_D4s_v5"
    """Of the nodes that run VMs; it must have nested virtualization."""
    nodes: int = 1
    """How many of them; a small one for the cluster's own pods comes on top."""
    version: str = ""
    """Of Kubernetes; empty is Azure's default."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flux:
    """A git repository that Arc's Flux extension applies to the cluster."""

    url: str
    """Of the repository, https or ssh."""
    path: str
    """Folder in it: what `kvedge render` wrote."""
    branch: str = "main"
    """Branch to follow."""
    interval_seconds: int = 600
    """How often to look for changes."""
    user: str = ""
    """Who reads a private repository by https."""
    token: Secret | None = None
    """That user's password or token."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arc:
    """The cluster as Azure Arc knows it."""

    name: str
    """Of the connected cluster in the resource group."""
    connect: bool = False
    """Connect the cluster by `az connectedk8s connect`; otherwise it is connected already."""
    flux: Flux | None = None
    """What the cluster pulls by itself, the connector included."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Azure:
    """What is made in Azure before the environment itself."""

    location: str
    """Such as `westeurope`."""
    resource_group: str
    """Made by kvedge, and taken away with all that is in it."""
    hub: AzureHub
    """The hub; it fills in the section `hub`."""
    subscription: str = ""
    """Empty: the one that `az` or the ARM_* variables name."""
    dps: AzureDps | None = None
    """Without it, each VM is given its device's connection string."""
    aks: Aks | None = None
    """A cluster for the environment; without it, `cluster` names one that is there."""
    arc: Arc | None = None
    """The cluster's connection to Azure Arc."""
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of every resource."""


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
    dps: Dps | None = None
    """The devices register themselves through this enrollment group; without it, each VM is given
    its device's connection string."""
    rollout: Rollout = dataclasses.field(default_factory=Rollout)
    """How changes that need restarts go over the fleet."""
    hosts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Host name to address: lines of the guests' /etc/hosts."""
    platform: Platform | None = None
    """What exactly one environment of a hub carries for all of them."""
    operators: Operators | None = None
    """Puts KubeVirt and CDI on the cluster; for one environment of a cluster."""
    azure: Azure | None = None
    """What `kvedge up` makes in Azure first."""
    key_seed: Secret | None = None
    """Random text that the VMs' host keys are derived from; None until the stack has one."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More labels for every object."""

    def device_id(self, vm: Vm) -> str:
        """Return the hub's device id of a VM of this environment."""
        return names.device_id(self.name, vm.name)
