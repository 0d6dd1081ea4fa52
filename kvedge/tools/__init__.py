"""Obtaining the programs that kvedge drives.

A program on PATH wins if its version fits; else the user's cache is asked; else it is made: Go
programs are built from modules whose hashes are in tools/*/go.sum, Debian's are unpacked. Nothing
is downloaded unverified, nothing is installed, and all checkouts share the cache.
Rooms above decide how the programs are run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvedge.progress import silent
from kvedge.tools import obtaining
from kvedge.tools.layout import cache_dir
from kvedge.tools.obtaining import Row, Toolbox

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kvedge.progress import Progress

__all__ = [
    "PULUMI",
    "Row",
    "Toolbox",
    "cache_dir",
    "ensure",
    "install_pulumi_plugin",
    "link",
    "names",
    "path",
    "status",
]

PULUMI = (
    "pulumi",
    "pulumi-language-python",
    "pulumi-language-python-exec",
    "pulumi-resource-pulumi-python",
)
"""What has to be on PATH, or side by side, to run a Python program."""

_PROVIDER = "pulumi-resource-kubernetes"
_PROVIDER_FOLDER = "resource-kubernetes-v4.25.0"


def ensure(names: Iterable[str], *, progress: Progress = silent) -> dict[str, Path]:
    """Return where the named tools are, after building those that are missing.

    Raises:
        ToolMissing: a name is unknown, disk is short, or something to build with is missing.
        BuildFailed: a build failed.
    """
    return Toolbox().ensure(names, progress=progress)


def path(name: str) -> Path:
    """Return where a tool is.

    Raises:
        ToolMissing: it has to be built first, or nothing of that name is known.
    """
    return Toolbox().path(name)


def status() -> list[Row]:
    """Tell of each tool where it is."""
    return Toolbox().status()


def names() -> tuple[str, ...]:
    """Return every tool's name."""
    return Toolbox().names()


def link(names: Iterable[str], folder: Path, *, progress: Progress = silent) -> Path:
    """Ensure tools and make `folder` a bin folder with a link to each; return the folder."""
    obtaining.link(ensure(names, progress=progress), folder)
    return folder


def install_pulumi_plugin(pulumi_home: Path, *, progress: Progress = silent) -> Path:
    """Make the Kubernetes provider known to the Pulumi of that home; return the plugin's folder.

    The binary of 160 MB is linked, not copied. `pulumi plugin ls` shows it like any other.
    """
    folder = pulumi_home / "plugins" / _PROVIDER_FOLDER
    found = ensure([_PROVIDER], progress=progress)[_PROVIDER]
    if found.parent != folder:
        obtaining.link({_PROVIDER: found}, folder)
    return folder
