"""The reference of recipes, written from their types: `python -m images.describing` prints it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from typing import TYPE_CHECKING

from images import recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["reference"]

_HEAD = """\
# Recipes of images

A recipe is a TOML file.
These tables are written from the types that parse it (`python -m images.describing`).
[How to make images of your own](../howto/images.md) has an example.
Every mistake in a recipe is told at once, with its place; unknown keys are mistakes.

"""
_TABLES = (
    ("Top level", recipe.Recipe, ("apt", "layers", "sources", "users", "content", "boot")),
    ("`[apt]`", recipe.Apt, ()),
    ("`[[sources]]`", recipe.Source, ()),
    ("`[[layers]]`", recipe.Layer, ()),
    ("`[[users]]`", recipe.User, ()),
    ("`[content]`", recipe.Content, ()),
    ("`[boot]`", recipe.Boot, ()),
)
_NOT_WRITTEN = {"lock", "folder"}
_WORDS = {
    "str": "text",
    "int": "number",
    "bool": "true or false",
    "tuple[str, ...]": "list of texts",
}
_OPTIONAL_AT_THE_TOP = {"kind": "`disk`", "revision": "`1`", "disk_mib": "`2048`"}


def reference() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for title, kind, elsewhere in _TABLES:
        parts.append(f"## {title}\n\n{_sentence(kind)}\n\n")
        parts.append("| key | value | default | meaning |\n|---|---|---|---|\n")
        parts += [f"{row}\n" for row in _rows(kind, {*elsewhere, *_NOT_WRITTEN})]
        parts.append("\n")
    parts.append(_placeholders())
    return "".join(parts)


def _sentence(kind: type) -> str:
    return inspect.getdoc(kind) or ""


def _rows(kind: type, left_out: set[str]) -> Iterator[str]:
    told = _field_docs(kind)
    for field in dataclasses.fields(kind):
        if field.name in left_out:
            continue
        value = "date and time" if field.name == "epoch" else _WORDS[str(field.type)]
        default = "needed"
        if kind is recipe.Recipe and field.name in _OPTIONAL_AT_THE_TOP:
            default = _OPTIONAL_AT_THE_TOP[field.name]
        elif field.default is not dataclasses.MISSING:
            default = "" if field.default in ("", ()) else f"`{_toml(field.default)}`"
        yield f"| `{field.name}` | {value} | {default} | {told.get(field.name, '')} |"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field_docs(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a class, as one line."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            found[name] = re.sub(r"\s+", " ", str(node.value.value)).strip().replace("|", "\\|")
            name = ""
        else:
            name = ""
    return found


def _placeholders() -> str:
    lines = ["## Placeholders\n\n", "| architecture | "]
    names = ["arch", *next(iter(recipe.ARCHES.values()))]
    lines += [" | ".join(f"`{{{name}}}`" for name in names), " |\n", "|---" * (len(names) + 1)]
    lines.append("|\n")
    for arch, words in recipe.ARCHES.items():
        values = [arch, *words.values()]
        lines.append(f"| {arch} | " + " | ".join(f"`{value}`" for value in values) + " |\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(reference())
