"""Starts the few programs that the runtime needs inside the VM: openssl and systemctl."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ProgramError", "output"]


class ProgramError(Exception):
    """A program is missing or failed; the text has its last words."""


def output(argv: Sequence[str], *, stdin: str = "") -> str:
    """Run a program to its end and return what it printed.

    Raises:
        ProgramError: it is missing, or ended with another code than 0.
    """
    try:
        done = subprocess.run(
            list(argv), input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramError(f"{argv[0]}: {error}") from error
    if done.returncode:
        raise ProgramError(f"{argv[0]} exited {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
