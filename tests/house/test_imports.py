"""Who may lean on whom: the contracts of pyproject.toml hold, and no room escapes them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

PACKAGES = ("kvedge", "infra", "images", "cloudinit")
# Public doubles for other people's tests; a contract of its own says that nothing imports them.
OUTSIDE_THE_LAYERS = {"kvedge.edgesim", "kvedge.testing"}


def _rooms(root) -> set[str]:
    found = {"infra", "images", "cloudinit"}
    for entry in (root / "kvedge").iterdir():
        if entry.suffix == ".py" and entry.stem != "__init__":
            found.add(f"kvedge.{entry.stem}")
        elif entry.is_dir() and list(entry.glob("*.py")):
            found.add(f"kvedge.{entry.name}")
    return found


def _contracts(root) -> dict[str, dict]:
    document = tomllib.loads((root / "pyproject.toml").read_text())
    return {one["id"]: one for one in document["tool"]["importlinter"]["contracts"]}


@pytest.mark.timeout(60)
def test_contracts_hold(root):
    """Import-linter finds nothing."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    argv = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_room_has_its_layer(root):
    """A new room has to be put into the order before anything can use it."""
    layers = " ".join(_contracts(root)["layers"]["layers"])
    placed = set(re.findall(r"[\w.]+", layers))
    assert _rooms(root) - OUTSIDE_THE_LAYERS - placed == set()


def test_edgesim_is_kept_from_every_room(root):
    """The .deb of the stand-in runtime carries no other room."""
    refused = set(_contracts(root)["edgesim"]["forbidden_modules"])
    assert _rooms(root) - {"kvedge.edgesim"} - refused == set()


def test_emulator_is_kept_from_all_but_names_and_errors(root):
    """The hub shares nothing with its clients but names and errors."""
    refused = set(_contracts(root)["emulator"]["forbidden_modules"])
    allowed = {"kvedge.emulator", "kvedge.names", "kvedge.errors"}
    assert _rooms(root) - refused == allowed & _rooms(root)
