"""Refusing what cannot fit."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvedge.node.admission import Admission, requests_of

_serial = itertools.count()


def pod(cpu="0", memory="0", **spec):
    """Return a pod with one container."""
    requests = {"cpu": cpu, "memory": memory}
    containers = [{"name": "c", "resources": {"requests": requests}}]
    return {
        "metadata": {"uid": str(next(_serial)), "name": "p", "namespace": "n"},
        "spec": {"containers": containers, **spec},
    }


def node(**capacity):
    """Return the admission of a node."""
    capacity = {"cpu": "4", "memory": "8Gi", "pods": "10", **capacity}
    return Admission("edge-1", {"zone": "a", "tier": "3"}, capacity)


def refused(admission, given):
    """Return the reason, or None."""
    found = admission.refusal(given, room_is_known=True)
    return found and found.reason


def test_reasons_are_the_kubelets():
    """What is short is named, with numbers in millicores, bytes and pods."""
    admission = node(pods="2")
    assert refused(admission, pod("3")) is None
    found = admission.refusal(pod("1500m"), room_is_known=True)
    assert found is not None
    assert found.reason == "OutOfcpu"
    assert found.message == (
        "Pod was rejected: Node didn't have enough resource: cpu, "
        "requested: 1500, used: 3000, capacity: 4000"
    )
    assert refused(admission, pod(memory="9Gi")) == "OutOfmemory"
    assert refused(admission, pod("1")) is None
    assert refused(admission, pod()) == "OutOfpods"


def test_room_comes_back():
    """A pod that has ended makes room."""
    admission = node()
    first = pod("4")
    assert refused(admission, first) is None
    assert refused(admission, pod("1")) == "OutOfcpu"
    admission.release(first["metadata"]["uid"])
    assert refused(admission, pod("4")) is None


def test_extended_resources():
    """One that the node has is counted; one that no node has is none of its business."""
    wanted = pod()
    wanted["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = "2"
    assert refused(node(), wanted) is None
    assert refused(node(**{"example.com/gpu": "1"}), wanted) == "OutOfexample.com/gpu"


def test_affinity():
    """Selector and required affinity must match the node's labels or name."""

    def required(*terms):
        wanted = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        return pod(affinity={"nodeAffinity": wanted})

    def expression(key, operator, *values):
        return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}

    allowed = [
        pod(nodeSelector={"zone": "a"}),
        required(expression("zone", "In", "a", "b")),
        required(expression("zone", "In", "z"), expression("tier", "Gt", "2")),
        required(expression("none", "DoesNotExist")),
        required(
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["edge-1"]}]}
        ),
    ]
    denied = [
        pod(nodeSelector={"zone": "b"}),
        required(expression("zone", "NotIn", "a")),
        required(expression("tier", "Lt", "3")),
        required(expression("none", "Exists")),
        required({}),
    ]
    assert [refused(node(), one) for one in allowed] == [None] * len(allowed)
    assert [refused(node(), one) for one in denied] == ["NodeAffinity"] * len(denied)


def test_init_containers_count_by_their_peak():
    """One after the other, beside those that go on running."""
    wanted = pod("1")
    cpu = [("2", None), ("500m", "Always"), ("1", None)]
    wanted["spec"]["initContainers"] = [
        {"name": f"i{n}", "restartPolicy": policy, "resources": {"requests": {"cpu": amount}}}
        for n, (amount, policy) in enumerate(cpu)
    ]
    assert requests_of(wanted)["cpu"] == 2
    wanted["spec"]["initContainers"].reverse()
    assert requests_of(wanted)["cpu"] == 2.5


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=40))
def test_never_more_than_there_is(steps):
    """Whatever comes and goes, what is admitted fits."""
    admission = node()
    inside = {}
    for milli, leaves in steps:
        if leaves and inside:
            uid, _ = inside.popitem()
            admission.release(uid)
        wanted = pod(f"{milli}m")
        if admission.refusal(wanted, room_is_known=True) is None:
            inside[wanted["metadata"]["uid"]] = milli
        else:
            assert sum(inside.values()) + milli > 4000 or len(inside) == 10
        assert sum(inside.values()) <= 4000
        assert len(inside) <= 10
