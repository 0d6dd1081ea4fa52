"""Obtaining: build what is missing, once, whole or not at all."""

from __future__ import annotations

import dataclasses

import pytest

from kvedge import errors
from kvedge.tools import obtaining
from kvedge.tools.obtaining import Toolbox


@pytest.fixture
def toolbox(tmp_path, sources, family, go):
    """A cache with nothing in it."""

    def make(**changes):
        changed = dataclasses.replace(family, **changes)
        return Toolbox(cache=tmp_path / "cache", sources=sources, families=(changed,))

    return make


def test_builds_what_is_missing_and_then_never_again(toolbox, go):
    """The second call starts nothing."""
    paths = toolbox().ensure(["hello"])
    assert "v1.2.3" in paths["hello"].read_text()
    calls = (go / "calls").read_text()
    assert toolbox().ensure(["hello"]) == paths
    assert (go / "calls").read_text() == calls
    assert "-mod=readonly" in calls
    assert "-trimpath" in calls


def test_only_what_is_named_is_built(toolbox):
    """A member of a family is built alone."""
    box = toolbox()
    box.ensure(["goodbye"])
    assert [row.source for row in box.status()] == ["missing", "cache"]


def test_go_leaves_nothing_behind(toolbox, tmp_path):
    """The run's caches are dropped, and so are those of a killed run."""
    killed = tmp_path / "cache" / "go" / "run-killed"
    killed.mkdir(parents=True)
    toolbox().ensure(["hello"])
    assert list((tmp_path / "cache" / "go").iterdir()) == []


def test_progress_tells_the_price_first(toolbox):
    """The first thing heard is what the build will take; every task ends."""
    heard = []
    toolbox(seconds=600, mebibytes=2).ensure(
        ["hello"], progress=lambda *words, **named: heard.append((words, named))
    )
    assert "about 10 minutes" in heard[0][0][0]
    last = {words[0]: words[1:3] for words, _ in heard}
    assert all(done == total for done, total in last.values())


def test_a_failure_shows_the_end_of_the_log(toolbox, go):
    """The compiler's words are in the message, the log's path in the hint."""
    (go / "broken").touch()
    with pytest.raises(errors.BuildFailed, match="syntax error") as caught:
        toolbox().ensure(["hello"])
    assert "greeting.log" in caught.value.hint
    (go / "broken").unlink()
    assert toolbox().ensure(["hello"])


def test_short_disk_is_refused_before_anything_is_done(toolbox, go):
    """Nothing is started when the disk cannot hold the build."""
    with pytest.raises(errors.ToolMissing, match="MiB are free"):
        toolbox(mebibytes=10**9).ensure(["hello"])
    assert not (go / "calls").exists()


def test_a_missing_tool_names_the_command(toolbox):
    """path() builds nothing; its hint tells what would."""
    with pytest.raises(errors.ToolMissing) as caught:
        toolbox().path("hello")
    assert caught.value.hint == "kvedge tools build hello"


def test_an_unknown_name_lists_the_known(toolbox):
    """A mistyped name is answered with the names there are."""
    with pytest.raises(errors.ToolMissing) as caught:
        toolbox().ensure(["helo"])
    assert "goodbye" in caught.value.hint


def test_path_wins_over_cache(toolbox, program, go, monkeypatch):
    """A fitting program on PATH is used although the cache has one."""
    toolbox().ensure(["hello"])
    own = program("hello", "hello v1.2.7")
    monkeypatch.setenv("PATH", f"{own.parent}:{go}:/usr/bin:/bin")
    box = toolbox()
    assert box.path("hello") == own
    assert box.status()[0].source == "path"


def test_links_follow_what_is_found(tmp_path):
    """A bin folder's link is replaced when the program is elsewhere now."""
    folder = tmp_path / "bin"
    for target in ("one", "two", "two"):
        (tmp_path / target).touch()
        obtaining.link({"hello": tmp_path / target}, folder)
        assert (folder / "hello").readlink() == tmp_path / target
    assert [file.name for file in folder.iterdir()] == ["hello"]


def test_a_bin_folder_on_path_does_not_link_to_itself(toolbox, program, go, monkeypatch, tmp_path):
    """Links stay right when the folder that holds them comes first on PATH."""
    own = program("hello", "hello v1.2.7", folder="mine")
    linked = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{linked}:{own.parent}:{go}:/usr/bin:/bin")
    for _ in range(3):
        obtaining.link(toolbox().ensure(["hello", "goodbye"]), linked)
    assert (linked / "hello").readlink() == own
    assert (linked / "goodbye").resolve().is_relative_to(tmp_path / "cache")
    assert [row.source for row in toolbox().status()] == ["path", "cache"]


def test_a_failure_ends_the_other_lane(tmp_path, sources, family, go, monkeypatch):
    """Nobody waits an hour for programs of a run that has failed already."""
    monkeypatch.setattr(obtaining, "_lanes", lambda: 2)
    slow = go / "slow"
    slow.write_text("while :; do echo example.test/more; done\n")
    script = (go / "go").read_text()
    turned = script.replace("build)\n", f'build)\n  case $* in *hello*) . "{slow}" ;; esac\n')
    (go / "go").write_text(turned)
    (go / "broken").touch()
    (sources / "second").symlink_to("greeting")
    hello, goodbye = family.tools
    families = (
        dataclasses.replace(family, tools=(hello,), seconds=9),
        dataclasses.replace(family, name="second", tools=(goodbye,)),
    )
    box = Toolbox(cache=tmp_path / "cache", sources=sources, families=families)
    with pytest.raises(errors.BuildFailed, match="syntax error"):
        box.ensure(["hello", "goodbye"])
    assert [row.source for row in box.status()] == ["missing", "missing"]
