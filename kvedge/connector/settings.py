"""What the IoT Edge provider can be told, with the defaults in one place."""

from __future__ import annotations

import dataclasses

from kvedge.edge import RuntimeImages

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one provider, which is one virtual node on one hub."""

    cluster: str
    """The cluster's id: the UID of its kube-system namespace."""
    node: str
    address: str
    """Address of the node, which pods show as theirs."""
    poll_seconds: float = 15.0
    """How often device reports are read."""
    list_seconds: float = 60.0
    """How often the hub's deployments are read."""
    handover_seconds: float = 5.0
    """How long the deployment of a deleted pod waits for the workload's next pod."""
    orphan_seconds: float = 60.0
    """How long a deployment without any pod stays, once all pods are known."""
    revisions_per_workload: int = 10
    """So many superseded deployments of a workload may wait; then no new one is made."""
    pack_above: int = 80
    """From so many deployments of the hub on, new pods share one where that can be."""
    gather_seconds: float = 2.0
    """How long a changed pack waits for further pods before it is written."""
    default_condition: str = ""
    """Target condition of pods that name none; empty refuses them."""
    images: RuntimeImages = RuntimeImages()  # noqa: RUF009 - frozen
