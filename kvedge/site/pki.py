"""The site's own certificate authorities and every certificate that its parts show each other.

Four authorities that trust nothing of each other: `cluster` (API server, users, kubelets),
`front-proxy` (aggregation), `kubevirt` (virt-api, virt-controller, virt-handler) and `site` (hub
and registry). Certificates are strict X.509 (RFC 5280: critical basic constraints, key usage, key
identifiers), because Python 3.13 verifies so. What is on disk and still good is kept.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kvedge import names

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AUTHORITIES", "IDENTITIES", "LEAVES", "Identity", "Leaf", "ensure"]

_AUTHORITY_DAYS = 3650
_LEAF_DAYS = 397
_RENEW_DAYS = 30
_SERVER = ExtendedKeyUsageOID.SERVER_AUTH
_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

AUTHORITIES = ("cluster-ca", "front-proxy-ca", "kubevirt-ca", "site-ca")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate that one of the authorities signs; files `<name>.crt` and `<name>.key`."""

    name: str
    authority: str
    common_name: str
    organizations: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    """Host names and addresses."""
    usages: tuple[x509.ObjectIdentifier, ...] = (_CLIENT,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A user of the API server; file `identities/<name>.kubeconfig`."""

    name: str
    user: str
    groups: tuple[str, ...] = ()


def _account(name: str, account: str) -> Identity:
    # RBAC matches ServiceAccount subjects by user name, so a certificate with that name will do.
    return Identity(
        name=name,
        user=f"system:serviceaccount:kubevirt:{account}",
        groups=("system:serviceaccounts", "system:serviceaccounts:kubevirt"),
    )


IDENTITIES = (
    Identity(name="admin", user="kvedge-admin", groups=("system:masters",)),
    Identity(name="kube-controller-manager", user="system:kube-controller-manager"),
    Identity(name="kube-scheduler", user="system:kube-scheduler"),
    _account("virt-api", "kubevirt-apiserver"),
    _account("virt-controller", "kubevirt-controller"),
    _account("handler", "kubevirt-handler"),
    Identity(name="node", user=f"system:node:{names.NODE_NAME}", groups=("system:nodes",)),
    Identity(name="volumes", user="kvedge:site:volumes", groups=("kvedge:site",)),
)

_LOCAL = ("localhost", "127.0.0.1")
LEAVES = (
    Leaf(
        name="kube-apiserver",
        authority="cluster-ca",
        common_name="kube-apiserver",
        alternatives=(
            *_LOCAL,
            names.API_ADDRESS,
            names.CLUSTER_SERVICE_ADDRESS,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            f"kubernetes.default.svc.{names.CLUSTER_DOMAIN}",
        ),
        usages=(_SERVER,),
    ),
    Leaf(
        name="kubelet-client",
        authority="cluster-ca",
        common_name="kube-apiserver-kubelet-client",
    ),
    Leaf(
        name="kubelet",
        authority="cluster-ca",
        common_name=f"system:node:{names.NODE_NAME}",
        organizations=("system:nodes",),
        alternatives=(names.NODE_NAME, names.NODE_ADDRESS),
        usages=(_SERVER,),
    ),
    Leaf(name="front-proxy-client", authority="front-proxy-ca", common_name="front-proxy-client"),
    Leaf(
        name="virt-api",
        authority="kubevirt-ca",
        common_name="virt-api.kubevirt.pod.cluster.local",
        # The API server uses the Service's name for webhooks and for the aggregated API.
        alternatives=("virt-api.kubevirt.svc", *_LOCAL),
        usages=(_SERVER, _CLIENT),
    ),
    Leaf(
        name="virt-controller",
        authority="kubevirt-ca",
        common_name="virt-controller.kubevirt.pod.cluster.local",
        alternatives=_LOCAL,
        usages=(_SERVER, _CLIENT),
    ),
    # virt-api and virt-handler check these two common names besides the authority.
    Leaf(
        name="handler-client",
        authority="kubevirt-ca",
        common_name="kubevirt.io:system:client:virt-handler",
    ),
    Leaf(
        name="handler-server",
        authority="kubevirt-ca",
        common_name="kubevirt.io:system:node:virt-handler",
        alternatives=(names.NODE_ADDRESS,),
        usages=(_SERVER,),
    ),
    Leaf(
        name="hub",
        authority="site-ca",
        common_name=names.HUB_HOST,
        alternatives=(names.HUB_HOST, *_LOCAL, names.HUB_ADDRESS),
        usages=(_SERVER,),
    ),
    Leaf(
        name="registry",
        authority="site-ca",
        common_name=names.REGISTRY_HOST,
        alternatives=(names.REGISTRY_HOST, *_LOCAL, names.REGISTRY_ADDRESS),
        usages=(_SERVER,),
    ),
    *(
        Leaf(
            name=f"user-{identity.name}",
            authority="cluster-ca",
            common_name=identity.user,
            organizations=identity.groups,
        )
        for identity in IDENTITIES
    ),
)


def ensure(folder: Path, *, now: datetime.datetime | None = None) -> list[str]:
    """Make every authority, certificate and key that is missing or nearly over.

    Returns:
        Names of what was made anew; parts that show these must be restarted.
    """
    moment = now or datetime.datetime.now(datetime.UTC)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made: list[str] = []
    authorities: dict[str, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {}
    for name in AUTHORITIES:
        found = _read(folder, name)
        if found is None or _is_over(found[0], moment):
            found = _mint_authority(folder, name, moment)
            made.append(name)
        authorities[name] = found
    for leaf in LEAVES:
        authority = authorities[leaf.authority]
        found = _read(folder, leaf.name)
        if found is None or not _fits(found[0], leaf, authority[0], moment):
            _mint_leaf(folder, leaf, authority, moment)
            made.append(leaf.name)
    if not ((folder / "sa.key").exists() and (folder / "sa.pub").exists()):
        _make_account_key(folder)
        made.append("sa")
    return made


def _read(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    except (OSError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    # A kill between the two writes leaves a key that is not the certificate's.
    return (certificate, key) if certificate.public_key() == key.public_key() else None


def _is_over(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_after_utc - now < datetime.timedelta(days=_RENEW_DAYS)


def _fits(
    certificate: x509.Certificate,
    leaf: Leaf,
    authority: x509.Certificate,
    now: datetime.datetime,
) -> bool:
    if _is_over(certificate, now) or certificate.subject != _subject(leaf):
        return False
    extensions = certificate.extensions
    try:
        signer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        alternatives = (
            extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            if leaf.alternatives
            else None
        )
    except x509.ExtensionNotFound:
        return False
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        signer.key_identifier == identifier.digest
        and set(usages) == set(leaf.usages)
        and (alternatives is None or alternatives == _alternatives(leaf))
    )


def _subject(leaf: Leaf) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, item) for item in leaf.organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, leaf.common_name),
        ]
    )


def _alternatives(leaf: Leaf) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            x509.IPAddress(ipaddress.ip_address(item)) if item[0].isdigit() else x509.DNSName(item)
            for item in leaf.alternatives
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # A guest's clock may be behind when it meets the hub for the first time.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _mint_authority(
    folder: Path, name: str, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kvedge {name}")])
    certificate = (
        _builder(subject, subject, key.public_key(), now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(folder, name, certificate, key)
    return certificate, key


def _mint_leaf(
    folder: Path,
    leaf: Leaf,
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    now: datetime.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer, signer_key = authority
    identifier = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_subject(leaf), signer.subject, key.public_key(), now, _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(leaf.usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
    )
    if leaf.alternatives:
        builder = builder.add_extension(_alternatives(leaf), critical=False)
    _write_pair(folder, leaf.name, builder.sign(signer_key, hashes.SHA256()), key)


def _make_account_key(folder: Path) -> None:
    # Service account tokens are RS256: some clients verify nothing else.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write(folder / "sa.key", _pem(key), 0o600)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(folder / "sa.pub", public, 0o644)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write_pair(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    _write(folder / f"{name}.key", _pem(key), 0o600)
    _write(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    with open(handle, "wb") as file:
        file.write(data)
