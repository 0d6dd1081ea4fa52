"""Kubernetes quantities as whole numbers, rounded up."""

from __future__ import annotations

import math

from kvedge import quantity

__all__ = ["parse_quantity"]


def parse_quantity(text: str | float) -> int:
    """Return a quantity such as `512Mi` in whole units.

    Raises:
        ValueError: the text is not a quantity.
    """
    return math.ceil(quantity.parse_quantity(text))
