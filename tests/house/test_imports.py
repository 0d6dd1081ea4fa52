"""Who may lean on whom: the contracts of pyproject.toml hold, and no room escapes them."""

from __future__ import annotations

import ast
import importlib.util
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


def _foreign_imports(modules, room: str, allowed: set[str]) -> list[str]:
    """Return where a room imports more of ours than it may."""
    own = f"kvedge.{room}"
    found = []
    for module in modules:
        if not module.path.startswith(f"kvedge/{room}/"):
            continue
        for node in ast.walk(module.tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                f"{module.path}:{node.lineno}: {name}"
                for name in names
                if name.partition(".")[0] in PACKAGES
                if not f"{name}.".startswith(f"{own}.")
                if ".".join(name.split(".")[:2]) not in allowed
            ]
    return found


def test_edgesim_imports_no_other_room(modules):
    """The stand-in edge runtime is packed into a .deb by itself."""
    assert _foreign_imports(modules, "edgesim", set()) == []


def test_emulator_shares_no_wire_code(modules):
    """The hub shares nothing with its clients but names and errors, lest one mistake cancel itself."""
    assert _foreign_imports(modules, "emulator", {"kvedge.names", "kvedge.errors"}) == []


def test_no_file_of_infra_stands_before_a_package(root):
    """Pulumi runs the program with infra/ first on its path, so `infra/azure` would be `azure`."""
    names = {entry.stem for entry in (root / "infra").iterdir() if not entry.name.startswith("_")}
    taken = {name for name in names if importlib.util.find_spec(name) is not None}
    assert taken == set()
