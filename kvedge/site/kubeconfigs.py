"""Kubeconfigs of the site: one an identity for inside, and the admin's for outside."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from kvedge import names
from kvedge.site import pki, state

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_inside", "write_outside"]


def write_inside(folder: state.Folder) -> None:
    """Write `identities/<name>.kubeconfig` for every identity."""
    for identity in pki.IDENTITIES:
        _write(
            folder.identities / f"{identity.name}.kubeconfig",
            folder,
            server=f"https://{names.API_ADDRESS}:6443",
            identity=identity.name,
            context="site",
        )


def write_outside(folder: state.Folder, server: str, name: str) -> None:
    """Write the admin's kubeconfig for use outside; it holds its certificates and can be copied."""
    _write(folder.kubeconfig, folder, server=server, identity="admin", context=f"kvedge-{name}")


def _write(path: Path, folder: state.Folder, *, server: str, identity: str, context: str) -> None:
    def data(file: str) -> str:
        return base64.b64encode((folder.pki / file).read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": data("cluster-ca.crt")}
    user = {
        "client-certificate-data": data(f"user-{identity}.crt"),
        "client-key-data": data(f"user-{identity}.key"),
    }
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": cluster}],
        "users": [{"name": f"{context}-{identity}", "user": user}],
        "contexts": [
            {"name": context, "context": {"cluster": context, "user": f"{context}-{identity}"}}
        ],
        "current-context": context,
    }
    text = json.dumps(document, indent=1) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        state.write_atomically(path, text)
