"""What a site runs, as data: argv, environment, identity, readiness check, order.

`plan` makes the whole list from the site's folder and the programs' paths; the supervisor knows
nothing but this list, which it reads from run/plan.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

from kvedge import names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvedge.site.state import Folder

__all__ = [
    "HANDLER_PORT",
    "KUBEVIRT_VERSION",
    "NODE_PORT",
    "PROGRAMS",
    "Check",
    "Part",
    "Plan",
    "Step",
    "plan",
]

KUBEVIRT_VERSION = "v1.8.2"
HANDLER_PORT = 8186
"""Where virt-api expects virt-handler's HTTPS endpoint, on the handler pod's address."""
NODE_PORT = 10250
"""The VM host's kubelet API."""
VIRT_API_PORT = 8443
_VIRT_CONTROLLER_PORT = 8444
_ETCD = "http://127.0.0.1:2379"
_API = f"https://{names.API_ADDRESS}:6443"

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "virt-api",
    "virt-controller",
    "docker-registry",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """When a part counts as ready; all that is set must hold."""

    url: str = ""
    """Answers 200."""
    ca: str = ""
    """File with the authority that the URL's certificate must come from; empty: not verified."""
    expect: str = ""
    """Text in the answer once its white space is taken out."""
    listen: tuple[str, ...] = ()
    """`address:port` that accept connections."""
    file: str = ""
    """JSON file whose `pid` is the part's own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process that the supervisor keeps running."""

    name: str
    argv: tuple[str, ...]
    check: Check
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Parts and steps that must be ready before the first start."""
    rank: int = 50
    """Stop order: higher first. An API server that lost its etcd needs 25 s to end."""
    stop_with: str = "SIGTERM"
    stop_seconds: float = 10.0
    """Patience before SIGKILL."""
    start_seconds: float = 120.0
    """Patience until it is ready."""
    stamp: str = ""
    """Changes when files that the part reads only once have changed."""

    @property
    def digest(self) -> str:
        """Changes when the running process would no longer be the wanted one."""
        text = json.dumps([self.argv, dict(self.env), self.stamp])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One piece of bootstrap work (`bootstrap.STEPS`) in the same order as the parts."""

    name: str
    needs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the supervisor runs."""

    parts: tuple[Part, ...]
    steps: tuple[Step, ...]
    manifests: str
    """JSON file with KubeVirt's and CDI's objects."""
    code: str = ""
    """Changes with the supervisor's own code."""

    @property
    def digest(self) -> str:
        """Changes with any part or step."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the plan as text that `from_json` understands."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan."""
        raw: dict[str, Any] = json.loads(text)
        return cls(
            parts=tuple(_part(item) for item in raw["parts"]),
            steps=tuple(
                Step(name=item["name"], needs=tuple(item["needs"])) for item in raw["steps"]
            ),
            manifests=raw["manifests"],
            code=raw["code"],
        )


def _part(raw: dict[str, Any]) -> Part:
    check = dict(raw["check"])
    check["listen"] = tuple(check["listen"])
    return Part(
        **{
            **raw,
            "argv": tuple(raw["argv"]),
            "needs": tuple(raw["needs"]),
            "check": Check(**check),
        }
    )


