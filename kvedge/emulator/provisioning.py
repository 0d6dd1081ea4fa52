"""Device provisioning (DPS) with symmetric keys: enrollments and registrations.

An individual enrollment belongs to one registration id; a group's devices derive their key as
HMAC-SHA256(group key, registration id). The device gets an identity in this hub.
Two fronts lead here: MQTT topics `$dps/…` and HTTPS `/{idScope}/registrations/…`.
X.509 and TPM attestation are refused.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, times, tokens

if TYPE_CHECKING:
    from kvedge.emulator.records import Json
    from kvedge.emulator.registry import Registry
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Provisioning", "derived_key"]

_REGISTRATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-._:]{0,127}")
_KINDS = ("individual", "group")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """A registration that its device asks for again."""

    registration_id: str
    answer: dict[str, Any]


class Provisioning:
    """All enrollments and what became of them."""

    def __init__(self, store: Store, registry: Registry, twins: Twins, host: str) -> None:
        """Provision into the hub that devices know as `host`."""
        self._store = store
        self._registry = registry
        self._twins = twins
        self._host = host
        self._operations: dict[str, _Operation] = {}
        if "id-scope" not in store.values:
            with store.transaction() as transaction:
                transaction.put_value("id-scope", f"0ne{secrets.token_hex(4).upper()}")

    @property
    def id_scope(self) -> str:
        """Return the scope that devices name."""
        return self._store.values["id-scope"]

    def enrollment(self, kind: str, name: str) -> Json:
        """Return an enrollment as it was written, with its keys."""
        found = self._store.values.get(f"enrollment/{kind}/{name}")
        if found is None:
            raise catalogue.HubError("EnrollmentNotFound", f"Enrollment {name!r} is not there.")
        return found

    def enrollments(self, kind: str) -> list[Json]:
        """Return all enrollments of a kind."""
        start = f"enrollment/{kind}/"
        return [value for key, value in self._store.values.items() if key.startswith(start)]

    def put(self, kind: str, name: str, body: Any) -> Json:
        """Make or replace an enrollment; keys that are not given are drawn."""
        assert kind in _KINDS
        if not isinstance(body, dict):
            raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")
        if not _REGISTRATION_ID.fullmatch(name):
            raise catalogue.HubError("ArgumentInvalid", f"The id {name!r} is not allowed.")
        attestation: Any = body.get("attestation") or {"type": "symmetricKey"}
        if not isinstance(attestation, dict) or attestation.get("type") != "symmetricKey":
            raise catalogue.HubError(
                "NotImplemented", "The emulator provisions with symmetric keys only."
            )
        given = attestation.get("symmetricKey") or {}
        keys = {field: given.get(field) or tokens.new_key() for field in
                ("primaryKey", "secondaryKey")}  # fmt: skip
        if not all(isinstance(key, str) and tokens.usable_key(key) for key in keys.values()):
            raise catalogue.HubError("ArgumentInvalid", "Keys must be base64 of 16 to 64 bytes.")
        old = self._store.values.get(f"enrollment/{kind}/{name}") or {}
        stamp = times.stamp()
        own = "registrationId" if kind == "individual" else "enrollmentGroupId"
        kept: Json = {
            **body,
            own: name,
            "attestation": {"type": "symmetricKey", "symmetricKey": keys},
            "capabilities": {
                "iotEdge": bool((body.get("capabilities") or {}).get("iotEdge", False))
            },
            "provisioningStatus": body.get("provisioningStatus") or "enabled",
            "createdDateTimeUtc": old.get("createdDateTimeUtc") or stamp,
            "lastUpdatedDateTimeUtc": stamp,
            "etag": base64.b64encode(secrets.token_bytes(8)).decode(),
        }
        with self._store.transaction() as transaction:
            transaction.put_value(f"enrollment/{kind}/{name}", kept)
        return kept

    def delete(self, kind: str, name: str) -> None:
        """Remove an enrollment; its devices stay."""
        self.enrollment(kind, name)
        with self._store.transaction() as transaction:
            transaction.delete("value", f"enrollment/{kind}/{name}")

    def admitted(self, scope: str, registration_id: str, password: str) -> Json | None:
        """Return the enrollment whose key signed a device's token, None if there is none."""
        token = tokens.parse(password)
        resource = f"{scope}/registrations/{registration_id}".lower()
        if token is None or token.expiry <= times.now() or token.resource != resource:
            return None
        if scope != self.id_scope or not _REGISTRATION_ID.fullmatch(registration_id):
            return None
        single = self._store.values.get(f"enrollment/individual/{registration_id}")
        candidates = [single] if single else self.enrollments("group")
        for enrollment in candidates:
            keys = _device_keys(enrollment, registration_id)
            matches = [token.signed_by(key) for key in keys]
            if any(matches) and enrollment["provisioningStatus"] == "enabled":
                return enrollment
        return None

    def register(self, registration_id: str, enrollment: Json) -> Json:
        """Assign a device; it hears of it by asking for the operation."""
        device_id = enrollment.get("deviceId") or registration_id
        primary, secondary = _device_keys(enrollment, registration_id)
        body: Json = {
            "deviceId": device_id,
            "authentication": {
                "type": "sas",
                "symmetricKey": {"primaryKey": primary, "secondaryKey": secondary},
            },
            "capabilities": enrollment["capabilities"],
        }
        again = device_id in self._store.identities
        self._registry.put(device_id, "", body, "*" if again else None)
        initial = enrollment.get("initialTwin")
        if initial and not again:
            self._twins.write(self._twins.find(device_id), initial, "*", replace=False)
        stamp = times.stamp()
        operation_id = f"4.{secrets.token_hex(8)}.{secrets.token_hex(16)}"
        answer: Json = {
            "operationId": operation_id,
            "status": "assigned",
            "registrationState": {
                "registrationId": registration_id,
                "createdDateTimeUtc": stamp,
                "assignedHub": self._host,
                "deviceId": device_id,
                "status": "assigned",
                "substatus": "initialAssignment",
                "lastUpdatedDateTimeUtc": stamp,
                "etag": base64.b64encode(secrets.token_bytes(8)).decode(),
            },
        }
        if len(self._operations) > 10_000:
            self._operations.clear()
        self._operations[operation_id] = _Operation(registration_id=registration_id, answer=answer)
        return {"operationId": operation_id, "status": "assigning"}

    def operation(self, registration_id: str, operation_id: str) -> Json:
        """Return what became of a registration."""
        found = self._operations.get(operation_id)
        if found is None or found.registration_id != registration_id:
            raise catalogue.HubError("OperationNotFound")
        return found.answer


def derived_key(group_key: str, registration_id: str) -> str:
    """Return the key of a group's device."""
    digest = hmac.new(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256)
    return base64.b64encode(digest.digest()).decode()


def _device_keys(enrollment: Json, registration_id: str) -> tuple[str, str]:
    keys = enrollment["attestation"]["symmetricKey"]
    both = keys["primaryKey"], keys["secondaryKey"]
    if "enrollmentGroupId" in enrollment:
        return derived_key(both[0], registration_id), derived_key(both[1], registration_id)
    return both
