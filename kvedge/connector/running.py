"""The connector as a process: settings, hub, provider and virtual node put together."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from kvedge import errors, iothub, kube
from kvedge.connector.provider import IotEdgeProvider
from kvedge.connector.settings import Settings
from kvedge.node.node_object import NodeSpec
from kvedge.node.running import Serving, VirtualNode, stop_on_signals

if TYPE_CHECKING:
    from pathlib import Path

    from kvedge.redact import Secret

__all__ = ["ConnectorOptions", "run"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorOptions:
    """All that the command line and the environment say."""

    node_name: str
    connection_string: Secret
    hub_ca: Path | None
    address: str
    """Address of this pod, where the kubelet API listens."""
    kubeconfig: Path | None = None
    serving: Serving = Serving()  # noqa: RUF009 - frozen
    cluster_id: str = ""
    """Empty reads the UID of namespace kube-system."""
    poll_seconds: float = 15.0
    handover_seconds: float = 5.0
    orphan_seconds: float = 60.0
    hub_units: int = 1
    """Units of the hub, for its request quotas; 0 for a hub without quotas."""
    default_condition: str = ""
    leader_namespace: str = ""
    """Namespace of the leader's Lease; empty runs without election."""
    no_taint: bool = False


async def run(options: ConnectorOptions) -> None:
    """Run the connector until it is told to stop.

    Raises:
        KvedgeError: it cannot start, or has lost its leadership.
    """
    stop = stop_on_signals()
    config = kube.load_config(options.kubeconfig)
    cluster = options.cluster_id or await _cluster_id(config)
    spec = NodeSpec(
        name=options.node_name,
        address=options.address,
        port=options.serving.port,
        provider=IotEdgeProvider.name,
        no_taint=options.no_taint,
    )
    settings = Settings(
        cluster=cluster,
        node=options.node_name,
        address=options.address,
        poll_seconds=options.poll_seconds,
        handover_seconds=options.handover_seconds,
        orphan_seconds=options.orphan_seconds,
        default_condition=options.default_condition,
    )
    async with iothub.Hub.from_connection_string(
        options.connection_string,
        ca_file=options.hub_ca,
        budget=iothub.Budget(options.hub_units),
        backoff=iothub.Backoff(base_seconds=10.0 if options.hub_units else 0.5),
    ) as hub:
        node = VirtualNode(
            config=config,
            spec=spec,
            provider=IotEdgeProvider(hub, settings),
            serving=options.serving,
            leader_namespace=options.leader_namespace,
        )
        _log.info("node %s on hub %s for cluster %s", spec.name, hub.host, cluster)
        if not await node.run(stop):
            raise errors.KvedgeError(
                f"node {spec.name!r} is led by another replica now", hint="this one starts again"
            )


async def _cluster_id(config: kube.Config) -> str:
    async with kube.Client(config) as client:
        try:
            found = await client.get("/api/v1/namespaces/kube-system")
        except errors.Unauthorized as error:
            error.hint = "give the cluster's id in KVEDGE_CLUSTER_ID, or the right to read it"
            raise
    return found["metadata"]["uid"]
