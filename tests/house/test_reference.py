"""Pages that are written from the code are as the code is now."""

from __future__ import annotations

import importlib.machinery
import importlib.util

import pytest


@pytest.mark.timeout(120)
def test_generated_pages_are_fresh(root):
    """After a change of a setting or command: .venv/bin/python scripts/reference."""
    loader = importlib.machinery.SourceFileLoader("reference", str(root / "scripts/reference"))
    spec = importlib.util.spec_from_loader("reference", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    stale = [
        file.name
        for file, text in module.pages().items()
        if not file.exists() or file.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run: .venv/bin/python scripts/reference"
