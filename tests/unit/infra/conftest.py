"""An environment to build from, with every section filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kvedge import settings, spec

if TYPE_CHECKING:
    from pathlib import Path

CONNECTION = "HostName=hub.example.net;SharedAccessKeyName=kvedge;SharedAccessKey=c2VjcmV0"


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    """A file that stands for an authority."""
    file = tmp_path / "ca.crt"
    file.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return file


@pytest.fixture
def raw(ca_file: Path) -> dict[str, Any]:
    """Settings with every section."""
    return {
        "site": "lille",
        "cluster": {"namespace": "edge", "identifier": "cluster-1"},
        "hub": {"connectionString": CONNECTION, "caFile": str(ca_file)},
        "registry": {"push": "localhost:5000", "pull": "registry.example.net", "caFile": str(ca_file)},
        "ssh": {"authorizedKeys": ["ssh-ed25519 AAAAC3Nz me"], "sourceRanges": ["10.0.0.0/8"]},
        "fleet": [
            {"name": "edge1", "tags": {"line": "press"}},
            {"name": "edge2", "vcpus": 4, "memory": "2Gi", "dataDisk": "20Gi",
             "storageClass": "fast", "nodeSelector": {"zone": "a"}, "mac": "02:00:00:00:00:07"},
        ],
        "hosts": {"hub.example.net": "10.0.0.7"},
        "keySeed": "seed",
        "platform": {"moduleImages": ["temperature-sensor"]},
    }  # fmt: skip


@pytest.fixture
def environment(raw: dict[str, Any]) -> spec.Environment:
    """The same, parsed."""
    return settings.parse("plant", raw, environ={})
