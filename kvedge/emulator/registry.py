"""The identity registry: devices and modules, one by one and in bulk.

Rules seen on the live service: PUT without If-Match makes, with If-Match changes; a body without
`authentication` gets new keys; DELETE wants If-Match; an edge device gets `$edgeAgent`,
`$edgeHub` and a scope of its own.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, documents, patching, records, times, tokens
from kvedge.emulator.records import Identity, Json, Twin

if TYPE_CHECKING:
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.store import Store, Transaction

__all__ = ["Registry", "match_etag", "new_module"]

_DEVICE_ID = re.compile(r"[A-Za-z0-9\-:.+%_#*?!(),=@$']{1,128}")
_MODULES = 50
_PAGE = 1000
_AUTH_TYPES = ("sas", "selfSigned", "certificateAuthority", "none")


class Registry:
    """Makes, changes and removes identities, each with its twin."""

    def __init__(self, store: Store, presence: Presence) -> None:
        self._store = store
        self._presence = presence

    def device(self, device_id: str) -> Json:
        """Return a device identity."""
        return self._shown(self.find(device_id))

    def devices(self, top: int) -> list[Json]:
        """Return up to `top` device identities; the service itself gives at most 1000."""
        found = [item for item in self._store.identities.values() if not item.module_id]
        return [self._shown(item) for item in found[: min(top, _PAGE)]]

    def module(self, device_id: str, module_id: str) -> Json:
        """Return a module identity."""
        return self._shown(self.find(device_id, module_id))

    def modules(self, device_id: str) -> list[Json]:
        """Return all module identities of a device."""
        self.find(device_id)
        return [self._shown(item) for item in self._store.modules_of(device_id)]

    def find(self, device_id: str, module_id: str = "") -> Identity:
        """Return an identity's record; raises DeviceNotFound or ModuleNotFound."""
        device = self._store.identities.get(device_id)
        if device is None:
            raise catalogue.HubError("DeviceNotFound", f"Device {device_id} not registered.")
        if not module_id:
            return device
        module = self._store.identities.get(records.key_of(device_id, module_id))
        if module is None:
            raise catalogue.HubError(
                "ModuleNotFound", f"Module {module_id} on device {device_id} not registered."
            )
        return module

    def put(self, device_id: str, module_id: str, body: Any, if_match: str | None) -> Json:
        """Make (without If-Match) or replace (with it) an identity."""
        _require_object(body)
        _check_named(body, "deviceId", device_id)
        key = records.key_of(device_id, module_id)
        old = self._store.identities.get(key)
        if module_id:
            _check_named(body, "moduleId", module_id)
            self.find(device_id)
        if if_match is None:
            if old is not None:
                self._refuse_twice(device_id, module_id)
            new = self._made(device_id, module_id, body)
        else:
            old = self.find(device_id, module_id)
            match_etag(if_match, old.etag)
            new = self._changed(old, body)
        with self._store.transaction() as transaction:
            self._write(transaction, old, new)
        self._settle(old, new)
        return self._shown(new)

    def delete(self, device_id: str, module_id: str, if_match: str | None) -> None:
        """Remove an identity with all that belongs to it."""
        if if_match is None:
            raise catalogue.HubError("PreconditionFailed", "Etag missing")
        identity = self.find(device_id, module_id)
        match_etag(if_match, identity.etag)
        if module_id in records.RUNTIME_MODULES and self.find(device_id).edge:
            raise catalogue.HubError("SystemModuleModifyUnauthorizedAccess")
        self._remove(identity)

    def bulk(self, body: Any) -> tuple[bool, Json]:
        """Do up to 100 operations; returns whether all went well, and the answer's body."""
        if not isinstance(body, list) or not all(isinstance(item, dict) for item in body):
            raise catalogue.HubError("IotHubFormatError", "The body must be an array of devices.")
        if not 1 <= len(body) <= 100:
            raise catalogue.HubError("ArgumentInvalid", "One request takes 1 to 100 devices.")
        failures = []
        for item in body:
            try:
                self._bulk_item(item)
            except catalogue.HubError as error:
                failure = {
                    "deviceId": item.get("id"),
                    "errorCode": error.code.name,
                    "errorStatus": error.text,
                }
                failures.append(failure | ({"moduleId": m} if (m := item.get("moduleId")) else {}))
        answer = {"isSuccessful": not failures, "errors": failures, "warnings": []}
        return not failures, answer

    def statistics(self) -> Json:
        """Return the registry's counts of devices."""
        devices = [item for item in self._store.identities.values() if not item.module_id]
        enabled = sum(item.enabled for item in devices)
        return {
            "totalDeviceCount": len(devices),
            "enabledDeviceCount": enabled,
            "disabledDeviceCount": len(devices) - enabled,
        }

    def _bulk_item(self, item: Json) -> None:
        device_id, module_id = item.get("id"), item.get("moduleId") or ""
        if not isinstance(device_id, str) or not isinstance(module_id, str):
            raise catalogue.HubError("ArgumentInvalid", "'id' must be a text.")
        mode = str(item.get("importMode") or "create")
        body = {**item, "deviceId": device_id}
        etag, twin_etag = item.get("eTag"), item.get("twinETag")
        match mode.lower():
            case "create":
                self.put(device_id, module_id, body, None)
                self._import_twin(device_id, module_id, item, "*")
            case "update":
                self.put(device_id, module_id, body, "*")
            case "updateifmatchetag":
                self.put(device_id, module_id, body, str(etag))
            case "delete":
                self.delete(device_id, module_id, "*")
            case "deleteifmatchetag":
                self.delete(device_id, module_id, str(etag))
            case "updatetwin":
                self.find(device_id, module_id)
                self._import_twin(device_id, module_id, item, "*")
            case "updatetwinifmatchetag":
                self.find(device_id, module_id)
                self._import_twin(device_id, module_id, item, str(twin_etag))
            case _:
                raise catalogue.HubError("ArgumentInvalid", f"Unknown importMode {mode!r}.")

    def _import_twin(self, device_id: str, module_id: str, item: Json, if_match: str) -> None:
        twin = self._store.twins[records.key_of(device_id, module_id)]
        match_etag(if_match, twin.etag)
        tags = item.get("tags") or {}
        desired = (item.get("properties") or {}).get("desired") or {}
        if not tags and not desired:
            return
        patching.check("Tags", tags)
        patching.check("Properties.Desired", desired)
        stamp = times.stamp()
        new = dataclasses.replace(
            twin,
            tags=patching.merged_values(twin.tags, tags),
            desired=patching.merged(twin.desired, desired, stamp, versioned=True),
            writes=twin.writes + 1,
            version=twin.version + 1,
        )
        with self._store.transaction() as transaction:
            transaction.put(new)
        self._presence.announce(device_id)

    def _made(self, device_id: str, module_id: str, body: Json) -> Identity:
        if not _DEVICE_ID.fullmatch(device_id):
            raise catalogue.HubError("ArgumentInvalid", f"Device id {device_id!r} is not allowed.")
        if module_id:
            if module_id.startswith("$") or not _DEVICE_ID.fullmatch(module_id):
                raise catalogue.HubError(
                    "ArgumentInvalid", f"Module id {module_id!r} is not allowed."
                )
            if len(self._store.modules_of(device_id)) >= _MODULES:
                raise catalogue.HubError("TooManyModulesOnDevice")
        blank = Identity(
            device_id=device_id,
            module_id=module_id,
            generation_id=_generation(),
            revision=secrets.randbelow(9 * 10**8) + 10**8,
        )
        return dataclasses.replace(self._changed(blank, body), revision=blank.revision)

    def _changed(self, old: Identity, body: Json) -> Identity:
        status = str(body.get("status") or "enabled").lower()
        if status not in ("enabled", "disabled"):
            raise catalogue.HubError("ArgumentInvalid", f"Unknown status {status!r}.")
        enabled = status == "enabled" or bool(old.module_id)
        edge = bool((body.get("capabilities") or {}).get("iotEdge")) and not old.module_id
        parents = tuple(str(item) for item in body.get("parentScopes") or ())
        scope = body.get("deviceScope") or None
        if edge:
            scope = old.scope or f"ms-azure-iot-edge://{old.device_id}-{_generation()}"
        elif scope and not parents:
            parents = (str(scope),)
        return dataclasses.replace(
            old,
            revision=old.revision + 1,
            enabled=enabled,
            status_reason=body.get("statusReason"),
            status_updated=times.stamp() if enabled != old.enabled else old.status_updated,
            edge=edge,
            scope=scope,
            parent_scopes=parents,
            managed_by=(body.get("managedBy") or old.managed_by) if old.module_id else None,
            **_authentication(body.get("authentication")),
        )

    def _write(self, transaction: Transaction, old: Identity | None, new: Identity) -> None:
        transaction.put(new)
        if old is None:
            transaction.put(_new_twin(new))
        if new.module_id:
            return
        for name in records.RUNTIME_MODULES:
            key = records.key_of(new.device_id, name)
            if new.edge and key not in self._store.identities:
                module = new_module(new.device_id, name, auth="none")
                transaction.put(module)
                transaction.put(_new_twin(module))
            elif not new.edge and key in self._store.identities:
                transaction.delete("identity", key)
                transaction.delete("twin", key)

    def _settle(self, old: Identity | None, new: Identity) -> None:
        """End connections that the change makes invalid, and tell the others."""
        if old is not None:
            if _credentials(old) != _credentials(new) or not new.enabled:
                self._presence.drop(new.key, "the identity's credentials changed")
            if not new.enabled:
                for module in self._store.modules_of(new.device_id):
                    self._presence.drop(module.key, "the device was disabled")
        self._presence.announce(new.device_id)

    def _remove(self, identity: Identity) -> None:
        doomed = [identity]
        if not identity.module_id:
            doomed += self._store.modules_of(identity.device_id)
        with self._store.transaction() as transaction:
            for item in doomed:
                transaction.delete("identity", item.key)
                transaction.delete("twin", item.key)
                transaction.delete("value", f"subscriptions/{item.key}")
            if not identity.module_id:
                for message in self._store.messages_of(identity.device_id):
                    transaction.delete("message", message.key)
        for item in doomed:
            self._presence.forget(item.key)
        self._presence.announce(identity.device_id)

    def _refuse_twice(self, device_id: str, module_id: str) -> None:
        if module_id:
            raise catalogue.HubError(
                "ModuleAlreadyExistsOnDevice",
                f"Module {module_id} already registered on device {device_id}.",
            )
        raise catalogue.HubError(
            "DeviceAlreadyExists", f"A device with ID '{device_id}' is already registered."
        )

    def _shown(self, identity: Identity) -> Json:
        seen = self._presence.of(identity.key)
        if identity.module_id:
            return documents.module_json(identity, seen)
        return documents.device_json(identity, seen, self._store.waiting(identity.device_id))


