"""Which objects the API server is asked about before a first run."""

from __future__ import annotations

import dataclasses

import pytest

from infra import admission, publishing, rendering
from kvedge import spec

NOT_JUDGED = {"name", "mac", "tags", "key_version"}
WANTED = [
    publishing.Wanted(kind="disk", name="d", repository="kvedge/d", key="k" * 36),
    publishing.Wanted(kind="connector", name="kvedge", repository="kvedge/kvedge", key="c"),
]


def test_of_vms_with_the_same_settings_one_is_asked_for(environment: spec.Environment) -> None:
    """A hundred equal VMs cost as many requests as one; its name is the longest, as names have limits."""
    first = environment.fleet[0]
    fleet = [
        dataclasses.replace(first, name=f"v{number}", mac=f"02:00:00:00:00:{number:02d}", tags={"n": number})
        for number in range(8, 12)
    ]  # fmt: skip
    assert [vm.name for vm in admission.asked_for(fleet)] == ["v10"]
    assert [vm.name for vm in admission.asked_for(fleet, there={"v9", "w"})] == ["v9", "v10"]


@pytest.mark.parametrize(
    "field", sorted({field.name for field in dataclasses.fields(spec.Vm)} - NOT_JUDGED)
)
def test_vms_that_differ_in_a_setting_are_both_asked_for(
    environment: spec.Environment, field: str
) -> None:
    """Whatever the API server may judge."""
    first = environment.fleet[0]
    value = getattr(first, field)
    other = {bool: lambda: not value, int: lambda: value + 7, str: lambda: value + "7"}.get(
        type(value), lambda: {**value, "more": "1"}
    )()
    second = dataclasses.replace(first, name="other", **{field: other})
    assert len(admission.asked_for([first, second])) == 2


def test_what_names_an_unknown_image_is_left_out(environment: spec.Environment) -> None:
    """A policy on images cannot be asked about an image that is not pushed yet."""
    unknown = rendering.facts_before(environment, WANTED)
    known = dataclasses.replace(unknown, image="r/d@sha256:1", connector_image="r/c@sha256:1")
    names = [
        {f"{obj['kind']} {obj['metadata']['name']}" for obj in rendering.open_objects(environment, facts)}
        for facts in (unknown, known)
    ]  # fmt: skip
    assert names[0] < names[1]
    assert {name.partition(" ")[0] for name in names[1] - names[0]} == {"DataVolume", "Deployment"}
