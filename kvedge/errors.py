"""Every error that a user of kvedge can meet.

KvedgeError                 anything that is reported without a traceback
 ├─ SpecError               the user's input is wrong; holds every problem with its field path
 ├─ ToolMissing             a program is not there; says how to get it
 ├─ BuildFailed             a program ran and failed; argv, exit code, tail of its output
 ├─ SiteError               the local site cannot start, stop or be found
 ├─ Unsupported             a pod asks what IoT Edge cannot do; field path and why
 └─ RemoteError             Kubernetes or the hub answered with an error
     ├─ NotFound
     ├─ Conflict
     ├─ Unauthorized
     └─ Throttled           carries the seconds to wait, if the service told any

A message says what was attempted, on which object and what was found; `hint` says the next act.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "BuildFailed",
    "Conflict",
    "KvedgeError",
    "NotFound",
    "Problem",
    "RemoteError",
    "SiteError",
    "SpecError",
    "Throttled",
    "ToolMissing",
    "Unauthorized",
    "Unsupported",
]

_MESSAGE_LIMIT = 200


class KvedgeError(Exception):
    """An error that is told to the user in one sentence and a hint."""

    exit_code = 1
    """The process's exit code: 1 failed, 2 bad use or bad input."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One mistake in the user's input."""

    path: str
    """Where it is, such as `fleet[2].memory` or `spec.containers[0].ports`."""
    message: str
    """What was found and what is allowed."""
    hint: str = ""
    """The next act, if it is not plain from the message."""

    def __str__(self) -> str:
        """Return the line that the user reads."""
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class SpecError(KvedgeError):
    """The user's input is wrong; nothing has been changed."""

    exit_code = 2

    def __init__(self, subject: str, problems: Iterable[Problem], *, hint: str = "") -> None:
        self.subject = subject
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{subject}: {count} problem{'s' if count != 1 else ''}{lines}", hint=hint)


class ToolMissing(KvedgeError):
    """A program that is needed cannot be found or made."""

    def __init__(self, tool: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.tool = tool


class BuildFailed(KvedgeError):
    """A program that was started to make something ended with an error."""

    def __init__(
        self, subject: str, argv: Sequence[str], *, exit_code: int, tail: str, hint: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = exit_code
        self.tail = tail
        program = argv[0].rsplit("/", 1)[-1] if argv else "?"
        super().__init__(
            f"{subject}: {program!r} exited {exit_code}" + (f"\n{tail}" if tail else ""),
            hint=hint or f"run it again by hand: {shlex.join(argv)}",
        )


class SiteError(KvedgeError):
    """The local site cannot start, stop or be found."""


class Unsupported(KvedgeError):
    """A pod asks for something that has no counterpart on IoT Edge."""

    exit_code = 2

    def __init__(self, path: str, why: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: {why}", hint=hint)
        self.path = path
        self.why = why


class RemoteError(KvedgeError):
    """Kubernetes or the hub answered with an error."""

    def __init__(
        self,
        attempt: str,
        *,
        status: int = 0,
        reason: str = "",
        details: str = "",
        hint: str = "",
    ) -> None:
        self.status = status
        self.reason = reason
        self.details = details
        found = " ".join(part for part in (str(status or ""), reason) if part)
        text = f"{attempt}: {found or 'no answer'}"
        if details:
            text += f": {details[:_MESSAGE_LIMIT]}"
        super().__init__(text, hint=hint)


class NotFound(RemoteError):
    """The object does not exist."""


class Conflict(RemoteError):
    """The object exists already or was changed meanwhile."""


class Unauthorized(RemoteError):
    """The credential is missing, wrong, expired or has too few rights."""


class Throttled(RemoteError):
    """The service asks to slow down."""

    def __init__(self, attempt: str, *, retry_after: float | None = None, **rest: object) -> None:
        super().__init__(attempt, **rest)  # type: ignore[arg-type]
        self.retry_after = retry_after
