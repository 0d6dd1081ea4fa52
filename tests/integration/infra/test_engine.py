"""Runs of the engine on a program of its own: no site, only the pulumi CLI and a file backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from infra import engine
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = """\
import os, pulumi

class Part(pulumi.ComponentResource):
    def __init__(self, name):
        super().__init__("test:index:Part", name)
        self.register_outputs({})

for name in os.environ["PARTS"].split():
    if name == "broken":
        raise pulumi.RunError("part 'broken' cannot be made")
    Part(name)
"""

KEEPER = """\
import os
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource
from pulumi.dynamic import ResourceProvider, UpdateResult

def kept():
    from pathlib import Path
    return Path(os.environ["PULUMI_HOME"]).with_name("kept")

class Keeper(ResourceProvider):
    def create(self, props):
        kept().write_text(props["text"])
        return CreateResult("kept", props)
    def read(self, id_, props):
        return ReadResult(id_, {**props, "text": kept().read_text()})
    def diff(self, _id, olds, news):
        return DiffResult(changes=olds["text"] != news["text"])
    def update(self, _id, _olds, news):
        kept().write_text(news["text"])
        return UpdateResult(news)

class Kept(Resource):
    def __init__(self, text):
        super().__init__(Keeper(), "kept", {"text": text})

Kept(os.environ["PARTS"])
"""
"""Keeps a text in a file: something that a run changes and another may read."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, int]]:
    """Bring a stack with these parts up; a new engine each time, as the command line has."""
    for name in [n for n in os.environ if n.startswith(("KVEDGE_", "PULUMI_"))]:
        if name != "KVEDGE_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path / 'backend'}")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    monkeypatch.setenv("KVEDGE_STATE", str(tmp_path))
    project = engine.make_project(tmp_path / "project", stacks=tmp_path / "project")
    (project.folder / "__main__.py").write_text(PROGRAM)

    def up(parts: str) -> dict[str, int]:
        monkeypatch.setenv("PARTS", parts)
        made = engine.Engine("parts", project=project)
        made.prepare()
        return made.up(on_event=lambda _: None)

    return up


@pytest.mark.timeout(300)
def test_a_run_without_changes_is_a_preview_alone(
    run: Callable[[str], dict[str, int]], tmp_path: Path
) -> None:
    """The state is written by a run that changes something, and by no other."""
    assert run("a b") == {"create": 3}
    (state,) = (tmp_path / "backend").glob(".pulumi/stacks/**/parts.json")
    before = state.read_bytes(), state.stat().st_mtime_ns
    assert run("a b") == {"same": 3}
    assert (state.read_bytes(), state.stat().st_mtime_ns) == before
    assert run("a c") == {"create": 1, "delete": 1, "same": 2}
    assert state.read_bytes() != before[0]
    with pytest.raises(errors.KvedgeError, match="part 'broken' cannot be made"):
        run("a broken")
    assert run("a c") == {"same": 3}


@pytest.mark.timeout(300)
def test_settings_that_are_put_back_undo_what_a_killed_run_changed(
    run: Callable[[str], dict[str, int]], tmp_path: Path
) -> None:
    """It wrote no state, so to the state nothing differs from the settings before it."""
    (tmp_path / "project" / "__main__.py").write_text(KEEPER)
    run("before")
    (state,) = (tmp_path / "backend").glob(".pulumi/stacks/*/parts.json")
    (tmp_path / "kept").write_text("by the killed run")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    locks = tmp_path / "backend/.pulumi/locks/organization" / state.parent.name / "parts"
    locks.mkdir(parents=True, exist_ok=True)
    lock = {"pid": dead.pid, "username": "u", "hostname": "h", "timestamp": "2026-01-01T00:00:00Z"}
    (locks / "killed.json").write_text(json.dumps(lock))
    run("before")
    assert (tmp_path / "kept").read_text() == "before"
    assert not list(locks.glob("*.json"))
