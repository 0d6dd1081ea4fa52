"""What must not be in the repository, and what the wheel must carry."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile

import pytest

# Written in two halves, so that this file does not find itself.
MACHINE_PATHS = ("/work" + "/", "/tmp" + "/scratch", "/root" + "/.", "/home" + "/runner")
TEXT = {".go", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}


def _texts(files):
    for file in files:
        if file.suffix in TEXT:
            try:
                yield file, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_lock_file_with_addresses(files):
    """A uv.lock records registry addresses, and makes Pulumi pick another tool chain."""
    assert [file for file in files if file.name == "uv.lock"] == []


def test_requirements_hold_names_and_hashes_only(root):
    """No address of an index or of a file is locked in."""
    for file in [*(root / "requirements").glob("*.txt"), root / "tools/go/requirements.txt"]:
        text = file.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index-url" not in text
        assert "--find-links" not in text
        unhashed = re.findall(r"^[\w.\[\]-]+==[^\\\n]*$", text, re.MULTILINE)
        assert unhashed == []


def test_no_path_of_one_machine(files, root):
    """Nothing refers to a folder that only somebody's machine has."""
    found = [
        f"{file.relative_to(root)}: {path}"
        for file, text in _texts(files)
        if "vendor" not in file.parts
        for path in MACHINE_PATHS
        if re.search(rf"(?<![\w.}}]){re.escape(path)}", text)
    ]
    assert not found, "\n".join(found)


def test_each_todo_has_its_issue(files, root):
    """Work that is put off is written down where it can be found."""
    word = "TO" + "DO"
    found = [
        f"{file.relative_to(root)}: {line.strip()}"
        for file, text in _texts(files)
        if "vendor" not in file.parts and file.name != "pyproject.toml"
        for line in text.splitlines()
        if re.search(rf"\b({word}|FIX" + r"ME)\b(?!.*#\d+)", line)
    ]
    assert not found, "\n".join(found)


def test_links_between_pages_lead_somewhere(files, root):
    """A page that is linked to exists."""
    found = [
        f"{file.relative_to(root)}: {target}"
        for file, text in _texts(files)
        if file.suffix == ".md"
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
        if not (file.parent / target).exists()
    ]
    assert not found, "\n".join(found)


def test_every_test_says_what_it_shows(root):
    """Each test has a sentence of its own."""
    found = [
        f"{file.relative_to(root)}: {node.name}"
        for file in sorted((root / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not found, "\n".join(found)


@pytest.mark.timeout(120)
def test_the_wheel_carries_what_a_project_needs(root, tmp_path):
    """An installed kvedge can build its tools and run its program outside a checkout."""
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(argv, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "kvedge/_project/Pulumi.yaml",
        "kvedge/_project/tools/cdi/crds/main.go",
        "kvedge/_project/tools/etcd/go.mod",
        "kvedge/_project/tools/etcd/go.sum",
        "kvedge/_project/tools/go/requirements.txt",
        "kvedge/_project/tools/k8sprovider/main.go",
        "kvedge/_project/tools/kubevirt/manifests/main.go",
        "kvedge/cli/__init__.py",
        "infra/__init__.py",
        "images/__init__.py",
        "cloudinit/__init__.py",
    ):
        assert needed in names
    assert [name for name in names if name.startswith(("tests/", "docs/", ".kvedge"))] == []
