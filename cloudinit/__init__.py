"""The printing room: pure text out, no I/O.

First-boot data (`render`, `render_network`), the edge runtime's settings (`render_edge_config`),
checks against the guest's schema (`validate`, `lint`) and the disks they travel on (`iso`, `seed`).
"""

from __future__ import annotations

from cloudinit.checking import lint, time_zone, validate
from cloudinit.edge_config import (
    Agent,
    DpsSymmetricKey,
    DpsTpm,
    DpsX509,
    EdgeCa,
    EdgeConfig,
    ManualConnectionString,
    ManualSas,
    ManualX509,
    derived_key,
    render_edge_config,
)
from cloudinit.parsing import parse_fragment, parse_user_data
from cloudinit.rendering import File, NetworkData, User, UserData, merge, render, render_network
from cloudinit.seeding import iso, seed

__all__ = [
    "Agent",
    "DpsSymmetricKey",
    "DpsTpm",
    "DpsX509",
    "EdgeCa",
    "EdgeConfig",
    "File",
    "ManualConnectionString",
    "ManualSas",
    "ManualX509",
    "NetworkData",
    "User",
    "UserData",
    "derived_key",
    "iso",
    "lint",
    "merge",
    "parse_fragment",
    "parse_user_data",
    "render",
    "render_edge_config",
    "render_network",
    "seed",
    "time_zone",
    "validate",
]
