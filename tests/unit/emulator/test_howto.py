"""docs/howto/hub.md tells commands and options that exist."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvedge.cli.hub import hub
from kvedge.emulator.simulation import Behaviour

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


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--mix=", f"share of one of {', '.join(Behaviour)}, such as"),
        ("--mix=lazy=3", "'lazy=3' must be"),
        ("--mix=success=90,failing", "'failing' must be"),
        ("--mix=success=-1", "'success=-1' must be"),
        ("--mix=success=0,slow=0", "one of the shares must be above 0"),
        ("--tag=lille", "must be NAME=VALUE"),
        ("--mqtt=here", "must be ADDRESS:PORT"),
        ("--devices=0", "x>=1"),
    ],
)
def test_options_of_simulate_that_make_no_sense(tmp_path, option, words):
    """A mix, a tag or an address that cannot be is told by its option, before anything starts."""
    connection = tmp_path / "connection"
    connection.write_text("HostName=h;SharedAccessKeyName=n;SharedAccessKey=a2V5")
    given = ["simulate", "--connection-file", str(connection), "--mqtt", "127.0.0.1:1", option]
    done = CliRunner().invoke(hub, given)
    assert done.exit_code == 2
    assert option.partition("=")[0] in done.output
    assert words in " ".join(done.output.split())
