"""The settings as JSON Schema and as a table, recorded from the parser that reads them.

`settings.read` is run on a recorder in place of real settings, so the schema knows exactly what the
parser asks for; meanings are the docstrings of `kvedge.spec`. Checks of a text's content are the
parser's alone: `kvedge env validate` is the judge, the schema helps while writing.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Any

from kvedge import settings, spec
from kvedge.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Setting", "stack_schema", "table"]

_DRAFT = "http://json-schema.org/draft-07/schema#"
_CLASSES = {
    "": "Environment", "cluster": "Cluster", "hub": "Hub", "dps": "Dps", "registry": "Registry",
    "image": "Image", "ssh": "Ssh", "edge": "EdgeRuntime", "rollout": "Rollout",
    "operators": "Operators", "azure": "Azure", "azure.hub": "AzureHub", "azure.dps": "AzureDps",
    "azure.aks": "Aks", "azure.arc": "Arc", "azure.arc.flux": "Flux",
    "platform": "Platform", "platform.connector": "Connector", "fleet[]": "Vm",
    "fleet.vms[]": "Vm", "fleet.template": "Vm", "fleet.overrides.*": "Vm",
}  # fmt: skip
_MEANINGS = {
    "hub.connectionStringFile": "File with the connection string, in place of the string itself.",
    "fleet.template": "What VMs have that say nothing else; any setting of a VM but name and MAC.",
    "fleet.count": "How many VMs to make from the template: `<namePrefix>1` and so on.",
    "fleet.namePrefix": "Beginning of the counted VMs' names.",
    "fleet.vms": "Named VMs, beside the counted ones; the template applies to them as well.",
    "fleet.overrides": "What single counted VMs have instead, by name.",
}
_SECURE = {
    "type": "object",
    "properties": {"secure": {"type": "string"}},
    "required": ["secure"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the reference."""

    path: str
    """Such as `fleet[].memory`."""
    kind: str
    default: str
    variable: str
    """The environment variable that overrides it, if there is one."""
    meaning: str


def stack_schema() -> dict[str, Any]:
    """Return the schema of a stack file (`Pulumi.<stack>.yaml`)."""
    prefix = f"{settings.NAMESPACE}:"
    properties = {f"{prefix}{key}": value for key, value in _record()["properties"].items()}
    return {
        "$schema": _DRAFT,
        "title": "Settings of a kvedge environment",
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": properties,
                "patternProperties": {f"^(?!{prefix})": {}},
                "additionalProperties": False,
            }
        },
    }


def table() -> list[Setting]:
    """Return every setting, sections in the order of the parser."""
    return list(_rows(_record(), ""))


def _record() -> dict[str, Any]:
    """Return the schema of all settings, the fleet in both of its forms."""
    listed, mapped = _Recorder("", mapped=False), _Recorder("", mapped=True)
    for recorder in (listed, mapped):
        settings.read("stack", recorder)
    fleet = listed.properties["fleet"]
    meaning = fleet.pop("description")
    other = mapped.properties["fleet"]
    other.pop("description")
    listed.properties["fleet"] = {"description": meaning, "anyOf": [fleet, other]}
    return listed.schema()


