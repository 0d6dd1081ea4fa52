"""The page of errors and the tree of errors are the same."""

from __future__ import annotations

import ast
import inspect
import re

from kvedge import errors


def _classes() -> dict[str, type[errors.KvedgeError]]:
    return {
        name: one
        for name, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, errors.KvedgeError)
    }


def test_every_error_has_its_row(root):
    """Each class is in the table once, with the exit code that it really has."""
    page = (root / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE))
    assert rows == {name: str(one.exit_code) for name, one in _classes().items()}


def test_errors_are_defined_in_one_place(modules):
    """A user meets only errors that the page knows."""
    known = {f"errors.{name}" for name in _classes()} | set(_classes())
    found = [
        f"{module.path}: {node.name}"
        for module in modules
        if module.path != "kvedge/errors.py"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        if {ast.unparse(base) for base in node.bases} & known
    ]
    assert not found, "\n".join(found)
