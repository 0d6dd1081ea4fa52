"""ArcConnection: a cluster connected to Azure Arc, by the Azure CLI.

Azure's management knows a connected cluster, but only the CLI (or its Helm chart) installs the
agents that make it one: https://learn.microsoft.com/azure/azure-arc/kubernetes/quickstart-connect-cluster.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider

from infra import dynamic
from kvedge import errors, processes

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["ArcConnection", "ArcConnectionProvider"]

_SECONDS = 1800.0
_GONE = "ResourceNotFound"


class ArcConnectionProvider(ResourceProvider):
    """Connects a cluster, and disconnects it."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Run `az connectedk8s connect`, which also completes one that broke off."""
        place = ["--location", props["location"]]
        with dynamic.plainly(), _kubeconfig(props) as options:
            _az("connect", props, *place, *options, "--yes")
        return CreateResult(id_=f"{props['resource_group']}/{props['name']}", outs=props)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Another name, group or cluster is another connection; a rotated kubeconfig is none."""
        fixed = ("name", "resource_group", "location", "cluster")
        other = [key for key in fixed if _olds[key] != _news[key]]
        return DiffResult(changes=bool(other), replaces=other)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Run `az connectedk8s delete`, unless the connection is gone already."""
        with dynamic.plainly(), _kubeconfig(_props) as options:
            try:
                _az("delete", _props, *options, "--yes")
            except errors.BuildFailed as cause:
                if _GONE not in cause.tail:
                    raise


class ArcConnection(Resource, module="kvedge", name="ArcConnection"):
    """The agents of Azure Arc on a cluster."""

    def __init__(
        self, azure: spec.Azure, arc: spec.Arc, cluster: spec.Cluster, *,
        kubeconfig: pulumi.Output[str] | None, opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        """Connect.

        Args:
            cluster: the environment's, for one that is there.
            kubeconfig: of a cluster that is made in the same run.
        """
        secret = pulumi.ResourceOptions(additional_secret_outputs=["kubeconfig"])
        super().__init__(
            ArcConnectionProvider(),
            "arc",
            {
                "name": arc.name,
                "resource_group": azure.resource_group,
                "location": azure.location,
                "cluster": azure.aks.name if azure.aks else cluster.identifier,
                "context": "" if azure.aks else cluster.context or "",
                "file": "" if azure.aks else str(cluster.kubeconfig or ""),
                "kubeconfig": kubeconfig or "",
            },
            pulumi.ResourceOptions.merge(opts, secret),
        )


class _kubeconfig:  # noqa: N801 - a context manager
    """Options by which `az` finds the cluster; a given text is a file only as long as it runs."""

    def __init__(self, props: dict[str, Any]) -> None:
        self._props = props
        self._file: Path | None = None

    def __enter__(self) -> list[str]:
        options = ["--kube-context", self._props["context"]] if self._props["context"] else []
        file = self._props["file"]
        if self._props["kubeconfig"]:
            handle, name = tempfile.mkstemp(prefix="kvedge-")
            with os.fdopen(handle, "w") as out:
                out.write(self._props["kubeconfig"])
            self._file, file = Path(name), name
        return [*options, "--kube-config", file] if file else options

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.unlink(missing_ok=True)


def _az(verb: str, props: dict[str, Any], *more: str) -> None:
    processes.run(
        ["az", "connectedk8s", verb, "--name", props["name"],
         "--resource-group", props["resource_group"], *more],
        what=f"{verb} Arc cluster {props['name']!r}", timeout=_SECONDS,
    )  # fmt: skip
