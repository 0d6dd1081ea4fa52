"""Events of a VM are those of everything that belongs to it."""

from __future__ import annotations

import asyncio
import contextlib

from kvedge.survey import happenings


def event(name, kind, about, *, time="2026-01-01T00:00:00Z", warning=False):
    """Return an event about an object."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "plant"},
        "involvedObject": {"kind": kind, "name": about, "namespace": "plant"},
        "reason": "Happened",
        "message": f"message of {name}",
        "type": "Warning" if warning else "Normal",
        "lastTimestamp": time,
        "count": 2,
    }


async def test_events_of_one_vm(good):
    """Guest, launcher pod and labelled disk belong to a VM; another VM with a like name does not."""
    await good.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "plant"}})
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk", "namespace": "plant", "labels": {"kvedge.io/vm": "edge1"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await good.apply(claim)
    for one in (
        event("a", "VirtualMachineInstance", "edge1", time="2026-01-01T00:00:03Z"),
        event("b", "Pod", "virt-launcher-edge1-abcde", time="2026-01-01T00:00:01Z", warning=True),
        event("c", "PersistentVolumeClaim", "disk", time="2026-01-01T00:00:02Z"),
        event("d", "VirtualMachine", "edge10"),
        event("e", "Pod", "virt-launcher-edge10-abcde"),
    ):
        await good.apply(one)
    found = await happenings.read_events(good, namespace="plant", vm="edge1")
    assert [one.message[-1] for one in found] == ["b", "c", "a"]
    assert (found[0].subject, found[0].count) == ("pod/virt-launcher-edge1-abcde", 2)
    warned = await happenings.read_events(good, namespace="plant", warnings=True)
    assert [one.message[-1] for one in warned] == ["b"]
    assert len(await happenings.read_events(good, namespace="plant")) == 5

    stream = happenings.follow_events(good, namespace="plant", vm="edge1")
    async with contextlib.aclosing(stream), asyncio.timeout(30):
        assert [(await anext(stream)).message[-1] for _ in range(3)] == ["b", "c", "a"]
        await good.apply(event("f", "VirtualMachine", "edge10"))
        await good.apply(event("g", "VirtualMachine", "edge1"))
        assert (await anext(stream)).message == "message of g"
