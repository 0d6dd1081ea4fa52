"""A program's keeper: when the program or its caller ends, all that the program started ends too.

Run as a process of its own between caller and program (`processes.run(kept=True)`). Engines such as
pulumi put their plugins into process groups of their own and leave them, and files in the folder
for temporary files, behind when they are killed; a keeper is the reaper of all of them
(PR_SET_CHILD_SUBREAPER, prctl(2)) and owns that folder. Its standard input is the caller's
lifeline: end of file means that the caller wants an end, or is no more. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import select
import shutil
import signal
import sys
import tempfile
import time

__all__ = ["GRACE_SECONDS", "keep"]

GRACE_SECONDS = 10.0
"""From the interrupt, which lets an engine finish its step and unlock, to the kill."""
_PR_SET_CHILD_SUBREAPER = 36
_NOT_FOUND = 127


def keep(argv: list[str]) -> int:
    """Run the program to its end or to ours; return its exit code, or minus the signal's number."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    folder = tempfile.mkdtemp(prefix="kvedge-run-")
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        try:
            pid = os.posix_spawnp(
                argv[0], argv, {**os.environ, "TMPDIR": folder},
                file_actions=[(os.POSIX_SPAWN_DUP2, null, 0)],
            )  # fmt: skip
        except FileNotFoundError:
            return _NOT_FOUND
        return _watch(pid)
    finally:
        _end_all()
        shutil.rmtree(folder, ignore_errors=True)


def _watch(pid: int) -> int:
    """Wait for the program; interrupt it when the lifeline ends, kill it after the grace time."""
    ended = os.pidfd_open(pid)
    asked: float | None = None
    while True:
        wanted = [ended] if asked is not None else [ended, 0]
        left = None if asked is None else max(0.0, asked + GRACE_SECONDS - time.monotonic())
        ready, _, _ = select.select(wanted, [], [], left)
        if ended in ready:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if asked is not None:
            os.kill(pid, signal.SIGKILL)
            asked = time.monotonic()
        elif not os.read(0, 4096):
            asked = time.monotonic()
            os.kill(pid, signal.SIGINT)


def _end_all() -> None:
    """Kill and reap whatever is left below us, until nothing is."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = _children()
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A killed child's own children become ours, so the next round finds them.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _children() -> list[int]:
    """Return ids of our children (proc(5): field 4 of /proc/PID/stat is the parent)."""
    me, found = os.getpid(), []
    for entry in pathlib.Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            if int(text.rsplit(")", 1)[1].split()[1]) == me:
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    _code = keep(sys.argv[1:])
    sys.exit(_code if _code >= 0 else 128 - _code)
