"""First-boot data from a YAML text: every unknown or mistyped field is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from cloudinit.rendering import File, User, UserData
from kvedge import errors

__all__ = ["parse_fragment", "parse_user_data"]

_LISTS: dict[tuple[type, str], type | None] = {
    (UserData, "users"): User,
    (UserData, "files"): File,
    (UserData, "packages"): None,
    (UserData, "ntp_servers"): None,
    (User, "authorized_keys"): None,
    (User, "groups"): None,
}


def parse_user_data(text: str) -> UserData:
    """Parse YAML with the fields of `UserData`.

    Raises:
        SpecError: with every mistake that was found.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        problem = errors.Problem(path="yaml", message=str(cause).replace("\n", " ")[:200])
        raise errors.SpecError("first-boot data", [problem]) from cause
    problems: list[errors.Problem] = []
    data = _object(UserData, raw, "", problems)
    if problems or data is None:
        raise errors.SpecError("first-boot data", problems)
    return data


def parse_fragment(text: str, *, subject: str = "cloud-config fragment") -> Mapping[str, Any]:
    """Parse a piece of cloud-config.

    Raises:
        SpecError: it is no YAML mapping.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as cause:
        problem = errors.Problem(path="yaml", message=str(cause).replace("\n", " ")[:200])
        raise errors.SpecError(subject, [problem]) from cause
    if raw is not None and not isinstance(raw, Mapping):
        raise errors.SpecError(
            subject, [errors.Problem(path="document", message="must be a mapping")]
        )
    return raw or {}


def _object(kind: type, raw: object, path: str, problems: list[errors.Problem]) -> Any:
    if not isinstance(raw, Mapping):
        problems.append(errors.Problem(path=path or "document", message="must be a mapping"))
        return None
    known = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in known:
            message = f"unknown; known are {', '.join(sorted(known))}"
            problems.append(errors.Problem(path=here, message=message))
        else:
            values[key] = _value(kind, key, value, here, problems)
    for name, field in known.items():
        if (
            name not in raw
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            here = f"{path}.{name}" if path else name
            problems.append(errors.Problem(path=here, message="missing"))
    return None if problems else kind(**values)


def _value(kind: type, key: str, value: object, path: str, problems: list[errors.Problem]) -> Any:
    def wrong(what: str) -> None:
        problems.append(errors.Problem(path=path, message=f"must be {what}"))

    if (kind, key) in _LISTS:
        inner = _LISTS[kind, key]
        if not isinstance(value, list):
            wrong("a list")
            return ()
        if inner is not None:
            return tuple(
                _object(inner, one, f"{path}[{at}]", problems) for at, one in enumerate(value)
            )
        if not all(isinstance(one, str) for one in value):
            wrong("a list of texts")
        return tuple(value)
    if key == "commands":
        fine = isinstance(value, list) and all(
            isinstance(one, list) and all(isinstance(word, str) for word in one) for one in value
        )
        if not fine:
            wrong("a list of commands, each a list of texts such as [systemctl, restart, plant]")
            return ()
        return tuple(tuple(one) for one in value)  # type: ignore[union-attr]
    if key == "extra":
        if not isinstance(value, Mapping):
            wrong("a mapping")
        return value
    expected = bool if key == "sudo" else str
    if not isinstance(value, expected):
        wrong("true or false" if expected is bool else "a text (put it in quotes)")
    return value
