"""What pods use, in the two forms that metrics-server and kubectl read.

Processor time is a counter; readers compute rates from it. Pods that report nothing are there with
zeros, because a pod that is missing looks like one that was not started.
"""

from __future__ import annotations

import asyncio
import datetime
from typing import TYPE_CHECKING, Any

from kvedge.node.provider import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvedge.wire import KubeObject

    Used = Mapping[str, Mapping[str, Usage]]
    """By pod UID and container."""

__all__ = ["Meter", "resource_metrics"]

_NOTHING = Usage(0.0, 0)
_SHORTEST_SECONDS = 1.0
"""Rates over less are noise."""


class Meter:
    """Makes stats/summary, for which rates are computed between two calls."""

    def __init__(self, node: str, started: str) -> None:
        self._node, self._started = node, started
        self._samples: dict[tuple[str, str], tuple[float, float, float]] = {}
        """Time, processor seconds and the last rate, by pod UID and container."""

    def summary(self, pods: Iterable[KubeObject], used: Used, now: str) -> dict[str, Any]:
        """Return the document of /stats/summary (k8s.io/kubelet/pkg/apis/stats/v1alpha1)."""
        samples, self._samples = self._samples, {}
        stats: list[dict[str, Any]] = []
        sums = (0.0, 0.0, 0)
        for pod in pods:
            metadata, started = pod["metadata"], pod["status"]["startTime"]
            containers: list[dict[str, Any]] = []
            total = (0.0, 0.0, 0)
            for container in pod["spec"]["containers"]:
                name = container["name"]
                usage = used.get(metadata["uid"], {}).get(name, _NOTHING)
                rate = self._rate(samples, (metadata["uid"], name), usage.cpu_seconds)
                one = (rate, usage.cpu_seconds, usage.memory_bytes)
                total = _plus(total, one)
                containers.append({"name": name, "startTime": started, **_part(now, one)})
            sums = _plus(sums, total)
            stats.append(
                {
                    "podRef": {key: metadata[key] for key in ("name", "namespace", "uid")},
                    "startTime": started,
                    "containers": containers,
                    **_part(now, total),
                }
            )
        node = {"nodeName": self._node, "startTime": self._started, **_part(now, sums)}
        return {"node": node, "pods": stats}

    def _rate(
        self,
        samples: dict[tuple[str, str], tuple[float, float, float]],
        key: tuple[str, str],
        seconds: float,
    ) -> float:
        now = asyncio.get_running_loop().time()
        before, spent, rate = samples.get(key, (now, seconds, 0.0))
        if now - before >= _SHORTEST_SECONDS:
            # A container that was started again counts from zero.
            rate = max(0.0, seconds - spent) / (now - before)
            before, spent = now, seconds
        self._samples[key] = (before, spent, rate)
        return rate


def _plus(
    one: tuple[float, float, int], other: tuple[float, float, int]
) -> tuple[float, float, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _part(now: str, amounts: tuple[float, float, int]) -> dict[str, Any]:
    rate, seconds, size = amounts
    return {
        "cpu": {
            "time": now,
            "usageNanoCores": int(rate * 1e9),
            "usageCoreNanoSeconds": int(seconds * 1e9),
        },
        "memory": {"time": now, "workingSetBytes": size, "usageBytes": size},
    }


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(one.cpu_seconds + other.cpu_seconds, one.memory_bytes + other.memory_bytes)


def resource_metrics(pods: Iterable[KubeObject], used: Used) -> str:
    """Return the text of /metrics/resource; labels are in the order namespace, pod, container."""
    families: dict[str, tuple[str, list[str]]] = {
        "container_cpu_usage_seconds_total": ("counter", []),
        "container_memory_working_set_bytes": ("gauge", []),
        "container_start_time_seconds": ("gauge", []),
        "pod_cpu_usage_seconds_total": ("counter", []),
        "pod_memory_working_set_bytes": ("gauge", []),
        "node_cpu_usage_seconds_total": ("counter", []),
        "node_memory_working_set_bytes": ("gauge", []),
        "scrape_error": ("gauge", [" 0"]),
    }

    def add(name: str, labels: str, value: float) -> None:
        shown = f"{{{labels}}}" if labels else ""
        families[name][1].append(f"{shown} {value:.15g}")

    node = _NOTHING
    for pod in pods:
        metadata = pod["metadata"]
        labels = f'namespace="{metadata["namespace"]}",pod="{metadata["name"]}"'
        mine, total = used.get(metadata["uid"], {}), _NOTHING
        started = datetime.datetime.fromisoformat(pod["status"]["startTime"]).timestamp()
        for container in pod["spec"]["containers"]:
            own = f'{labels},container="{container["name"]}"'
            usage = mine.get(container["name"], _NOTHING)
            total = _sum(total, usage)
            add("container_cpu_usage_seconds_total", own, usage.cpu_seconds)
            add("container_memory_working_set_bytes", own, usage.memory_bytes)
            add("container_start_time_seconds", own, started)
        add("pod_cpu_usage_seconds_total", labels, total.cpu_seconds)
        add("pod_memory_working_set_bytes", labels, total.memory_bytes)
        node = _sum(node, total)
    add("node_cpu_usage_seconds_total", "", node.cpu_seconds)
    add("node_memory_working_set_bytes", "", node.memory_bytes)
    lines: list[str] = []
    for name, (kind, samples) in families.items():
        lines.append(f"# TYPE {name} {kind}")
        lines += [name + sample for sample in samples]
    return "\n".join(lines) + "\n"
