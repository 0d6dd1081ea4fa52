r"""Shared access signatures: making, reading and checking them.

A token names a resource (`sr`), an expiry (`se`), maybe a policy (`skn`) and carries
HMAC-SHA256(key, sr + "\\n" + se), where sr is signed as it is spelled in the token
(https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import hmac
import secrets
import urllib.parse

__all__ = ["Token", "connection_string", "issue", "new_key", "parse", "usable_key"]

_PREFIX = "SharedAccessSignature "
_KEY_BYTES = range(16, 65)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A parsed token; nothing about it has been checked."""

    resource: str
    """The decoded `sr`, lower case, without a slash at its end."""
    signed: bytes
    """What the signature covers."""
    signature: bytes
    """The raw HMAC; never shown."""
    expiry: int
    """Seconds since 1970."""
    policy: str
    """The policy's name, empty in a device's or module's token."""

    def __repr__(self) -> str:
        return f"Token(resource={self.resource!r}, policy={self.policy!r}, expiry={self.expiry})"

    def signed_by(self, key: str) -> bool:
        """Tell whether this base64 key made the signature; takes the same time for any key."""
        try:
            raw = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            return False
        if not raw:
            return False
        return hmac.compare_digest(
            hmac.new(raw, self.signed, hashlib.sha256).digest(), self.signature
        )


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Token | None:
    """Return the token in an Authorization header or an MQTT password, None if it is none."""
    if not text.startswith(_PREFIX):
        return None
    fields: dict[str, str] = {}
    for part in text[len(_PREFIX) :].strip().split("&"):
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            return None
        fields[name] = value
    if not {"sr", "sig", "se"} <= fields.keys():
        return None
    try:
        signature = base64.b64decode(urllib.parse.unquote(fields["sig"]), validate=True)
        expiry = int(fields["se"]) if fields["se"].isascii() and fields["se"].isdigit() else -1
    except (binascii.Error, ValueError):
        return None
    if expiry < 0:
        return None
    return Token(
        resource=urllib.parse.unquote_plus(fields["sr"]).lower().rstrip("/"),
        signed=f"{fields['sr']}\n{fields['se']}".encode(),
        signature=signature,
        expiry=expiry,
        policy=urllib.parse.unquote_plus(fields.get("skn", "")),
    )


def issue(resource: str, key: str, *, expiry: int, policy: str = "") -> str:
    """Return a token for a resource such as `hub.example/devices/d1`."""
    quoted = urllib.parse.quote(resource, safe="")
    digest = hmac.new(base64.b64decode(key), f"{quoted}\n{expiry}".encode(), hashlib.sha256)
    signature = urllib.parse.quote(base64.b64encode(digest.digest()), safe="")
    text = f"{_PREFIX}sr={quoted}&sig={signature}&se={expiry}"
    return text + (f"&skn={urllib.parse.quote(policy, safe='')}" if policy else "")


def new_key() -> str:
    """Return a random key of 256 bits in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def usable_key(key: str) -> bool:
    """Tell whether the service would take this text as a symmetric key."""
    try:
        return len(base64.b64decode(key, validate=True)) in _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def connection_string(host: str, policy: str, key: str) -> str:
    """Return a service connection string."""
    return f"HostName={host};SharedAccessKeyName={policy};SharedAccessKey={key}"
