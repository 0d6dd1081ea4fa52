"""Device reports become pod status."""

from __future__ import annotations

from kvedge import edge

NOW = "2026-01-01T00:00:00Z"


def revision(**notes) -> edge.Revision:
    """Return the deployment of a pod with one container."""
    pod = {
        "metadata": {
            "name": "a",
            "namespace": "ns",
            "annotations": {"kvedge.io/target-condition": "*", **notes},
        },
        "spec": {"containers": [{"name": "main", "image": "i:1"}]},
    }
    return edge.revision_of(edge.Inputs(pod=pod, cluster="c", node="n"))


def row(device, deployment, *, state="running", image="i:1", code=200, current=True, **rest):
    """Return a row of the agents' query."""
    module = {
        "settings": {"image": image},
        "runtimeStatus": state,
        "lastStartTimeUtc": "2026-01-01T00:00:00.1234567Z",
        **rest.pop("module", {}),
    }
    return {
        "deviceId": device,
        "connectionState": "Connected",
        "configurations": {deployment: {"status": "Applied"}, "base": {"status": "Applied"}},
        "properties": {
            "desired": {"$version": 4, "modules": {"a-main": {"settings": {"image": "i:1"}}}},
            "reported": {
                "lastDesiredVersion": 4 if current else 3,
                "lastDesiredStatus": {"code": code, "description": "words"},
                "modules": {"a-main": module},
            },
        },
        **rest,
    }


def status_of(made, rows, previous=None):
    """Return the pod's status for the rows."""
    reports = edge.device_reports(rows)
    return edge.pod_status(made, list(reports.values()), previous or {}, NOW)


def ready(status):
    """Return the Ready condition."""
    (found,) = (c for c in status["conditions"] if c["type"] == "Ready")
    return found


def test_running_everywhere():
    """All devices report the module: Running and ready, with whole seconds."""
    made = revision()
    status = status_of(made, [row("d1", made.id), row("d2", made.id)])
    assert (status["phase"], ready(status)["status"]) == ("Running", "True")
    state = status["containerStatuses"][0]["state"]
    assert state == {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def test_no_device():
    """No device is Pending with the condition that nobody meets."""
    status = status_of(revision(), [])
    assert (status["phase"], status["reason"]) == ("Pending", "NoDevices")
    assert status["message"] == "0 devices match *"


def test_worst_device_speaks():
    """The reason is that of the device that is worst off."""
    made = revision()
    rows = [
        row("d1", made.id),
        row("d2", made.id, image="old", current=False),
        row("d3", made.id, state="backoff", module={"exitCode": 9, "statusDescription": "died"}),
    ]
    status = status_of(made, rows)
    assert status["phase"] == "Running"
    assert ready(status)["reason"] == "CrashLoopBackOff"
    assert "d3: died (exit code 9)" in ready(status)["message"]
    assert "3 targeted, 3 applied, 1 running, 1 failed" in ready(status)["message"]


def test_min_ready_is_enough():
    """With min-ready a share of the devices makes the pod ready."""
    half = revision(**{"kvedge.io/min-ready": "50%"})
    rows = [row("d1", half.id), row("d2", half.id, state="stopped")]
    assert ready(status_of(half, rows))["status"] == "True"
    both = revision(**{"kvedge.io/min-ready": "2"})
    rows = [row("d1", both.id), row("d2", both.id, state="stopped")]
    assert ready(status_of(both, rows))["status"] == "False"


def test_rejected_manifest_is_told():
    """An agent that refuses the manifest is named with its code."""
    made = revision()
    rows = [row("d1", made.id, code=412, image="old")]
    found = ready(status_of(made, rows))
    assert found["reason"] == "SchemaUnsupported"
    assert "d1: the edge agent answered 412 words" in found["message"]


def test_transition_times_stay():
    """A condition that does not change keeps its time."""
    made = revision()
    first = status_of(made, [row("d1", made.id)])
    reports = list(edge.device_reports([row("d1", made.id)]).values())
    again = edge.pod_status(made, reports, first, "2027-01-01T00:00:00Z")
    assert again == first


def test_unreachable_hub_is_told_as_unknown():
    """When the hub is away the last known state stays and is marked as such."""
    made = revision()
    reports = list(edge.device_reports([row("d1", made.id)]).values())
    status = edge.pod_status(made, reports, {}, NOW, unknown="hub is away")
    (found,) = (c for c in status["conditions"] if c["type"] == "kvedge.io/Deployment")
    assert found["status"] == "Unknown"
    assert status["phase"] == "Running"
    assert "hub is away; last seen: 1 targeted" in found["message"]
