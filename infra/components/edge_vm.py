"""EdgeVm: one device with its VM: identity, Secrets, disks, VirtualMachine, ssh Service.

The VirtualMachine holds no value that is unknown before the run, so that a preview sends it
through KubeVirt's own admission.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pulumi

from infra import guest, manifests
from infra.components.edge_device import EdgeDevice
from infra.components.manifest import Manifest

if TYPE_CHECKING:
    from kvedge import spec

__all__ = ["EdgeVm", "EdgeVmArgs"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeVmArgs:
    """What a VM needs beside its settings."""

    image_key: str
    """Names the OS disk."""
    image_url: pulumi.Input[str]
    """The containerDisk by digest, as `docker://`."""
    authorized_keys: tuple[str, ...]
    trusted_ca: str
    """PEM of the authorities of hub and registry; empty for public ones."""
    seed: str
    """Host keys are derived from it."""
    user_keys: Manifest
    """The Secret with the keys that may log in."""
    cluster: pulumi.ProviderResource
    """Makes the Kubernetes objects; the hub's devices need not wait until it knows the cluster."""


class EdgeVm(pulumi.ComponentResource):
    """A VM that is an IoT Edge device."""

    content: pulumi.Output[str]
    """Hash of the template and of all Secrets: another one needs a restart."""

    def __init__(
        self, environment: spec.Environment, vm: spec.Vm, args: EdgeVmArgs,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__("kvedge:index:EdgeVm", vm.name, None, opts)
        self._cluster = args.cluster
        name = vm.name
        keys = guest.host_key(args.seed, environment.device_id(vm), vm.key_version)
        self.device = EdgeDevice(
            f"{name}-device", environment, vm, pulumi.ResourceOptions(parent=self)
        )
        documents = {
            "userdata": guest.user_data(environment, vm),
            "networkdata": guest.network_data(environment, vm),
        }
        secrets = self._secrets(environment, vm, args, keys, documents)
        os_disk = manifests.os_disk(environment, vm, args.image_key, args.image_url)
        disks = [
            Manifest(
                # Another image is another disk; the old one goes when the VM has left it.
                os_disk["metadata"]["name"], os_disk,
                self._child(replace_on_changes=["spec"], delete_before_replace=True),
            ),
            Manifest(
                f"{name}-data", manifests.data_disk(environment, vm),
                self._child(retain_on_delete=True, ignore_changes=["spec"]),
            ),
        ]  # fmt: skip
        machine = manifests.virtual_machine(environment, vm, args.image_key, keys[1])
        self.machine = Manifest(
            name, machine, self._child(depends_on=[*secrets, *disks, args.user_keys])
        )
        service = manifests.ssh_service(environment, vm)
        if service:
            Manifest(f"{name}-ssh", service, self._child())
        template = json.dumps(machine["spec"]["template"], sort_keys=True)
        self.content = pulumi.Output.unsecret(
            self.device.connection_string.apply(
                lambda text: _digest(
                    template, self._files(environment, vm, args, keys, text),
                    documents["userdata"], documents["networkdata"],
                )
            )
        )  # fmt: skip
        self.host_key = keys[1]
        self.register_outputs({"device_id": self.device.device_id})

    def _secrets(
        self, environment: spec.Environment, vm: spec.Vm, args: EdgeVmArgs, keys: tuple[str, str],
        documents: dict[str, str],
    ) -> list[Manifest]:  # fmt: skip
        files = self.device.connection_string.apply(
            lambda text: manifests.encoded(self._files(environment, vm, args, keys, text))
        )
        edge = manifests.secret(environment, vm, manifests.edge_secret_name(vm), {})
        edge["data"] = pulumi.Output.secret(files)
        name = manifests.cloudinit_secret_name(vm)
        cloudinit = manifests.secret(environment, vm, name, manifests.encoded(documents))
        return [
            Manifest(manifests.edge_secret_name(vm), edge, self._child()),
            Manifest(name, cloudinit, self._child()),
        ]

    @staticmethod
    def _files(
        environment: spec.Environment, vm: spec.Vm, args: EdgeVmArgs, keys: tuple[str, str],
        connection_string: str,
    ) -> dict[str, str]:  # fmt: skip
        return guest.secret_disk(
            environment, vm, connection_string=connection_string, keys=keys,
            authorized_keys=args.authorized_keys, trusted_ca=args.trusted_ca,
        )  # fmt: skip

    def _child(self, **more: Any) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, provider=self._cluster, **more)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
