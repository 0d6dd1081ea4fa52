"""The plan of what a site runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kvedge.site import parts, state

ROUTES = {key: (20000 + n, target) for n, (key, target) in enumerate(state.PORTS.items())}


@pytest.fixture
def plan() -> parts.Plan:
    return parts.plan(
        state.Folder(root=Path("/site")),
        programs={name: Path("/bin", name) for name in parts.PROGRAMS},
        manifests=Path("/m.json"),
        routes=ROUTES,
        has_hub=True,
        has_host=True,
        stamp="s",
    )


def test_the_plan_survives_its_file(plan: parts.Plan) -> None:
    """The supervisor reads exactly what `up` meant."""
    read = parts.Plan.from_json(plan.to_json())
    assert read == plan
    assert read.digest == plan.digest


def test_everything_that_is_needed_exists_and_there_is_no_circle(plan: parts.Plan) -> None:
    """An order exists in which all can start."""
    needs = {item.name: set(item.needs) for item in (*plan.parts, *plan.steps)}
    while needs:
        startable = [name for name, wanted in needs.items() if not wanted]
        assert startable, f"circle or missing part among {needs}"
        for name in startable:
            del needs[name]
        for wanted in needs.values():
            wanted.difference_update(startable)


def test_stop_order_ends_clients_before_servers(plan: parts.Plan) -> None:
    """An API server that has lost its etcd needs 25 s to end."""
    rank = {part.name: part.rank for part in plan.parts}
    assert (
        rank["etcd"]
        < rank["kube-apiserver"]
        < min(value for name, value in rank.items() if name not in {"etcd", "kube-apiserver"})
    )
    assert rank["host"] > rank["virt-api"]


def test_components_use_their_own_identities(plan: parts.Plan) -> None:
    """No component's command line names the admin's kubeconfig."""
    for part in plan.parts:
        assert not any("admin.kubeconfig" in word for word in part.argv), part.name


def test_a_part_is_outdated_when_its_command_or_certificates_changed(plan: parts.Plan) -> None:
    """The digest decides whether a running process may be kept."""
    part = plan.parts[0]
    assert dataclasses.replace(part, argv=(*part.argv, "-x")).digest != part.digest
    assert dataclasses.replace(part, stamp="t").digest != part.digest
    assert dataclasses.replace(part, stop_seconds=1.0).digest == part.digest
