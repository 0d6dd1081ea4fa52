"""Folders: which cache, and which key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kvedge.tools import layout


def test_cache_dir_precedence(monkeypatch, tmp_path):
    """KVEDGE_CACHE wins over XDG_CACHE_HOME, which wins over the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("KVEDGE_CACHE", raising=False)
    assert layout.cache_dir() == tmp_path / ".cache" / "kvedge"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert layout.cache_dir() == Path("/xdg/kvedge")
    monkeypatch.setenv("KVEDGE_CACHE", "~/own")
    assert layout.cache_dir() == tmp_path / "own"


def test_the_key_changes_with_every_input_and_with_nothing_else(family, sources, tmp_path):
    """go.mod, go.sum, mains and the recipe are in the key; other files are not."""

    def key(of=family):
        return layout.family_dir(of, cache=tmp_path, sources=sources)

    seen = {key()}
    (sources / "greeting" / "README").write_text("words")
    assert key() in seen
    for file in ("go.mod", "go.sum", "main.go"):
        (sources / "greeting" / file).write_text("changed")
        assert key() not in seen
        seen.add(key())
    assert key(dataclasses.replace(family, version="1.2.4")) not in seen
    assert key(dataclasses.replace(family, tools=family.tools[:1])) not in seen
    # What only helps to plan does not throw a build away.
    assert key(dataclasses.replace(family, seconds=1, mebibytes=7)) in seen


def test_a_held_lock_is_told(tmp_path):
    """Who finds the lock free is not called busy."""
    told = []
    with layout.locked(tmp_path / "a" / "lock", busy=lambda: told.append(1)):
        pass
    assert told == []
