"""Processes that outlive the host and are found again by pid and start time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from kvedge import processes

if TYPE_CHECKING:
    import signal
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Detached"]


class Detached:
    """A process in a session of its own."""

    def __init__(
        self, pid: int, started: int, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.pid = pid
        self.started = started
        self._child = child

    @classmethod
    def start(
        cls,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        clean_env: bool = False,
    ) -> Detached:
        """Start a program; its output is appended to `log`."""
        child = processes.popen(argv, log=log, cwd=cwd, env=env, clean_env=clean_env)
        return cls(child.pid, processes.start_time(child.pid) or 0, child)

    @classmethod
    def adopt(cls, record: Mapping[str, Any]) -> Detached | None:
        """Return the process of a record if it still lives."""
        pid, started = record.get("pid"), record.get("started")
        if not pid or not started or processes.start_time(pid) != started:
            return None
        return cls(pid, started)

    def record(self) -> dict[str, int]:
        """Return what `adopt` needs."""
        return {"pid": self.pid, "started": self.started}

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        if self._child is not None:
            return self._child.poll() is None
        return processes.start_time(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int | None:
        """Wait for its end; return the exit code, None if it was another process's child."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return self._child.poll() if self._child else None
        try:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(handle, ended.set)
            try:
                if self.alive:
                    await ended.wait()
            finally:
                loop.remove_reader(handle)
        finally:
            os.close(handle)
        return self._child.wait() if self._child else None
