"""The certificate that the kubelet API is served with, and who is trusted as its client."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from typing import TYPE_CHECKING

from kvedge import errors

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["load_pair", "server_context", "signing_request"]

_DAYS = 365


def server_context(
    name: str,
    address: str,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
) -> ssl.SSLContext:
    """Return the TLS settings of the kubelet API.

    Without a certificate one is made that signs itself: API servers do not check a kubelet's
    certificate unless they are told its authority. Client certificates are asked for, not required,
    so that callers with a bearer token get in too.

    Raises:
        KvedgeError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        else:
            _load_self_signed(context, name, address)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as cause:
        raise errors.KvedgeError(
            f"cannot serve the kubelet API: {cause}",
            hint="check APISERVER_CERT_LOCATION, APISERVER_KEY_LOCATION and the client CA file",
        ) from cause
    return context


def _load_self_signed(context: ssl.SSLContext, name: str, address: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject, names = _subject(name, address)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    load_pair(context, made.public_bytes(serialization.Encoding.PEM), _pem(key))


def _subject(name: str, address: str) -> tuple[x509.Name, x509.SubjectAlternativeName]:
    """Return the names of a kubelet, as signers demand them."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if address:
        names.append(x509.IPAddress(ipaddress.ip_address(address)))
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{name}"[:64]),
        ]
    )
    return subject, x509.SubjectAlternativeName(names)


def signing_request(name: str, address: str) -> tuple[bytes, bytes]:
    """Return a new request for a kubelet's serving certificate and its private key, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject, names = _subject(name, address)
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM), _pem(key)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Serve new connections with a certificate and key, both in PEM."""
    # OpenSSL takes paths only; this file exists in memory alone.
    handle = os.memfd_create("kvedge-serving", os.MFD_CLOEXEC)
    try:
        os.write(handle, certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
