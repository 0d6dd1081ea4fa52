"""A stack on the session's site, in a project of its own. No guest is needed.

The image is a digest that no registry has, so the VM's objects are made and its disk never fills:
that is enough for everything but a running guest, which the e2e tests have.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import bringing, engine
from kvedge import iothub, processes
from kvedge.redact import Secret
from kvedge.testing.sites import kubectl

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator

    from kvedge.site.state import Site

STACK = "plant"
IMAGE = f"registry.kvedge.test/kvedge/none@sha256:{'0' * 64}"
SETTINGS: dict[str, Any] = {
    "image": {"reference": IMAGE},
    "fleet": [{"name": "p1", "tags": {"line": "press"}}, {"name": "p2"}],
    "platform": {"connector": {"image": "registry.kvedge.test/kvedge/other:1", "nodeName": "vn"}},
}
KINDS = "vm,dv,secret,configmap,service,deployment,serviceaccount,role,rolebinding"
FLUX = "kustomize.toolkit.fluxcd.io/"
SECRET_FILES = {"config.toml", "ssh_host_ed25519_key", "hub0-cs"}


class Stack:
    """A stack in a project of its own, on the session's site."""

    def __init__(self, folder: Path, site: Site, name: str, raw: dict[str, Any]) -> None:
        self.folder, self.site, self.name = folder, site, name
        stacks = folder / "project" / "infra" / "stacks"
        stacks.mkdir(parents=True, exist_ok=True)
        self.project = engine.make_project(folder / "project", stacks=stacks)
        self.settings = raw
        self.write(raw)

    @property
    def file(self) -> Path:
        """The stack file."""
        return self.project.stacks / f"Pulumi.{self.name}.yaml"

    def run(self, *words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the command line in the project's folder, as a user does."""
        return processes.run(
            [sys.executable, "-m", "kvedge", *words], what="kvedge", cwd=self.project.folder,
            check=False, timeout=seconds,
        )  # fmt: skip

    def write(self, raw: dict[str, Any]) -> None:
        """Write the stack file."""
        config = {f"kvedge:{key}": value for key, value in raw.items()}
        self.file.write_text(yaml.safe_dump({"config": config}))

    def up(self) -> bringing.Outcome:
        """Bring it up without waiting for guests."""
        return bringing.bring_up(self.engine(), seconds=1, wait=False)

    def down(self) -> bringing.Outcome:
        """Take it away."""
        return bringing.take_down(self.engine())

    def engine(self) -> engine.Engine:
        """Return a fresh engine."""
        return engine.Engine(self.name, project=self.project)

    def processes(self) -> list[int]:
        """Return ids of processes whose state folder is this one's, but for our own."""
        found: list[int] = []
        for entry in Path("/proc").glob("[1-9]*"):
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            pid = int(entry.name)
            ours = f"KVEDGE_STATE={self.folder}".encode() in variables
            if ours and pid != os.getpid() and processes.start_time(pid) is not None:
                found.append(pid)
        return found

    def pulumi(self) -> int | None:
        """Return the id of the engine that a run has started, once it is there."""
        for pid in self.processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"/pulumi") and words[1:2] == [b"up"]:
                return pid
        return None

    def objects(self) -> list[str]:
        """Return the environment's objects in the cluster, cluster-wide ones too."""
        label = f"--selector=kvedge.io/environment={self.name}"
        found = kubectl(self.site, "get", KINDS, "-A", label, "-o", "name").stdout.split()
        wide = kubectl(self.site, "get", "clusterrole,clusterrolebinding", label, "-o", "name")
        return sorted(found + wide.stdout.split())

    def live(self) -> dict[str, Any]:
        """Return the environment's objects without what the cluster and Flux add."""
        label = f"--selector=kvedge.io/environment={self.name}"
        found = {}
        for words in (
            ("get", f"{KINDS},pdb,netpol", "-A"),
            ("get", "clusterrole,clusterrolebinding"),
        ):
            listed = kubectl(self.site, *words, label, "-o", "json").stdout
            for obj in json.loads(listed)["items"]:
                metadata, spec = obj["metadata"], obj.get("spec") or {}
                for given in ("clusterIP", "clusterIPs"):
                    spec.pop(given, None)
                for port in spec.get("ports", ()):
                    port.pop("nodePort", None)
                annotations = {
                    key: value
                    for key, value in (metadata.get("annotations") or {}).items()
                    if key.startswith(("kvedge.io/", "pulumi.com/skip", FLUX))
                    and key != "kvedge.io/published"
                }
                labels = {k: v for k, v in metadata["labels"].items() if not k.startswith(FLUX)}
                found[f"{obj['kind']} {metadata.get('namespace', '')}/{metadata['name']}"] = {
                    **{k: v for k, v in obj.items() if k not in ("metadata", "status")},
                    "labels": labels, "annotations": annotations,
                }  # fmt: skip
        return found

    def assert_same(self, found: dict[str, Any], by_up: dict[str, Any]) -> None:
        """Hold what `live` returned against what it returned after `up`, object by object."""
        assert set(found) == set(by_up)
        for name, obj in by_up.items():
            # A device that was made anew has another key.
            if obj["kind"] == "Secret" and name.endswith("-edge"):
                assert set(obj["data"]) == set(found[name]["data"])
                obj["data"] = found[name]["data"]
            assert found[name] == obj, name

    def secret_values(self, rendered: Iterable[str]) -> list[str]:
        """Return what no committed file may hold: each secret of plain output, encoded and not.

        Args:
            rendered: the texts of the files.
        """
        values = [
            document["data"][name]
            for document in map(yaml.safe_load, rendered)
            if document["kind"] == "Secret"
            for name in SECRET_FILES & set(document["data"])
        ]
        assert len(values) == 2 * len(self.settings["fleet"]) + 1
        decoded = [base64.b64decode(value).decode() for value in values]
        decoded.append(Path(self.site.hub.connection_string_file).read_text())
        keys = re.findall(
            r"(?:SharedAccessKey=|^)([\w+/]{40,}=*)", "\n".join(decoded), re.MULTILINE
        )
        # Of each device and of the hub's policy, and lines of the host keys.
        assert len(keys) > len(values)
        return [*values, *decoded, *keys]

    def hub(self) -> tuple[list[str], list[str]]:
        """Return ids of the hub's devices and deployments."""

        async def ask() -> tuple[list[str], list[str]]:
            text = Path(self.site.hub.connection_string_file).read_text().strip()
            ca_file = Path(self.site.hub.ca)
            async with iothub.Hub.from_connection_string(Secret(text), ca_file=ca_file) as hub:
                rows = await hub.query("SELECT deviceId FROM devices")
                found = await hub.configurations()
            devices = sorted(
                r["deviceId"] for r in rows if r["deviceId"].startswith(f"{self.name}-")
            )
            # Other tests of the session may have devices and deployments of their own.
            owned = [c for c in found if (c.get("labels") or {}).get("kvedge-role") == "base"]
            return devices, sorted(c.get("id", "") for c in owned)

        return asyncio.run(ask())


@pytest.fixture
def make_stack(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Stack]]:
    """Make stacks whose variables are the site's, with backend and keys of their own."""
    for name in [n for n in os.environ if n.startswith(("KVEDGE_", "PULUMI_", "KUBECONFIG"))]:
        if name not in ("KVEDGE_CACHE", "KVEDGE_TEST_SITE"):
            monkeypatch.delenv(name)
    for line in site.folder.env_file.read_text().splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        if name.startswith(("KVEDGE_", "PULUMI_")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("KVEDGE_STATE", str(tmp_path))
    monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{tmp_path / 'pulumi'}")
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    monkeypatch.setenv("PULUMI_OPTION_CONFIG_FILE", str(tmp_path / "stacks" / "Pulumi.plant.yaml"))
    made: list[Stack] = []

    def make(name: str = STACK, raw: dict[str, Any] | None = None) -> Stack:
        made.append(Stack(tmp_path, site, name, raw or SETTINGS))
        return made[-1]

    yield make
    for one in reversed(made):
        one.write(one.settings)
        one.down()


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    """The environment `plant`, which carries the platform."""
    return make_stack()
