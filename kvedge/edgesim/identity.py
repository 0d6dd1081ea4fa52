"""Keys and tokens of the device and its modules, and the hub's REST calls that register them.

As the real identity service does, the runtime sets a key for each module with the device's own
token. Module keys are derived from one random master key that stays in the VM.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import ssl
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from kvedge.edgesim.settings import split_fields

if TYPE_CHECKING:
    from pathlib import Path

    from kvedge.edgesim.settings import Settings

__all__ = [
    "HubRefused",
    "HubUnreachable",
    "Keys",
    "Registry",
    "sas_token",
    "tls_context",
    "token_is_valid",
]

EMULATOR_HEADER: Final = "x-kvedge-emulator"
_API_VERSION: Final = "2021-04-12"
_TOKEN_SECONDS: Final = 3600
_TIMEOUT_SECONDS: Final = 30


class HubRefused(Exception):
    """The hub is none that this runtime may join, or it does not know the device."""


class HubUnreachable(Exception):
    """The hub gave no answer, or one that may be better later."""


def sas_token(resource: str, key: str, *, seconds: int = _TOKEN_SECONDS) -> str:
    """Return a shared access signature for a resource such as `hub/devices/d/modules/m`."""
    quoted = urllib.parse.quote(resource, safe="")
    expiry = str(int(time.time()) + seconds)
    signature = urllib.parse.quote(_sign(quoted, expiry, key), safe="")
    return f"SharedAccessSignature sr={quoted}&sig={signature}&se={expiry}"


def token_is_valid(token: str, *, resource: str, key: str) -> bool:
    """Tell whether a token is for the resource, unexpired and signed with the key."""
    kind, _, rest = token.partition(" ")
    fields = split_fields(rest, "&")
    if kind != "SharedAccessSignature" or not {"sr", "sig", "se"} <= fields.keys():
        return False
    if urllib.parse.unquote(fields["sr"]).lower() != resource.lower():
        return False
    if not fields["se"].isdigit() or int(fields["se"]) < time.time():
        return False
    expected = _sign(fields["sr"], fields["se"], key)
    return hmac.compare_digest(expected, urllib.parse.unquote(fields["sig"]))


def _sign(quoted: str, expiry: str, key: str) -> str:
    digest = hmac.digest(base64.b64decode(key), f"{quoted}\n{expiry}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode("ascii")


def tls_context(trust_bundle: str) -> ssl.SSLContext:
    """Return a client context that trusts the bundle, or the system's authorities without one."""
    context = ssl.create_default_context(cadata=trust_bundle or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Keys:
    """The modules' keys, derived from a master key in the state folder."""

    def __init__(self, folder: Path) -> None:
        path = folder / "master.key"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.touch(mode=0o600)
            temporary.write_bytes(os.urandom(32))
            temporary.replace(path)
        self._master = path.read_bytes()

    def module(self, name: str) -> str:
        """Return a module's key in base64."""
        digest = hmac.digest(self._master, name.encode(), hashlib.sha256)
        return base64.b64encode(digest).decode("ascii")


class Registry:
    """The hub's REST calls that a device may make about its own modules."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._resource = f"{settings.hub}/devices/{settings.device_id}"

    def check_hub(self) -> None:
        """Refuse a hub that is not the emulator.

        Raises:
            HubRefused: it is another hub, or does not take the device's key.
            HubUnreachable: it did not answer.
        """
        self._request("GET", "/modules", allowed=(200,))

    def ensure_module(self, module: str, key: str) -> None:
        """Let a module have the key, creating its identity when there is none."""
        path = f"/modules/{urllib.parse.quote(module, safe='')}"
        _, listed = self._request("GET", "/modules", allowed=(200,))
        found = next((entry for entry in listed if entry.get("moduleId") == module), None)
        authentication = (found or {}).get("authentication") or {}
        if (authentication.get("symmetricKey") or {}).get("primaryKey") == key:
            return
        body = {
            "moduleId": module,
            "deviceId": self._settings.device_id,
            "managedBy": (found or {}).get("managedBy") or "iotEdge",
            "authentication": {
                "type": "sas",
                "symmetricKey": {"primaryKey": key, "secondaryKey": key},
            },
        }
        self._request("PUT", path, allowed=(200, 201), body=body, if_match="*" if found else "")

    def _request(
        self,
        method: str,
        path: str,
        *,
        allowed: tuple[int, ...],
        body: dict[str, Any] | None = None,
        if_match: str = "",
    ) -> tuple[int, Any]:
        settings = self._settings
        url = f"/devices/{urllib.parse.quote(settings.device_id, safe='')}{path}"
        headers = {"Authorization": sas_token(self._resource, settings.device_key)}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if if_match:
            headers["If-Match"] = if_match
        connection = http.client.HTTPSConnection(
            settings.hub_host,
            settings.hub_https_port,
            timeout=_TIMEOUT_SECONDS,
            context=tls_context(settings.trust_bundle),
        )
        try:
            connection.request(
                method,
                f"{url}?api-version={_API_VERSION}",
                json.dumps(body) if body is not None else None,
                headers,
            )
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise HubUnreachable(f"hub {settings.hub!r} gave no answer: {error}") from error
        finally:
            connection.close()
        if answer.headers.get(EMULATOR_HEADER) is None:
            raise HubRefused(
                f"hub {settings.hub!r} is not kvedge's emulator (no header {EMULATOR_HEADER});"
                " this stand-in runtime joins no other hub"
            )
        if answer.status in allowed:
            return answer.status, json.loads(text) if text else None
        message = (
            f"{method} {url}: hub answered {answer.status} {text[:200].decode(errors='replace')}"
        )
        raise HubUnreachable(message)
