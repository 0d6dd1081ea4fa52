"""Names of images in registries, and logins with docker's own credentials."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors

if TYPE_CHECKING:
    import ssl

__all__ = ["Reference", "authorization", "credentials"]

_LIMIT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Where an image is."""

    host: str
    """With port if there is one."""
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """Return it as people write it."""
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def credentials(host: str, *, config: Path | None = None) -> tuple[str, str] | None:
    """Return user and password of a registry from docker's configuration."""
    folder = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    file = config or folder / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as cause:
        raise errors.KvedgeError(f"cannot read {str(file)!r}: {cause}") from cause
    entry = raw.get("auths", {}).get(host) or raw.get("auths", {}).get(f"https://{host}")
    if not entry:
        return None
    if "auth" in entry:
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return user, password
    if "username" in entry:
        return entry["username"], entry.get("password", "")
    return None


def authorization(challenge: str, where: Reference, *, doing: str, context: ssl.SSLContext) -> str:
    """Return the Authorization header that answers a WWW-Authenticate header, or nothing.

    Raises:
        Unauthorized: the registry wants credentials to be sent in the clear.
    """
    known = credentials(where.host)
    basic = ""
    if known:
        basic = "Basic " + base64.b64encode(f"{known[0]}:{known[1]}".encode()).decode()
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic":
        return basic
    if kind.lower() != "bearer":
        return ""
    ask = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urllib.parse.urlsplit(ask.get("realm", ""))
    if realm.scheme != "https":
        raise errors.Unauthorized(
            f"{doing} {where}", status=401, details=f"token realm {realm.geturl()!r}"
        )
    actions = "pull" if doing.startswith("pull") else "pull,push"
    scope = ask.get("scope") or f"repository:{where.repository}:{actions}"
    query = urllib.parse.urlencode({"service": ask.get("service", ""), "scope": scope})
    with contextlib.closing(
        http.client.HTTPSConnection(realm.netloc, timeout=_LIMIT_SECONDS, context=context)
    ) as connection:
        headers = {"Authorization": basic} if basic else {}
        connection.request("GET", f"{realm.path}?{query}", headers=headers)
        answer = connection.getresponse()
        data = answer.read()
    if answer.status != 200:
        return ""
    found = json.loads(data)
    return f"Bearer {found.get('token') or found.get('access_token', '')}"