def plan(
    folder: Folder,
    *,
    programs: Mapping[str, Path],
    manifests: Path,
    routes: Mapping[str, tuple[int, tuple[str, int]]],
    has_hub: bool,
    has_host: bool,
    stamp: str = "",
    code: Mapping[str, str] | None = None,
) -> Plan:
    """Return what a site in this folder runs.

    Args:
        programs: path of each of `PROGRAMS`.
        routes: published port's name -> port outside, address and port inside.
        has_hub: the hub emulator is installed.
        has_host: the VM host is installed.
        stamp: changes when certificates were made anew.
        code: stamps of our own programs' code, by part; a changed one is restarted by `up`.
    """
    stamps = code or {}
    parts = [
        _etcd(folder, programs),
        _api_server(folder, programs),
        _controller_manager(folder, programs),
        _scheduler(folder, programs),
        _virt_api(folder, programs),
        _virt_controller(folder, programs),
        _ports(folder, routes),
    ]
    if "docker-registry" in programs:
        parts.append(_registry(folder, programs))
    if has_hub:
        parts.append(_hub(folder, routes))
    if has_host:
        parts.append(_host(folder))
    return Plan(
        parts=tuple(
            dataclasses.replace(part, stamp=stamp + stamps.get(part.name, "")) for part in parts
        ),
        steps=(
            Step(name="definitions", needs=("kube-apiserver",)),
            Step(name="defaults", needs=("definitions",)),
            Step(name="admission", needs=("definitions", "virt-api")),
        ),
        manifests=str(manifests),
        code=stamps.get("supervisor", ""),
    )


def _config(folder: Folder, identity: str) -> str:
    return str(folder.identities / f"{identity}.kubeconfig")


