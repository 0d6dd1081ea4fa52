"""Twenty ssh sessions at once into five real VMs."""

import json
import tempfile
from pathlib import Path

import pytest

from kvedge.testing.demos import Demo

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1500)]

VMS, RUNS = 5, 4
TOGETHER = f"""\
mkdir -p /tmp/here && touch /tmp/here/$$
until [ $(ls /tmp/here | wc -l) -ge {RUNS} ]; do sleep 0.2; done
hostname"""
"""Ends in a VM once so many sessions are in it at the same time."""


@pytest.fixture(scope="module")
def five():
    """A site with five VMs that let people in."""
    made = Demo(Path(tempfile.mkdtemp(prefix="kvedge-e2e-")), "five")
    try:
        made.begin()
        names = [{"name": f"v{number}"} for number in range(1, VMS + 1)]
        made.write(fleet={"template": {"vcpus": 1, "memory": "512Mi"}, "vms": names})
        made.kvedge("up", "five", "--no-wait")
        # cloud-init gives a VM its name, after the first login is possible.
        ready = ("exec", "--wait", "900", "--parallel", str(VMS), "cloud-init status --wait")
        made.kvedge(*ready, timeout=1000)
        yield made
    finally:
        made.end()


def test_twenty_sessions_run_at_once(five):
    """Each command waits in each VM until all four are there, so no session waits for another."""
    words = ("exec", "-o", "json", "--parallel", "5", "--wait", "300", "--timeout", "300")
    logs = [five.folder / f"{number}.json" for number in range(RUNS)]
    running = [five.start(*words, TOGETHER, log=log) for log in logs]
    for child, log in zip(running, logs, strict=True):
        code, found = child.wait(900), json.loads(log.read_text())
        assert (code, found["succeeded"], found["failed"]) == (0, VMS, 0), found
        names = {vm["vm"]: vm["stdout"].strip() for vm in found["vms"]}
        assert names == {f"default/v{n}": f"five-v{n}" for n in range(1, VMS + 1)}
