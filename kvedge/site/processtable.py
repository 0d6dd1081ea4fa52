"""Finds processes by what the kernel tells of them (proc(5)): command, environment, namespaces."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import processes

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Sequence

__all__ = ["end", "inode", "pids", "rss_mib", "same_command", "variable"]


def pids() -> Iterator[int]:
    """Yield the ids of all processes that can be seen."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def inode(pid: int | str, kind: str) -> int | None:
    """Return the number of a process's namespace, such as kind `net`; None: gone or not ours."""
    try:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
    except OSError:
        return None


def variable(pid: int, name: str) -> str:
    """Return a variable of a process's first environment, or an empty string."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return next((pair.partition("=")[2] for pair in pairs if pair.startswith(f"{name}=")), "")


def same_command(argv: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield id and start time of the processes with exactly this command line."""
    wanted = "\0".join(argv).encode() + b"\0"
    for pid in pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes() != wanted:
                continue
        except OSError:
            continue
        start = processes.start_time(pid)
        if start is not None:
            yield pid, start


def rss_mib(pid: int) -> int:
    """Return the resident memory of a process in MiB, 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // (1024 * 1024)


def end(pid: int, start: int, number: signal.Signals, *, patience_seconds: float) -> bool:
    """Signal a process and wait until it has ended (blocks); True: it has.

    Does nothing to another process that got the same id meanwhile.
    """
    deadline = time.monotonic() + patience_seconds
    if processes.start_time(pid) != start:
        return True
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return True
    while processes.start_time(pid) == start:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
