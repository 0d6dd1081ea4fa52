"""start, stop and restart: what is asked, what is waited for, what a refusal says.

The acts themselves are KubeVirt's; here it is a stand-in that notes them.
"""

from __future__ import annotations

import threading

import pytest

VMIS = "/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances"


def guest(fleet, name, *, ready=True):
    """Make the guest's object, as KubeVirt has it while the VM runs."""
    fleet.call(
        "apply",
        {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": name, "namespace": fleet.namespace},
            "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
        },
    )


@pytest.mark.parametrize(
    ("words", "act", "body"),
    [
        (("stop", "--no-wait", "edge1"), "stop", {}),
        (("stop", "--no-wait", "--grace", "7", "edge1"), "stop", {"gracePeriod": 7}),
        (("start", "--no-wait", "edge1"), "start", {}),
        (("restart", "--no-wait", "--force", "edge1"), "restart", {"gracePeriodSeconds": 0}),
    ],
)
def test_what_is_asked(cli, fleet, api_way, words, act, body):
    """Each command is one request with the fields that KubeVirt reads."""
    fleet.add("edge1")
    code, out, err = cli(*words)
    assert code == 0, err
    assert api_way == [("edge1", act, body)]
    assert f"{act} requested" in out


def test_stop_waits_until_the_guest_is_gone(cli, fleet, api_way):
    """The command ends when the guest's object is gone, and not before."""
    fleet.add("edge1")
    guest(fleet, "edge1")
    code, _, err = cli("stop", "--timeout", "1", "edge1")
    assert code == 1
    assert "not done within 1 s" in err
    path = f"{VMIS.format(fleet.namespace)}/edge1"
    later = threading.Timer(1, lambda: fleet.call("delete", path))
    later.start()
    code, out, err = cli("stop", "edge1")
    later.join()
    assert (code, out) == (0, f"{fleet.namespace}/edge1 stopped\n"), err


def test_restart_waits_for_another_guest(cli, fleet, api_way):
    """A guest that is ready is not enough: it must be another one."""
    fleet.add("edge1")
    guest(fleet, "edge1")
    code, _, err = cli("restart", "--timeout", "1", "edge1")
    assert code == 1
    assert "not done" in err


def test_a_refusal_is_told_in_kubevirts_words(cli, fleet, api_way):
    """The object, the reason and the next act."""
    fleet.add("edge1")
    del fleet.places["edge1"]
    code, _, err = cli("stop", "edge1")
    assert code == 1
    assert "stop 'vm.edge1" in err
    assert "VM is not running" in err
    assert "kubectl get vm edge1" in err
