"""Comparing with reviewed files; KVEDGE_GOLDEN=write writes them anew."""

import os
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / "golden" / "cloudinit"


@pytest.fixture
def golden():
    """A function that compares a text with a file of tests/golden/cloudinit."""

    def compare(name: str, text: str) -> None:
        file = _FOLDER / name
        if os.environ.get("KVEDGE_GOLDEN") == "write":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")

    return compare
