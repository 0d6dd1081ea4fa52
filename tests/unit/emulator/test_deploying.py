"""How deployments are merged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import deploying
from kvedge.emulator.records import Configuration


def configuration(name, content, priority=0):
    return Configuration(
        id=name, content={"modulesContent": content}, created=name, updated="", sequence=0,
        priority=priority,
    )  # fmt: skip


BASE = configuration(
    "base",
    {
        "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": {"a": {"v": 1}}}},
        "$edgeHub": {"properties.desired": {"routes": {"r": "x"}}},
        "a": {"properties.desired": {"rate": 1, "deep": {"k": 1}}},
    },
)


def test_kinds():
    """The keys of $edgeAgent tell a layer from a full deployment."""
    assert not deploying.is_layered(BASE.content)
    assert deploying.is_layered({"modulesContent": {"$edgeAgent": {}}})
    assert deploying.is_layered(
        {"modulesContent": {"$edgeAgent": {"properties.desired.modules.a": {}}}}
    )


def test_a_layer_adds_replaces_and_is_marked():
    """A layer's sub-paths add, a whole section replaces, later layers win."""
    first = configuration(
        "one",
        {
            "$edgeAgent": {"properties.desired.modules.b": {"v": 1}},
            "$edgeHub": {"properties.desired.routes.s": "y"},
            "a": {"properties.desired.deep.l": 2},
        },
    )
    second = configuration(
        "two",
        {
            "$edgeAgent": {"properties.desired.modules.a": {"v": 9}},
            "a": {"properties.desired": {"new": 1}},
        },
    )
    assert deploying.manifest(BASE, [first, second]) == {
        "$edgeAgent": {
            "schemaVersion": "1.1",
            "modules": {
                "a": {"v": 9, "configuration": {"id": "two"}},
                "b": {"v": 1, "configuration": {"id": "one"}},
            },
        },
        "$edgeHub": {"routes": {"r": "x", "s": "y"}},
        "a": {"new": 1},
    }
    assert deploying.manifest(BASE, [first])["a"] == {"rate": 1, "deep": {"k": 1, "l": 2}}


@given(st.permutations(range(4)))
def test_layers_of_different_modules_commute(order):
    """The order of layers that touch different modules does not matter."""
    layers = [
        configuration(f"l{n}", {"$edgeAgent": {f"properties.desired.modules.m{n}": {"n": n}}})
        for n in range(4)
    ]
    merged = deploying.manifest(BASE, [layers[n] for n in order])
    assert merged == deploying.manifest(BASE, layers)
    assert len(merged["$edgeAgent"]["modules"]) == 5


def test_merging_leaves_the_contents_alone():
    """Contents are shared by many devices, so a merge never writes to them."""
    before = repr(BASE)
    layer = configuration("l", {"$edgeAgent": {}, "a": {"properties.desired.deep.x": 1}})
    deploying.manifest(BASE, [layer])
    assert repr(BASE) == before
