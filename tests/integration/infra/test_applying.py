"""What `up` applies, on a bare API server with KubeVirt's definitions, the real engine and a hub.

Limits: nobody runs KubeVirt's webhooks or makes instances here; a policy of the API server's own
stands for admission, which the whole site has in tests/integration/infra/test_environment.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import admission, bringing, engine
from kvedge import errors, kube, settings, tools
from kvedge.testing.clusters import cluster  # noqa: F401 - a fixture
from kvedge.testing.hubs import hub, hub_certificates  # noqa: F401 - fixtures
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvedge.testing.clusters import Cluster
    from kvedge.testing.hubs import RunningHub

pytestmark = pytest.mark.timeout(300)

DEFINED = ("VirtualMachine", "VirtualMachineInstance", "DataVolume")
RAW: dict[str, Any] = {
    "image": {"reference": f"registry.example.net/disk@sha256:{'0' * 64}"},
    "cluster": {"namespace": "plant"},
    "ssh": {"authorizedKeys": ["ssh-ed25519 AAAA me"]},
    "fleet": [{"name": "p1"}, {"name": "p2", "memory": "3Gi"}],
}
ADMISSION = "admissionregistration.k8s.io/v1"


def do(cluster: Cluster, work: Callable[[kube.Client], Any]) -> Any:  # noqa: F811
    """Run a coroutine function with a client of the cluster."""

    async def run() -> Any:
        async with kube.Client(kube.load_config(cluster.kubeconfig)) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.fixture
def place(
    cluster: Cluster, hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> Cluster:  # fmt: skip
    """A namespace on a server that knows KubeVirt's kinds, and the variables that name all."""
    for name in [n for n in os.environ if n.startswith(("KVEDGE_", "PULUMI_"))]:
        if name not in ("KVEDGE_CACHE", "KVEDGE_TEST_CLUSTER"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path / 'backend'}")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    monkeypatch.setenv("KVEDGE_STATE", str(tmp_path))
    monkeypatch.setenv("KVEDGE_KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("KVEDGE_HUB_CONNECTION_STRING", hub.connection_string)
    monkeypatch.setenv("KVEDGE_HUB_CA_FILE", str(hub.ca))
    known = json.loads(tools.path("kubevirt-manifests").read_bytes())
    crds = [
        {"apiVersion": one["apiVersion"], "kind": one["kind"], "spec": one["spec"],
         "metadata": {"name": one["metadata"]["name"]}}
        for one in (*known["crds"], *known["cdiCrds"])
        if one["spec"]["names"]["kind"] in DEFINED
    ]  # fmt: skip
    assert len(crds) == len(DEFINED)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "plant"}}

    async def prepare(client: kube.Client) -> None:
        for obj in (namespace, *crds):
            await client.apply(obj)

    async def served(client: kube.Client) -> bool:
        for crd in crds:
            group = crd["spec"]["group"]
            (version,) = (one["name"] for one in crd["spec"]["versions"] if one["storage"])
            kind = crd["spec"]["names"]["kind"]
            await client.get(await client.path_of(f"{group}/{version}", kind, "plant"))
        return True

    do(cluster, prepare)

    def established() -> bool:
        try:
            return do(cluster, served)
        except errors.NotFound:
            return False

    until(established, "the kinds are served", seconds=60)
    return cluster


class Stack:
    """A stack that is applied as `kvedge up` does, without its checks and roll-out."""

    def __init__(self, folder: Path) -> None:
        self.project = engine.make_project(folder / "project", stacks=folder / "project")
        self.file = self.project.folder / "Pulumi.plant.yaml"

    def write(self, raw: dict[str, Any]) -> None:
        """Write the settings; what the engine keeps in its file stays."""
        old = yaml.safe_load(self.file.read_text()) if self.file.exists() else {}
        kept = {k: v for k, v in old.get("config", {}).items() if k == "kvedge:keySeed"}
        config = {**{f"kvedge:{key}": value for key, value in raw.items()}, **kept}
        self.file.write_text(yaml.safe_dump({**old, "config": config}))

    def apply(self) -> tuple[dict[str, int], int]:
        """Apply; return what changed and how many of the engine's own events were seen."""
        run = engine.Engine("plant", project=self.project)
        run.prepare()
        environment = settings.parse("plant", run.settings(), environ=os.environ)
        seen: list[engine.Event] = []
        return bringing.apply(run, environment, [], on_event=seen.append), len(seen)

    def by_hand(self) -> dict[str, int]:
        """Return what the engine finds to do."""
        return engine.Engine("plant", project=self.project).up(on_event=lambda _: None)


def names(place: Cluster) -> set[str]:
    """Return the names of VMs, disks, Secrets and Services."""

    async def read(client: kube.Client) -> set[str]:
        found = set()
        for version, kind in (
            ("kubevirt.io/v1", "VirtualMachine"), ("cdi.kubevirt.io/v1beta1", "DataVolume"),
            ("v1", "Secret"), ("v1", "Service"),
        ):  # fmt: skip
            listed = await client.get(await client.path_of(version, kind, "plant"))
            found |= {f"{kind} {one['metadata']['name']}" for one in listed["items"]}
        return found

    return do(place, read)


def test_a_refused_vm_is_told_before_anything_is_made_and_a_good_one_needs_one_run(
    place: Cluster,
    hub: RunningHub,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Refused, made, left alone, changed: and the engine never disagrees with the note."""
    policy = {
        "apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "small"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": ["kubevirt.io"], "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE"], "resources": ["virtualmachines"],
            }]},
            "validations": [{
                "expression": "object.spec.template.spec.domain.memory.guest != '3Gi'",
                "message": "too large for this plant",
            }],
        },
    }  # fmt: skip
    binding = {
        "apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "small"},
        "spec": {"policyName": "small", "validationActions": ["Deny"]},
    }  # fmt: skip

    async def guard(client: kube.Client) -> None:
        await client.apply(policy)
        await client.apply(binding)

    do(place, guard)
    stack = Stack(tmp_path)
    stack.write(RAW)
    environment = settings.parse("plant", RAW, environ=os.environ)

    def refused() -> bool:
        try:
            do(place, lambda client: admission.admit(client, environment, []))
        except errors.KvedgeError:
            return True
        return False

    until(refused, "the policy is in force", seconds=60)
    with pytest.raises(errors.KvedgeError, match=r"p2: .*too large for this plant") as told:
        stack.apply()
    assert "p1" not in str(told.value)
    assert names(place) == set()
    assert hub.ask("GET", "/devices?api-version=2021-04-12")[2] == []

    stack.write({**RAW, "fleet": [{"name": "p1"}, {"name": "p2"}]})
    changes, events = stack.apply()
    assert set(changes) == {"create"}
    assert events > changes["create"]
    made = names(place)
    assert {"VirtualMachine p1", "VirtualMachine p2", "DataVolume p2-data"} < made

    assert stack.apply() == ({"same": changes["create"]}, 0)
    assert stack.by_hand() == {"same": changes["create"]}
    assert names(place) == made

    stack.write({**RAW, "fleet": [{"name": "p1"}, {"name": "p2", "vcpus": 3}]})
    changes, events = stack.apply()
    assert changes["update"] >= 1
    assert events
