"""Who may do what: the hub's names, its policies, and the check of tokens."""

from __future__ import annotations

import dataclasses
import enum
import urllib.parse
from typing import TYPE_CHECKING

from kvedge.emulator import records, times, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvedge.emulator.clientcerts import Authorities, Chain
    from kvedge.emulator.store import Store

__all__ = ["Access", "Caller", "Right"]


class Right(enum.Flag):
    """What a policy allows."""

    REGISTRY_READ = enum.auto()
    REGISTRY_WRITE = enum.auto()
    SERVICE_CONNECT = enum.auto()
    DEVICE_CONNECT = enum.auto()


_POLICIES = {
    "iothubowner": Right.REGISTRY_READ
    | Right.REGISTRY_WRITE
    | Right.SERVICE_CONNECT
    | Right.DEVICE_CONNECT,
    "service": Right.SERVICE_CONNECT,
    "device": Right.DEVICE_CONNECT,
    "registryRead": Right.REGISTRY_READ,
    "registryReadWrite": Right.REGISTRY_READ | Right.REGISTRY_WRITE,
}


_NO_RIGHTS = Right(0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose token a request carried."""

    rights: Right = _NO_RIGHTS
    device_id: str = ""
    """Set for a device that speaks for itself."""


class Access:
    """Checks tokens and certificates against the hub's policies and its identities."""

    def __init__(self, store: Store, names: Iterable[str], authorities: Authorities) -> None:
        """Answer to these names, each with or without a port."""
        self._store = store
        self._authorities = authorities
        self._audiences: set[str] = set()
        for name in names:
            self.answer_to(name)
        self._keys = self._made_keys()

    def answer_to(self, name: str) -> None:
        """Accept tokens for one more name (`host` or `host:port`)."""
        lower = name.lower()
        self._audiences |= {lower} if ":" in lower else {lower, f"{lower}:443", f"{lower}:8883"}

    def is_audience(self, name: str) -> bool:
        """Tell whether a name is one of this hub's."""
        return name.lower() in self._audiences

    def policy_key(self, policy: str) -> str:
        """Return a policy's primary key."""
        return self._keys[policy][0]

    def connection_string(self, host: str, policy: str = "iothubowner") -> str:
        """Return a service connection string for one of the hub's names."""
        return tokens.connection_string(host, policy, self.policy_key(policy))

    def service_caller(self, header: str, path: str) -> Caller | None:
        """Return who sends an HTTPS request, None if the token is not good."""
        token = tokens.parse(header)
        if token is None or token.expiry <= times.now():
            return None
        host, _, inner = token.resource.partition("/")
        if host not in self._audiences:
            return None
        if token.policy:
            if inner and not f"{path.lower().rstrip('/')}/".startswith(f"/{inner}/"):
                return None
            rights = self._policy_rights(token)
            return Caller(rights=rights) if rights is not None else None
        kind, _, device_id = inner.partition("/")
        if kind != "devices" or not device_id or "/" in device_id:
            return None
        identity = self._store.identities.get(_spelled(path, device_id))
        if identity is None or not identity.enabled or not _signed_by_identity(token, identity):
            return None
        return Caller(device_id=identity.device_id)

    def device_expiry(self, key: str, password: str) -> int | None:
        """Return when a device's or module's session ends, None if the token is not good."""
        token = tokens.parse(password)
        identity = self._store.identities.get(key)
        device = self._store.identities.get(key.partition("/")[0])
        if token is None or identity is None or device is None or not device.enabled:
            return None
        host, _, inner = token.resource.partition("/")
        resource = f"devices/{identity.device_id}"
        if identity.module_id:
            resource += f"/modules/{identity.module_id}"
        resource = resource.lower()
        if host not in self._audiences or token.expiry <= times.now():
            return None
        if token.policy:
            rights = self._policy_rights(token)
            covered = not inner or f"{resource}/".startswith(f"{inner}/")
            good = rights is not None and Right.DEVICE_CONNECT in rights and covered
        else:
            # Some clients quote the ids once more inside the resource.
            good = resource in (inner, urllib.parse.unquote(inner)) and _signed_by_identity(
                token, identity
            )
        return token.expiry if good else None

    def vouches_for(self, chain: Chain) -> bool:
        """Tell whether a certificate could belong to an identity of this hub."""
        known = any(self._store.knows_thumbprint(text) for text in chain.thumbprints)
        return known or self._authorities.vouch_for(chain)

    def certificate_expiry(self, key: str, chain: Chain | None) -> int | None:
        """Return when a session with a client certificate ends, None if it proves nothing.

        A thumbprint belongs to one identity; below an authority the common name is the device's id,
        or `device/module`.
        """
        identity = self._store.identities.get(key)
        device = self._store.identities.get(key.partition("/")[0])
        if chain is None or identity is None or device is None or not device.enabled:
            return None
        by_authority = identity.auth == "certificateAuthority" and chain.common_name == key
        good = chain.shows(identity) or (by_authority and self._authorities.vouch_for(chain))
        return chain.expiry if good and chain.expiry > times.now() else None

    def certified_caller(self, chain: Chain | None, path: str) -> Caller | None:
        """Return the device that sends an HTTPS request with its certificate and no token."""
        parts = path.split("/")
        device_id = parts[2] if len(parts) > 2 and parts[1] == "devices" else ""
        good = self.certificate_expiry(device_id, chain) is not None
        return Caller(device_id=device_id) if good else None

    def _policy_rights(self, token: tokens.Token) -> Right | None:
        keys = self._keys.get(token.policy)
        if keys is None:
            return None
        matches = [token.signed_by(key) for key in keys]
        return _POLICIES[token.policy] if any(matches) else None

    def _made_keys(self) -> dict[str, tuple[str, str]]:
        """Return the policies' keys; the first start of a store draws them at random."""
        found = self._store.values.get("policies") or {}
        missing = {
            name: (tokens.new_key(), tokens.new_key()) for name in _POLICIES if name not in found
        }
        if missing:
            with self._store.transaction() as transaction:
                transaction.put_value("policies", {**found, **missing})
        return {name: tuple(keys) for name, keys in self._store.values["policies"].items()}


def _signed_by_identity(token: tokens.Token, identity: records.Identity) -> bool:
    if identity.auth != "sas":
        return False
    keys = (identity.primary_key or "", identity.secondary_key or "")
    matches = [token.signed_by(key) for key in keys]
    return any(matches)


def _spelled(path: str, device_id: str) -> str:
    """Return the device id as the request's path spells it; tokens are compared in lower case."""
    parts = path.split("/")
    named = parts[2] if len(parts) > 2 and parts[1] == "devices" else ""
    return named if named.lower() == device_id else device_id
