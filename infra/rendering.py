"""An environment as files for GitOps: the objects that `up` writes, as YAML with a kustomization.

The same builders make both, so a rendered object is the one that `up` would apply. Secrets are
references (External Secrets) unless plain ones are asked for, which is what SOPS encrypts. The same
settings give the same bytes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING, Any

import yaml

from infra import (
    access_keys,
    guest,
    hub_content,
    manifests,
    node_manifests,
    operators,
    publishing,
)
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kvedge import iothub, spec
    from kvedge.wire import KubeObject

__all__ = [
    "Facts",
    "Rendered",
    "facts_before",
    "facts_of",
    "open_objects",
    "register",
    "rendered",
    "write",
]

_MARK = ".kvedge-rendered"
_EXTERNAL = "external-secrets.io/v1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is not in the settings."""

    image: str
    """The containerDisk by digest."""
    image_key: str
    connector_image: str = ""
    connection_strings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the devices, by VM; empty when Secrets are references."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The objects, those that hold secrets apart."""

    objects: tuple[KubeObject, ...]
    secrets: tuple[KubeObject, ...]
    operators: tuple[KubeObject, ...] = ()
    """KubeVirt and CDI, which must be there before the others are applied."""


def facts_before(environment: spec.Environment, wanted: Iterable[publishing.Wanted]) -> Facts:
    """Return what is known before a run; an image that it pushes has no digest yet, and is empty.

    Args:
        wanted: the images that it pushes.
    """
    keys = {one.kind: one.key for one in wanted}
    platform = environment.platform
    return Facts(
        image=environment.image.reference,
        image_key=keys.get("disk", environment.image.reference[-64:]),
        connector_image=platform.connector.image if platform else "",
    )


def facts_of(environment: spec.Environment, by: publishing.Builder) -> Facts:
    """Find the images in the registry.

    Raises:
        KvedgeError: an image was not pushed yet.
    """
    wanted = publishing.wanted_images(environment, by)
    facts = facts_before(environment, wanted)
    pushed = {
        one.kind: publishing.published(one, environment.registry)
        for one in wanted
        if one.kind in ("disk", "connector")
    }
    return dataclasses.replace(
        facts,
        image=pushed.get("disk", facts.image),
        connector_image=pushed.get("connector", facts.connector_image),
    )


async def register(environment: spec.Environment, hub: iothub.Hub) -> dict[str, str]:
    """Create or adopt the devices and, for a platform, the base deployment.

    Returns the devices' connection strings by VM.
    """
    found: dict[str, str] = {}
    for vm in environment.fleet:
        device_id, tags = environment.device_id(vm), hub_content.device_tags(environment, vm)
        owner = {key: tags["kvedge"][key] for key in hub_content.OWNER_TAGS}
        derived = hub_content.device_key(environment.dps, device_id)
        identity = await hub.ensure_device(device_id, owner=owner, tags=tags, key=derived)
        key = identity.get("authentication", {})["symmetricKey"]["primaryKey"]
        found[vm.name] = guest.device_connection_string(environment.hub.device_host, device_id, key)
    if environment.platform and environment.platform.base_target:
        await hub_content.ensure_base(hub, hub_content.base_configuration(environment))
    return found


def rendered(environment: spec.Environment, facts: Facts, *, store: str = "") -> Rendered:
    """Return all objects.

    Args:
        store: a ClusterSecretStore that the Secrets are references into; empty means plain ones.
    """
    secrets = _secrets(environment, facts, empty=bool(store))
    if store:
        secrets = [_reference(environment, one, store) for one in secrets]
    wanted = environment.operators
    cluster = [
        obj
        for part in operators.PARTS
        if wanted
        for obj in (*operators.operator(wanted, part), operators.controlled(wanted, part))
    ]
    return Rendered(
        objects=tuple(open_objects(environment, facts)),
        secrets=tuple(secrets),
        operators=tuple(cluster),
    )