def match_etag(if_match: str, etag: str) -> None:
    """Raise PreconditionFailed unless the header is `*` or names this etag, quoted or not."""
    if if_match.strip() not in ("*", '"*"', etag, f'"{etag}"'):
        raise catalogue.HubError(
            "PreconditionFailed", "Precondition failed: the etag does not match."
        )


def new_module(device_id: str, module_id: str, *, auth: str = "sas") -> Identity:
    """Return the identity of a module that the hub itself makes for the edge runtime."""
    keyed = auth == "sas"
    return Identity(
        device_id=device_id,
        module_id=module_id,
        generation_id=_generation(),
        revision=secrets.randbelow(9 * 10**8) + 10**8,
        auth=auth,
        primary_key=tokens.new_key() if keyed else None,
        secondary_key=tokens.new_key() if keyed else None,
        managed_by="iotEdge",
    )


def _new_twin(identity: Identity) -> Twin:
    stamp = times.stamp()
    return Twin(
        device_id=identity.device_id,
        module_id=identity.module_id,
        desired=patching.empty(stamp),
        reported=patching.empty(stamp),
    )


def _authentication(given: Any) -> dict[str, Any]:
    """Return the fields of an Identity that a body's `authentication` stands for."""
    given = given or {}
    _require_object(given)
    kind = given.get("type") or ("selfSigned" if _thumbprints(given)[0] else "sas")
    if kind not in _AUTH_TYPES:
        raise catalogue.HubError("ArgumentInvalid", f"Unknown authentication type {kind!r}.")
    fields: dict[str, Any] = dict.fromkeys(
        ("primary_key", "secondary_key", "primary_thumbprint", "secondary_thumbprint")
    )
    fields["auth"] = kind
    if kind == "sas":
        keys = given.get("symmetricKey") or {}
        for name, field in (("primaryKey", "primary_key"), ("secondaryKey", "secondary_key")):
            key = keys.get(name) or tokens.new_key()
            if not isinstance(key, str) or not tokens.usable_key(key):
                raise catalogue.HubError(
                    "ArgumentInvalid", f"{name} must be base64 of 16 to 64 bytes."
                )
            fields[field] = key
    elif kind == "selfSigned":
        primary, secondary = _thumbprints(given)
        if not primary:
            raise catalogue.HubError("ArgumentInvalid", "A thumbprint is missing.")
        fields["primary_thumbprint"], fields["secondary_thumbprint"] = primary, secondary
    return fields


def _thumbprints(given: Json) -> tuple[str | None, str | None]:
    prints = given.get("x509Thumbprint") or {}
    return prints.get("primaryThumbprint") or None, prints.get("secondaryThumbprint") or None


def _credentials(identity: Identity) -> tuple[str | None, ...]:
    return (
        identity.auth,
        identity.primary_key,
        identity.secondary_key,
        identity.primary_thumbprint,
        identity.secondary_thumbprint,
    )


def _generation() -> str:
    """Return a generation id: the service's clock ticks of 100 ns since year 1."""
    return str(621355968000000000 + time.time_ns() // 100)


def _require_object(body: Any) -> None:
    if not isinstance(body, dict):
        raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")


def _check_named(body: Json, name: str, value: str) -> None:
    if body.get(name, value) != value:
        raise catalogue.HubError("ArgumentInvalid", f"'{name}' differs from the address.")
