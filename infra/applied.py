"""What the last run applied, so that a run which has nothing to do need not ask the engine.

The engine compares what its program asks for with its own state, never with the cluster; so where
neither what the program is made from nor the state has changed since a run that left nothing open,
it would find nothing (docs/decisions/0015-runs-without-the-engine.md). The note is a hint and no
state: without it, or with one that does not fit, the engine is asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import access_keys
from infra.engine import write_private
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from infra import publishing
    from infra.engine import Engine
    from kvedge import spec

__all__ = ["forget", "inputs", "note", "recall"]

_PACKAGES = ("cloudinit", "infra", "kvedge")
"""The program's code."""
_SETTLED = {"create", "update", "same"}
"""A run that deletes or replaces may leave something to the next one."""


def inputs(
    engine: Engine, environment: spec.Environment, wanted: Iterable[publishing.Wanted]
) -> str:
    """Return a hash of everything that the program is made from.

    Args:
        environment: with variables and secrets; the key seed counts by its encrypted form.
        wanted: the images, by key.
    """
    found = hashlib.sha256()
    content = {
        "environment": environment,
        "images": list(wanted),
        "authorities": access_keys.trusted(environment.hub.ca_file, environment.registry.ca_file),
        "code": list(_code(engine.project)),
    }
    found.update(json.dumps(content, sort_keys=True, default=_plain).encode())
    user_key = access_keys.folder(environment) / "id_ed25519.pub"
    for file in (engine.source, engine.file, user_key):
        found.update(b"\0" + (file.read_bytes() if file.exists() else b""))
    return found.hexdigest()


def recall(engine: Engine, environment: spec.Environment, made_from: str) -> dict[str, int] | None:
    """Return what a run would find, all `same`; None if the engine must be asked."""
    try:
        noted = json.loads(_file(environment).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if noted.get("inputs") != made_from or noted.get("state") != engine.fingerprint():
        return None
    return {"same": noted["resources"]}


def note(
    engine: Engine, environment: spec.Environment, made_from: str, changes: Mapping[str, int]
) -> None:
    """Keep what a run that succeeded applied.

    Args:
        changes: what it did, as `Engine.up` returns it.
    """
    if not set(changes) <= _SETTLED:
        return
    content: dict[str, Any] = {"inputs": made_from, "state": engine.fingerprint()}
    write_private(_file(environment), json.dumps(content | {"resources": sum(changes.values())}))


def forget(environment: spec.Environment) -> None:
    """Drop the note: a run begins, which may end anywhere."""
    _file(environment).unlink(missing_ok=True)


def _file(environment: spec.Environment) -> Path:
    return access_keys.folder(environment).with_name(f"applied.{environment.name}.json")


def _code(project: Path) -> Iterator[tuple[str, int, int]]:
    folders = [project / "infra"]
    for name in _PACKAGES:
        found = importlib.util.find_spec(name)
        folders += [Path(place) for place in (found and found.submodule_search_locations) or ()]
    files = {file for folder in folders for file in folder.rglob("*.py")}
    files |= {project / "Pulumi.yaml", project / "__main__.py"}
    for file in sorted(files):
        if file.exists():
            seen = file.stat()
            yield str(file), seen.st_size, seen.st_mtime_ns


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"no plain form of {type(value).__name__}")
