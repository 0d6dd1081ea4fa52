"""The VMs that someone may mean: their identity, address and labels, read from the cluster."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kvedge import errors, names
from kvedge.access.targets import Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvedge import kube

__all__ = ["Guest", "find_guest", "find_guests", "service_address"]

HOST_KEY_ANNOTATION = f"{names.ANNOTATION}/host-key"
_PUBLISHED = f"{names.ANNOTATION}/published"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A VM, how it proves itself, and where it is reached besides the Kubernetes API."""

    target: Target
    environment: str
    """Empty if it is not of kvedge."""
    host_key: str
    """Its public host key (`ssh-ed25519 AAAA…`); empty if the VM carries none."""
    address: str
    """`host:port` of its LoadBalancer Service; empty if it has none."""

    @property
    def host_name(self) -> str:
        """The name for plain ssh: `edge1.dev`, VM and environment (else namespace)."""
        return f"{self.target.name}.{self.environment or self.target.namespace}"

    def pinned_key(self) -> str:
        """Return the host key.

        Raises:
            KvedgeError: the VM carries none, so that its identity cannot be checked.
        """
        if not self.host_key:
            raise errors.KvedgeError(
                f"VM {self.target.name!r} has no annotation {HOST_KEY_ANNOTATION!r}",
                hint="give its public key with --host-key, or provision it with kvedge up",
            )
        return self.host_key

    def service(self) -> tuple[str, int]:
        """Return host and port of its LoadBalancer Service.

        Raises:
            KvedgeError: it has none, or no address yet.
        """
        if not self.address:
            raise errors.KvedgeError(
                f"VM {self.target.name!r} has no LoadBalancer address",
                hint="go through the Kubernetes API (--via api), or look at: kubectl get services "
                f"-n {self.target.namespace}",
            )
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


async def find_guest(client: kube.Client, target: Target) -> Guest:
    """Read one VM.

    Raises:
        NotFound: there is no such VM.
    """
    vm = await client.get(target.vm_path)
    services = await client.get(f"/api/v1/namespaces/{target.namespace}/services")
    return _guest(vm, services["items"], target)


async def find_guests(
    client: kube.Client, *, namespace: str = "", selector: str = "", user: str = ""
) -> list[Guest]:
    """Read the VMs of a namespace, or of all, that a label selector takes; sorted by name."""
    within = f"/namespaces/{namespace}" if namespace else ""
    listed = await client.get(
        f"/apis/kubevirt.io/v1{within}/virtualmachines", labelSelector=selector or None
    )
    services = (await client.get(f"/api/v1{within}/services"))["items"]
    found = [
        _guest(
            vm,
            services,
            Target(
                **({"user": user} if user else {}),
                name=vm["metadata"]["name"],
                namespace=vm["metadata"]["namespace"],
            ),
        )
        for vm in listed["items"]
    ]
    return sorted(found, key=lambda guest: guest.host_name)


def _guest(vm: Mapping[str, Any], services: Sequence[Mapping[str, Any]], target: Target) -> Guest:
    metadata = vm["metadata"]
    return Guest(
        target=target,
        environment=(metadata.get("labels") or {}).get(names.LABEL_ENVIRONMENT, ""),
        host_key=(metadata.get("annotations") or {}).get(HOST_KEY_ANNOTATION, ""),
        address=service_address(vm, services),
    )


def service_address(vm: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> str:
    """Return `host:port` of the LoadBalancer Service that leads to a VM's sshd; empty without."""
    labels = (vm["spec"].get("template") or {}).get("metadata", {}).get("labels") or {}
    for service in services:
        spec = service["spec"]
        selector = spec.get("selector") or {}
        port = _ssh_port(spec)
        if (
            service["metadata"]["namespace"] != vm["metadata"]["namespace"]
            or spec.get("type") != "LoadBalancer"
            or not selector
            or not selector.items() <= labels.items()
            or port is None
        ):
            continue
        published = (service["metadata"].get("annotations") or {}).get(_PUBLISHED, "")
        places = dict(item.partition("=")[::2] for item in published.split(","))
        if str(port) in places:
            return places[str(port)]
        given = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
        if given:
            host = str(given[0].get("ip") or given[0].get("hostname") or "")
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


def _ssh_port(spec: Mapping[str, Any]) -> int | None:
    """Return the Service's port that leads to the guest's port 22."""
    for port in spec.get("ports") or ():
        if port.get("targetPort", port["port"]) in (22, "ssh"):
            return int(port["port"])
    return None
