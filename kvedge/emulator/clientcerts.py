"""Devices' X.509 certificates: which ones TLS lets in, and what they prove.

IoT Hub knows a self-signed certificate by its thumbprint alone, and OpenSSL verifies a chain before
anyone can look at the leaf. So the leaf is read from the handshake when it arrives, and becomes an
anchor of trust if an identity, an authority or an enrollment vouches for it; any other certificate
ends the handshake. Trust here says only that the client holds the key; who it is and whether it may
connect is asked anew for each session.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import ssl
import weakref
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from kvedge.emulator import catalogue, times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from kvedge.emulator.records import Identity, Json
    from kvedge.emulator.store import Store

__all__ = ["Authorities", "Chain", "ServerTls", "certificate_info", "parse_certificate"]

_HANDSHAKE, _CERTIFICATE = 22, 11
_LONGEST_CHAIN = 8
_PREFIX = "authority/"


@dataclasses.dataclass(frozen=True)
class Chain:
    """The certificates that a client has shown, its own first."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        """Return the client's own certificate."""
        return self.certificates[0]

    @functools.cached_property
    def thumbprints(self) -> frozenset[str]:
        """SHA-1 and SHA-256 of the leaf, as upper-case hex."""
        return frozenset(_thumbprint(self.leaf, kind) for kind in (hashes.SHA1(), hashes.SHA256()))  # noqa: S303 - the service's own thumbprint

    @functools.cached_property
    def common_name(self) -> str:
        """CN of the leaf's subject, "" without one."""
        found = self.leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(found[0].value) if found else ""

    @property
    def expiry(self) -> int:
        """When the leaf ends, in seconds since 1970."""
        return int(self.leaf.not_valid_after_utc.timestamp())

    def shows(self, identity: Identity) -> bool:
        """Tell whether the leaf has one of an identity's thumbprints."""
        return bool(identity.thumbprints & self.thumbprints)

    def leads_to(self, anchors: Iterable[x509.Certificate]) -> bool:
        """Tell whether each certificate is issued by the next one, up to one of the anchors."""
        now = datetime.datetime.now(datetime.UTC)
        trusted = [anchor for anchor in anchors if _is_authority(anchor, now)]
        for number, certificate in enumerate(self.certificates):
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                return False
            if any(_issued(certificate, anchor) for anchor in trusted):
                return True
            above = self.certificates[number + 1 : number + 2]
            if not above or not _is_authority(above[0], now) or not _issued(certificate, above[0]):
                return False
        return False


