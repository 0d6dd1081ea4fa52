"""Finding a cluster: kubeconfig file, environment, or the pod that we run in.

Plain kubeconfigs (certificates, tokens, token files) are read here in a few milliseconds; anything
with a credential plug-in goes to the official client, whose import alone costs over a second
(docs/decisions/0003-plain-kubeconfigs.md).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Config", "load_config"]

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TOKEN_SECONDS = 60.0
"""How long a token file's content is used before it is read again (as client-go does)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Where a cluster is and how to prove who we are."""

    server: str
    """Base URL without a slash at its end."""
    ssl_context: ssl.SSLContext | None
    """Trust and client certificate; None for plain HTTP."""
    token: Callable[[], str | None]
    """Returns the bearer token of this moment, or None."""
    namespace: str
    """Namespace of the context, `default` if it names none."""
    source: str
    """File or place that this came from, for messages."""


def load_config(kubeconfig: Path | None = None, context: str | None = None) -> Config:
    """Find the cluster: the given file, `KUBECONFIG`, the pod's service account, `~/.kube/config`.

    Raises:
        KvedgeError: nothing was found, or the file names something that is not there.
    """
    if kubeconfig is None:
        named = [part for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
        if named:
            kubeconfig = Path(named[0])
        elif (_SERVICE_ACCOUNT / "token").exists() and "KUBERNETES_SERVICE_HOST" in os.environ:
            return _in_cluster()
        else:
            kubeconfig = Path.home() / ".kube" / "config"
    try:
        document = yaml.load(kubeconfig.read_text("utf-8"), _LOADER)  # noqa: S506 - a safe one
    except OSError as cause:
        raise errors.KvedgeError(
            f"cannot read kubeconfig {str(kubeconfig)!r}: {cause.strerror or cause}",
            hint="name one with --kubeconfig or KUBECONFIG, or start a local site: kvedge site up",
        ) from cause
    except yaml.YAMLError as cause:
        raise errors.KvedgeError(
            f"cannot read kubeconfig {str(kubeconfig)!r}: it is not YAML",
            hint="check the file with: kubectl config view",
        ) from cause
    return _from_document(document or {}, kubeconfig, context)


def _in_cluster() -> Config:
    host = os.environ["KUBERNETES_SERVICE_HOST"]
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    namespace = _SERVICE_ACCOUNT / "namespace"
    return Config(
        server=f"https://{host}:{port}",
        ssl_context=ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt")),
        token=_token_file(_SERVICE_ACCOUNT / "token"),
        namespace=namespace.read_text(encoding="utf-8").strip()
        if namespace.exists()
        else "default",
        source="service account of this pod",
    )


def _token_file(path: Path) -> Callable[[], str | None]:
    kept: tuple[float, str | None] = (0.0, None)

    def read() -> str | None:
        nonlocal kept
        now = time.monotonic()
        if kept[1] is None or now - kept[0] > _TOKEN_SECONDS:
            kept = (now, path.read_text(encoding="utf-8").strip())
        return kept[1]

    return read


def _written_token(path: Path, user: str, first: str | None) -> Callable[[], str | None]:
    """Read a kubeconfig's token again when the file changes: Arc's proxy writes new ones."""
    kept, seen = first, _changed(path)

    def read() -> str | None:
        nonlocal kept, seen
        if first is not None and (now := _changed(path)) not in (seen, 0):
            try:
                document = yaml.load(path.read_text("utf-8"), _LOADER)  # noqa: S506 - a safe one
                kept = _named(document or {}, "users", "user", user, path).get("token", kept)
            except (OSError, yaml.YAMLError, errors.KvedgeError):
                return kept  # it is being written
            seen = now
        return kept

    return read


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _from_document(document: dict[str, Any], path: Path, context: str | None) -> Config:
    chosen = context or document.get("current-context") or ""
    ctx = _named(document, "contexts", "context", chosen, path)
    cluster = _named(document, "clusters", "cluster", ctx.get("cluster", ""), path)
    user = _named(document, "users", "user", ctx["user"], path) if ctx.get("user") else {}
    namespace = ctx.get("namespace") or "default"
    if {"exec", "auth-provider"} & set(user):
        return _by_official_client(path, context, namespace)
    server = str(cluster.get("server", "")).rstrip("/")
    if not server:
        raise errors.KvedgeError(
            f"kubeconfig {str(path)!r}: context {chosen!r} has a cluster without a server",
            hint="kubectl config set-cluster NAME --server URL",
        )
    if user.get("tokenFile"):
        token = _token_file(path.parent / user["tokenFile"])
    else:
        token = _written_token(path, ctx.get("user", ""), user.get("token"))
    try:
        tls = _ssl_context(cluster, user, path) if server.startswith("https:") else None
    except (OSError, ssl.SSLError, binascii.Error) as cause:
        raise errors.KvedgeError(
            f"kubeconfig {str(path)!r}: certificates of context {chosen!r}: {cause}",
            hint="check certificate-authority, client-certificate and client-key",
        ) from cause
    return Config(
        server=server, ssl_context=tls, token=token, namespace=namespace, source=str(path)
    )


def _named(document: dict[str, Any], many: str, one: str, name: str, path: Path) -> dict[str, Any]:
    for entry in document.get(many) or ():
        if entry.get("name") == name:
            return entry.get(one) or {}
    known = ", ".join(repr(entry.get("name")) for entry in document.get(many) or ()) or "none"
    raise errors.KvedgeError(
        f"kubeconfig {str(path)!r} has no {one} {name!r}; it has {known}",
        hint="choose one with --context",
    )


def _ssl_context(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> ssl.SSLContext:
    data = cluster.get("certificate-authority-data")
    file = cluster.get("certificate-authority")
    if cluster.get("insecure-skip-tls-verify"):
        # Without the system's authorities, whose loading would take longer than the first request.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    else:
        tls = ssl.create_default_context(
            cafile=str(path.parent / file) if file and not data else None,
            cadata=base64.b64decode(data).decode() if data else None,
        )
    if user.get("client-certificate-data") and user.get("client-key-data"):
        _load_pair(
            tls,
            base64.b64decode(user["client-certificate-data"]),
            base64.b64decode(user["client-key-data"]),
        )
    elif user.get("client-certificate"):
        tls.load_cert_chain(
            str(path.parent / user["client-certificate"]), str(path.parent / user["client-key"])
        )
    return tls


def _load_pair(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load a client certificate that is not in a file: OpenSSL takes paths only."""
    handle = os.memfd_create("kvedge-client", os.MFD_CLOEXEC)
    try:
        os.write(handle, certificate + b"\n" + key)
        tls.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _by_official_client(path: Path, context: str | None, namespace: str) -> Config:
    from kubernetes import client as official
    from kubernetes import config as official_config

    found = official.Configuration()
    try:
        official_config.load_kube_config(str(path), context, client_configuration=found)
    except official_config.ConfigException as cause:
        raise errors.KvedgeError(
            f"kubeconfig {str(path)!r}: {cause}", hint="try: kubectl get nodes"
        ) from cause
    tls = ssl.create_default_context(cafile=found.ssl_ca_cert)
    if not found.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if found.cert_file:
        tls.load_cert_chain(found.cert_file, found.key_file)

    def token() -> str | None:
        value = found.get_api_key_with_prefix("authorization")
        return value.removeprefix("Bearer ") if value else None

    return Config(
        server=str(found.host).rstrip("/"),
        ssl_context=tls,
        token=token,
        namespace=namespace,
        source=str(path),
    )
