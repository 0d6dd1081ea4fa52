"""Kill -9 of the engine at random points of the run that makes a hundred VMs' objects."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from kvedge import processes
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(3000)]

VMS, KILLS = 100, 10


def start(stack: Any, name: str) -> subprocess.Popen[bytes]:
    """Start `kvedge up` and come back when its engine runs."""
    child = processes.popen(
        [sys.executable, "-m", "kvedge", "up", stack.name, "--no-wait"],
        cwd=stack.project.folder, log=stack.folder / f"{name}.log",
    )  # fmt: skip
    until(lambda: stack.pulumi() or child.poll() is not None, "the engine runs", seconds=120)
    assert child.poll() is None, (stack.folder / f"{name}.log").read_text()
    return child


def clear(stack: Any) -> None:
    """Take all away by labels and tags, in half the time that the engine takes by its state."""
    stack.engine().forget()
    stack.down()


@pytest.fixture
def still(stack: Any) -> Iterator[Any]:
    """The stack on a site whose VM host is stopped, as in benchmarks/provision.py: no disk is filled."""
    status = json.loads((stack.site.folder.root / "run" / "status.json").read_text())
    host = int(status["parts"]["host"]["pid"])
    os.kill(host, signal.SIGSTOP)
    yield stack
    os.kill(host, signal.SIGCONT)


def test_the_next_up_completes_a_run_that_was_killed_anywhere(still: Any) -> None:
    """Cut off once in each tenth: nothing is missing or double then, and nothing left after `down`."""
    stack = still
    fleet = [{"name": f"p{number}"} for number in range(VMS)]
    stack.write({**stack.settings, "fleet": fleet})
    child = start(stack, "whole")
    begun = time.monotonic()
    assert child.wait(600) == 0
    seconds = time.monotonic() - begun
    whole = stack.objects(), stack.hub()
    assert len(whole[1][0]) == VMS
    clear(stack)
    for kill in range(KILLS):
        child = start(stack, f"killed-{kill}")
        point = random.uniform(kill, kill + 1) / KILLS * seconds
        try:
            child.wait(point)
        except subprocess.TimeoutExpired:
            engine = stack.pulumi()
            if engine is not None:
                os.kill(engine, signal.SIGKILL)
        code = child.wait(120)
        done = stack.run("up", stack.name, "--no-wait", seconds=600)
        told = f"kill {kill} after {point:.2f} s of {seconds:.2f} (exit code {code})"
        print(told)
        assert done.returncode == 0, f"{told}: {done.stderr}"
        assert (stack.objects(), stack.hub()) == whole, told
        assert set(stack.engine().up(on_event=lambda _: None)) == {"same"}, told
        stack.down() if kill == KILLS - 1 else clear(stack)
        assert (stack.objects(), stack.hub()) == ([], ([], [])), told
