"""Holding properties of Azure resources to pulumi-azure-native's own types.

The types are the JSON that `scripts/azure-types` writes: names on the wire, which are required, and
the values of enums. Limits: unions are taken as any of their parts; plain types are not compared.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["mistakes"]


def mistakes(types: dict[str, Any], token: str, properties: dict[str, Any]) -> list[str]:
    """Return what is wrong with a resource's properties, each with its path."""
    found = types["resources"].get(token)
    if found is None:
        return [f"{token}: unknown resource"]
    return list(_fields(types, token.partition(":")[0], found["inputs"], properties, token))


def _fields(types: Any, module: str, fields: Any, given: Any, path: str) -> Any:
    for name in set(given) - set(fields):
        yield f"{path}.{name}: unknown field"
    for name, field in fields.items():
        if name in given:
            yield from _value(types, module, field["type"], given[name], f"{path}.{name}")
        elif field["required"]:
            yield f"{path}.{name}: missing"


def _value(types: Any, module: str, kind: str, value: Any, path: str) -> Any:
    named = [f"{module}:{word}" for word in re.findall(r"\b[A-Z]\w+\b", kind)]
    nested = [types["types"][name] for name in named if name in types["types"]]
    values = [one for name in named for one in types["enums"].get(name, ())]
    if nested and "Mapping[str" in kind and isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(types, module, nested[0], inner, f"{path}.{key}")
    elif nested and isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _fields(types, module, nested[0], inner, f"{path}[{at}]")
    elif nested and isinstance(value, dict):
        yield from _fields(types, module, nested[0], value, path)
    elif values and isinstance(value, str) and value not in values:
        yield f"{path}: {value!r} is none of {', '.join(values)}"
