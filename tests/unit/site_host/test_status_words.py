"""Conditions and container statuses in the words of KubeVirt and the kubelet."""

from kvedge.site.host.podstatus import conditions, container, with_ready
from kvedge.site.host.vmis import set_condition, set_phase


def test_a_phase_is_entered_once(vmi):
    """Entering the same phase again adds no transition."""
    set_phase(vmi, "Running")
    set_phase(vmi, "Running")
    assert [item["phase"] for item in vmi["status"]["phaseTransitionTimestamps"]] == ["Running"]


def test_the_transition_time_moves_only_with_the_status(vmi):
    """A new reason keeps the time, a new status does not."""
    set_condition(vmi, "Ready", "False", "A")
    vmi["status"]["conditions"][0]["lastTransitionTime"] = "then"
    set_condition(vmi, "Ready", "False", "B")
    assert vmi["status"]["conditions"][0]["lastTransitionTime"] == "then"
    set_condition(vmi, "Ready", "True")
    assert vmi["status"]["conditions"][0]["lastTransitionTime"] != "then"


def test_a_condition_can_be_taken_away(vmi):
    """KubeVirt removes Paused and AgentConnected; False would be something else."""
    set_condition(vmi, "Paused", "True", "PausedByUser")
    set_condition(vmi, "Paused", None)
    assert vmi["status"]["conditions"] == []


_POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u"},
    "spec": {
        "containers": [{"name": "compute", "image": "i"}],
        "readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
    },
    "status": {"phase": "Running"},
}


def _ready(pod):
    found = conditions(pod, initialized=True, containers_ready=True)
    return next(item for item in found if item["type"] == "Ready")


def test_readiness_gates_are_the_kubelets_to_judge():
    """Ready needs the gate's condition besides ready containers."""
    assert _ready(_POD)["reason"] == "ReadinessGatesNotReady"
    gate = {"type": "kubevirt.io/virtual-machine-unpaused", "status": "True"}
    assert _ready({**_POD, "status": {"conditions": [gate]}})["status"] == "True"


def test_readiness_is_written_only_when_it_changed():
    """An unchanged pod costs no request."""
    gate = {"type": "kubevirt.io/virtual-machine-unpaused", "status": "True"}
    pod = {
        **_POD,
        "status": {
            "phase": "Running",
            "conditions": [gate],
            "containerStatuses": [
                container(_POD["spec"]["containers"][0], {"running": {}}, ready=False)
            ],
        },
    }
    change = with_ready(pod, {"compute": True})
    assert change is not None
    pod["status"].update(
        containerStatuses=change["containerStatuses"], conditions=[gate, *change["conditions"]]
    )
    assert with_ready(pod, {"compute": True}) is None
