"""A guest's TPM 2.0: one swtpm process beside QEMU, which ends with QEMU's connection to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from kvedge import errors, processes

__all__ = ["SOCKET", "end", "start"]

SOCKET = "tpm.sock"
_PID = "tpm.pid"
_LOG = "tpm.log"
_READY_SECONDS = 10.0


async def start(directory: Path, state: Path) -> None:
    """Start a TPM for the guest of a folder; its socket is there when this returns.

    Args:
        directory: the guest's folder.
        state: folder of the TPM's keys and counters; kept by the caller if it is to persist.

    Raises:
        ToolMissing: there is no swtpm on this machine.
        SiteError: swtpm does not run.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    argv = [
        *("swtpm", "socket", "--tpm2", "--daemon", "--terminate"),
        *("--tpmstate", f"dir={state},mode=0600"),
        # Relative: a socket's path may be no longer than 107 bytes.
        *("--ctrl", f"type=unixio,path={SOCKET},mode=0600"),
        *("--pid", f"file={directory / _PID}", "--log", f"file={directory / _LOG}"),
    ]
    done = await processes.arun(argv, what="start a TPM", cwd=directory, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-300:]
        raise errors.SiteError(f"the TPM does not run: {said}")
    async with asyncio.timeout(_READY_SECONDS):
        while not (directory / SOCKET).exists():  # noqa: ASYNC110 - a fact about another process
            await asyncio.sleep(0.01)


def end(directory: Path) -> None:
    """End a TPM that QEMU never came to."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / _PID).read_text())
        if b"swtpm" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
