"""The printing room: pure text out, no I/O. First-boot data and the edge runtime's settings."""

from __future__ import annotations
