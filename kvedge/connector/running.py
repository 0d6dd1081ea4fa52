"""The connector as a process: settings, hub, provider and virtual node put together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from typing import TYPE_CHECKING

from kvedge import errors, iothub, kube
from kvedge.connector.nodes import read_secret
from kvedge.connector.provider import IotEdgeProvider
from kvedge.connector.settings import Settings
from kvedge.node.node_object import NodeSpec
from kvedge.node.running import Serving, VirtualNode, run_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvedge.connector.nodes import NodeOptions
    from kvedge.redact import Secret

__all__ = ["ConnectorOptions", "run"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorOptions:
    """All that the command line and the environment say."""

    nodes: Sequence[NodeOptions]
    hub_ca: Path | None
    address: str
    """Address of this pod, where the kubelet API listens."""
    kubeconfig: Path | None = None
    serving: Serving = Serving()  # noqa: RUF009 - frozen
    """Of the first node; each further one has the next port."""
    cluster_id: str = ""
    """Empty reads the UID of namespace kube-system."""
    namespace: str = ""
    """Whose pods are taken; empty takes those of all namespaces."""
    poll_seconds: float = 15.0
    handover_seconds: float = 5.0
    orphan_seconds: float = 60.0
    leader_namespace: str = ""
    """Namespace of the leader's Lease; empty runs without election."""
    taint: tuple[str, str, str] | None = None
    """Key, value and effect; None takes `virtual-kubelet.io/provider=iotedge:NoSchedule`."""
    no_taint: bool = False
    exec_key: Path | None = None
    """Private key for `kubectl exec` into VMs of this cluster; None refuses it."""
    exec_user: str = "edge"


async def run(options: ConnectorOptions) -> None:
    """Run the connector until it is told to stop.

    Raises:
        KvedgeError: it cannot start, or has lost its leadership.
    """
    config = kube.load_config(options.kubeconfig)
    cluster = options.cluster_id or await _cluster_id(config)
    async with contextlib.AsyncExitStack() as stack:
        hubs: dict[Secret, iothub.Hub] = {}
        nodes: list[VirtualNode] = []
        for index, node in enumerate(options.nodes):
            hub = hubs.get(node.connection_string)
            if hub is None:
                file = node.connection_string_file
                # Nodes of one hub share its quotas.
                hub = iothub.Hub.from_connection_string(
                    node.connection_string,
                    ca_file=options.hub_ca,
                    budget=iothub.Budget(node.hub_units),
                    backoff=iothub.Backoff(base_seconds=10.0 if node.hub_units else 0.5),
                    renewed=functools.partial(read_secret, file) if file else None,
                )
                hubs[node.connection_string] = await stack.enter_async_context(hub)
            nodes.append(_node(options, config, cluster, hub, index))
            _log.info("node %s on hub %s for cluster %s", node.name, hub.host, cluster)
        if not await run_all(nodes):
            raise errors.KvedgeError(
                "a node is led by another replica now", hint="this one starts again"
            )


def _node(
    options: ConnectorOptions, config: kube.Config, cluster: str, hub: iothub.Hub, index: int
) -> VirtualNode:
    wanted, serving = options.nodes[index], options.serving
    port = serving.port + index if serving.port else 0
    settings = Settings(
        cluster=cluster,
        node=wanted.name,
        address=options.address,
        poll_seconds=options.poll_seconds,
        handover_seconds=options.handover_seconds,
        orphan_seconds=options.orphan_seconds,
        default_condition=wanted.default_condition,
    )
    executing = None
    if options.exec_key is not None:
        from kvedge.connector.executing import Executing  # needs paramiko

        executing = Executing(config=config, key=options.exec_key, user=options.exec_user)
    return VirtualNode(
        config=config,
        spec=NodeSpec(
            name=wanted.name,
            address=options.address,
            port=port,
            provider=IotEdgeProvider.name,
            labels=wanted.labels,
            taint=options.taint,
            no_taint=options.no_taint,
            namespace=options.namespace,
        ),
        provider=IotEdgeProvider(hub, settings, executing),
        serving=dataclasses.replace(serving, port=port),
        leader_namespace=options.leader_namespace,
    )


async def _cluster_id(config: kube.Config) -> str:
    async with kube.Client(config) as client:
        try:
            found = await client.get("/api/v1/namespaces/kube-system")
        except errors.Unauthorized as error:
            error.hint = "give the cluster's id in KVEDGE_CLUSTER_ID, or the right to read it"
            raise
    return found["metadata"]["uid"]
