"""The edge hub's own certificates: an authority made at the first start, and a server certificate.

Both are made by the openssl program, as Python's standard library cannot make any.
"""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING, Final

from kvedge.edgesim import programs

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EdgeCertificates", "ensure_certificates", "server_context"]

_DAYS: Final = "3650"


class EdgeCertificates:
    """Files below the state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority_key = folder / "edge-ca.key"
        self.authority = folder / "edge-ca.pem"
        self.server_key = folder / "edge-hub.key"
        self.server = folder / "edge-hub.pem"
        self.hostname = folder / "edge-hub.hostname"
        self.bundle = folder / "module-ca.pem"
        """What modules trust: the edge authority and the device's trust bundle."""


def ensure_certificates(folder: Path, *, hostname: str, trust_bundle: str) -> EdgeCertificates:
    """Make what is missing or is for another host name; return the files.

    Raises:
        ProgramError: openssl failed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = EdgeCertificates(folder)
    if not (files.authority.exists() and files.authority_key.exists()):
        _make_authority(files, hostname)
    known = files.hostname.read_text("utf-8") if files.hostname.exists() else ""
    if known != hostname or not files.server.exists():
        _make_server(files, hostname)
    bundle = files.authority.read_text("ascii") + trust_bundle
    if not files.bundle.exists() or files.bundle.read_text("utf-8") != bundle:
        # Written in place: containers have this very file mounted.
        files.bundle.write_text(bundle, "utf-8")
        files.bundle.chmod(0o644)
    return files


def server_context(files: EdgeCertificates) -> ssl.SSLContext:
    """Return the listener's TLS context; device clients use TLS 1.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.server, files.server_key)
    return context


def _make_authority(files: EdgeCertificates, hostname: str) -> None:
    _key(files.authority_key)
    programs.output(
        (
            "openssl", "req", "-x509", "-new", "-sha256", "-days", _DAYS,
            "-key", str(files.authority_key),
            "-subj", f"/CN=kvedge edge authority {hostname[:40]}",
            "-addext", "basicConstraints=critical,CA:TRUE,pathlen:0",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-out", str(files.authority),
        )
    )  # fmt: skip
    files.server.unlink(missing_ok=True)


def _make_server(files: EdgeCertificates, hostname: str) -> None:
    _key(files.server_key)
    request = files.folder / "edge-hub.csr"
    extensions = files.folder / "edge-hub.ext"
    extensions.write_text(
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\n"
        "subjectKeyIdentifier=hash\n"
        "authorityKeyIdentifier=keyid\n"
        f"subjectAltName={_alternative_name(hostname)}\n",
        "utf-8",
    )
    programs.output(
        ("openssl", "req", "-new", "-key", str(files.server_key),
         "-subj", "/CN=kvedge edge hub", "-out", str(request))
    )  # fmt: skip
    programs.output(
        (
            "openssl", "x509", "-req", "-sha256", "-days", _DAYS, "-in", str(request),
            "-CA", str(files.authority), "-CAkey", str(files.authority_key), "-CAcreateserial",
            "-extfile", str(extensions), "-out", str(files.server),
        )
    )  # fmt: skip
    request.unlink()
    extensions.unlink()
    files.hostname.write_text(hostname, "utf-8")


def _key(path: Path) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    programs.output(
        ("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-out", str(path))
    )  # fmt: skip


def _alternative_name(hostname: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(hostname)}"
    except ValueError:
        return f"DNS:{hostname}"
