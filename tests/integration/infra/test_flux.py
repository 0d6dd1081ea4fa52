"""Flux's own controllers apply what `kvedge render` wrote, from a git repository over https.

The manifests of docs/howto/gitops.md are used as they stand there. Each controller is a process
with a ServiceAccount's token; its rights are those of its own module, without the binding to
cluster-admin, and the environment is applied as the account of that page.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import signal
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from aiohttp import web

from infra import rendering
from kvedge import processes, settings, tools
from kvedge.testing.clusters import free_ports, running_cluster
from kvedge.testing.hubs import hub_certificates  # noqa: F401 - a fixture
from kvedge.testing.servers import serving
from kvedge.testing.sites import kubectl
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two controllers and two small programs are built first, if the cache has none.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

SPACE = "flux-system"
CONTROLLERS = ("source-controller", "kustomize-controller")
PROGRAMS = (*CONTROLLERS, *(f"{name}-config" for name in CONTROLLERS), "age-keygen", "sops")
PAGE = Path(__file__).parents[3] / "docs" / "howto" / "gitops.md"
OWNED = "kustomize.toolkit.fluxcd.io/name"


def on_the_page(*kinds: str) -> list[dict[str, Any]]:
    """Return the objects of these kinds that the how-to shows."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = [obj for block in blocks for obj in yaml.safe_load_all(block)]
    return [obj for obj in found if not kinds or obj["kind"] in kinds]


