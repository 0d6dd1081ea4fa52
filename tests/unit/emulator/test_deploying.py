"""How deployments are merged."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import configuring, deploying
from kvedge.emulator.records import Configuration, Twin


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


names = st.sampled_from(["a", "b"])
leaves = st.integers(0, 3) | st.dictionaries(names, st.integers(0, 3), max_size=2)
sections = st.dictionaries(
    st.lists(names, max_size=3).map(lambda path: ".".join(["properties.desired", *path])),
    st.dictionaries(names, leaves, max_size=2),
    max_size=3,
)
layers = st.lists(st.dictionaries(st.sampled_from(["m", "n"]), sections, max_size=2), max_size=4)


def flat(document, at=()):
    """Return a document as leaves by path; an empty object is a leaf."""
    if not isinstance(document, dict) or (at and not document):
        return {at: document}
    found = {}
    for name, value in document.items():
        found |= flat(value, (*at, name))
    return found


def modelled(contents):
    """Merge as the rule says: each path, shortest first, replaces all that is at or below it."""
    result = {}
    for content in contents:
        for module, section in content.items():
            leaves = result.setdefault(module, {})
            for path in sorted(section):
                place = tuple(path.split(".")[2:])
                for known in [*leaves]:
                    if known[: len(place)] == place or place[: len(known)] == known:
                        del leaves[known]
                leaves |= flat(section[path], place)
    return result


@given(layers)
def test_a_merge_is_what_the_model_says(contents):
    """Base and layers merge as a slow model over leaves does, for any paths."""
    stack = [
        configuration(f"c{n}", {"$edgeAgent": {}, **content}) for n, content in enumerate(contents)
    ]
    merged = deploying.manifest(stack[0] if stack else None, stack[1:])
    merged.pop("$edgeAgent", None)
    expected = modelled(contents)
    assert {module: flat(values) for module, values in merged.items()} == expected


@given(layers, st.integers(0, 3))
def test_device_configurations_settle(contents, which):
    """Applying configurations to what they have written changes nothing."""
    rules = configuring.Rules(
        "deviceContent",
        [
            dataclasses.replace(
                configuration(f"c{n}", {}, priority=n),
                content={"deviceContent": content.get("m", {})},
                target_condition="*",
            )
            for n, content in enumerate(contents)
        ],
    )
    desired = {"own": {"a": which}, "$version": 1, "$metadata": {}}
    twin = Twin(device_id="d", desired=desired, reported={})
    once, statuses = rules.outcome(twin)
    again, same = rules.outcome(dataclasses.replace(twin, desired={**desired, **once}))
    assert (again, same) == (once, statuses)
    assert once["own"] == {"a": which}
    assert statuses.keys() == {f"c{n}" for n in range(len(contents))}
