"""How far a VM is, and why it cannot go on."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from infra import fleet

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


def test_what_a_node_cannot_do_is_told_at_once() -> None:
    """A VMI whose node refuses a part of it says which, and never gets ready."""
    instance = vmi("Scheduled", ready=False)
    instance["status"]["conditions"].append(
        {"type": "Synchronized", "status": "False", "reason": "Unsupported", "message": "no tpm"}
    )
    found = objects(("VirtualMachine", vm("Starting")), ("VirtualMachineInstance", instance))
    assert fleet.stage_of(found, MEMBER, connected=False).cause == "Unsupported: no tpm"
