"""Copies the vendor's device client and what it imports out of the installed distributions.

The same files go into the runtime's Debian package and into module images. Only pure Python is
taken, so one copy serves every Python from 3.10 on. Compiled speed-ups are left out.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PINNED", "VendoringError", "vendored_files", "write_tree"]

PINNED: Final = {"azure-iot-device": "2.14.0", "paho-mqtt": "1.6.1"}
"""Versions that this room is written against."""

_DISTRIBUTIONS: Final = (
    *PINNED,
    "certifi",
    "deprecation",
    "idna",
    "janus",
    "packaging",
    "PySocks",
    "requests",
    "requests-unixsocket2",
    "typing-extensions",
    "urllib3",
)
# charset-normalizer is left out: requests runs without it, and it costs start-up time.

_KEPT_SUFFIXES: Final = frozenset({".py", ".pem"})
_SKIPPED_PARTS: Final = frozenset({"tests", "testutils.py", "__pycache__", "emscripten", "cli"})
_SKIPPED_MODULES: Final = frozenset({"metadata.py", "pylock.py", "dependency_groups.py"})


class VendoringError(Exception):
    """A distribution is missing or has another version than this room needs."""


def vendored_files() -> Iterator[tuple[str, bytes]]:
    """Yield path below a `sys.path` folder and content, sorted; licences are under `licenses/`.

    Raises:
        VendoringError: a distribution is not installed, or in another version.
    """
    found: dict[str, bytes] = {}
    for name in _DISTRIBUTIONS:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise VendoringError(
                f"distribution {name!r} is not installed; install kvedge with the extra 'device'"
            ) from error
        if name in PINNED and distribution.version != PINNED[name]:
            raise VendoringError(
                f"distribution {name!r} is {distribution.version}, needed is {PINNED[name]}"
            )
        for entry in distribution.files or ():
            target = _target(name, PurePosixPath(str(entry)))
            if target:
                found[target] = entry.read_binary()
    yield from sorted(found.items())


def _target(distribution: str, entry: PurePosixPath) -> str:
    """Return where a distribution's file goes, or an empty text when it is not needed."""
    if ".." in entry.parts or entry.is_absolute():
        return ""
    if entry.parts[0].endswith(".dist-info"):
        licence = entry.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))
        return f"licenses/{distribution}/{entry.name}" if licence else ""
    if entry.suffix not in _KEPT_SUFFIXES or _SKIPPED_PARTS.intersection(entry.parts):
        return ""
    if entry.parts[0] == "packaging" and entry.name in _SKIPPED_MODULES:
        return ""
    return str(entry)


def write_tree(folder: Path) -> None:
    """Write the vendored files below a folder that then goes on `sys.path`."""
    for name, content in vendored_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
