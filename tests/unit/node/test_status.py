"""Comparing statuses: what needs no write."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from kvedge.node import status

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["phase", "reason", "podIPs"]), JSON))
def test_a_status_covers_itself(found):
    """Writing what is there already changes nothing."""
    assert status.covers(copy.deepcopy(found), found)


def test_null_equals_absent():
    """A reason that is taken away is no change where there was none."""
    assert status.covers({"phase": "Running"}, {"phase": "Running", "reason": None})
    assert not status.covers({"reason": "x"}, {"reason": None})


def test_conditions_are_compared_by_type():
    """Conditions of other writers and another order do not matter."""
    found = {
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True", "lastProbeTime": None},
        ]
    }
    assert status.covers(found, {"conditions": [{"type": "Ready", "status": "True"}]})
    assert not status.covers(found, {"conditions": [{"type": "Ready", "status": "False"}]})
    assert not status.covers(found, {"conditions": [{"type": "New", "status": "True"}]})


def test_container_statuses_are_compared_whole():
    """Another state or another number of containers is a change."""
    one = {"name": "c", "state": {"running": {"startedAt": "t"}}, "lastState": {}}
    wanted = {"name": "c", "state": {"running": {"startedAt": "t"}}}
    assert status.covers({"containerStatuses": [one]}, {"containerStatuses": [wanted]})
    assert not status.covers({"containerStatuses": []}, {"containerStatuses": [wanted]})
