"""Kill -9 of the engine at random points of the run that makes everything."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from kvedge import processes
from kvedge.testing.waiting import until

pytestmark = [pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(1500)]

KILLS = 10


def start(stack: Any, name: str) -> subprocess.Popen[bytes]:
    """Start `kvedge up` and come back when its engine runs."""
    child = processes.popen(
        [sys.executable, "-m", "kvedge", "up", stack.name, "--no-wait"],
        cwd=stack.project.folder, log=stack.folder / f"{name}.log",
    )  # fmt: skip
    until(lambda: stack.pulumi() or child.poll() is not None, "the engine runs", seconds=120)
    assert child.poll() is None, (stack.folder / f"{name}.log").read_text()
    return child


def test_the_next_up_completes_a_run_that_was_killed_anywhere(stack: Any) -> None:
    """No object or device is missing, double or left after `down`, whichever step was cut off."""
    fleet = [{"name": f"p{number}"} for number in range(1, 6)]
    stack.write({**stack.settings, "fleet": fleet})
    child = start(stack, "whole")
    begun = time.monotonic()
    assert child.wait(300) == 0
    seconds = time.monotonic() - begun
    whole = stack.objects(), stack.hub()
    stack.down()
    for kill in range(KILLS):
        child = start(stack, f"killed-{kill}")
        point = random.uniform(0, seconds)
        try:
            child.wait(point)
        except subprocess.TimeoutExpired:
            engine = stack.pulumi()
            if engine is not None:
                os.kill(engine, signal.SIGKILL)
        code = child.wait(120)
        done = stack.run("up", stack.name, "--no-wait")
        told = f"kill {kill} after {point:.2f} s of {seconds:.2f} (exit code {code})"
        assert done.returncode == 0, f"{told}: {done.stderr}"
        assert (stack.objects(), stack.hub()) == whole, told
        assert set(stack.engine().up(on_event=lambda _: None)) == {"same"}, told
        stack.down()
        assert (stack.objects(), stack.hub()) == ([], ([], [])), told
