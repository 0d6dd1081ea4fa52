"""VirtualNode: the connector's identity, rights, Secret and Deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pulumi

from infra import node_manifests
from infra.components.manifest import Manifest

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["VirtualNode"]


class VirtualNode(pulumi.ComponentResource):
    """The virtual node that this hub's pods are placed on."""

    def __init__(
        self, environment: spec.Environment, *, image: pulumi.Input[str], connection_string: str,
        authority: str, exec_key: str = "", opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        name = node_manifests.connector(environment).node_name
        super().__init__("kvedge:index:VirtualNode", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        before = []
        for obj in node_manifests.rights(environment):
            metadata = obj["metadata"]
            place = f"{metadata['namespace']}-" if obj["kind"] in ("Role", "RoleBinding") else ""
            logical = f"{place}{metadata['name']}-{obj['kind'].lower()}"
            before.append(Manifest(logical, obj, child))
        for obj in node_manifests.guards(environment):
            Manifest(f"{name}-{obj['kind'].lower()}", obj, child)
        secret = node_manifests.hub_secret(environment, connection_string, authority)
        secrets = [secret]
        if exec_key:
            secrets.append(node_manifests.exec_secret(environment, exec_key))
        content = node_manifests.content_of(*secrets)
        for one in secrets:
            one["data"] = pulumi.Output.secret(one["data"])
            before.append(Manifest(one["metadata"]["name"], one, child))
        deployment = node_manifests.deployment(environment, image, content)
        options = pulumi.ResourceOptions(parent=self, depends_on=before)
        self.deployment = Manifest(f"{name}-deployment", deployment, options)
        self.register_outputs({})
