"""The program: stack settings in, components and exports out. No decisions of its own."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pulumi
import pulumi_kubernetes

from infra import access_keys, dynamic, manifests, publishing, stackconfig
from infra.components.boot_image import BootImage
from infra.components.edge_base import EdgeBase
from infra.components.edge_vm import EdgeVm, EdgeVmArgs
from infra.components.fleet import FleetReady
from infra.components.manifest import PROVIDER_VERSION, Manifest
from infra.components.virtual_node import VirtualNode
from kvedge import errors

if TYPE_CHECKING:
    from pathlib import Path

    from kvedge import spec

__all__ = ["build", "main"]


def main() -> None:
    """Run in the engine; mistakes of the user end the run in one message."""
    if os.environ.get("KVEDGE_SDK_DEBUG") == "no":
        pulumi.log.debug = _nothing
    pulumi.run(_run)


async def _run() -> None:
    try:
        await build(stackconfig.load(), publishing.builder())
    except errors.KvedgeError as cause:
        raise pulumi.RunError(dynamic.plain(cause)) from cause


def _nothing(*_: object, **__: object) -> None:
    """Say nothing: each of the SDK's debug lines is a call to the engine that is waited for."""


async def build(environment: spec.Environment, by: publishing.Builder) -> None:
    """Register everything that the environment consists of; the engine works meanwhile."""
    seed = access_keys.seed(environment)
    authorized = access_keys.authorized(environment)
    provider = pulumi_kubernetes.Provider(
        "cluster",
        kubeconfig=_path(environment.cluster.kubeconfig),
        context=environment.cluster.context,
        # Rotating tokens and moving addresses must replace nothing; only another cluster may.
        cluster_identifier=environment.cluster.identifier or None,
        # The client's own brake, 50 a second, is stricter than API servers, which have one:
        # https://kubernetes.io/docs/concepts/cluster-administration/flow-control/
        kube_client_settings=pulumi_kubernetes.KubeClientSettingsArgs(qps=500, burst=1000),
        enable_secret_mutable=True,
        enable_config_map_mutable=True,
        opts=pulumi.ResourceOptions(version=PROVIDER_VERSION),
    )
    options = pulumi.ResourceOptions(providers={"kubernetes": provider})
    plain = pulumi.ResourceOptions(provider=provider)
    images = {
        wanted.kind + wanted.name: wanted for wanted in publishing.wanted_images(environment, by)
    }
    pushed = {key: BootImage(environment, wanted) for key, wanted in images.items()}
    if manifests.needs_trust(environment):
        trust = manifests.registry_trust(
            environment, access_keys.trusted(environment.registry.ca_file)
        )
        Manifest(trust["metadata"]["name"], trust, plain)
    disk = f"disk{environment.image.recipe}"
    image = pushed[disk].reference if disk in pushed else environment.image.reference
    args = EdgeVmArgs(
        image_key=images[disk].key if disk in images else environment.image.reference[-64:],
        image_url=pulumi.Output.concat("docker://", image),
        authorized_keys=authorized,
        trusted_ca=access_keys.trusted(environment.hub.ca_file, environment.registry.ca_file),
        seed=seed,
        user_keys=Manifest(
            manifests.user_keys_name(environment),
            manifests.user_keys(environment, authorized),
            plain,
        ),
        cluster=provider,
    )
    vms: dict[str, EdgeVm] = {}
    for vm in environment.fleet:
        vms[vm.name] = EdgeVm(environment, vm, args)
        await asyncio.sleep(0)
    before: list[pulumi.Resource] = [one.machine for one in vms.values()]
    if environment.platform:
        before += _platform(environment, environment.platform, pushed, options)
    content = {name: one.content for name, one in vms.items()}
    fleet = FleetReady(
        environment, args.image_key, content, pulumi.ResourceOptions(depends_on=before)
    )
    pulumi.export("environment", environment.name)
    pulumi.export("namespace", environment.cluster.namespace)
    pulumi.export("image", image)
    pulumi.export(
        "vms",
        {
            vm.name: {"deviceId": environment.device_id(vm), "hostKey": vms[vm.name].host_key}
            for vm in environment.fleet
        },
    )
    # The SDK's own waiting for what is registered looks at all that is left, again and again.
    await fleet.urn.future()


def _platform(
    environment: spec.Environment, platform: spec.Platform, pushed: dict[str, BootImage],
    options: pulumi.ResourceOptions,
) -> list[pulumi.Resource]:  # fmt: skip
    found: list[pulumi.Resource] = []
    if platform.base_target:
        found.append(EdgeBase("base", environment))
    own = pushed.get("connectorkvedge")
    node = VirtualNode(
        environment,
        image=own.reference if own else platform.connector.image,
        connection_string=access_keys.service_connection_string(environment),
        authority=access_keys.trusted(environment.hub.ca_file),
        exec_key=access_keys.exec_key(environment),
        opts=options,
    )
    return [*found, node.deployment]


def _path(file: Path | None) -> str | None:
    """Return where the kubeconfig is: a path, so that no credential is kept in the state."""
    return str(file.expanduser().absolute()) if file else None