def _etcd(folder: Folder, programs: Mapping[str, Path]) -> Part:
    peer = "http://127.0.0.1:2380"
    return Part(
        name="etcd",
        argv=(
            str(programs["etcd"]),
            f"--data-dir={folder.root / 'etcd'}",
            "--name=site",
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=site={peer}",
            # A power cut may cost the last seconds of a development site; each write is 5x faster.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
        check=Check(url=f"{_ETCD}/health", expect='"true"'),
        rank=0,
    )


def _api_server(folder: Folder, programs: Mapping[str, Path]) -> Part:
    pki = folder.pki
    return Part(
        name="kube-apiserver",
        argv=(
            str(programs["kube-apiserver"]),
            f"--etcd-servers={_ETCD}",
            "--bind-address=0.0.0.0",
            "--secure-port=6443",
            # The namespace has no default route to find an address by.
            f"--advertise-address={names.API_ADDRESS}",
            f"--tls-cert-file={pki / 'kube-apiserver.crt'}",
            f"--tls-private-key-file={pki / 'kube-apiserver.key'}",
            f"--client-ca-file={pki / 'cluster-ca.crt'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={names.SERVICE_NETWORK}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
            f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
        ),
        check=Check(url=f"{_API}/readyz", ca=str(pki / "cluster-ca.crt")),
        rank=10,
    )


def _controller_manager(folder: Folder, programs: Mapping[str, Path]) -> Part:
    pki, config = folder.pki, _config(folder, "kube-controller-manager")
    return Part(
        name="kube-controller-manager",
        argv=(
            str(programs["kube-controller-manager"]),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--secure-port=10257",
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'cluster-ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'cluster-ca.crt'}",
            f"--cluster-signing-key-file={pki / 'cluster-ca.key'}",
            "--controllers=*,-node-ipam-controller,-node-route-controller,-service-lb-controller",
            "--profiling=false",
        ),
        check=Check(url="https://127.0.0.1:10257/healthz"),
        needs=("kube-apiserver",),
    )


def _scheduler(folder: Folder, programs: Mapping[str, Path]) -> Part:
    config = _config(folder, "kube-scheduler")
    return Part(
        name="kube-scheduler",
        argv=(
            str(programs["kube-scheduler"]),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--secure-port=10259",
            "--leader-elect=false",
            "--profiling=false",
        ),
        check=Check(url="https://127.0.0.1:10259/healthz"),
        needs=("kube-apiserver",),
    )


def _virt_api(folder: Folder, programs: Mapping[str, Path]) -> Part:
    pki = folder.pki
    return Part(
        name="virt-api",
        argv=(
            str(programs["virt-api"]),
            "--listen=127.0.0.1",
            f"--port={VIRT_API_PORT}",
            f"--console-server-port={HANDLER_PORT}",
            "--subresources-only",
            f"--kubeconfig={_config(folder, 'virt-api')}",
            f"--tls-cert-file={pki / 'virt-api.crt'}",
            f"--tls-key-file={pki / 'virt-api.key'}",
            f"--handler-cert-file={pki / 'handler-client.crt'}",
            f"--handler-key-file={pki / 'handler-client.key'}",
            "-v=2",
        ),
        check=Check(
            url=f"https://127.0.0.1:{VIRT_API_PORT}/apis/subresources.kubevirt.io/v1/healthz",
            ca=str(pki / "kubevirt-ca.crt"),
        ),
        # It exits when it finds no KubeVirt definitions, and when CDI's appear later.
        needs=("definitions",),
        # Its SIGTERM handler sleeps 5 s and saves nothing.
        stop_with="SIGKILL",
    )


def _virt_controller(folder: Folder, programs: Mapping[str, Path]) -> Part:
    pki = folder.pki
    images = "kvedge.local/kubevirt"
    return Part(
        name="virt-controller",
        argv=(
            str(programs["virt-controller"]),
            "--listen=127.0.0.1",
            f"--port={_VIRT_CONTROLLER_PORT}",
            f"--kubeconfig={_config(folder, 'virt-controller')}",
            # Names only: the VM host plays the launcher and pulls nothing.
            f"--launcher-image={images}/virt-launcher:{KUBEVIRT_VERSION}",
            f"--exporter-image={images}/virt-exportserver:{KUBEVIRT_VERSION}",
            f"--prom-cert-file={pki / 'virt-controller.crt'}",
            f"--prom-key-file={pki / 'virt-controller.key'}",
            "-v=2",
        ),
        env={"SIDECAR_SHIM_IMAGE": f"{images}/sidecar-shim:{KUBEVIRT_VERSION}"},
        check=Check(
            url=f"https://127.0.0.1:{_VIRT_CONTROLLER_PORT}/leader",
            ca=str(pki / "kubevirt-ca.crt"),
            expect='"leader":"true"',
        ),
        needs=("definitions",),
    )


def _ports(folder: Folder, routes: Mapping[str, tuple[int, tuple[str, int]]]) -> Part:
    return Part(
        name="ports",
        argv=(
            sys.executable,
            "-m",
            "kvedge.site.publishing",
            "forward",
            str(folder.root),
            *(f"{outside}={inside[0]}:{inside[1]}" for outside, inside in routes.values()),
        ),
        check=Check(file=str(folder.run / "ports.json")),
        rank=90,
        stop_seconds=2,
    )


def _registry(folder: Folder, programs: Mapping[str, Path]) -> Part:
    return Part(
        name="registry",
        argv=(str(programs["docker-registry"]), "serve", str(folder.run / "registry.yml")),
        check=Check(
            url=f"https://{names.REGISTRY_ADDRESS}/v2/", ca=str(folder.pki / "site-ca.crt")
        ),
        stop_seconds=5,
    )


def _hub(folder: Folder, routes: Mapping[str, tuple[int, tuple[str, int]]]) -> Part:
    address = names.HUB_ADDRESS
    return Part(
        name="hub",
        argv=(
            sys.executable,
            "-m",
            "kvedge",
            "hub",
            "emulate",
            f"--dir={folder.root / 'hub'}",
            f"--https={address}:443",
            f"--mqtt={address}:8883",
            f"--cert={folder.pki / 'hub.crt'}",
            f"--key={folder.pki / 'hub.key'}",
            f"--host={names.HUB_HOST}",
            f"--alias=localhost:{routes['hub'][0]}",
        ),
        check=Check(listen=(f"{address}:443", f"{address}:8883")),
        rank=40,
    )


def _host(folder: Folder) -> Part:
    return Part(
        name="host",
        argv=(sys.executable, "-m", "kvedge.site.host", "--site", str(folder.root)),
        check=Check(listen=(f"{names.NODE_ADDRESS}:{NODE_PORT}",)),
        needs=("definitions",),
        rank=80,
        # It powers guests off first when the whole site stops.
        stop_seconds=40,
    )
