"""Programs are started by one gateway that tells what failed."""

import os
import sys

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
