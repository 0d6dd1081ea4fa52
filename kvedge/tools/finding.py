"""Programs that are there already: on PATH with a version that fits.

Starting each program at every call would cost seconds, so answers are remembered in the cache by
path, modification time and size.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes

if TYPE_CHECKING:
    from kvedge.tools.recipes import Asked, Family, Tool

__all__ = ["Versions", "find", "search_path"]

_ASK_SECONDS = 20
_GO_FOLDER = "/usr/local/go/bin"
"""Where go.dev/doc/install puts Go."""


class Versions:
    """What programs answered when they were asked for their version."""

    def __init__(self, file: Path) -> None:
        """Remember in `file`; a file that cannot be read or written only costs time."""
        self._file = file
        self._known: dict[str, list[object]] | None = None

    def ask(self, program: Path, asked: Asked) -> tuple[int, ...] | None:
        """Return a program's version, or None if it does not tell one."""
        try:
            facts = program.stat()
        except OSError:
            return None
        known = self._load()
        key = f"{program} {' '.join(asked.arguments)}"
        stamp = [facts.st_mtime_ns, facts.st_size]
        remembered = known.get(key)
        if remembered is not None and remembered[:2] == stamp:
            answer = str(remembered[2])
        else:
            answer = _ask(program, asked)
            known[key] = [*stamp, answer]
            self._save(known)
        return tuple(int(part) for part in answer.split(".")) if answer else None

    def _load(self) -> dict[str, list[object]]:
        known = self._known
        if known is None:
            known = {}
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(self._file.read_text(encoding="utf-8"))
            self._known = known
        return known

    def _save(self, known: dict[str, list[object]]) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._file.parent, prefix=".versions-", delete=False, encoding="utf-8"
            ) as file:
                json.dump(known, file)
            Path(file.name).replace(self._file)


def search_path() -> str:
    """Return PATH with the folders added where some programs are kept from it."""
    return os.pathsep.join([processes.search_path(), _GO_FOLDER])


def find(tool: Tool, family: Family, versions: Versions, *, cache: Path) -> Path | None:
    """Return the tool on PATH or among Pulumi's plugins, if its version fits.

    A link into the cache is no find: it was made by us, perhaps from sources that have changed.
    """
    found = _plugin(tool) if tool.plugin else _on_path(tool, family, versions)
    return None if found is None or found.resolve().is_relative_to(cache.resolve()) else found


def _plugin(tool: Tool) -> Path | None:
    home = Path(os.environ.get("PULUMI_HOME") or "~/.pulumi").expanduser()
    installed = home / "plugins" / tool.plugin / tool.name
    return installed if installed.is_file() else None


def _on_path(tool: Tool, family: Family, versions: Versions) -> Path | None:
    if tool.asked is None:
        return None
    seen = shutil.which(tool.name, path=search_path())
    if seen is None:
        return None
    program = Path(seen)
    if tool.asked.program:
        # A set works only side by side, so every member has to be in the folder.
        if not all((program.parent / member.name).is_file() for member in family.tools):
            return None
        version = versions.ask(program.parent / tool.asked.program, tool.asked)
    else:
        version = versions.ask(program, tool.asked)
    return program if version and family.at_least <= version < family.below else None


def _ask(program: Path, asked: Asked) -> str:
    try:
        done = processes.run(
            [program, *asked.arguments],
            what=f"ask {program.name!r} for its version",
            check=False,
            timeout=_ASK_SECONDS,
        )
    except (errors.KvedgeError, OSError):
        return ""
    found = re.search(asked.pattern, done.stdout + done.stderr)
    return found.group(1) if found else ""
