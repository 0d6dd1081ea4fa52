"""Which objects the API server is asked about before a first run."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from infra import admission, publishing, rendering

if TYPE_CHECKING:
    from kvedge import spec

WANTED = [
    publishing.Wanted(kind="disk", name="d", repository="kvedge/d", key="k" * 36),
    publishing.Wanted(kind="connector", name="kvedge", repository="kvedge/kvedge", key="c"),
]


def test_every_vm_is_asked_for_and_of_other_objects_one_of_each_form(
    environment: spec.Environment,
) -> None:
    """Ten equal VMs cost ten requests more, not fifty."""
    fleet = tuple(
        dataclasses.replace(environment.fleet[0], name=f"v{number}") for number in range(10)
    )
    many = dataclasses.replace(environment, fleet=fleet)
    counts = []
    for one in (many, dataclasses.replace(many, fleet=fleet[:1])):
        objects = rendering.open_objects(one, rendering.facts_before(one, WANTED))
        kinds = collections.Counter(obj["kind"] for obj in admission.asked_for(objects))
        assert kinds.pop("VirtualMachine") == len(one.fleet)
        counts.append(kinds)
    assert counts[0] == counts[1]
    assert counts[0]["Service"] == counts[0]["DataVolume"] == 1


def test_objects_that_differ_in_more_than_names_are_asked_for(
    environment: spec.Environment,
) -> None:
    """The second VM of the fixture has another data disk and storage class."""
    objects = rendering.open_objects(environment, rendering.facts_before(environment, WANTED))
    asked = {obj["metadata"]["name"] for obj in admission.asked_for(objects)}
    assert {"edge1-data", "edge2-data", "edge1-ssh"} <= asked
    assert "edge2-ssh" not in asked


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
