"""Targets are written as virtctl's users write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge import access, errors

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(labels, labels, labels, st.sampled_from(["vm", "vmi"]))
def test_full_form_gives_its_parts_back(user, name, namespace, kind):
    """Every part of the long form is kept, and the alias is virtctl's."""
    target = access.parse_target(f"{user}@{kind}/{name}/{namespace}", namespace="other")
    assert (target.user, target.name, target.namespace) == (user, name, namespace)
    assert target.alias == f"{kind}.{name}.{namespace}"


def test_short_form_takes_defaults():
    """A bare name means a VM of the given namespace and the image's user."""
    target = access.parse_target("edge1", namespace="plant")
    assert (target.user, target.kind, target.namespace) == ("edge", "vm", "plant")


@given(labels, labels, labels)
def test_dotted_form_names_the_namespace(user, name, namespace):
    """`user@NAME.NAMESPACE` is `user@vm/NAME/NAMESPACE`."""
    target = access.parse_target(f"{user}@{name}.{namespace}", namespace="other")
    assert (target.user, target.name, target.namespace) == (user, name, namespace)


@pytest.mark.parametrize(
    "text",
    ["", "pod/edge1", "vm/", "a/b/c/d", "@edge1", "Edge_1", "vm/a/b/c", "a.b.c", "a.", "vm/a.b/c"],
)
def test_what_is_no_target_is_refused(text):
    """The error shows the syntax."""
    with pytest.raises(errors.SpecError, match="TARGET"):
        access.parse_target(text, namespace="default")
