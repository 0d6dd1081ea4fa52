"""The page on pods names every field that the translator knows."""

from __future__ import annotations

import pathlib

import pytest

from kvedge.edge import face, refusing

PAGE = (pathlib.Path(__file__).parents[3] / "docs/reference/pods.md").read_text()


@pytest.mark.parametrize(
    "field",
    sorted(
        {
            *refusing.TRANSLATED_POD,
            *refusing.STEERING_POD,
            *refusing.REFUSED_POD,
            *refusing.TRANSLATED_CONTAINER,
            *refusing.REFUSED_CONTAINER,
        }
    ),
)
def test_field_is_on_the_page(field):
    """A field that is translated, steering or refused is told."""
    assert f"`{field}`" in PAGE


def test_annotations_are_on_the_page():
    """All keys of the own face are told."""
    for key in face.OWN_KEYS:
        assert f"`{key}`" in PAGE
    for name in face.CONTAINER_KEYS:
        assert f"`<container>.kvedge.io/{name}`" in PAGE
