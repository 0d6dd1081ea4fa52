"""Kept results: whole or absent, made once, never poisoned."""

import concurrent.futures
import threading

import pytest

from images import cache
from kvedge import errors


@pytest.fixture
def store(tmp_path):
    return cache.Store(tmp_path / "images")


def _work(text="x"):
    def work(folder):
        (folder / "file").write_text(text)
        return {"text": text}

    return work


def test_makes_once_and_finds_again(store):
    """A second wish for a key is answered from the store."""
    first = store.make("k", _work())
    again = store.make("k", lambda _: pytest.fail("made twice"))
    assert first == again
    assert again.facts == {"text": "x"}
    assert store.verify(again)


def test_a_failed_step_leaves_nothing(store):
    """An error in a step keeps the store as it was."""

    def fail(folder):
        (folder / "file").write_text("half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        store.make("k", fail)
    assert store.find("k") is None
    assert list((store.root / "tmp").iterdir()) == []
    assert store.make("k", _work()).facts == {"text": "x"}


@pytest.mark.parametrize("harm", ["truncate", "remove", "manifest"])
def test_a_damaged_entry_is_made_again(store, harm: str):
    """An entry with a missing or short file is not used."""
    entry = store.make("k", _work())
    file = entry.path / ("entry.json" if harm == "manifest" else "file")
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(b"")
    assert store.find("k") is None
    assert store.make("k", _work("new")).facts == {"text": "new"}


def test_verify_sees_changed_bytes(store):
    """A file of the right size with other bytes is found by its digest."""
    entry = store.make("k", _work("abc"))
    (entry.path / "file").write_text("abd")
    assert store.find("k") is not None
    assert not store.verify(entry)


def test_two_builders_make_one(store):
    """Builders of one key wait for each other, and only one works."""
    calls, both = [], threading.Barrier(2)

    def work(folder):
        calls.append(1)
        (folder / "file").write_text("x")
        return {}

    def build(_):
        both.wait()
        return store.make("k", work)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        entries = list(pool.map(build, range(2)))
    assert len(calls) == 1
    assert entries[0].path == entries[1].path


def test_collect_keeps_the_latest_used(store):
    """Collecting drops the longest unused above the limit."""
    import os

    for at, key in enumerate("abc"):
        entry = store.make(key, _work("x" * 100))
        os.utime(entry.path / "entry.json", (at, at))
    dropped = store.collect(keep_bytes=250, spare_seconds=0)
    assert [entry.key for entry in dropped] == ["a"]
    assert store.find("a") is None
    assert store.find("c") is not None


def test_collect_spares_what_a_build_may_be_using(store):
    """By default nothing that was used a moment ago is dropped, whatever the limit."""
    store.make("k", _work("x" * 100))
    assert store.collect(keep_bytes=0) == []
    assert [entry.key for entry in store.collect(keep_bytes=0, spare_seconds=0)] == ["k"]


def test_the_limit_comes_from_the_environment(monkeypatch):
    """GiB, with a default; nonsense is told with the variable's name."""
    monkeypatch.delenv(cache.LIMIT_VARIABLE, raising=False)
    assert cache.limit() == 8 << 30
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0.5")
    assert cache.limit() == 1 << 29
    for nonsense in ("much", "-1", "nan"):
        monkeypatch.setenv(cache.LIMIT_VARIABLE, nonsense)
        with pytest.raises(errors.SpecError, match=cache.LIMIT_VARIABLE):
            cache.limit()


@pytest.mark.parametrize(
    "cause",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        errors.BuildFailed("x", ["mke2fs"], exit_code=1, tail="write: No space left on device"),
    ],
)
def test_no_space_left_is_told(store, cause):
    """A full disk is one sentence with the way out, whoever noticed it; nothing half is kept."""

    def fill(_):
        raise cause

    with pytest.raises(errors.KvedgeError, match="no space left") as caught:
        store.make("k", fill)
    assert "gc" in caught.value.hint
    assert store.find("k") is None
