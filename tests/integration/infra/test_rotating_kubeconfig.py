"""A cluster behind a proxy whose token and address change, as Arc's Cluster Connect does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvedge import kube
from kvedge.testing.hubs import hub_certificates  # noqa: F401 - a fixture
from kvedge.testing.proxies import running_proxy
from kvedge.testing.sites import kubectl

pytestmark = [pytest.mark.site, pytest.mark.slow, pytest.mark.timeout(600)]


def identities(stack: Any) -> dict[str, str]:
    """Return the uid of each object of the environment."""
    label = f"--selector=kvedge.io/environment={stack.name}"
    kinds = "vm,dv,secret,service,deployment,serviceaccount,role"
    listed = kubectl(stack.site, "get", kinds, "-A", label, "-o", "json").stdout
    return {
        f"{obj['kind']} {obj['metadata']['name']}": obj["metadata"]["uid"]
        for obj in json.loads(listed)["items"]
    }


def test_another_token_or_address_replaces_nothing(
    stack: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    hub_certificates: tuple[Path, Path, Path],  # noqa: F811 - the fixture itself
) -> None:
    """Only `cluster.identifier` names the cluster: a rotation changes nothing, a move nearly so."""
    direct = kube.load_config(Path(stack.site.kubernetes.kubeconfig))
    with (
        running_proxy(direct, tmp_path, hub_certificates) as proxy,
        monkeypatch.context() as patch,
    ):
        patch.setenv("KVEDGE_KUBECONFIG", str(proxy.kubeconfig))
        assert stack.up().changes["create"] > 20
        before = identities(stack)
        assert len(before) > 10
        proxy.rotate()
        # The engine itself: `kvedge up` would not ask it, as no setting has changed.
        assert set(stack.engine().up(on_event=lambda _: None)) == {"same"}
        proxy.rotate()
        moved = tmp_path / "elsewhere" / "arc.kubeconfig"
        moved.parent.mkdir()
        shutil.copy(proxy.kubeconfig, moved)
        patch.setenv("KVEDGE_KUBECONFIG", str(moved))
        changes = stack.up().changes
        assert set(changes) <= {"same", "update"}, changes
        assert identities(stack) == before
        assert proxy.refused == 0
