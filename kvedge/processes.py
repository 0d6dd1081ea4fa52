"""The one gateway for starting programs: argv lists, no shell, failures that can be pasted.

Rooms above start nothing by themselves. A house test looks for `subprocess` elsewhere.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

from kvedge import errors, keeping

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["arun", "attached", "popen", "run", "search_path", "start_time"]

_TAIL_LINES = 25
# Debian keeps mkfs.vfat and others here, off an ordinary user's PATH.
_SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")


def search_path() -> str:
    """Return PATH with the folders of system programs, which every program is looked up on."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS])


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PATH": search_path(), **(env or {})}


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    log: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    check: bool = True,
    timeout: float | None = None,
    kept: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output as text.

    Args:
        argv: program and arguments; without a slash, PATH and /usr/sbin are searched.
        what: what is being done, for the error message.
        env: variables set on top of this process's own.
        stdin: bytes to feed; nothing is inherited.
        log: file that receives everything the program prints.
        on_line: called with each line of stderr and stdout as it comes (they are joined then).
        timeout: seconds until the program is killed.
        kept: with `on_line` or `log`: whatever the program started ends with it, and with us, and
            its temporary files go (`kvedge.keeping`). Ctrl-C lets it finish what it is at.

    Raises:
        ToolMissing: the program is not there.
        BuildFailed: it ended with another code than 0, and `check` is set.
    """
    words = [str(word) for word in argv]
    merged = _environment(env)
    if kept:
        found = shutil.which(words[0], path=merged.get("PATH"))
        if found is None:
            raise errors.ToolMissing(
                words[0], f"{what}: program {words[0]!r} not found", hint=f"install {words[0]}"
            )
        words = [sys.executable, "-I", "-S", keeping.__file__, found, *words[1:]]
    try:
        if on_line is None and log is None:
            done = subprocess.run(
                words,
                env=merged,
                cwd=cwd,
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
            out = done.stdout.decode(errors="replace")
            err = done.stderr.decode(errors="replace")
            code = done.returncode
        else:
            lifeline = subprocess.PIPE if kept else subprocess.DEVNULL
            code, out = _run_streaming(words, merged, cwd, stdin, log, on_line, timeout, lifeline)
            err = out
    except FileNotFoundError as cause:
        raise errors.ToolMissing(
            words[0], f"{what}: program {words[0]!r} not found", hint=f"install {words[0]}"
        ) from cause
    except subprocess.TimeoutExpired as cause:
        raise errors.BuildFailed(
            what, words, exit_code=-signal.SIGKILL, tail=f"no end after {timeout} s"
        ) from cause
    if check and code != 0:
        tail = "\n".join((err or out).splitlines()[-_TAIL_LINES:])
        hint = f"whole log: {log}" if log else ""
        raise errors.BuildFailed(what, words, exit_code=code, tail=tail, hint=hint)
    return subprocess.CompletedProcess(words, code, out, err)


def _run_streaming(
    words: list[str],
    env: Mapping[str, str],
    cwd: Path | None,
    stdin: bytes | None,
    log: Path | None,
    on_line: Callable[[str], None] | None,
    timeout: float | None,
    lifeline: int,
) -> tuple[int, str]:
    kept: collections.deque[str] = collections.deque(maxlen=2000)
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(log.open("a", encoding="utf-8")) if log else None
        child = stack.enter_context(
            subprocess.Popen(
                words,
                env=env,
                cwd=cwd,
                stdin=subprocess.PIPE if stdin is not None else lifeline,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=False,
                # A terminal's Ctrl-C is for us; a keeper hears of it by its lifeline.
                start_new_session=lifeline == subprocess.PIPE,
            )
        )
        killer = threading.Timer(timeout, child.kill) if timeout else None
        if killer:
            killer.start()
        try:
            if stdin is not None and child.stdin:
                child.stdin.write(stdin)
                child.stdin.close()
            for raw in child.stdout or ():
                line = raw.decode(errors="replace")
                kept.append(line)
                if sink:
                    sink.write(line)
                if on_line:
                    on_line(line.rstrip("\n"))
            code = child.wait()
        except BaseException:
            if lifeline == subprocess.PIPE:
                _let_go(child)
            else:
                child.kill()
            raise
        finally:
            if killer:
                killer.cancel()
    return code, "".join(kept)


def attached(argv: Sequence[str | Path]) -> int:
    """Run a program on this process's own terminal and streams; return its exit code.

    Raises:
        ToolMissing: the program is not there.
    """
    words = [str(word) for word in argv]
    try:
        return subprocess.run(words, check=False).returncode
    except FileNotFoundError as cause:
        raise errors.ToolMissing(
            words[0], f"program {words[0]!r} not found", hint=f"install {words[0]}"
        ) from cause


def _let_go(child: subprocess.Popen[bytes]) -> None:
    """Close a keeper's lifeline and wait until it has ended everything."""
    if child.stdin:
        child.stdin.close()
    for _ in child.stdout or ():
        pass
    child.wait()


async def arun(
    argv: Sequence[str | Path],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end without blocking the event loop; output is bytes."""
    words = [str(word) for word in argv]
    try:
        child = await asyncio.create_subprocess_exec(
            *words,
            env=_environment(env),
            cwd=cwd,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as cause:
        raise errors.ToolMissing(
            words[0], f"{what}: program {words[0]!r} not found", hint=f"install {words[0]}"
        ) from cause
    try:
        out, err = await child.communicate(stdin)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        raise
    code = child.returncode or 0
    if check and code != 0:
        tail = "\n".join(err.decode(errors="replace").splitlines()[-_TAIL_LINES:])
        raise errors.BuildFailed(what, words, exit_code=code, tail=tail)
    return subprocess.CompletedProcess(words, code, out, err)


def popen(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    clean_env: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program that goes on by itself, in a session of its own.

    Its output goes to `log` (appended) unless `stdout` is given. `clean_env` starts from an empty
    environment instead of this process's.
    """
    words = [str(word) for word in argv]
    merged = dict(env or {}) if clean_env else _environment(env)
    with contextlib.ExitStack() as stack:
        sink: int | IO[bytes]
        if stdout is not None:
            sink = stdout
        elif log is not None:
            sink = stack.enter_context(log.open("ab"))
        else:
            sink = subprocess.DEVNULL
        try:
            return subprocess.Popen(
                words,
                env=merged,
                cwd=cwd,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=sink,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        except FileNotFoundError as cause:
            raise errors.ToolMissing(
                words[0], f"program {words[0]!r} not found", hint=f"install {words[0]}"
            ) from cause


def start_time(pid: int) -> int | None:
    """Return the kernel's start time of a living process (clock ticks since boot), else None.

    Process ids are used again, so a record of a process is its id with this number
    (proc(5), field 22 of /proc/PID/stat). A zombie counts as gone.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
