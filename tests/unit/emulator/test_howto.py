"""docs/howto/hub.md tells commands and options that exist."""

from __future__ import annotations

import shlex
from pathlib import Path

from kvedge.cli.hub import hub

_PAGE = Path(__file__).parents[3] / "docs" / "howto" / "hub.md"


def test_the_pages_commands_exist():
    """Each `kvedge hub` line names a command and its own options, and every command is there."""
    text = _PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("$ kvedge hub")]
    told = set()
    for line in lines:
        _, _, _, name, *words = shlex.split(line)
        known = {option for item in hub.commands[name].params for option in item.opts}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known, line
        told.add(name)
    assert told == set(hub.commands)
