"""Asking for help is fast because nothing heavy is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"aiohttp", "azure", "kubernetes", "paramiko", "pulumi", "rich", "yaml"}


@pytest.mark.parametrize("words", [["--help"], ["tools", "--help"]])
def test_help_loads_nothing_heavy(words, root):
    """`kvedge --help` imports none of the big libraries."""
    code = (
        "import sys\n"
        "from kvedge import cli\n"
        f"sys.argv = ['kvedge', *{words!r}]\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print('LOADED', *sys.modules)\n"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    loaded = done.stdout.rpartition("LOADED")[2].split()
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


def test_every_command_of_the_list_exists(root):
    """No command in the help is a name without a program behind it."""
    code = (
        "from kvedge import cli\n"
        "missing = []\n"
        "for name in cli._COMMANDS:\n"
        "    try:\n"
        "        cli._Lazy().get_command(None, name)\n"
        "    except (ImportError, AttributeError) as error:\n"
        "        missing.append(f'{name}: {error}')\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
