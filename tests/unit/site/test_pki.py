"""The site's certificates."""

from __future__ import annotations

import datetime
import ssl
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509 import verification

from kvedge import names
from kvedge.site import pki

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site") / "pki"
    pki.ensure(path)
    return path


def _read(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def test_a_second_run_changes_nothing(folder: Path) -> None:
    """Certificates that are still good are kept, byte for byte."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert pki.ensure(folder) == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_keys_are_private(folder: Path) -> None:
    """No key can be read by anybody else."""
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
    assert modes == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("leaf", pki.LEAVES, ids=lambda leaf: leaf.name)
def test_every_certificate_passes_strict_verification(folder: Path, leaf: pki.Leaf) -> None:
    """The verifier follows RFC 5280 as Python 3.13's default context does."""
    store = verification.Store([_read(folder, leaf.authority)])
    builder = verification.PolicyBuilder().store(store)
    certificate = _read(folder, leaf.name)
    if leaf.alternatives and not leaf.alternatives[0][0].isdigit():
        builder.build_server_verifier(x509.DNSName(leaf.alternatives[0])).verify(certificate, [])
    extensions = certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert extensions.get_extension_for_class(x509.KeyUsage).critical
    signer = _read(folder, leaf.authority).extensions
    assert (
        extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == signer.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    certificate.verify_directly_issued_by(_read(folder, leaf.authority))


@pytest.mark.parametrize("host", [names.HUB_HOST, "localhost", "127.0.0.1", names.HUB_ADDRESS])
def test_the_hub_is_trusted_under_all_its_names(folder: Path, host: str) -> None:
    """Guests use the .test name, people use localhost, probes use the address."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "hub.crt", folder / "hub.key")
    client = ssl.create_default_context(cafile=str(folder / "site-ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    _shake_hands(server, client, host)


def test_authorities_do_not_trust_each_other(folder: Path) -> None:
    """A client of the cluster is nobody to the hub's authority, and the other way round."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "hub.crt", folder / "hub.key")
    client = ssl.create_default_context(cafile=str(folder / "cluster-ca.crt"))
    with pytest.raises(ssl.SSLError):
        _shake_hands(server, client, names.HUB_HOST)


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    import socket

    left, right = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(left, server_side=True).close()
        except OSError:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(right, server_hostname=host).close()
    finally:
        right.close()
        thread.join()


def test_a_certificate_is_made_anew_before_it_is_over(tmp_path: Path) -> None:
    """Within a month of its end a leaf is replaced; its authority stays."""
    pki.ensure(tmp_path / "pki")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=380)
    made = pki.ensure(tmp_path / "pki", now=later)
    assert set(made) == {leaf.name for leaf in pki.LEAVES}


def test_half_written_pairs_and_foreign_authorities_are_mended(tmp_path: Path) -> None:
    """A kill between two writes, or a lost authority, is repaired by the next run."""
    folder = tmp_path / "pki"
    pki.ensure(folder)
    (folder / "hub.key").write_bytes((folder / "registry.key").read_bytes())
    (folder / "kubevirt-ca.crt").unlink()
    made = set(pki.ensure(folder))
    assert {"hub", "kubevirt-ca", "virt-api", "virt-controller", "handler-server"} <= made
    assert "kube-apiserver" not in made
    assert pki.ensure(folder) == []


def test_no_component_is_an_admin() -> None:
    """Only the person at the keyboard and the bootstrap are in system:masters."""
    assert [item.name for item in pki.IDENTITIES if "system:masters" in item.groups] == ["admin"]