class _Recorder(Fields):
    """Notes what is asked for and answers with defaults."""

    def __init__(self, path: str, *, mapped: bool) -> None:
        super().__init__(None, path, [])
        self.properties: dict[str, dict[str, Any]] = {}
        self._mapped = mapped

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": self.properties, "additionalProperties": False}

    def problem(self, field: str, message: str, hint: str = "") -> None:
        """Nothing is wrong here."""

    def has(self, field: str) -> bool:
        del field
        return True

    def is_mapping(self, field: str) -> bool:
        del field
        return self._mapped

    def raw(self, field: str) -> Any:
        self._note(field, {"type": "object"})
        return None

    def text(
        self, field: str, default: str = "", *, check: Callable[[str], str] | None = None,
        hint: str = "", digits: bool = False,
    ) -> str:  # fmt: skip
        del check
        kind = {"type": ["string", "integer"] if digits else "string"}
        if self._at(field) in settings.SECRETS:
            kind = {"anyOf": [{"type": "string"}, _SECURE]}
        # The stack's name stands for itself.
        shown = {"default": default} if default not in ("", "stack") else {}
        self._note(field, {**kind, **shown}, hint)
        return default

    def choice(self, field: str, default: str, allowed: tuple[str, ...]) -> str:
        shown = {"default": default} if default else {}
        self._note(field, {"enum": list(allowed), **shown})
        return default

    def flag(self, field: str, *, default: bool) -> bool:
        self._note(field, {"type": "boolean", "default": default})
        return default

    def whole(self, field: str, default: int, low: int, high: int) -> int:
        bounds = {"minimum": low, "maximum": high, "default": default}
        self._note(field, {"type": "integer", **bounds})
        return default

    def texts(
        self, field: str, *, check: Callable[[str], str] | None = None, hint: str = ""
    ) -> tuple[str, ...]:
        del check
        self._note(field, {"type": "array", "items": {"type": "string"}}, hint)
        return ()

    def mapping(
        self, field: str, *, key: Callable[[str], str] | None = None,
        value: Callable[[str], str] | None = None, hint: str = "",
    ) -> dict[str, str]:  # fmt: skip
        del key, value
        self._note(field, {"type": "object", "additionalProperties": {"type": "string"}}, hint)
        return {}

    def section(self, field: str) -> Fields:
        return self._below(field, self._at(field), lambda inner: inner)

    def sections(self, field: str) -> Iterator[Fields]:
        yield self._below(
            field, f"{self._at(field)}[]", lambda inner: {"type": "array", "items": inner}
        )

    def named_sections(self, field: str) -> Iterator[tuple[str, Fields]]:
        yield (
            "*",
            self._below(
                field,
                f"{self._at(field)}.*",
                lambda inner: {"type": "object", "additionalProperties": inner},
            ),
        )

    def done(self) -> None:
        """Every field was asked for."""

    def _below(
        self, field: str, path: str, wrapped: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> _Recorder:
        inner = _Recorder(path, mapped=self._mapped)
        self._note(field, wrapped(inner.schema()))
        return inner

    def _note(self, field: str, kind: dict[str, Any], hint: str = "") -> None:
        meaning = _meaning(self.path, field)
        self.properties[field] = {
            **kind, "description": f"{meaning[:-1]} ({hint})." if hint else meaning,
        }  # fmt: skip


def _meaning(path: str, field: str) -> str:
    whole = f"{path}.{field}" if path else field
    if whole in _MEANINGS:
        return _MEANINGS[whole]
    snake = re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", field)
    return _docstrings()[_CLASSES[path], snake]


def _docstrings() -> dict[tuple[str, str], str]:
    """Return what `kvedge.spec` says below each field, by class and field."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(spec)).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    said = " ".join(str(text.value.value).split())
                    found[node.name, field.target.id] = said
    return found


def _rows(schema: dict[str, Any], path: str) -> Iterator[Setting]:
    for field, inner in schema["properties"].items():
        whole = f"{path}.{field}" if path else field
        yield Setting(
            path=whole,
            kind=_kind(inner),
            default=str(inner.get("default", "")),
            variable=settings.ENVIRONMENT.get(whole, ""),
            meaning=inner["description"],
        )
        for form in inner.get("anyOf", [inner]):
            yield from _inside(form, whole)


def _inside(form: dict[str, Any], path: str) -> Iterator[Setting]:
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        nested = form.get(key)
        if isinstance(nested, dict) and "properties" in nested:
            # The same VM in every place: told once, in the list.
            if mark == "[]" and path == "fleet":
                yield from _rows(nested, f"{path}{mark}")
            return
    if "properties" in form and path not in ("fleet.template", *settings.SECRETS):
        yield from _rows(form, path)


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return "secret text" if _SECURE in schema["anyOf"] else "list or mapping"
    kind = schema["type"]
    if isinstance(kind, list):
        return "text or number"
    if kind == "integer":
        return f"number, {schema['minimum']} to {schema['maximum']}"
    if kind == "array":
        return "list" if "properties" in schema["items"] else "list of texts"
    return {"string": "text", "boolean": "true or false", "object": "mapping"}[kind]
