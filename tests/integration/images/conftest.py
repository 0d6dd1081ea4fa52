"""A real OCI registry on loopback with TLS, and first-boot data as users copy it from pages."""

import contextlib
import datetime
import ipaddress
import socket
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kvedge import processes, tools
from kvedge.testing.waiting import until

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http:
  addr: 127.0.0.1:{port}
  tls: {{certificate: {cert}, key: {key}}}
"""


# After cloud-init's own documentation: docs.cloud-init.io/en/latest/reference/yaml_examples.
FAMILIES = {
    "users": {
        "users": [
            "default",
            {
                "name": "ops",
                "gecos": "Plant operator",
                "groups": ["docker"],
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "shell": "/bin/bash",
                "ssh_authorized_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA ops@plant"],
            },
        ]
    },
    "write_files": {
        "write_files": [
            {
                "path": "/etc/plant.conf",
                "encoding": "b64",
                "content": "bGluZSA9IDcK",
                "owner": "root:adm",
                "permissions": "0640",
            }
        ]
    },
    "runcmd": {
        "runcmd": [["sh", "-c", "echo hello world > /var/tmp/ran"], "true && ls -l / >/dev/null"]
    },
    "mounts": {
        "mounts": [["tmpfs", "/srv/scratch", "tmpfs", "size=8m,nofail", "0", "0"]],
        "swap": {"filename": "/swap.img", "size": 64 << 20},
    },
    "ntp": {
        "ntp": {"enabled": True, "ntp_client": "systemd-timesyncd", "servers": ["time.example"]}
    },
    "proxies": {"apt": {"http_proxy": "http://proxy.example:3128", "preserve_sources_list": True}},
}


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Return certificate and key of a self-signed authority for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """Host with port, and authority, of a running docker-registry."""
    folder = tmp_path_factory.mktemp("registry")
    program = tools.ensure(["docker-registry"])["docker-registry"]
    cert, key = _certificate(folder)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", port=port, cert=cert, key=key))
    child = processes.popen([program, "serve", config], log=folder / "registry.log")
    try:

        def listening():
            assert child.poll() is None, (folder / "registry.log").read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        until(listening, seconds=60)
        yield f"localhost:{port}", cert
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def other_authority(tmp_path):
    """An authority that signed nothing."""
    return _certificate(tmp_path)[0]
