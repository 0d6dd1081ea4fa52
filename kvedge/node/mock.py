"""A provider that runs nothing: every pod is Running at once.

Equal to the mock of Go Virtual Kubelet, so that both engines can be measured on the same work:
the same status, the same addresses, the same JSON configuration per node.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.node.provider import Health, LogOptions, Outcome, Reporter, Work
from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from kvedge.wire import KubeObject

__all__ = ["MockProvider", "load_capacity"]

_DEFAULTS = {"cpu": "20", "memory": "100Gi", "pods": "20"}


def load_capacity(path: Path | None, node: str) -> dict[str, str]:
    """Return a node's capacity from the JSON file of Go's mock (`{node: {cpu, memory, pods}}`)."""
    if path is None:
        return dict(_DEFAULTS)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise errors.KvedgeError(
            f"cannot read provider settings {str(path)!r}: {cause}", hint="it is a JSON object"
        ) from cause
    mine = document.get(node) or {}
    return {key: str(mine.get(key) or usual) for key, usual in _DEFAULTS.items()}


class MockProvider:
    """Pods that run nowhere."""

    name = "mock"
    service_links = True

    def __init__(self, *, latency_seconds: float = 0.0) -> None:
        self._latency = latency_seconds
        self._pods: dict[str, tuple[str, str]] = {}
        """Namespace and name by UID."""

    async def start(self, reporter: Reporter) -> None:
        """Begin; there is nothing to do."""

    async def stop(self) -> None:
        """End; there is nothing to do."""

    def wants(self, pod: KubeObject) -> Sequence[tuple[str, str]]:
        """Ask for nothing."""
        del pod
        return ()

    async def create(self, work: Work) -> Outcome:
        """Say that the pod runs; one that ran already goes on as it was."""
        metadata = work.pod["metadata"]
        before = work.pod.get("status") or {}
        adopted = before.get("phase") == "Running" and before.get("podIP") is not None
        if self._latency and not adopted:
            await asyncio.sleep(self._latency)
        self._pods[metadata["uid"]] = (metadata["namespace"], metadata["name"])
        if adopted:
            return Outcome(adopted=True)
        return Outcome(status=_running(work.pod))

    async def update(self, work: Work) -> Outcome:
        """Take the change without a trace, as Go's mock does."""
        del work
        return Outcome()

    async def delete(self, pod: KubeObject) -> bool:
        """End the pod at once."""
        if self._pods.pop(pod["metadata"]["uid"], None) and self._latency:
            await asyncio.sleep(self._latency)
        return True

    async def listed(self, uids: frozenset[str]) -> None:
        """Learn which pods exist; there are no orphans in memory."""

    def health(self) -> Health:
        """Tell that all is well."""
        return Health()

    async def logs(
        self, pod: KubeObject, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        """Yield nothing: a mock container is silent."""
        del pod, container, options
        yield b""

    async def usage(self) -> Mapping[str, Mapping[str, tuple[float, int]]]:
        """Report that nothing is used."""
        return {}


def _running(pod: KubeObject) -> dict[str, Any]:
    now = timestamp()
    return {
        "phase": "Running",
        "hostIP": "1.2.3.4",
        "podIP": "5.6.7.8",
        "podIPs": [{"ip": "5.6.7.8"}],
        "startTime": now,
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for container in pod["spec"]["containers"]
        ],
    }
