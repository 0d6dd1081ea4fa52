"""What the `azure:` section comes to, as data: properties of pulumi-azure-native's resources.

Pure. Resources are registered by token, as `infra.components.manifest` does for Kubernetes: the
provider's Python package is 150 MB, and Pulumi starts the provider for every program in whose
environment the package lies, used or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvedge import spec

__all__ = [
    "AKS",
    "AKS_CREDENTIALS",
    "CONNECTOR_POLICY",
    "DPS",
    "DPS_KEYS",
    "FLUX_CONFIGURATION",
    "FLUX_EXTENSION",
    "HUB",
    "HUB_KEYS",
    "PROVIDER_VERSION",
    "PROVISION_POLICY",
    "RESOURCE_GROUP",
    "aks",
    "dps",
    "flux_configuration",
    "flux_extension",
    "hub",
    "resource_group",
]

PROVIDER_VERSION = "3.29.0"
"""Of pulumi-azure-native; tests/golden/azure holds what of its types is used."""
RESOURCE_GROUP = "resources:ResourceGroup"
HUB = "iothub:IotHubResource"
HUB_KEYS = "iothub:listIotHubResourceKeysForKeyName"
DPS = "deviceprovisioningservices:IotDpsResource"
DPS_KEYS = "deviceprovisioningservices:listIotDpsResourceKeysForKeyName"
AKS = "containerservice:ManagedCluster"
AKS_CREDENTIALS = "containerservice:listManagedClusterUserCredentials"
FLUX_EXTENSION = "kubernetesconfiguration:Extension"
FLUX_CONFIGURATION = "kubernetesconfiguration:FluxConfiguration"

PROVISION_POLICY = "kvedge-provision"
"""Policy of the hub for `kvedge` itself, and of the provisioning service for its groups."""
CONNECTOR_POLICY = "kvedge-connector"
_HUB_RIGHTS = "RegistryRead, RegistryWrite, ServiceConnect"
"""Devices and deployments are written, twins are read; nobody may pose as a device."""
_ARC = {"clusterRp": "Microsoft.Kubernetes", "clusterResourceName": "connectedClusters"}
_SYSTEM_NODE = "Standard_D2s_v5"


def resource_group(azure: spec.Azure) -> dict[str, Any]:
    """Return the group that all others are in."""
    return {"resourceGroupName": azure.resource_group, **_placed(azure)}


def hub(azure: spec.Azure) -> dict[str, Any]:
    """Return the hub. It has these two policies and no owner's; each can be renewed alone."""
    policies = [
        {"keyName": name, "rights": _HUB_RIGHTS} for name in (PROVISION_POLICY, CONNECTOR_POLICY)
    ]
    return {
        "resourceGroupName": azure.resource_group,
        "resourceName": azure.hub.name,
        **_placed(azure),
        "sku": {"name": azure.hub.sku, "capacity": azure.hub.units},
        "properties": {"authorizationPolicies": policies, "minTlsVersion": "1.2"},
    }


def dps(azure: spec.Azure, wanted: spec.AzureDps, connection_string: Any) -> dict[str, Any]:
    """Return the provisioning service, linked to the hub by a connection string."""
    policy = {"keyName": PROVISION_POLICY, "rights": "EnrollmentWrite"}
    return {
        "resourceGroupName": azure.resource_group,
        "provisioningServiceName": wanted.name,
        **_placed(azure),
        "sku": {"name": "S1", "capacity": 1},
        "properties": {
            "iotHubs": [{"connectionString": connection_string, "location": azure.location}],
            "authorizationPolicies": [policy],
        },
    }


def aks(azure: spec.Azure, wanted: spec.Aks) -> dict[str, Any]:
    """Return the cluster: a small pool for its own pods, and one whose nodes run VMs."""
    pool = {"osType": "Linux", "type": "VirtualMachineScaleSets"}
    found: dict[str, Any] = {
        "resourceGroupName": azure.resource_group,
        "resourceName": wanted.name,
        **_placed(azure),
        "dnsPrefix": wanted.name,
        "identity": {"type": "SystemAssigned"},
        "enableRBAC": True,
        "agentPoolProfiles": [
            {**pool, "name": "system", "mode": "System", "count": 1, "vmSize": _SYSTEM_NODE},
            {**pool, "name": "edgevms", "mode": "User", "count": wanted.nodes,
             "vmSize": wanted.node_size, "nodeLabels": {"kvedge.io/virtualization": "nested"}},
        ],
    }  # fmt: skip
    if wanted.version:
        found["kubernetesVersion"] = wanted.version
    return found


def flux_extension(azure: spec.Azure, arc: spec.Arc) -> dict[str, Any]:
    """Return the extension that brings Flux's controllers to the connected cluster."""
    return {
        "resourceGroupName": azure.resource_group,
        **_ARC,
        "clusterName": arc.name,
        "extensionName": "flux",
        "extensionType": "microsoft.flux",
        "autoUpgradeMinorVersion": True,
    }


def flux_configuration(
    azure: spec.Azure, arc: spec.Arc, flux: spec.Flux, name: str
) -> dict[str, Any]:
    """Return the configuration by which Arc keeps the cluster as the repository has it.

    A rendered folder of the platform's environment has the connector in it, so Arc manages both.

    Args:
        name: the environment's.
    """
    repository: dict[str, Any] = {
        "url": flux.url,
        "repositoryRef": {"branch": flux.branch},
        "syncIntervalInSeconds": flux.interval_seconds,
    }
    if flux.user:
        repository["httpsUser"] = flux.user
    return {
        "resourceGroupName": azure.resource_group,
        **_ARC,
        "clusterName": arc.name,
        "fluxConfigurationName": name,
        "namespace": f"kvedge-{name}",
        # Objects are in the environment's namespace and in the cluster's own places.
        "scope": "cluster",
        "sourceKind": "GitRepository",
        "gitRepository": repository,
        "kustomizations": {
            name: {
                "path": flux.path,
                "prune": True,
                "syncIntervalInSeconds": flux.interval_seconds,
            }
        },
    }


def _placed(azure: spec.Azure) -> dict[str, Any]:
    placed: dict[str, Any] = {"location": azure.location}
    if azure.tags:
        placed["tags"] = dict(azure.tags)
    return placed
