"""Real Go, real apt: what the unit tests only pretend."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import stat
import subprocess
import sys

import pytest

from kvedge.tools.catalogue import FAMILIES
from kvedge.tools.obtaining import Toolbox
from kvedge.tools.recipes import Asked, Family, GoFolder, GoMain, Tool

_MAIN = """package main

var version = "unknown"

func main() { println("greeting", version) }
"""
GREETING = Family(
    name="greeting",
    version="1.0.0",
    at_least=(1,),
    below=(2,),
    tools=(
        Tool(
            name="kvedge-greeting",
            recipe=GoMain(module="greeting", package=".", stamps=("main.version=v1.0.0",)),
            asked=Asked(arguments=()),
        ),
        Tool(
            name="greeting-config",
            recipe=GoFolder(module="greeting", inside="example.test/greeting", path="config"),
        ),
    ),
    mebibytes=1,
    kept_mebibytes=1,
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A Go module with one program that needs no other module."""
    module = tmp_path / "sources" / "greeting"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module example.test/greeting\n\ngo 1.26\n")
    (module / "main.go").write_text(_MAIN)
    # The standard library need not be compiled for each test.
    monkeypatch.setenv("KVEDGE_GO_CACHE", str(tmp_path.parent / "go-cache"))
    return module.parent


def _build(cache, sources, results):
    box = Toolbox(cache=cache, sources=sources, families=(GREETING,))
    results.put(str(box.ensure(["kvedge-greeting"])["kvedge-greeting"]))


def test_two_builds_at_once_do_not_clash(tmp_path, sources):
    """Two processes on one empty cache both end with the same working program."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    both = [
        spawn.Process(target=_build, args=(tmp_path / "cache", sources, results)) for _ in range(2)
    ]
    for process in both:
        process.start()
    paths = {results.get(timeout=50) for _ in both}
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    (path,) = paths
    done = subprocess.run([path], capture_output=True, check=True, text=True)
    assert done.stderr == "greeting v1.0.0\n"


def test_a_folder_of_a_module_is_copied_and_can_be_removed(tmp_path, sources):
    """Go's modules are read-only, and the copy is not."""
    inner = sources / "greeting" / "config" / "rbac"
    inner.mkdir(parents=True)
    (inner / "role.yaml").write_text("kind: Role\n")
    for read_only in (inner, inner.parent):
        read_only.chmod(0o555)
    try:
        box = Toolbox(cache=tmp_path / "cache", sources=sources, families=(GREETING,))
        copied = box.ensure(["greeting-config"])["greeting-config"]
        assert (copied / "rbac" / "role.yaml").read_text() == "kind: Role\n"
        assert all(one.stat().st_mode & stat.S_IWUSR for one in (copied, *copied.rglob("*")))
    finally:
        for read_only in (inner.parent, inner):
            read_only.chmod(0o755)


def test_debian_parts_run_without_being_installed(tmp_path):
    """Apt fetches and checks packages without privilege, and mke2fs runs with its own libraries."""
    (family,) = (family for family in FAMILIES if family.name == "e2fsprogs")
    # No mke2fs on PATH is new enough for this one.
    family = dataclasses.replace(family, at_least=(99,), below=(100,))
    box = Toolbox(cache=tmp_path, families=(family,))
    mke2fs = box.ensure(["mke2fs"])["mke2fs"]
    assert mke2fs.stat().st_mode & stat.S_IXUSR
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "file").write_text("words")
    archive = shutil.make_archive(str(tmp_path / "content"), "tar", tmp_path / "content")
    argv = [mke2fs, "-q", "-t", "ext4", "-d", archive, tmp_path / "disk.img", "4M"]
    subprocess.run(argv, check=True)
    assert (tmp_path / "disk.img").stat().st_size == 4 << 20


def test_a_second_look_is_cheap(tmp_path):
    """`kvedge tools list` answers within half a second once versions are remembered."""
    argv = [sys.executable, "-m", "kvedge", "tools", "list", "--output", "json"]
    subprocess.run(argv, check=True, capture_output=True)
    code = (
        # Processor time, since tests share the machine.
        "import time; from kvedge import tools; tools.status(); print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.5
