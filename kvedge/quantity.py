"""Kubernetes quantities such as `500m`, `64Mi` or `1e3` as exact numbers."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

__all__ = ["parse_quantity"]

_SYNTAX = re.compile(r"([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E))?")
_FACTOR = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


def parse_quantity(value: Any) -> Decimal:
    """Return the number that a quantity stands for.

    Raises:
        ValueError: it is not a quantity.
    """
    text = str(value).strip()
    found = _SYNTAX.fullmatch(text)
    if not found or found[1].count(".") > 1 or not any(c.isdigit() for c in found[1]):
        raise ValueError(f"{text!r} is not a quantity")
    number = Decimal(found[1] + (found[2] or ""))
    return number * _FACTOR[found[3]] if found[3] else number
