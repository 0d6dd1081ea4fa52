"""Names and numbers that more than one room must spell alike."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "ANNOTATION",
    "API_ADDRESS",
    "CLUSTER_DOMAIN",
    "CLUSTER_SERVICE_ADDRESS",
    "CONFIG_DISK_SERIAL",
    "CONNECTOR_IMAGE_NAME",
    "DATA_DISK_SERIAL",
    "DNS_LABEL",
    "FIELD_MANAGER",
    "HUB_ADDRESS",
    "HUB_HOST",
    "LABEL_ENVIRONMENT",
    "LABEL_MANAGED",
    "LABEL_VM",
    "LOAD_BALANCER_NETWORK",
    "NODE_ADDRESS",
    "NODE_NAME",
    "POD_NETWORK",
    "REGISTRY_ADDRESS",
    "REGISTRY_HOST",
    "SERVICE_NETWORK",
    "SITE_NETWORK",
    "device_id",
]

ANNOTATION: Final = "kvedge.io"
"""Prefix of all our annotations and labels."""
LABEL_ENVIRONMENT: Final = "kvedge.io/environment"
LABEL_MANAGED: Final = "app.kubernetes.io/managed-by"
LABEL_VM: Final = "kvedge.io/vm"
FIELD_MANAGER: Final = "kvedge"

HUB_HOST: Final = "hub.kvedge.test"
"""The local site's hub (443 and 8883), as guests, pods and manifests know it (RFC 6761 .test)."""
REGISTRY_HOST: Final = "registry.kvedge.test"
CLUSTER_DOMAIN: Final = "cluster.local"

SITE_NETWORK: Final = "10.77.0.0/16"
"""All of it is on the loopback interface of the site's own network namespace."""
API_ADDRESS: Final = "10.77.0.1"
HUB_ADDRESS: Final = "10.77.0.2"
REGISTRY_ADDRESS: Final = "10.77.0.3"
NODE_ADDRESS: Final = "10.77.0.4"
POD_NETWORK: Final = "10.77.16.0/20"
LOAD_BALANCER_NETWORK: Final = "10.77.32.0/20"
SERVICE_NETWORK: Final = "10.77.48.0/20"
"""Cluster addresses of Services; nothing listens on them unless the VM host does."""
CLUSTER_SERVICE_ADDRESS: Final = "10.77.48.1"
"""Cluster address of the Service `kubernetes`: the network's first, by the API server's rule."""
NODE_NAME: Final = "edge-host"
"""The local site's node that the VM host plays."""

CONFIG_DISK_SERIAL: Final = "edge-config"
"""Serial of the secret disk; the guest finds it as /dev/disk/by-id/virtio-edge-config."""
DATA_DISK_SERIAL: Final = "edge-data"
CONNECTOR_IMAGE_NAME: Final = "kvedge/kvedge"
"""Repository of kvedge's own container image; the VM host runs it as a local process."""

DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS-1123 label (RFC 1123), to be used with fullmatch."""


def device_id(environment: str, vm: str) -> str:
    """Return the hub's device id of a VM."""
    return f"{environment}-{vm}"