def open_objects(environment: spec.Environment, facts: Facts) -> list[KubeObject]:
    """Return the objects that hold no key of a device or of the hub.

    Those that name an image which is not known yet are left out.
    """
    seed = access_keys.seed(environment)
    found: list[KubeObject] = [
        manifests.user_keys(environment, access_keys.authorized(environment))
    ]
    if manifests.needs_trust(environment):
        registry_ca = access_keys.trusted(environment.registry.ca_file)
        found.append(manifests.registry_trust(environment, registry_ca))
    for vm in environment.fleet:
        documents = {
            "userdata": guest.user_data(environment, vm),
            "networkdata": guest.network_data(environment, vm),
        }
        name = manifests.cloudinit_secret_name(vm)
        found.append(manifests.secret(environment, vm, name, manifests.encoded(documents)))
        if facts.image:
            url = f"docker://{facts.image}"
            found.append(manifests.os_disk(environment, vm, facts.image_key, url))
        public = guest.host_key(seed, environment.device_id(vm), vm.key_version)[1]
        found += [
            manifests.data_disk(environment, vm),
            manifests.virtual_machine(environment, vm, facts.image_key, public),
        ]
        if service := manifests.ssh_service(environment, vm):
            found.append(service)
    if environment.platform:
        found += [*node_manifests.rights(environment), *node_manifests.guards(environment)]
        if facts.connector_image:
            content = node_manifests.content_of(*_platform_secrets(environment))
            found.append(node_manifests.deployment(environment, facts.connector_image, content))
    return found


def _secrets(environment: spec.Environment, facts: Facts, *, empty: bool) -> list[KubeObject]:
    """Return the Secrets with keys; `empty` ones of the VMs are only to be referred to."""
    authorized = access_keys.authorized(environment)
    seed = access_keys.seed(environment)
    trusted = access_keys.trusted(environment.hub.ca_file, environment.registry.ca_file)
    found: list[KubeObject] = []
    for vm in environment.fleet:
        files = {}
        if not empty:
            files = guest.secret_disk(
                environment, vm, connection_string=facts.connection_strings[vm.name],
                keys=guest.host_key(seed, environment.device_id(vm), vm.key_version),
                authorized_keys=authorized, trusted_ca=trusted,
            )  # fmt: skip
        name = manifests.edge_secret_name(vm)
        found.append(manifests.secret(environment, vm, name, manifests.encoded(files)))
    return found + (_platform_secrets(environment) if environment.platform else [])


def _platform_secrets(environment: spec.Environment) -> list[KubeObject]:
    found = [
        node_manifests.hub_secret(
            environment,
            access_keys.service_connection_string(environment),
            access_keys.trusted(environment.hub.ca_file),
        )
    ]
    if key := access_keys.exec_key(environment):
        found.append(node_manifests.exec_secret(environment, key))
    return found


def write(found: Rendered, folder: Path) -> list[Path]:
    """Write one file an object, and the kustomizations; return what was written.

    Raises:
        KvedgeError: the folder has files that are not from an earlier run.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise errors.KvedgeError(
            f"folder {str(folder)!r} has files that were not rendered by kvedge",
            hint="name another folder, or empty this one",
        )
    for part in ("secrets", "operators"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    (folder / "secrets").mkdir(parents=True)
    (folder / _MARK).write_text("kvedge writes the files of this folder anew.\n")
    for obj in found.objects:
        _write(folder / _file_name(obj), obj, 0o644)
    for obj in found.secrets:
        _write(folder / "secrets" / _file_name(obj), obj, 0o600)
    if found.operators:
        (folder / "operators").mkdir()
        for obj in found.operators:
            _write(folder / "operators" / _file_name(obj), obj, 0o644)
        _kustomize(folder / "operators", [])
    _kustomize(folder / "secrets", [])
    _kustomize(folder, ["secrets"])
    return sorted(folder.rglob("*.yaml"))


def _reference(environment: spec.Environment, secret: KubeObject, store: str) -> KubeObject:
    """Return the ExternalSecret that becomes the Secret, under a key of its own in the store."""
    metadata = secret["metadata"]
    key = f"kvedge/{environment.name}/{metadata['name']}"
    return {
        "apiVersion": _EXTERNAL,
        "kind": "ExternalSecret",
        "metadata": metadata,
        "spec": {
            "secretStoreRef": {"kind": "ClusterSecretStore", "name": store},
            "target": {
                "name": metadata["name"],
                "template": {"metadata": {"labels": metadata["labels"]}},
            },
            "dataFrom": [{"extract": {"key": key}}],
        },
    }


def _file_name(obj: KubeObject) -> str:
    metadata = obj["metadata"]
    place = f"{metadata['namespace']}-" if obj["kind"] in ("Role", "RoleBinding") else ""
    name = metadata["name"].replace(":", "-")
    return f"{obj['kind'].lower()}-{place}{name}.yaml"


def _write(file: Path, obj: Any, mode: int) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as out:
        yaml.safe_dump(obj, out, sort_keys=True)


def _kustomize(folder: Path, more: list[str]) -> None:
    resources = sorted(file.name for file in folder.glob("*.yaml")) + more
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=True))
