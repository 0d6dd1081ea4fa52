"""Merge-patch of twin properties."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import patching
from kvedge.emulator.catalogue import HubError

names = st.text("abc", min_size=1, max_size=2)
leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.text("xy", max_size=3)
patches = st.recursive(
    st.dictionaries(names, leaves | st.lists(st.integers(0, 3), max_size=3), max_size=4),
    lambda inner: st.dictionaries(names, leaves | inner, max_size=4),
    max_leaves=12,
)


def reference(old, patch):
    """RFC 7396, written as the RFC writes it."""
    if not isinstance(patch, dict):
        return patch
    old = old if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            old.pop(name, None)
        else:
            old[name] = reference(old.get(name), value)
    return old


def applied(start, *changes):
    document = patching.empty("t0")
    for number, change in enumerate((start, *changes)):
        document = patching.merged(document, change, f"t{number}", versioned=True)
    return document


@given(patches, patches)
def test_a_merge_is_rfc_7396(first, second):
    """Merging is JSON merge-patch."""
    expected = reference(reference({}, copy.deepcopy(first)), copy.deepcopy(second))
    assert patching.values(applied(first, second)) == expected


@given(patches, patches)
def test_a_merge_changes_neither_side(first, second):
    """Documents and patches are never written to."""
    document = applied(first)
    before = copy.deepcopy((document, second))
    patching.merged(document, second, "t", versioned=True)
    assert (document, second) == before


@given(patches, patches)
def test_a_difference_leads_to_the_other(first, second):
    """Merging the difference of two documents into the one gives the other."""
    old, new = patching.values(applied(first)), patching.values(applied(second))
    patch = patching.difference(old, new)
    assert reference(copy.deepcopy(old), copy.deepcopy(patch)) == new
    assert patching.difference(new, new) == {}


@given(patches, patches)
def test_metadata_has_the_shape_of_the_values(first, second):
    """Each value has its time and version in the metadata, and nothing else has."""
    document = applied(first, second)

    def check(values, metadata):
        assert metadata["$lastUpdated"].startswith("t")
        inner = {name: item for name, item in metadata.items() if name[0] != "$"}
        if isinstance(values, dict):
            assert inner.keys() == values.keys()
            for name, value in values.items():
                check(value, inner[name])
        else:
            assert not inner

    check(patching.values(document), document["$metadata"])


@given(st.lists(patches, max_size=6))
def test_versions_count(changes):
    """Every write raises the version by one."""
    assert applied({}, *changes)["$version"] == 2 + len(changes)


@given(patches, patches)
def test_a_replacement_keeps_nothing(first, second):
    """A replaced document is what the new values alone would make."""
    new = patching.replaced(applied(first), second, "t", versioned=False)
    assert patching.values(new) == patching.values(applied(second))


@pytest.mark.parametrize(
    "patch", [{"": 1}, {"a.b": 1}, {"$a": 1}, {"a#": 1}, {"a b": 1}, {"a\n": 1}, {"x" * 1025: 1}]
)
def test_names_that_are_not_allowed(patch):
    """Names with the service's own characters, or too long, are refused at any depth."""
    for wrapped in (patch, {"in": patch}, {"in": [patch]}):
        with pytest.raises(HubError, match="ArgumentInvalid"):
            patching.check("Tags", wrapped)


def test_the_services_own_names_are_passed_over():
    """$version and $metadata at the top are allowed, since clients send back what they read."""
    document = {"$version": 3, "$metadata": {"$lastUpdated": "t"}, "a": 1}
    assert patching.check("Properties.Desired", document) == document


@pytest.mark.parametrize("patch", [1, [], "x", None, True])
def test_only_objects_are_patches(patch):
    """Anything but an object is refused."""
    with pytest.raises(HubError, match="IotHubFormatError"):
        patching.check("Tags", patch)


@pytest.mark.parametrize(
    ("values", "fits"),
    [({"a": "x" * 4000, "b": "x" * 4000}, True), ({f"k{n}": "x" * 4000 for n in range(3)}, False)],
)
def test_tags_take_eight_kilobytes(values, fits):
    """The size of tags is limited; metadata does not count."""
    if fits:
        patching.check_size("Tags", values)
    else:
        with pytest.raises(HubError, match="8192"):
            patching.check_size("Tags", values)


@given(st.lists(patches, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_any_order_of_patches_ends_the_same(changes, random):
    """Writers that touch different members meet in one state, whatever order they come in."""
    own = [{f"writer{number}": change} for number, change in enumerate(changes)]
    own += [{"shared": {f"writer{number}": change}} for number, change in enumerate(changes)]
    shuffled = random.sample(own, k=len(own))
    one, other = applied({}, *own), applied({}, *shuffled)
    assert patching.values(one) == patching.values(other)
    assert one["$version"] == other["$version"]


@given(st.lists(patches, min_size=1, max_size=5))
def test_notified_differences_lead_to_the_twin(changes):
    """A device that merges each patch it hears has the twin's values at any time."""
    document, heard = patching.empty("t"), {}
    for change in changes:
        before = patching.values(document)
        document = patching.merged(document, change, "t", versioned=True)
        heard = reference(heard, copy.deepcopy(change))
        assert heard == patching.values(document)
        difference = patching.difference(before, patching.values(document))
        assert reference(copy.deepcopy(before), copy.deepcopy(difference)) == heard
