"""Runs of the engine on a program of its own: no site, only the pulumi CLI and a file backend."""

from __future__ import annotations

import os
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