def apply(site: Any, *objects: dict[str, Any]) -> None:
    kubectl(site, "apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))


@dataclasses.dataclass
class Repository:
    """A bare git repository, served by git's own http-backend, and a checkout of it."""

    folder: Path
    url: str = ""

    def git(self, *words: str) -> None:
        identity = ("-c", "user.name=plant", "-c", "user.email=plant@example.net")
        processes.run(["git", *identity, *words], what=f"git {words[0]}", cwd=self.checkout)

    @property
    def checkout(self) -> Path:
        return self.folder / "checkout"

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        self.git("push", "--quiet", "origin", "HEAD:main")

    def application(self) -> web.Application:
        """Return git's smart protocol as an application."""

        async def answer(request: web.Request) -> web.Response:
            body = await request.read()
            done = await processes.arun(
                ["git", "http-backend"],
                what="git http-backend",
                env={
                    "GIT_PROJECT_ROOT": str(self.folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
                    "PATH_INFO": request.path,
                    "QUERY_STRING": request.query_string,
                    "REQUEST_METHOD": request.method,
                    "CONTENT_TYPE": request.headers.get("Content-Type", ""),
                    "CONTENT_LENGTH": str(len(body)),
                },
                stdin=body,
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            status = int(fields.pop("Status", "200").split()[0])
            return web.Response(status=status, body=content, headers=fields)

        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", answer)
        return app


@pytest.fixture
def repository(
    tmp_path: Path,
    hub_certificates: tuple[Path, Path, Path],  # noqa: F811 - the fixture itself
) -> Iterator[Repository]:
    """An empty repository with a branch `main` to come."""
    found = Repository(tmp_path / "git")
    found.checkout.mkdir(parents=True)
    found.git("init", "--quiet", "--bare", str(found.folder / "fleet.git"))
    found.git("init", "--quiet")
    found.git("remote", "add", "origin", str(found.folder / "fleet.git"))
    with serving(found.application(), *hub_certificates[1:]) as port:
        found.url = f"https://localhost:{port}/fleet.git"
        yield found


def rights(name: str, config: Path) -> list[dict[str, Any]]:
    """Return a controller's account and what its module gives it, but for cluster-admin."""
    subject = {"kind": "ServiceAccount", "name": name, "namespace": SPACE}
    found: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount",
         "metadata": {"name": name, "namespace": SPACE}},
    ]  # fmt: skip
    written = processes.run(
        [tools.path("kubectl"), "kustomize", config / "rbac"], what="kubectl kustomize"
    )
    for obj in yaml.safe_load_all(written.stdout):
        if obj.get("roleRef", {}).get("name") == "cluster-admin":
            continue
        if "subjects" in obj:
            obj["subjects"] = [subject]
        if not obj["kind"].startswith("Cluster"):
            obj["metadata"]["namespace"] = SPACE
        found.append(obj)
    return found


def kubeconfig(site: Any, account: str, file: Path) -> Path:
    """Write the kubeconfig of an account."""
    found = yaml.safe_load(Path(site.kubernetes.kubeconfig).read_text())
    token = kubectl(site, "create", "token", account, "-n", SPACE, "--duration=2h").stdout.strip()
    for user in found["users"]:
        user["user"] = {"token": token}
    file.write_text(yaml.safe_dump(found))
    return file


@contextlib.contextmanager
def running_flux(site: Any, folder: Path) -> Iterator[dict[str, Path]]:
    """Run Flux's two controllers; yields the programs."""
    found = tools.ensure(PROGRAMS)
    configs = {name: found[f"{name}-config"] for name in CONTROLLERS}
    definitions = ["customresourcedefinitions"]
    kubectl(site, "create", "namespace", SPACE)
    running = []
    try:
        for config in configs.values():
            kubectl(site, "apply", "--server-side", "-k", str(config / "crd"))
            listed = yaml.safe_load((config / "crd" / "kustomization.yaml").read_text())
            definitions += [
                "{1}.{0}".format(*Path(name).stem.split("_")) for name in listed["resources"]
            ]
        kubectl(site, "wait", "--for=condition=Established", "--timeout=60s", *definitions)
        artifacts, *health = free_ports(1 + len(CONTROLLERS))
        for name, port in zip(CONTROLLERS, health, strict=True):
            apply(site, *rights(name, configs[name]))
            home = folder / name
            (home / "tmp").mkdir(parents=True)
            argv = [str(found[name]), "--metrics-addr=0", f"--health-addr=127.0.0.1:{port}"]
            if name == "source-controller":
                argv += [f"--storage-addr=127.0.0.1:{artifacts}", f"--storage-path={home}"]
                argv += [f"--storage-adv-addr=127.0.0.1:{artifacts}"]
            env = {
                "KUBECONFIG": str(kubeconfig(site, name, home / "kubeconfig")),
                "RUNTIME_NAMESPACE": SPACE, "TMPDIR": str(home / "tmp"), "HOME": str(home),
            }  # fmt: skip
            running.append(processes.popen(argv, env=env, log=folder / f"{name}.log"))
            until(lambda port=port: ready(port), f"{name} is ready", seconds=60)
        yield found
    finally:
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            child.wait(timeout=30)
        kubectl(site, "delete", "namespace", SPACE, "--wait=false", check=False)
        kubectl(site, "delete", *definitions, "--wait=false", "--ignore-not-found", check=False)
        for config, name in ((configs[name], name) for name in CONTROLLERS):
            wide = [one for one in rights(name, config) if one["kind"].startswith("Cluster")]
            kubectl(site, "delete", "-f", "-", "--ignore-not-found", check=False,
                    stdin=yaml.safe_dump_all(wide))  # fmt: skip


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@dataclasses.dataclass
class Followed:
    """A cluster whose Flux follows the repository."""

    site: Any
    """Has `kubernetes.kubeconfig`."""
    repository: Repository
    programs: dict[str, Path]
    recipient: str
    """Public age key."""

    @property
    def rendered(self) -> Path:
        return self.repository.checkout / "fleet" / "lille"

    def commit(self, message: str) -> None:
        """Encrypt what was rendered, and push."""
        for file in self.rendered.glob("secrets/secret-*.yaml"):
            processes.run(
                [self.programs["sops"], "encrypt", "--in-place", "--age", self.recipient,
                 "--encrypted-regex", "^data$", file],
                what="sops encrypt",
            )  # fmt: skip
        self.repository.commit(message)

    def follow(self) -> None:
        """Have Flux look now, and wait until it has applied what was pushed last."""
        head = processes.run(
            ["git", "rev-parse", "HEAD"], what="git rev-parse", cwd=self.repository.checkout
        ).stdout.strip()
        asked = f"reconcile.fluxcd.io/requestedAt={os.urandom(4).hex()}"
        for kind in ("gitrepository", "kustomization"):
            kubectl(self.site, "annotate", "--overwrite", "-n", SPACE, kind, "lille", asked)

            def arrived(kind: str = kind) -> bool:
                status = self.status(kind)
                if status.get("lastHandledReconcileAt") != asked.partition("=")[2]:
                    return False
                condition = {one["type"]: one for one in status["conditions"]}["Ready"]
                assert condition["status"] == "True", condition
                assert head in (status.get("lastAppliedRevision") or status["artifact"]["revision"])
                return True

            until(arrived, f"{kind} at {head[:8]}", seconds=90, pause=0.5)

    def status(self, kind: str) -> dict[str, Any]:
        words = ("get", "-n", SPACE, kind, "lille", "-o", "json")
        return json.loads(kubectl(self.site, *words).stdout)["status"]

    def writes(self) -> dict[str, list[str]]:
        """Return when Flux last wrote into each object that it owns."""
        kinds = "vm,dv,secret,service,deployment,role,rolebinding,clusterrole,clusterrolebinding"
        words = ("get", kinds, "-A", f"--selector={OWNED}=lille", "-o", "json")
        listed = kubectl(self.site, *words, "--show-managed-fields").stdout
        return {
            f"{obj['kind']} {obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}": [
                field["time"]
                for field in obj["metadata"]["managedFields"]
                if field["manager"] == "kustomize-controller"
            ]
            for obj in json.loads(listed)["items"]
        }


@contextlib.contextmanager
def followed(
    site: Any, repository: Repository, authority: Path, folder: Path
) -> Iterator[Followed]:
    """Run Flux with the objects of the how-to, but for the repository's address."""
    key = folder / "age.agekey"
    with running_flux(site, folder) as programs:
        made = processes.run([programs["age-keygen"], "-o", key], what="age-keygen")
        recipient = re.search(r"age1\w+", made.stderr + made.stdout)
        assert recipient
        secrets = [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": SPACE},
             "data": {field: base64.b64encode(file.read_bytes()).decode()}}
            for name, field, file in (
                ("sops-age", "age.agekey", key), ("authority", "ca.crt", authority),
            )
        ]  # fmt: skip
        account = on_the_page(
            "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"
        )
        apply(site, *account, *secrets)
        try:
            yield Followed(site, repository, programs, recipient[0])
        finally:
            kubectl(site, "delete", "-n", SPACE, "kustomization,gitrepository", "--all",
                    "--timeout=50s")  # fmt: skip
            wide = [obj for obj in account if obj["kind"].startswith("Cluster")]
            kubectl(site, "delete", "-f", "-", stdin=yaml.safe_dump_all(wide))


