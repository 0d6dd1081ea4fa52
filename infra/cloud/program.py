"""The cloud side's program: resources by token, and what the environment needs as outputs."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import pulumi

from infra import dynamic, stackconfig
from infra.cloud import resources
from infra.cloud.arc import ArcConnection
from infra.cloud.enrolling import EnrollmentGroup
from kvedge import errors, settings

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["AzureResource", "build", "main"]

_NAMESPACE = "azure-native"


def main() -> None:
    """Run in the engine; mistakes of the user end the run in one message."""
    try:
        raw = stackconfig.stack_settings()
        azure = settings.parse_azure(raw, environ=os.environ)
        assert azure is not None
        build(pulumi.get_stack(), azure, settings.parse_cluster(raw, environ=os.environ))
    except errors.KvedgeError as cause:
        raise pulumi.RunError(dynamic.plain(cause)) from cause


class AzureResource(pulumi.CustomResource):
    """One resource of pulumi-azure-native."""

    properties: pulumi.Output[Any]

    def __init__(
        self, token: str, name: str, properties: dict[str, Any], opts: pulumi.ResourceOptions,
    ) -> None:  # fmt: skip
        super().__init__(f"{_NAMESPACE}:{token}", name, dict(properties), opts)


def build(name: str, azure: spec.Azure, cluster: spec.Cluster) -> None:
    """Register the section's resources, and export what `infra.cloud.running` hands on.

    Args:
        name: the environment's.
        cluster: the environment's own, for Arc to connect.
    """
    part = _Part(azure)
    group = part.made(resources.RESOURCE_GROUP, "resource-group", resources.resource_group(azure))
    own, hub = _hub(part, group)
    if azure.dps:
        _dps(part, azure.dps, own, hub)
    kubeconfig = _cluster(part, azure.aks, group) if azure.aks else None
    if azure.arc:
        before: pulumi.Resource = group
        if azure.arc.connect:
            opts = pulumi.ResourceOptions(depends_on=[group])
            before = ArcConnection(azure, azure.arc, cluster, kubeconfig=kubeconfig, opts=opts)
        if azure.arc.flux:
            _flux(part, name, azure.arc, azure.arc.flux, before)


class _Part:
    """Registers and asks with the section's subscription and the provider's version."""

    def __init__(self, azure: spec.Azure) -> None:
        self.azure = azure
        self._options: dict[str, Any] = {"version": resources.PROVIDER_VERSION}
        if azure.subscription:
            self._options["provider"] = pulumi.ProviderResource(
                _NAMESPACE, "azure", {"subscriptionId": azure.subscription},
                pulumi.ResourceOptions(version=resources.PROVIDER_VERSION),
            )  # fmt: skip

    def made(
        self, token: str, name: str, properties: dict[str, Any], *after: pulumi.Resource
    ) -> AzureResource:
        opts = pulumi.ResourceOptions(depends_on=list(after), **self._options)
        return AzureResource(token, name, properties, opts)

    def asked(
        self, token: str, arguments: dict[str, Any], *after: pulumi.Resource
    ) -> pulumi.Output[Any]:
        return pulumi.Output.secret(
            pulumi.runtime.invoke_output(
                f"{_NAMESPACE}:{token}",
                {"resourceGroupName": self.azure.resource_group, **arguments},
                pulumi.InvokeOutputOptions(depends_on=list(after), **self._options),
            )
        )


def _hub(part: _Part, group: AzureResource) -> tuple[pulumi.Output[str], AzureResource]:
    name = part.azure.hub.name
    hub = part.made(resources.HUB, "hub", resources.hub(part.azure), group)

    host = _told(hub, "hostName")

    def policy(policy_name: str) -> pulumi.Output[str]:
        arguments = {"resourceName": name, "keyName": policy_name}
        rule = part.asked(resources.HUB_KEYS, arguments, hub)
        return pulumi.Output.format(
            "HostName={0};SharedAccessKeyName={1};SharedAccessKey={2}",
            host,
            rule.apply(lambda found: found["keyName"]),
            rule.apply(lambda found: found["primaryKey"]),
        )

    own = policy(resources.PROVISION_POLICY)
    pulumi.export("hubConnectionString", own)
    pulumi.export("deviceHost", host.apply(lambda text: text.partition(":")[0]))
    pulumi.export("connectorConnectionString", policy(resources.CONNECTOR_POLICY))
    return own, hub


def _dps(
    part: _Part, wanted: spec.AzureDps, connection_string: pulumi.Output[str], hub: AzureResource
) -> None:
    properties = resources.dps(part.azure, wanted, connection_string)
    service = part.made(resources.DPS, "dps", properties, hub)
    arguments = {
        "provisioningServiceName": wanted.name, "keyName": resources.PROVISION_POLICY,
    }  # fmt: skip
    key = part.asked(resources.DPS_KEYS, arguments, service)
    group = EnrollmentGroup(
        host=_told(service, "serviceOperationsHostName"),
        policy=key.apply(lambda found: found["keyName"]),
        key=key.apply(lambda found: found["primaryKey"]),
        group=wanted.group,
    )
    pulumi.export("dpsIdScope", _told(service, "idScope"))
    pulumi.export("dpsGroupKey", group.group_key)


def _told(resource: AzureResource, field: str) -> pulumi.Output[str]:
    """Return what only Azure knows of a resource; a preview may not have it yet."""

    def read(properties: dict[str, Any]) -> str:
        if pulumi.runtime.is_dry_run():
            return str(properties.get(field, ""))
        return str(properties[field])

    return resource.properties.apply(read)


def _cluster(part: _Part, wanted: spec.Aks, group: AzureResource) -> pulumi.Output[str]:
    cluster = part.made(resources.AKS, "aks", resources.aks(part.azure, wanted), group)
    found = part.asked(resources.AKS_CREDENTIALS, {"resourceName": wanted.name}, cluster)
    kubeconfig = found.apply(lambda one: base64.b64decode(one["kubeconfigs"][0]["value"]).decode())
    pulumi.export("kubeconfig", kubeconfig)
    pulumi.export("clusterId", cluster.id)
    return kubeconfig


def _flux(part: _Part, name: str, arc: spec.Arc, flux: spec.Flux, before: pulumi.Resource) -> None:
    wanted = resources.flux_extension(part.azure, arc)
    extension = part.made(resources.FLUX_EXTENSION, "flux-extension", wanted, before)
    properties = resources.flux_configuration(part.azure, arc, flux, name)
    if flux.token:
        token = base64.b64encode(flux.token.reveal().encode()).decode()
        properties["configurationProtectedSettings"] = pulumi.Output.secret({"httpsKey": token})
    part.made(resources.FLUX_CONFIGURATION, "flux", properties, extension)
