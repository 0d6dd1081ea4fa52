"""Restart policies and waiting times."""

from __future__ import annotations

import pytest

from kvedge.edgesim import restarting
from kvedge.edgesim.manifest import ModuleSpec


def judge(policy, *, exit_code=1, restarts=0, rested=1000.0, state="exited", status="running"):
    """Judge a container of a module with a restart policy."""
    spec = ModuleSpec(name="m", image="i", restart_policy=policy, status=status)
    return restarting.judge(
        spec, state=state, exit_code=exit_code, restarts=restarts, rested=rested, unit=10.0
    )


@pytest.mark.parametrize(
    ("policy", "exit_code", "status", "start"),
    [
        ("never", 0, "stopped", False),
        ("never", 1, "failed", False),
        ("on-failure", 0, "stopped", False),
        ("on-failure", 1, "backoff", True),
        ("on-unhealthy", 0, "stopped", False),
        ("on-unhealthy", 1, "backoff", True),
        ("always", 0, "backoff", True),
        ("always", 1, "backoff", True),
    ],
)
def test_policy_decides_about_an_ended_container(policy, exit_code, status, start):
    """As the real agent's restart policies do."""
    verdict = judge(policy, exit_code=exit_code)
    assert (verdict.runtime_status, verdict.start) == (status, start)


def test_rest_doubles_up_to_five_minutes():
    """10 s, 20 s, 40 s … 300 s."""
    waits = [restarting.cool_off_seconds(restarts, 10.0) for restarts in range(7)]
    assert waits == [10, 20, 40, 80, 160, 300, 300]


def test_rest_is_waited_for():
    """A module that just ended is in back-off until its rest is over."""
    verdict = judge("always", restarts=1, rested=5.0)
    assert (verdict.runtime_status, verdict.start, verdict.wait_seconds) == ("backoff", False, 15.0)


def test_clock_set_back_does_not_delay():
    """An end in the future counts as rested."""
    assert judge("always", rested=-50.0).start


def test_module_fails_after_too_many_restarts():
    """Twenty restarts are enough."""
    verdict = judge("always", restarts=restarting.MAX_RESTARTS)
    assert (verdict.runtime_status, verdict.start) == ("failed", False)


def test_stopped_module_stays_stopped():
    """A module that is wanted stopped is never started."""
    assert not judge("always", status="stopped").start
    assert not judge("always", state="created", status="stopped").start