class Authorities:
    """The CA certificates of the hub; devices with `certificateAuthority` chain up to one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Json]:
        """Return every authority: its name, its PEM text and what the text says."""
        return [value for key, value in self._store.values.items() if key.startswith(_PREFIX)]

    def put(self, name: str, body: Any) -> Json:
        """Keep a CA certificate (`{"certificate": PEM}`) under a name."""
        certificate = parse_certificate(body.get("certificate") if isinstance(body, dict) else None)
        if not _is_authority(certificate, datetime.datetime.now(datetime.UTC)):
            raise catalogue.HubError(
                "ArgumentInvalid", f"The certificate {name!r} is no CA, or is not valid now."
            )
        kept = {
            "name": name,
            "certificate": _pem(certificate),
            "info": certificate_info(certificate),
        }
        with self._store.transaction() as transaction:
            transaction.put_value(f"{_PREFIX}{name}", kept)
        return kept

    def delete(self, name: str) -> None:
        """Forget a CA certificate; raises NotFound."""
        key = f"{_PREFIX}{name}"
        if key not in self._store.values:
            raise catalogue.HubError("NotFound", f"There is no authority {name!r}.")
        with self._store.transaction() as transaction:
            transaction.delete("value", key)

    def named(self, name: str) -> x509.Certificate | None:
        """Return a CA certificate by its name."""
        found = self._store.values.get(f"{_PREFIX}{name}")
        return parse_certificate(found["certificate"]) if found else None

    def vouch_for(self, chain: Chain) -> bool:
        """Tell whether a chain leads to one of the authorities."""
        return chain.leads_to(parse_certificate(item["certificate"]) for item in self.all())


class ServerTls:
    """The hub's side of TLS 1.2 and 1.3; clients may show a certificate."""

    def __init__(self, certificate: Path, key: Path, vouched: Callable[[Chain], bool]) -> None:
        """Serve with a certificate; `vouched` tells which clients' certificates are let in."""
        self._vouched = vouched
        self._chains: weakref.WeakKeyDictionary[Any, Chain] = weakref.WeakKeyDictionary()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The device SDK speaks TLS 1.2 only; nothing older is let in.
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(certificate, key)
        self.context.verify_mode = ssl.CERT_OPTIONAL
        # A leaf can be an anchor by itself.
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # The property of ssl.SSLContext would wrap the callback in Python for every single record.
        ssl.SSLContext.__base__._msg_callback.__set__(self.context, self._message)  # type: ignore[union-attr]  # noqa: SLF001 - OpenSSL tells of a certificate in no other way

    def chain_of(self, ssl_object: Any) -> Chain | None:
        """Return what the client of a finished handshake has shown."""
        return self._chains.get(ssl_object) if ssl_object is not None else None

    def _message(
        self, connection: Any, direction: str, version: int, content: int, kind: int, data: bytes
    ) -> None:
        if content != _HANDSHAKE or kind != _CERTIFICATE or direction != "read":
            return
        try:
            found = [x509.load_der_x509_certificate(item) for item in _listed(data, version)]
        except (ValueError, IndexError):
            return
        if not found:
            return
        chain = Chain(tuple(found))
        if self._vouched(chain):
            self._chains[connection] = chain
            leaf = chain.leaf.public_bytes(serialization.Encoding.DER)
            self.context.load_verify_locations(cadata=leaf)


def parse_certificate(text: Any) -> x509.Certificate:
    """Return the certificate of a PEM text, or of the base64 inside it; raises ArgumentInvalid."""
    if not isinstance(text, str) or not text:
        raise catalogue.HubError("ArgumentInvalid", "'certificate' must be a PEM text.")
    if "-----BEGIN" not in text:
        text = f"-----BEGIN CERTIFICATE-----\n{text.strip()}\n-----END CERTIFICATE-----\n"
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise catalogue.HubError("ArgumentInvalid", "'certificate' is no certificate.") from error


def certificate_info(certificate: x509.Certificate) -> Json:
    """Return what the provisioning service shows of a certificate (X509CertificateInfo)."""
    return {
        "subjectName": certificate.subject.rfc4514_string(),
        "issuerName": certificate.issuer.rfc4514_string(),
        "sha1Thumbprint": _thumbprint(certificate, hashes.SHA1()),  # noqa: S303 - named by the service
        "sha256Thumbprint": _thumbprint(certificate, hashes.SHA256()),
        "notBeforeUtc": times.stamp(certificate.not_valid_before_utc.timestamp()),
        "notAfterUtc": times.stamp(certificate.not_valid_after_utc.timestamp()),
        "serialNumber": f"{certificate.serial_number:X}",
        "version": 3,
    }


def _thumbprint(certificate: x509.Certificate, kind: hashes.HashAlgorithm) -> str:
    return certificate.fingerprint(kind).hex().upper()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _is_authority(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        return False
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _listed(data: bytes, version: int) -> list[bytes]:
    """Return the certificates of a Certificate message (RFC 5246 7.4.2, RFC 8446 4.4.2)."""
    newer = version >= ssl.TLSVersion.TLSv1_3
    at = 4 + (1 + data[4] if newer else 0) + 3
    found: list[bytes] = []
    while at + 3 <= len(data) and len(found) < _LONGEST_CHAIN:
        size = int.from_bytes(data[at : at + 3], "big")
        found.append(data[at + 3 : at + 3 + size])
        at += 3 + size
        if newer:
            at += 2 + int.from_bytes(data[at : at + 2], "big")
    return found
