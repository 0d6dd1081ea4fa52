"""The project's own files, read once."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("kvedge", "infra", "images", "cloudinit")
# Vendored code is others'; what goes into an image is a program of its own.
OTHERS = {"vendor", "overlays", "modules"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One Python file of the four packages."""

    path: str
    """Relative to the repository, such as `kvedge/cli/tools.py`."""
    tree: ast.Module


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    """Every module of the four packages that is imported as such."""
    return [
        Module(
            path=str(file.relative_to(ROOT)),
            tree=ast.parse(file.read_text(encoding="utf-8"), str(file)),
        )
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if not OTHERS & set(file.parts)
    ]


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file that git knows, and those that it would."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    found = [ROOT / name for name in listed.split("\0") if name]
    return [file for file in found if file.is_file() and not file.is_symlink()]
