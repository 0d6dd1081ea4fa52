"""Programs are started by one gateway that tells what failed."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kvedge import errors, processes


def test_run_returns_output_of_both_streams():
    """Output and error output come apart."""
    done = processes.run(
        [sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr)"], what="try"
    )
    assert (done.stdout, done.stderr) == ("a\n", "b\n")


def test_run_raises_with_exit_code_and_tail(tmp_path):
    """A failure carries code, last lines and the log's place."""
    log = tmp_path / "log"
    with pytest.raises(errors.BuildFailed) as caught:
        processes.run(
            [sys.executable, "-c", "print('last words'); raise SystemExit(7)"],
            what="build it",
            log=log,
        )
    assert caught.value.returncode == 7
    assert "last words" in str(caught.value)
    assert log.read_text() == "last words\n"


def test_a_missing_program_is_named():
    """The hint says what to install."""
    with pytest.raises(errors.ToolMissing) as caught:
        processes.run(["no-such-program-here"], what="try")
    assert caught.value.hint == "install no-such-program-here"


async def test_arun_feeds_stdin_and_returns_bytes():
    """The asynchronous form takes and gives bytes."""
    done = await processes.arun(["cat"], what="echo", stdin=b"\x00\xff")
    assert done.stdout == b"\x00\xff"


def test_start_time_tells_living_from_gone():
    """A process id with its start time is a record that cannot be mistaken."""
    child = processes.popen(["sleep", "30"])
    began = processes.start_time(child.pid)
    assert began is not None
    child.kill()
    child.wait()
    assert processes.start_time(child.pid) is None
    assert processes.start_time(os.getpid()) is not None


# Starts a plugin that leaves our process group, as pulumi's do, then waits or dies.
ENGINE = textwrap.dedent(
    """
    import os, pathlib, signal, subprocess, sys, tempfile, time
    plugin = subprocess.Popen(["sleep", "300"], start_new_session=True)
    left = tempfile.NamedTemporaryFile(delete=False).name
    print(os.getpid(), plugin.pid, left, flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(300)
    """
)


def gone(line):
    """Tell whether engine, plugin and temporary file of a line are no more."""
    engine, plugin, left = line.split()
    alive = [pid for pid in (int(engine), int(plugin)) if processes.start_time(pid)]
    return not alive and not Path(left).exists() and not Path(left).parent.exists()


def test_a_kept_program_that_is_killed_leaves_nothing_behind():
    """A plugin in a session of its own and a temporary file go with their engine."""
    lines = []
    done = processes.run(
        [sys.executable, "-c", ENGINE, "die"], what="try", on_line=lines.append, check=False,
        kept=True,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGKILL
    assert gone(lines[0])


def test_an_interrupted_caller_ends_a_kept_program_gently():
    """Ctrl-C reaches the engine as an interrupt, and nothing is left afterwards."""
    lines = []

    def interrupt(line):
        lines.append(line)
        if len(lines) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run(
            [sys.executable, "-c", ENGINE, "wait"], what="try", on_line=interrupt, kept=True
        )
    assert gone(lines[0])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["wait", "stubborn"])
def test_a_kept_program_ends_with_a_killed_caller(tmp_path, how):
    """The caller's kill -9 is heard through the lifeline, and a deaf engine is killed."""
    code = textwrap.dedent(
        f"""
        from kvedge import processes
        processes.run(
            {[sys.executable, "-c", ENGINE, how]!r}, what="try", kept=True,
            on_line=lambda line: print(line, flush=True),
        )
        """
    )
    log = tmp_path / "log"
    caller = processes.popen([sys.executable, "-c", code], log=log)
    deadline = time.monotonic() + 50
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    while not gone(log.read_text()):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_kept_program_may_be_missing():
    """The keeper hides no missing program."""
    with pytest.raises(errors.ToolMissing, match="no-such"):
        processes.run(["no-such-program-here"], what="try", on_line=print, kept=True)


def test_system_programs_are_found_off_an_ordinary_users_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian's users have no sbin on PATH, and mkfs.vfat is nowhere else."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert processes.run(["mkfs.vfat", "--help"], what="ask", check=False).returncode in (0, 1)
    done = asyncio.run(processes.arun(["mkfs.vfat", "--help"], what="ask", check=False))
    assert done.returncode in (0, 1)
