"""The page of recipes is what the types say."""

from __future__ import annotations

from images import describing


def test_the_page_is_up_to_date(root):
    """`python -m images.describing >docs/reference/recipes.md` writes it anew."""
    page = (root / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert page == describing.reference()


def test_every_key_has_a_meaning():
    """No row of a table ends without words."""
    rows = [line for line in describing.reference().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
