"""`kvedge console` on a real terminal, `kvedge vnc` on a real port."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import termios
import time

from kvedge import processes
from kvedge.testing.waiting import until


def read_until(handle, wanted):
    """Read a terminal until it has shown something."""
    seen, end = b"", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < end, seen
        if select.select([handle], [], [], 1)[0]:
            seen += os.read(handle, 4096)
    return seen


def test_console(fleet, api_way, cluster):
    """Keys go to the guest one by one, Ctrl-C too; Ctrl-] leaves the terminal as it was."""
    fleet.add("edge1")
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    argv = [sys.executable, "-m", "kvedge", "console", "--kubeconfig", str(cluster.kubeconfig),
            f"edge1.{fleet.namespace}"]  # fmt: skip
    child = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    try:
        read_until(ours, b"login: ")
        for key in (b"a", b"\x03", b"\r"):
            os.write(ours, key)
            read_until(ours, b"<" + key + b">")
        os.write(ours, b"\x1d")
        assert child.wait(30) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(theirs)


def test_screen(fleet, api_way, cluster, tmp_path):
    """A viewer that connects to the printed port is greeted by the guest's screen."""
    fleet.add("edge1")
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "kvedge", "vnc", "--proxy-only", "--kubeconfig",
            cluster.kubeconfig, f"edge1.{fleet.namespace}"]  # fmt: skip
    child = processes.popen(argv, log=log)
    try:
        place = until(lambda: log.read_text().strip(), "it listens", seconds=60)
        host, _, port = place.rpartition(":")
        with socket.create_connection((host, int(port)), 30) as viewer:
            assert viewer.recv(12) == b"RFB 003.008\n"
    finally:
        child.kill()
        child.wait()
