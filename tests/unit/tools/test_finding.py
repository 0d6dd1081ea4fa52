"""Programs on PATH are taken if their version fits, and asked once."""

from __future__ import annotations

import dataclasses
import os

import pytest

from kvedge.tools import finding


@pytest.fixture
def versions(tmp_path):
    """An empty memory."""
    return finding.Versions(tmp_path / "cache" / "versions.json")


def _look(tool, family, versions, folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    return finding.find(tool, family, versions, cache=folder.parent / "cache")


@pytest.mark.parametrize(
    ("told", "fits"),
    [
        ("hello v1.2.0", True),
        ("hello v1.2.9", True),
        ("hello v1.3.0", False),
        ("hello v1.1.9", False),
        ("no idea", False),
    ],
)
def test_only_a_fitting_version_wins(told, fits, family, versions, program, monkeypatch):
    """A version outside the family's range is passed over."""
    file = program("hello", told)
    found = _look(family.tools[0], family, versions, file.parent, monkeypatch)
    assert found == (file if fits else None)


def test_answers_are_remembered_until_the_file_changes(
    family, versions, program, monkeypatch, tmp_path
):
    """A second look, also by another process's memory, starts nothing."""
    file = program("hello", "hello v1.2.0")
    calls = file.with_name("hello.calls")
    _look(family.tools[0], family, versions, file.parent, monkeypatch)
    again = finding.Versions(tmp_path / "cache" / "versions.json")
    assert _look(family.tools[0], family, again, file.parent, monkeypatch) == file
    assert calls.read_text() == "x\n"
    program("hello", "hello v9.9.9")
    os.utime(file, ns=(1, 1))
    assert _look(family.tools[0], family, again, file.parent, monkeypatch) is None


def test_a_damaged_memory_is_no_error(family, versions, program, monkeypatch, tmp_path):
    """A memory that is no JSON only costs a question."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "versions.json").write_text("{")
    file = program("hello", "hello v1.2.0")
    assert _look(family.tools[0], family, versions, file.parent, monkeypatch) == file


def test_a_set_has_to_lie_side_by_side(family, versions, program, monkeypatch):
    """A program that cannot tell its version is taken only beside its whole set."""
    asked = dataclasses.replace(family.tools[0].asked, program="hello")
    tools = tuple(dataclasses.replace(tool, asked=asked) for tool in family.tools)
    whole = dataclasses.replace(family, tools=tools)
    file = program("goodbye", "cannot tell")
    assert _look(tools[1], whole, versions, file.parent, monkeypatch) is None
    program("hello", "hello v1.2.0")
    assert _look(tools[1], whole, versions, file.parent, monkeypatch) == file


def test_an_installed_plugin_wins(family, versions, monkeypatch, tmp_path):
    """A provider in Pulumi's own folder is used; our link to a cache is not mistaken for one."""
    cache = tmp_path / "cache"
    cache.mkdir()
    tool = dataclasses.replace(family.tools[0], plugin="resource-hello-v1.2.3")
    folder = tmp_path / "plugins" / "resource-hello-v1.2.3"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path))
    (cache / "hello").touch()
    (folder / "hello").symlink_to(cache / "hello")
    assert finding.find(tool, family, versions, cache=cache) is None
    (folder / "hello").unlink()
    (folder / "hello").touch()
    assert finding.find(tool, family, versions, cache=cache) == folder / "hello"
