"""How far a VM is, and why it cannot go on."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from infra import fleet
from kvedge import errors

MEMBER = fleet.Member(name="edge1", namespace="edge", device_id="plant-edge1")


def vm(printable: str = "Running", **more: Any) -> dict[str, Any]:
    """Return a VirtualMachine with one OS disk."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    volumes = [
        {"name": "os", "dataVolume": {"name": "edge1-os"}},
        {"name": "config", "secret": {"secretName": "edge1-edge"}},
    ]
    return {
        "metadata": {"name": "edge1", "generation": 1, "creationTimestamp": now},
        "spec": {"template": {"spec": {"volumes": volumes}}},
        "status": {"printableStatus": printable, **more},
    }


def vmi(phase: str = "Running", *, ready: bool = True, **metadata: Any) -> dict[str, Any]:
    """Return a VirtualMachineInstance."""
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {
            "name": "edge1", "uid": "1", "creationTimestamp": "2026-01-01T00:00:10Z", **metadata,
        },
        "status": {"phase": phase, "conditions": conditions},
    }  # fmt: skip


def disk(phase: str, **status: Any) -> dict[str, Any]:
    """Return a DataVolume."""
    return {"metadata": {"name": "edge1-os"}, "status": {"phase": phase, **status}}


def objects(*found: tuple[str, dict[str, Any]]) -> dict[tuple[str, str, str], Any]:
    """Return objects as the waiter keeps them."""
    return {(kind, "edge", obj["metadata"]["name"]): obj for kind, obj in found}


@pytest.mark.parametrize(
    ("found", "connected", "text", "ready"),
    [
        (objects(), False, "not there yet", False),
        (objects(("VirtualMachine", vm("Provisioning")),
                 ("DataVolume", disk("ImportInProgress", progress="40.0%"))),
         False, "filling disk edge1-os 40.0%", False),
        (objects(("VirtualMachine", vm("Starting")), ("VirtualMachineInstance", vmi("Scheduling"))),
         False, "scheduling", False),
        (objects(("VirtualMachine", vm()), ("VirtualMachineInstance", vmi(ready=False))),
         False, "booting", False),
        (objects(("VirtualMachine", vm()), ("VirtualMachineInstance", vmi())),
         False, "connecting to the hub", False),
        (objects(("VirtualMachine", vm()), ("VirtualMachineInstance", vmi())), True, "ready", True),
    ],
)  # fmt: skip
def test_stages_follow_what_the_cluster_says(
    found: Any, connected: bool, text: str, ready: bool
) -> None:
    """One short word tells how far a VM is."""
    stage = fleet.stage_of(found, MEMBER, connected=connected)
    assert (stage.text, stage.ready) == (text, ready)
    assert not stage.cause


@pytest.mark.parametrize("printable", ["ErrImagePull", "ErrorUnschedulable", "DataVolumeError"])
def test_known_causes_are_told(printable: str) -> None:
    """A VM that cannot go on says why, in KubeVirt's word and in ours."""
    stage = fleet.stage_of(objects(("VirtualMachine", vm(printable))), MEMBER, connected=False)
    assert stage.cause.startswith(f"{printable}: ")


def test_a_failing_import_names_disk_and_reason() -> None:
    """CDI's importer tries for ever; its reason is on the disk."""
    condition = {
        "type": "Running",
        "status": "False",
        "reason": "ImagePullFailed",
        "message": "404",
    }
    found = objects(
        ("VirtualMachine", vm("DataVolumeError")),
        ("DataVolume", disk("ImportInProgress", conditions=[condition])),
    )
    stage = fleet.stage_of(found, MEMBER, connected=False)
    assert "'edge1-os': ImagePullFailed: 404" in stage.cause


def test_a_vm_that_somebody_stopped_is_no_failure() -> None:
    """`up` does not fight a user who stopped a VM."""
    old = vm("Stopped")
    old["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert fleet.stage_of(objects(("VirtualMachine", old)), MEMBER, connected=False).ready


class Cluster:
    """A cluster of one VM whose restart makes a new instance at once.

    Limits: knows only the requests that a roll-out makes.
    """

    def __init__(self, machine: dict[str, Any], instance: dict[str, Any] | None) -> None:
        self.machine, self.instance = machine, instance
        self.secret: dict[str, Any] = {
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "data": {"a": "1"},
        }  # fmt: skip
        self.restarts = 0

    async def get(self, path: str, **_: Any) -> Any:
        """Read one of the three objects."""
        if "/secrets/" in path:
            return self.secret
        found = self.instance if "instances" in path else self.machine
        if found is None:
            raise errors.NotFound("get", status=404)
        return found

    async def request(self, method: str, path: str, _body: Any, **_: Any) -> Any:
        """Restart."""
        assert method == "PUT"
        assert path.endswith("/virtualmachines/edge1/restart")
        self.restarts += 1
        self.instance = vmi(uid=str(self.restarts + 1))

    async def patch(self, _path: str, body: Any, _kind: str) -> Any:
        """Record the content."""
        assert self.instance is not None
        self.instance["metadata"]["annotations"] = body["metadata"]["annotations"]


async def roll_out(cluster: Cluster) -> int:
    """Roll out once and return how many restarts there have been so far."""
    await fleet.restart_changed(cluster, [MEMBER])  # type: ignore[arg-type]
    return cluster.restarts


async def test_only_a_change_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """First start, same again, changed Secret, changed template: restarts 0, 0, 1, 2."""
    monkeypatch.setattr(fleet, "_POLL_SECONDS", 0.001)
    cluster = Cluster(vm(), vmi())
    assert await roll_out(cluster) == 0
    assert await roll_out(cluster) == 0
    cluster.secret["data"]["a"] = "2"
    assert await roll_out(cluster) == 1
    assert await roll_out(cluster) == 1
    cluster.machine["spec"]["template"]["spec"]["domain"] = {"memory": {"guest": "2Gi"}}
    assert await roll_out(cluster) == 2


async def test_a_change_after_an_unrecorded_start_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed before it could record is made good by the next one."""
    monkeypatch.setattr(fleet, "_POLL_SECONDS", 0.001)
    late = Cluster(vm(), vmi())
    late.secret["metadata"]["managedFields"] = [{"time": "2026-01-01T00:01:00Z"}]
    assert await roll_out(late) == 1
    edited = Cluster(vm(observedGeneration=1), vmi())
    edited.machine["metadata"]["generation"] = 2
    assert await roll_out(edited) == 1


async def test_a_stopped_vm_is_left_alone() -> None:
    """The next start takes what is new."""
    assert await roll_out(Cluster(vm("Stopped"), None)) == 0


async def test_a_failed_restart_is_told_as_itself() -> None:
    """The user reads which VM did not come back, not that a task group failed."""

    class Refusing(Cluster):
        async def request(self, method: str, path: str, _body: Any, **_: Any) -> Any:
            raise errors.Conflict(f"PUT {path}", status=409)

    cluster = Refusing(vm(), vmi(annotations={fleet.CONTENT: "old"}))
    with pytest.raises(errors.Conflict, match="restart"):
        await roll_out(cluster)
