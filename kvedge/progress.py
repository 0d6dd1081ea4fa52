"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Hears of named tasks; the command line shows them as bars or as lines."""

    def __call__(
        self, task: str, done: float = 0.0, total: float | None = None, note: str = ""
    ) -> None:
        """Tell that `done` of `total` units of the task are finished.

        A task begins with the first call that names it and ends when done equals total.
        `total=None` means that the end is not known yet; `note` is a short word beside the bar.
        """


def silent(task: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
    """Hear and say nothing."""
