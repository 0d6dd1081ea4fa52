"""Device provisioning (DPS): enrollments and registrations.

An individual enrollment belongs to one registration id; a group's devices derive their key as
HMAC-SHA256(group key, registration id). With X.509, an individual enrollment knows the device's own
certificate and a group the authority above it; the leaf's common name is the registration id.
The device gets an identity in this hub.
Two fronts lead here: MQTT topics `$dps/…` and HTTPS `/{idScope}/registrations/…`.
With a TPM, a device first gets a key that only its TPM can use, and signs with it from then on.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, clientcerts, sealing, times, tokens

if TYPE_CHECKING:
    from cryptography import x509

    from kvedge.emulator.records import Json
    from kvedge.emulator.registry import Registry
    from kvedge.emulator.store import Store
    from kvedge.emulator.twins import Twins

__all__ = ["Provisioning", "derived_key"]

_REGISTRATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-._:]{0,127}")
_KINDS = ("individual", "group")
_KEYS = ("primaryKey", "secondaryKey")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """A registration that its device asks for again."""

    registration_id: str
    answer: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Challenge:
    """A key that was sealed to the TPM of a device."""

    key: bytes = dataclasses.field(repr=False)
    endorsement: sealing.TpmKey
    storage: sealing.TpmKey

    def sealed(self, key: bytes) -> str:
        """Return one more key for the same TPM."""
        return sealing.seal(key, endorsement=self.endorsement, storage=self.storage)


class Provisioning:
    """All enrollments and what became of them."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        twins: Twins,
        authorities: clientcerts.Authorities,
        host: str,
    ) -> None:
        """Provision into the hub that devices know as `host`."""
        self._store = store
        self._registry = registry
        self._twins = twins
        self._authorities = authorities
        self._host = host
        self._operations: dict[str, _Operation] = {}
        self._challenges: dict[str, _Challenge] = {}
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
        old = self._store.values.get(f"enrollment/{kind}/{name}") or {}
        stamp = times.stamp()
        own = "registrationId" if kind == "individual" else "enrollmentGroupId"
        kept: Json = {
            **body,
            own: name,
            "attestation": self._attestation(kind, body.get("attestation")),
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

    def challenge(self, scope: str, registration_id: str, body: Any) -> str | None:
        """Return a key sealed to a device's TPM, which has to sign with it; None if not enrolled.

        Args:
            body: what the device registers with; names both keys of its TPM.
        """
        enrollment = self._store.values.get(f"enrollment/individual/{registration_id}")
        shown = body.get("tpm") if isinstance(body, dict) else None
        if scope != self.id_scope or not enrollment or not isinstance(shown, dict):
            return None
        attestation = enrollment["attestation"]
        if attestation["type"] != "tpm" or enrollment["provisioningStatus"] != "enabled":
            return None
        if shown.get("endorsementKey") != attestation["tpm"]["endorsementKey"]:
            return None
        challenge = _Challenge(
            key=secrets.token_bytes(32),
            endorsement=sealing.TpmKey(shown["endorsementKey"]),
            storage=sealing.TpmKey(shown.get("storageRootKey")),
        )
        self._challenges[registration_id] = challenge
        return challenge.sealed(challenge.key)

    def admitted(
        self, scope: str, registration_id: str, password: str, chain: clientcerts.Chain | None
    ) -> Json | None:
        """Return the enrollment that a device's token or certificate fits, None without one."""
        if scope != self.id_scope or not _REGISTRATION_ID.fullmatch(registration_id):
            return None
        single = self._store.values.get(f"enrollment/individual/{registration_id}")
        candidates = [single] if single else self.enrollments("group")
        resource = f"{scope}/registrations/{registration_id}".lower()
        token = tokens.parse(password)
        for enrollment in candidates:
            if enrollment["attestation"]["type"] == "x509":
                named = chain is not None and chain.common_name == registration_id
                good = not password and named and self._attested(enrollment, chain)
            else:
                good = (
                    token is not None
                    and token.resource == resource
                    and self._signed(token, enrollment, registration_id)
                )
            if good and enrollment["provisioningStatus"] == "enabled":
                return enrollment
        return None

    def vouches_for(self, chain: clientcerts.Chain) -> bool:
        """Tell whether a certificate fits an enrollment."""
        single = self._store.values.get(f"enrollment/individual/{chain.common_name}")
        candidates = [single] if single else self.enrollments("group")
        return any(
            item["attestation"]["type"] == "x509" and self._attested(item, chain)
            for item in candidates
        )

    def register(
        self, registration_id: str, enrollment: Json, chain: clientcerts.Chain | None
    ) -> Json:
        """Assign a device; it hears of it by asking for the operation."""
        device_id = enrollment.get("deviceId") or registration_id
        authentication, extra = self._credentials(enrollment, registration_id, chain)
        body: Json = {
            "deviceId": device_id,
            "authentication": authentication,
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
                **extra,
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

    def _attestation(self, kind: str, given: Any) -> Json:
        """Return an enrollment's attestation, whole; keys that are not given are drawn."""
        given = given or {"type": "symmetricKey"}
        if not isinstance(given, dict):
            raise catalogue.HubError("IotHubFormatError", "'attestation' must be an object.")
        match given.get("type"):
            case "symmetricKey":
                pair = given.get("symmetricKey") or {}
                keys = {name: pair.get(name) or tokens.new_key() for name in _KEYS}
                if not all(
                    isinstance(key, str) and tokens.usable_key(key) for key in keys.values()
                ):
                    raise catalogue.HubError(
                        "ArgumentInvalid", "Keys must be base64 of 16 to 64 bytes."
                    )
                return {"type": "symmetricKey", "symmetricKey": keys}
            case "x509":
                return {"type": "x509", "x509": self._x509(kind, given.get("x509"))}
            case "tpm" if kind == "individual":
                tpm = given.get("tpm")
                key = tpm.get("endorsementKey") if isinstance(tpm, dict) else None
                sealing.TpmKey(key)
                return {"type": "tpm", "tpm": {"endorsementKey": key}}
            case other:
                raise catalogue.HubError("ArgumentInvalid", f"Unknown attestation {other!r}.")

    def _signed(self, token: tokens.Token, enrollment: Json, registration_id: str) -> bool:
        """Tell whether one of a device's keys made its token, which is not over."""
        keys: tuple[str, ...] = ()
        if enrollment["attestation"]["type"] != "tpm":
            keys = _device_keys(enrollment, registration_id)
        elif challenge := self._challenges.get(registration_id):
            keys = (base64.b64encode(challenge.key).decode(),)
        matches = [token.signed_by(key) for key in keys]
        return any(matches) and token.expiry > times.now()

    def _credentials(
        self, enrollment: Json, registration_id: str, chain: clientcerts.Chain | None
    ) -> tuple[Json, Json]:
        """Return how the device will prove itself to the hub, and what it must hear about that."""
        match enrollment["attestation"]["type"]:
            case "x509":
                assert chain is not None
                prints = {"primaryThumbprint": max(chain.thumbprints, key=len)}
                return {"type": "selfSigned", "x509Thumbprint": prints}, {}
            case "tpm":
                key = secrets.token_bytes(32)
                pair = (base64.b64encode(key).decode(), tokens.new_key())
                sealed = self._challenges[registration_id].sealed(key)
                extra = {"tpm": {"authenticationKey": sealed}}
            case _:
                pair, extra = _device_keys(enrollment, registration_id), {}
        return {"type": "sas", "symmetricKey": dict(zip(_KEYS, pair, strict=True))}, extra

    def _x509(self, kind: str, given: Any) -> Json:
        """Return the certificates of an X.509 attestation, each with what the service shows."""
        field = "clientCertificates" if kind == "individual" else "signingCertificates"
        given = given if isinstance(given, dict) else {}
        references, pair = given.get("caReferences"), given.get(field)
        if isinstance(references, dict):
            for name in references.values():
                if self._authorities.named(str(name)) is None:
                    raise catalogue.HubError("ArgumentInvalid", f"There is no authority {name!r}.")
            return {"caReferences": references}
        if not isinstance(pair, dict) or not pair.get("primary"):
            raise catalogue.HubError("ArgumentInvalid", f"'x509.{field}.primary' is missing.")
        kept: Json = {}
        for name in ("primary", "secondary"):
            if isinstance(item := pair.get(name), dict):
                found = clientcerts.parse_certificate(item.get("certificate"))
                kept[name] = {
                    "certificate": item["certificate"],
                    "info": clientcerts.certificate_info(found),
                }
        return {field: kept}

    def _attested(self, enrollment: Json, chain: clientcerts.Chain | None) -> bool:
        """Tell whether a client's certificates are those of an X.509 enrollment."""
        if chain is None:
            return False
        attestation = enrollment["attestation"]["x509"]
        if own := attestation.get("clientCertificates"):
            prints = {item["info"]["sha256Thumbprint"] for item in own.values()}
            return bool(prints & chain.thumbprints)
        return chain.leads_to(self._anchors(attestation))

    def _anchors(self, attestation: Json) -> list[x509.Certificate]:
        if references := attestation.get("caReferences"):
            found = [self._authorities.named(str(name)) for name in references.values()]
            return [item for item in found if item is not None]
        return [
            clientcerts.parse_certificate(item["certificate"])
            for item in attestation["signingCertificates"].values()
        ]


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
