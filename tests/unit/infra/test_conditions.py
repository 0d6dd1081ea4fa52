"""Target conditions are checked before the hub sees them."""

from __future__ import annotations

import pytest

from kvedge import conditions


@pytest.mark.parametrize(
    "condition",
    [
        "*",
        "tags.kvedge.managed=true",
        "tags.site = 'lille' AND NOT deviceId IN ['a', 'b']",
        '(tags.a = 1 OR tags.b <> "x") AND properties.reported.os.version >= 7.5',
        "deviceId = 'it\\'s'",
    ],
)
def test_good_conditions_pass(condition: str) -> None:
    """What the hub takes is taken."""
    assert conditions.mistake_in(condition) == ""


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("", "is empty"),
        ("tags.a", "ends too early"),
        ("tags.a = 'x' tags.b = 1", "where it should end"),
        ("tags.a == 1", "where a name or a value belongs"),
        ("properties.desired.a = 1", "only deviceId"),
        ("tags.a IN ['x'", "ends too early"),
        ("(tags.a = 1", "ends too early"),
        ("tags.a = 'x", "has no meaning"),
        ("tags.a LIKE 'x'", "where a comparison belongs"),
    ],
)
def test_bad_conditions_are_refused(condition: str, why: str) -> None:
    """What the hub would refuse is refused, with the place."""
    assert why in conditions.mistake_in(condition)
