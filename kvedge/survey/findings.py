"""What a check comes to: a finding with its fix."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["Finding"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""
    """The next act; empty if nothing is to be done."""
