"""A bare API server for tests: the fixture `cluster` is etcd and kube-apiserver on loopback.

The fixture `client` is a client of it with all rights.

Limits: no controllers and no scheduler, so pods are bound by their nodeName, nobody collects
garbage and no ServiceAccount is needed; one admin token. Everything else is the real thing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kvedge import kube, processes, tools

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator, Sequence

__all__ = ["Cluster", "client", "cluster", "free_ports", "running_cluster"]

_START_SECONDS = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running API server."""

    url: str
    kubeconfig: Path
    log: Path
    """What the API server printed."""
    pids: dict[str, int]
    """Process ids by program."""
    kubelet_client: Path
    """Certificate that the API server shows to kubelets; it signs itself."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yield an API server that all tests of the session share.

    With KVEDGE_TEST_CLUSTER=<folder> it is the one of `python -m kvedge.testing.clusters <folder>`.
    """
    if given := os.environ.get("KVEDGE_TEST_CLUSTER"):
        yield _cluster(Path(given), {})
        return
    folder = Path(tempfile.mkdtemp(prefix="kvedge-cluster-"))
    try:
        with running_cluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[kube.Client]:
    """Yield a client with all rights."""
    async with kube.Client(kube.load_config(cluster.kubeconfig)) as made:
        yield made


@contextlib.contextmanager
def running_cluster(folder: Path, options: Sequence[str] = ()) -> Iterator[Cluster]:
    """Run etcd and kube-apiserver, with further options, with their state in a folder."""
    programs = tools.ensure(["etcd", "kube-apiserver"])
    etcd_port, peer_port, api_port = free_ports(3)
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    key = folder / "sa.key"
    key.write_bytes(_private_key())
    client, client_key = folder / "kubelet-client.crt", folder / "kubelet-client.key"
    client_key.write_bytes(_private_key())
    client.write_bytes(_client_certificate(client_key.read_bytes()))
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    log = folder / "apiserver.log"
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(
            processes.popen(
                [
                    programs["etcd"],
                    f"--data-dir={folder / 'etcd'}",
                    f"--listen-client-urls={etcd_url}",
                    f"--advertise-client-urls={etcd_url}",
                    f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
                    "--unsafe-no-fsync",
                    "--log-level=error",
                ],
                log=folder / "etcd.log",
            )
        )
        started.append(
            processes.popen(
                [
                    programs["kube-apiserver"],
                    f"--etcd-servers={etcd_url}",
                    f"--secure-port={api_port}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=192.0.2.1",
                    "--endpoint-reconciler-type=none",
                    f"--cert-dir={folder / 'certs'}",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                    f"--kubelet-client-certificate={client}",
                    f"--kubelet-client-key={client_key}",
                    f"--token-auth-file={folder / 'tokens.csv'}",
                    "--authorization-mode=RBAC",
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--disable-admission-plugins=ServiceAccount",
                    *options,
                ],
                log=log,
            )
        )
        url = f"https://127.0.0.1:{api_port}"
        _await_ready(url, token, started, log)
        (folder / "kubeconfig").write_text(_KUBECONFIG.format(url=url, token=token))
        pids = {"etcd": started[0].pid, "kube-apiserver": started[1].pid}
        yield _cluster(folder, pids)
    finally:
        # Without etcd the API server lingers, so it goes first.
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _cluster(folder: Path, pids: dict[str, int]) -> Cluster:
    kubeconfig = folder / "kubeconfig"
    return Cluster(
        url=yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"],
        kubeconfig=kubeconfig,
        log=folder / "apiserver.log",
        pids=pids,
        kubelet_client=folder / "kubelet-client.crt",
    )


_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "{url}", insecure-skip-tls-verify: true}}}}]
users: [{{name: admin, user: {{token: {token}}}}}]
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
current-context: test
"""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody uses now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _private_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _client_certificate(key: bytes) -> bytes:
    """Return a certificate of the API server for kubelets."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    private = serialization.load_pem_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver-kubelet-client"),
        ]
    )
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def _await_ready(url: str, token: str, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{url}/api/v1/namespaces/kube-system", headers={"Authorization": f"Bearer {token}"}
    )
    # The environment's proxies do not lead to our own server.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if any(process.poll() is not None for process in started):
            break
        with contextlib.suppress(OSError), opener.open(request, timeout=5) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    raise RuntimeError("the API server does not start:\n" + log.read_text()[-2000:])


if __name__ == "__main__":
    # As Ctrl-C does, so that the programs are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), running_cluster(Path(sys.argv[1])):
        print(f"KVEDGE_TEST_CLUSTER={sys.argv[1]}", flush=True)  # noqa: T201 - for the shell
        signal.pause()
