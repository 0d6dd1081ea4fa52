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
    "Ssh",
    "Vm",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Kubernetes cluster that carries the VMs."""

    kubeconfig: Path | None = None
    """File; None is what kubectl would use."""
    context: str | None = None
    namespace: str = "default"
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
    """Host and port as the cluster and the guests reach it."""
    ca_file: Path | None = None


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
    service_annotations: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """One edge VM, which is also one device of the hub."""

    name: str
    vcpus: int = 2
    memory: str = "1Gi"
    """What the guest sees."""
    os_disk: str = "4Gi"
    data_disk: str = "4Gi"
    storage_class: str = ""
    """Empty is the cluster's default."""
    mac: str = ""
    """Empty: derived from namespace and name."""
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Tags of the device's twin, beside `kvedge`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRuntime:
    """Images of the system modules, for the hub's base deployment and the devices' first start."""

    agent_image: str = "mcr.microsoft.com/azureiotedge-agent:1.6"
    hub_image: str = "mcr.microsoft.com/azureiotedge-hub:1.6"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """The virtual node that turns pods into deployments."""

    node_name: str = "iot-edge-connector"
    replicas: int = 2
    image: str = ""
    """Empty: kvedge's own image, built here and pushed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What exactly one environment of a hub carries for all."""

    connector: Connector = dataclasses.field(default_factory=Connector)
    base_target: str = "tags.kvedge.managed=true"
    """Target condition of the hub's base deployment; empty means no base deployment is made."""
    module_images: tuple[str, ...] = ()
    """Module images that are built here and pushed, such as `temperature-sensor`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Everything that one stack describes."""

    name: str
    site: str
    """Place of the VMs, for tags and selectors; the stack's name if not given."""
    cluster: Cluster
    hub: Hub
    registry: Registry
    image: Image
    ssh: Ssh
    edge: EdgeRuntime
    fleet: tuple[Vm, ...]
    hosts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Host name to address: lines of the guests' /etc/hosts."""
    platform: Platform | None = None
    key_seed: Secret | None = None
    """Random text that the VMs' host keys are derived from; None until the stack has one."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More labels for every object."""

    def device_id(self, vm: Vm) -> str:
        """Return the hub's device id of a VM of this environment."""
        return names.device_id(self.name, vm.name)
