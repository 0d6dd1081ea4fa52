"""What the hub remembers: identities, twins and configurations, as frozen records.

A change is a new record that is stored before anyone sees it, so a record's JSON values are never
written to. `key` is `device` or `device/module` (a module id holds no slash).
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from kvedge.emulator import times

__all__ = [
    "AGENT",
    "EDGE_HUB",
    "RUNTIME_MODULES",
    "Configuration",
    "Identity",
    "Json",
    "Message",
    "Twin",
    "key_of",
    "message_key",
    "twin_etag",
]

Json = dict[str, Any]

AGENT = "$edgeAgent"
EDGE_HUB = "$edgeHub"
RUNTIME_MODULES = (AGENT, EDGE_HUB)
"""The modules that the hub itself gives each edge device."""


def key_of(device_id: str, module_id: str = "") -> str:
    """Return the key of a device's or module's records."""
    return f"{device_id}/{module_id}" if module_id else device_id


def message_key(sequence: int) -> str:
    """Return the key of a message; keys sort as the numbers do."""
    return f"{sequence:016d}"


def twin_etag(count: int) -> str:
    """Return a twin's or configuration's etag: eight bytes, big-endian, base64."""
    return base64.b64encode(count.to_bytes(8, "big")).decode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A device or a module that may connect."""

    device_id: str
    module_id: str = ""
    generation_id: str
    revision: int
    """Counts the writes; the etag is made of it."""
    enabled: bool = True
    status_reason: str | None = None
    status_updated: str = times.NEVER
    auth: str = "sas"
    """`sas`, `selfSigned`, `certificateAuthority` or `none`."""
    primary_key: str | None = dataclasses.field(default=None, repr=False)
    secondary_key: str | None = dataclasses.field(default=None, repr=False)
    primary_thumbprint: str | None = None
    secondary_thumbprint: str | None = None
    edge: bool = False
    scope: str | None = None
    parent_scopes: tuple[str, ...] = ()
    managed_by: str | None = None

    @property
    def key(self) -> str:
        """Return the key of this identity and of its twin."""
        return key_of(self.device_id, self.module_id)

    @property
    def thumbprints(self) -> frozenset[str]:
        """Return the thumbprints that open this identity, as upper-case hex."""
        if self.auth != "selfSigned":
            return frozenset()
        prints = (self.primary_thumbprint, self.secondary_thumbprint)
        return frozenset(item.replace(":", "").upper() for item in prints if item)

    @property
    def etag(self) -> str:
        """Return the etag without quotes: the decimal counter in base64."""
        return base64.b64encode(str(self.revision).encode()).decode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """The document that cloud and device share.

    `desired` and `reported` hold `$version` and `$metadata` as they go over the wire.
    """

    device_id: str
    module_id: str = ""
    writes: int = 1
    """Counts writes of tags and desired properties; the etag is made of it."""
    version: int = 2
    """Counts all writes."""
    tags: Json = dataclasses.field(default_factory=dict)
    desired: Json
    reported: Json
    configurations: Json = dataclasses.field(default_factory=dict)
    """Configuration id to `{"status": "Targeted" | "Applied"}`."""
    model_id: str = ""

    @property
    def key(self) -> str:
        """Return the key of this twin and of its identity."""
        return key_of(self.device_id, self.module_id)

    @property
    def etag(self) -> str:
        """Return the etag without quotes."""
        return twin_etag(self.writes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """An automatic deployment (edge) or device management configuration."""

    id: str
    schema_version: str = "1.0"
    labels: Json = dataclasses.field(default_factory=dict)
    content: Json
    target_condition: str = ""
    priority: int = 0
    created: str
    sequence: int
    """Order of creation; breaks ties of priority, since times can be equal."""
    updated: str
    metric_queries: Json = dataclasses.field(default_factory=dict)
    metric_results: Json = dataclasses.field(default_factory=dict)
    system_results: Json = dataclasses.field(default_factory=dict)
    """Empty until the first evaluation."""
    writes: int = 1

    @property
    def etag(self) -> str:
        """Return the etag without quotes."""
        return base64.b64encode(str(self.writes).encode()).decode()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A cloud-to-device message that waits for its device."""

    sequence: int
    device_id: str
    payload: bytes
    properties: Json
    """System properties (`$.mid` …) and the sender's own, as texts."""
    expires: float = 0.0
    """Seconds since 1970; 0 means never."""

    @property
    def key(self) -> str:
        """Return the key of this message."""
        return message_key(self.sequence)