def begin(found: Followed) -> None:
    """Apply the how-to's GitRepository and Kustomization, and wait until they are through."""
    source, kustomization = on_the_page("GitRepository", "Kustomization")
    source["spec"] |= {"url": found.repository.url, "secretRef": {"name": "authority"}}
    apply(found.site, source, kustomization)
    found.follow()


@pytest.mark.site
def test_flux_makes_the_objects_that_up_makes(
    stack: Any,
    repository: Repository,
    tmp_path: Path,
    hub_certificates: tuple[Path, Path, Path],  # noqa: F811 - the fixture itself
) -> None:
    """No difference to what `up` had made, and no file of the repository holds a secret."""
    disks = ("delete", "dv", "-A", f"--selector=kvedge.io/environment={stack.name}")
    stack.up()
    by_up = stack.live()
    stack.down()
    kubectl(stack.site, *disks)
    with followed(stack.site, repository, hub_certificates[0], tmp_path) as found:
        words = ("render", stack.name, "--out", str(found.rendered), "--secrets", "plain")
        done = stack.run(*words)
        assert done.returncode == 0, done.stderr
        hidden = stack.secret_values(path.read_text() for path in found.rendered.rglob("*.yaml"))
        found.commit("Lille")
        files = [path for path in found.rendered.rglob("*") if path.is_file()]
        text = "".join(path.read_text() for path in files)
        assert "ENC[AES256_GCM" in text
        for value in hidden:
            assert value not in text
        begin(found)
        stack.assert_same(stack.live(), by_up)
    kubectl(stack.site, *disks, "--wait=false")


def render(folder: Path, *fleet: dict[str, Any]) -> None:
    """Render an environment with these VMs, as `kvedge render --secrets plain` does."""
    raw = {
        "cluster": {"namespace": "default", "identifier": "cluster-1"},
        "hub": {"connectionString": "HostName=hub.example.net;SharedAccessKeyName=a;SharedAccessKey=Yg=="},
        "image": {"reference": f"registry.example.net/none@sha256:{'0' * 64}"},
        "ssh": {"authorizedKeys": ["ssh-ed25519 AAAAC3Nz me"]},
        "keySeed": "seed",
        "fleet": list(fleet),
        "platform": {"connector": {"image": "registry.example.net/other:1"}},
    }  # fmt: skip
    environment = settings.parse("plant", raw, environ={})
    facts = rendering.Facts(
        image=environment.image.reference,
        image_key="0" * 64,
        connector_image="registry.example.net/other:1",
        connection_strings={
            vm["name"]: f"HostName=hub.example.net;DeviceId={vm['name']};SharedAccessKey=Yg=="
            for vm in fleet
        },
    )
    rendering.write(rendering.rendered(environment, facts), folder)


def test_flux_follows_a_commit_and_spares_data(
    repository: Repository,
    tmp_path: Path,
    hub_certificates: tuple[Path, Path, Path],  # noqa: F811 - the fixture itself
) -> None:
    """Nothing is written twice; a VM that left the settings is pruned, and no data disk is.

    On a bare API server with KubeVirt's and CDI's definitions, without their admission.
    """
    (tmp_path / "cluster").mkdir()
    with running_cluster(tmp_path / "cluster") as cluster:
        site = SimpleNamespace(kubernetes=SimpleNamespace(kubeconfig=str(cluster.kubeconfig)))
        program = tools.ensure(["kubevirt-manifests", "kubectl"])["kubevirt-manifests"]
        objects = json.loads(program.read_text())
        apply(site, *objects["crds"], *objects["cdiCrds"])
        with followed(site, repository, hub_certificates[0], tmp_path) as found:
            render(found.rendered, {"name": "p1"}, {"name": "p2"})
            found.commit("Two")
            begin(found)
            before = found.writes()
            assert len(before) > 15
            assert all(before.values())
            found.follow()
            assert found.writes() == before, "nothing is written twice"

            render(found.rendered, {"name": "p1", "memory": "1536Mi", "dataDisk": "6Gi"})
            found.commit("p1 is larger, p2 is gone")
            found.follow()
            after = found.writes()
            assert set(before) - set(after) == {
                name for name in before if re.search(r"/p2\b(?!-data)", name)
            }
            assert {name for name in after if after[name] != before[name]} == {
                "VirtualMachine default/p1"
            }
            kubectl(site, "delete", "kustomization", "lille", "-n", SPACE, "--timeout=50s")
            assert set(found.writes()) == {
                "DataVolume default/p1-data",
                "DataVolume default/p2-data",
            }
