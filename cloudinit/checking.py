"""Checking user data before a machine meets it: the guest's own schema and the traps beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from kvedge import errors

__all__ = ["INLINE_LIMIT", "lint", "time_zone", "validate"]

INLINE_LIMIT = 2048
"""Bytes of user data that KubeVirt takes in a VM's spec (vmi-create-admitter.go)."""


def validate(text: str, schema: Mapping[str, Any]) -> list[errors.Problem]:
    """Return what cloud-init's own schema says about user data.

    Args:
        text: the user data.
        schema: the content of `schema-cloud-config-v1.json` of the very image.
    """
    document, problems = _parsed(text)
    if problems:
        return problems
    # Few have a schema to check by, and this import is half of the room's.
    import jsonschema

    checker = jsonschema.Draft4Validator(schema)
    found = [
        errors.Problem(path=_path(one.absolute_path), message=one.message[:200])
        for one in checker.iter_errors(document)
    ]
    # Schemas of older releases let unknown keys pass, and the guest ignores those in silence.
    known = _keys(schema, schema)
    if known and not any(one.path == "userdata" for one in found):
        found += [
            errors.Problem(path=str(key), message="unknown to the image's cloud-init")
            for key in document
            if key not in known
        ]
    return sorted(found)


def _keys(node: Mapping[str, Any], schema: Mapping[str, Any]) -> set[str]:
    """Return all top-level keys that a schema describes."""
    found: set[str] = set(node.get("properties", ()))
    for word in ("allOf", "anyOf", "oneOf"):
        for part in node.get(word, ()):
            target = part
            for step in part["$ref"].removeprefix("#/").split("/") if "$ref" in part else ():
                target = (schema if target is part else target).get(step, {})
            found |= _keys(target, schema)
    return found


def lint(text: str, *, inline: bool = False) -> list[errors.Problem]:
    """Return known traps in user data that the schema lets pass.

    Args:
        text: the user data.
        inline: whether it stands in the VM's spec instead of a Secret.
    """
    document, problems = _parsed(text)
    if inline and len(text.encode()) > INLINE_LIMIT:
        problems.append(
            errors.Problem(
                path="userdata",
                message=f"{len(text.encode())} bytes, a VM's spec takes {INLINE_LIMIT}",
                hint="put it into a Secret",
            )
        )
    if not isinstance(document, Mapping):
        return problems
    for at, one in enumerate(document.get("fs_setup") or ()):
        if isinstance(one, Mapping) and str(one.get("partition")) == "none":
            problems.append(
                errors.Problem(
                    path=f"fs_setup[{at}].partition",
                    message="'none' formats an existing disk again at each new instance id, "
                    "even with overwrite: false (canonical/cloud-init#3902)",
                    hint="use an fstab line with x-systemd.makefs, as the image does for edge-data",
                )
            )
    for at, one in enumerate(document.get("users") or ()):
        if isinstance(one, Mapping) and one.get("name") == "edge":
            problems.append(
                errors.Problem(
                    path=f"users[{at}]",
                    message="'edge' is the image's own user",
                    hint="its keys are on the secret disk",
                )
            )
    for key in ("ssh_keys", "chpasswd", "password"):
        if key in document:
            problems.append(
                errors.Problem(
                    path=key,
                    message="secrets in user data stay readable on the machine",
                    hint="host keys and authorized keys belong on the secret disk",
                )
            )
    return problems


def time_zone(text: str) -> str:
    """Return the time zone that user data asks for, or nothing."""
    document, problems = _parsed(text)
    return str(document.get("timezone") or "") if not problems else ""


def _parsed(text: str) -> tuple[Any, list[errors.Problem]]:
    if not text.startswith("#cloud-config"):
        return None, [
            errors.Problem(
                path="userdata",
                message="the first line is not '#cloud-config', so cloud-init ignores all of it",
            )
        ]
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return None, [errors.Problem(path="userdata", message=str(error).replace("\n", " ")[:200])]
    if document is not None and not isinstance(document, Mapping):
        return None, [errors.Problem(path="userdata", message="is not a mapping")]
    return document or {}, []


def _path(parts: Any) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text or "userdata"
