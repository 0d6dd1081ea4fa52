"""A provider that runs nothing: every pod is Running at once.

Equal to the mock of Go Virtual Kubelet, so that both engines can be measured on the same work:
the same status, the same addresses, the same JSON configuration per node.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.node.provider import LogOptions, Outcome, Provider, Stream, Terminal, Work
from kvedge.node.sending import timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
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


class MockProvider(Provider):
    """Pods that run nowhere; their commands, terminals and ports answer what they are sent."""

    name = "mock"
    service_links = True

    def __init__(self, *, latency_seconds: float = 0.0) -> None:
        self._latency = latency_seconds
        self._pods: set[str] = set()
        """UIDs."""

    async def create(self, work: Work) -> Outcome:
        """Say that the pod runs; one that ran already goes on as it was."""
        before = work.pod.get("status") or {}
        adopted = before.get("phase") == "Running" and before.get("podIP") is not None
        if self._latency and not adopted:
            await asyncio.sleep(self._latency)
        self._pods.add(work.uid)
        return Outcome(adopted=True) if adopted else Outcome(status=_running(work.pod))

    async def delete(self, pod: KubeObject) -> bool:
        """End the pod at once."""
        uid = pod["metadata"]["uid"]
        if uid in self._pods and self._latency:
            await asyncio.sleep(self._latency)
        self._pods.discard(uid)
        return True

    async def logs(
        self, pod: KubeObject, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        """Yield nothing: a mock container is silent."""
        del pod, container, options
        yield b""

    async def execute(
        self, pod: KubeObject, container: str, command: Sequence[str], terminal: Terminal
    ) -> int:
        """Print the command, then its input; `exit N` ends with that code."""
        if command[0] == "exit":
            return int(command[1]) if command[1:] and command[1].isdigit() else 0
        await terminal.write(" ".join(command).encode() + b"\n")
        return await self.attach(pod, container, terminal)

    async def attach(self, pod: KubeObject, container: str, terminal: Terminal) -> int:
        """Answer input with itself."""
        del pod, container
        while data := await terminal.read():
            await terminal.write(data)
        return 0

    async def forward(self, pod: KubeObject, port: int, stream: Stream) -> None:
        """Answer bytes with themselves."""
        del pod, port
        while data := await stream.read():
            await stream.write(data)


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
