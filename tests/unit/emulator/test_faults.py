"""The budgets of each tier, as the service's documentation lists them."""

from __future__ import annotations

import pytest

from kvedge.emulator import Knobs, catalogue, faults


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved."""
    now = [1000.0]
    monkeypatch.setattr(faults.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("tier", "units", "operation", "count", "seconds"),
    [
        ("F1", 1, "ConfigurationWrite", 20, 60),
        ("S1", 3, "ConfigurationRead", 60, 60),
        ("S3", 2, "ConfigurationWrite", 40, 60),
        ("S1", 2, "IdentityWrite", 200, 60),
        ("S3", 1, "IdentityRead", 5000, 60),
        ("S1", 1, "Query", 20, 60),
        ("S3", 1, "Query", 1000, 60),
        ("S1", 9, "TwinRead", 100, 1),
        ("S2", 9, "TwinRead", 100, 1),
        ("S2", 20, "TwinRead", 200, 1),
        ("S3", 2, "TwinRead", 1000, 1),
        ("S1", 9, "TwinUpdate", 50, 1),
        ("S2", 20, "TwinUpdate", 100, 1),
        ("S1", 1, "DirectMethod", 40, 1),
        ("S2", 2, "DirectMethod", 240, 1),
        ("S1", 2, "Jobs", 200, 60),
        ("S1", 1, "Connection", 100, 1),
        ("S1", 10, "Connection", 120, 1),
        ("S2", 2, "Connection", 240, 1),
    ],
)
def test_budgets(clock, tier, units, operation, count, seconds):
    """So many operations pass at once; when the period is over as many again."""
    throttles = faults.Faults(Knobs(tier=tier, units=units), lambda: None)
    for _ in range(2):
        assert [throttles.take(operation) for _ in range(count + 1)] == [True] * count + [False]
        clock[0] += seconds


def test_kinds_share_and_costs_count(clock):
    """Reads and writes of identities are one budget; a bulk request takes one for each identity."""
    throttles = faults.Faults(Knobs(tier="S1"), lambda: None)
    throttles.charge("IdentityWrite", 60)
    throttles.charge("IdentityRead", 40)
    with pytest.raises(catalogue.HubError, match="ThrottlingBacklogTimeout"):
        throttles.charge("IdentityWrite")
    clock[0] += 0.6
    throttles.charge("IdentityWrite")


def test_no_tier_no_throttle(clock):
    """At first nothing is refused."""
    throttles = faults.Faults(Knobs(), lambda: None)
    assert all(throttles.take("ConfigurationWrite") for _ in range(10_000))


async def test_burst_is_over_in_time(clock):
    """With a time, what is left of a burst's number lapses, however few requests came."""
    knobs = Knobs(fail_status=429, fail_count=3, fail_seconds=5.0, fail_every_seconds=30.0)
    throttles = faults.Faults(knobs, lambda: None)

    async def passes(seconds):
        clock[0] = 1000.0 + seconds
        try:
            await throttles.admit("Query")
        except catalogue.HubError:
            return False
        return True

    seen = [await passes(seconds) for seconds in (0, 4, 5, 29, 30, 31, 32, 33, 60, 66)]
    assert seen == [False, False, True, True, False, False, False, True, False, True]


async def test_burst_without_a_time_waits_for_its_number(clock):
    """Who asks seldom meets nothing else."""
    knobs = Knobs(fail_status=429, fail_count=2, fail_every_seconds=30.0)
    throttles = faults.Faults(knobs, lambda: None)
    for _ in range(5):
        clock[0] += 20.0
        with pytest.raises(catalogue.HubError):
            await throttles.admit("Query")
