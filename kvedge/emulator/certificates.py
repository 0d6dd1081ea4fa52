"""A CA and a server certificate of the hub's own, for those who bring none.

The extensions are the ones that Python 3.13's strict verification asks for: a critical
basicConstraints, key usages and key identifiers in the CA, an authority key identifier in the leaf.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["ensure"]

_YEARS = datetime.timedelta(days=3650)


def ensure(directory: Path, hosts: Iterable[str]) -> tuple[Path, Path, Path]:
    """Return the paths of CA, certificate and key in the folder; make them if they are not there.

    The certificate covers `hosts`, localhost and 127.0.0.1; it is made anew when that changes.
    """
    ca, certificate, key = (directory / name for name in ("ca.crt", "hub.crt", "hub.key"))
    wanted = sorted({"localhost", "127.0.0.1", *hosts})
    note = directory / "hub.names"
    text = "\n".join(wanted)
    if not (key.exists() and note.exists() and note.read_text(encoding="utf-8") == text):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(ca, certificate, key, wanted)
        note.write_text(text, encoding="utf-8")
    return ca, certificate, key


def _make(ca_path: Path, certificate_path: Path, key_path: Path, hosts: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def usage(*, ca: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not ca,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
        )

    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    ca_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        x509.CertificateBuilder()
        .subject_name(named("kvedge hub CA"))
        .issuer_name(named("kvedge hub CA"))
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(ca=True), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        x509.CertificateBuilder()
        .subject_name(named(hosts[0]))
        .issuer_name(ca.subject)
        .public_key(leaf_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _YEARS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_path.write_bytes(ca.public_bytes(pem))
    certificate_path.write_bytes(leaf.public_bytes(pem))
    descriptor = os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            leaf_key.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _general(host: str):  # noqa: ANN202 - the library is imported late
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
