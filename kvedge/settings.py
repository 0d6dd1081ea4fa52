"""From raw stack settings and KVEDGE_* variables to a checked `spec.Environment`.

Works without pulumi, for `validate` and `render`; `infra.stackconfig` feeds it from the engine.
Every mistake is found in one go. A value comes from the flag, else the environment variable, else
the stack's settings, else the default; `settle` decides that and tells which it was.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import ipaddress
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from kvedge import cloud, conditions, errors, names, spec
from kvedge.fields import Fields, did_you_mean
from kvedge.redact import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Part = TypeVar("_Part")

__all__ = [
    "ENVIRONMENT",
    "NAMESPACE",
    "SECRETS",
    "Settled",
    "parse",
    "parse_azure",
    "parse_cluster",
    "parse_dps",
    "parse_hub",
    "parse_registry",
    "quantity",
    "read",
    "read_stack",
    "read_variables",
    "settle",
    "sources",
]

NAMESPACE = "kvedge"
"""Prefix of our keys in a stack's settings: the project's name."""
ENVIRONMENT: dict[str, str] = {
    "site": "KVEDGE_SITE",
    "cluster.kubeconfig": "KVEDGE_KUBECONFIG",
    "cluster.context": "KVEDGE_CONTEXT",
    "cluster.namespace": "KVEDGE_NAMESPACE",
    "cluster.identifier": "KVEDGE_CLUSTER_ID",
    "hub.connectionString": "KVEDGE_HUB_CONNECTION_STRING",
    "hub.connectionStringFile": "KVEDGE_HUB_CONNECTION_STRING_FILE",
    "hub.deviceHost": "KVEDGE_HUB_DEVICE_HOST",
    "hub.caFile": "KVEDGE_HUB_CA_FILE",
    "platform.connector.connectionString": "KVEDGE_CONNECTOR_CONNECTION_STRING",
    "azure.arc.flux.token": "KVEDGE_FLUX_TOKEN",
    "dps.idScope": "KVEDGE_DPS_ID_SCOPE",
    "dps.groupKey": "KVEDGE_DPS_GROUP_KEY",
    "dps.endpoint": "KVEDGE_DPS_ENDPOINT",
    "registry.push": "KVEDGE_REGISTRY_PUSH",
    "registry.pull": "KVEDGE_REGISTRY_PULL",
    "registry.caFile": "KVEDGE_REGISTRY_CA_FILE",
    "hosts": "KVEDGE_HOSTS",
}
"""The variable that overrides each setting."""

_DEFAULTS: dict[str, Any] = {"cluster.namespace": "default", "image.recipe": "debian-12-edge"}
SECRETS = (
    "hub.connectionString",
    "dps.groupKey",
    "platform.connector.connectionString",
    "azure.arc.flux.token",
    "keySeed",
)
"""Settings that belong into the stack's encrypted configuration."""
_GIVEN = {
    "platform.connector.connectionString": "platform",
    "azure.arc.flux.token": "azure.arc.flux",
}
"""Sections that no variable makes: without them in the stack's settings it is not looked at."""
_VM_NAME_LIMIT = 40
_ITEM = ("name", "mac")
_NAME_HINT = "small letters, digits and '-'"
_UNITS = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(" + "|".join(_UNITS) + ")")
_DIGEST = re.compile(r"[^\s@]+/[^\s@]+@sha256:[0-9a-f]{64}")
_HOST_PORT = re.compile(r"([A-Za-z0-9.-]+)(?::(\d+))?")
_PUBLIC_KEY = re.compile(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/]+=*( .*)?")
_TAG_BYTES = 8192
_ENCRYPTED = "(encrypted in the stack's settings)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Where a setting's value comes from."""

    path: str
    value: Any
    """Secrets are `redact.Secret`."""
    source: str
    """`flag`, the variable's name, `settings` or `default`."""


def settle(
    path: str, *, flags: Mapping[str, Any], environ: Mapping[str, str], stack: Mapping[str, Any]
) -> Settled:
    """Return the value that wins for a setting: flag, variable, stack's settings, default."""
    found, source = _stacked(stack, path), "settings"
    if found is None:
        found, source = _DEFAULTS.get(path), "default"
    variable = ENVIRONMENT.get(path, "")
    if environ.get(variable):
        found, source = _from_variable(path, environ[variable]), variable
    if flags.get(path) is not None:
        found, source = flags[path], "flag"
    if path in SECRETS and isinstance(found, str):
        found = Secret(found)
    return Settled(path=path, value=found, source=source)


def sources(
    stack: Mapping[str, Any], *, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> list[Settled]:
    """Return every setting that is given, or has a variable or a default, with its source."""
    paths = {*ENVIRONMENT, *_DEFAULTS, *(flags or {}), *_leaves(stack, "")}
    settled = [settle(p, flags=flags or {}, environ=environ, stack=stack) for p in sorted(paths)]
    return [one for one in settled if one.value is not None]


def read_stack(path: Path) -> dict[str, Any]:
    """Read our settings from a stack file (`Pulumi.<stack>.yaml`), without the key prefix.

    Raises:
        SpecError: the file is missing or is no stack file.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        config = document.get("config") or {}
        items = dict(config).items()
    except FileNotFoundError as cause:
        problem = errors.Problem(
            path=str(path), message="there is no such stack file",
            hint="copy infra/stacks/Pulumi.site-example.yaml and fill it in",
        )  # fmt: skip
        raise errors.SpecError("cannot read the settings", [problem]) from cause
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as cause:
        line = str(cause).replace("\n", " ")[:160]
        problem = errors.Problem(path=str(path), message=f"not a stack file: {line}")
        raise errors.SpecError("cannot read the settings", [problem]) from cause
    prefix = f"{NAMESPACE}:"
    return {key.removeprefix(prefix): value for key, value in items if key.startswith(prefix)}


def read_variables(file: Path) -> dict[str, str]:
    """Read the variables that a local site's env file exports."""
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        words = shlex.split(line, comments=True)
        if len(words) == 2 and words[0] == "export":
            key, _, found[key] = words[1].partition("=")
    return found


def parse(
    name: str,
    stack: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
) -> spec.Environment:
    """Check the settings of the environment and return its model.

    Args:
        name: the stack's name, which names the environment.
        stack: settings without prefix, such as `{"fleet": [{"name": "edge1"}]}`.
        environ: variables of the process; those of `ENVIRONMENT` override settings.
        flags: values of command-line flags by path, such as `{"cluster.context": "lille"}`.

    Raises:
        SpecError: with every mistake.
    """
    problems: list[errors.Problem] = []
    merged = _merged(stack, environ, flags or {})
    if wrong := _label(name):
        problems.append(
            errors.Problem(
                path="stack",
                message=f"{name!r} {wrong}",
                hint="the stack's name is part of device ids and labels",
            )
        )
    environment = read(name, Fields(merged, "", problems))
    if problems:
        raise errors.SpecError(
            f"settings of environment {name!r}", sorted(problems), hint="nothing has been changed"
        )
    return environment


def read(name: str, top: Fields) -> spec.Environment:
    """Read every setting; mistakes are noted in `top`, and `kvedge.schema` notes what is read."""
    platform = _platform(top)
    image = _image(top)
    needs_registry = not image.reference or (
        platform is not None and (not platform.connector.image or bool(platform.module_images))
    )
    seed = _secret(top, "keySeed")
    environment = spec.Environment(
        name=name,
        site=top.text("site", name, check=_label, hint="a DNS label"),
        cluster=_cluster(top),
        hub=_hub(top),
        dps=_dps(top),
        registry=_registry(top, needed=needs_registry),
        image=image,
        ssh=_ssh(top),
        edge=_edge(top),
        fleet=_fleet(top),
        rollout=_rollout(top),
        hosts=top.mapping("hosts", key=_host_name, value=_address),
        platform=platform,
        operators=_operators(top),
        azure=cloud.read(top, _secret),
        key_seed=Secret(seed) if seed else None,
        labels=top.mapping("labels", key=_label_key, value=_label_value),
    )
    top.done()
    return environment


def parse_hub(stack: Mapping[str, Any], *, environ: Mapping[str, str]) -> spec.Hub:
    """Return the hub alone, for what runs apart from the program.

    Raises:
        SpecError: with every mistake in this section.
    """
    return _alone(_hub, stack, environ)


def parse_azure(stack: Mapping[str, Any], *, environ: Mapping[str, str]) -> spec.Azure | None:
    """Return the section `azure`, if there is one; errors as `parse_hub`."""
    return _alone(lambda top: cloud.read(top, _secret), stack, environ)


def parse_cluster(stack: Mapping[str, Any], *, environ: Mapping[str, str]) -> spec.Cluster:
    """Return the cluster alone; errors as `parse_hub`."""
    return _alone(_cluster, stack, environ)


def parse_dps(stack: Mapping[str, Any], *, environ: Mapping[str, str]) -> spec.Dps | None:
    """Return the enrollment group, if there is one; errors as `parse_hub`."""
    return _alone(_dps, stack, environ)


def parse_registry(stack: Mapping[str, Any], *, environ: Mapping[str, str]) -> spec.Registry:
    """Return the registry alone; errors as `parse_hub`."""
    return _alone(lambda top: _registry(top, needed=True), stack, environ)


def quantity(text: str) -> int:
    """Return the bytes of a Kubernetes quantity such as `1.5Gi`.

    Raises:
        ValueError: it is none.
    """
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ValueError(text)
    return int(float(found[1]) * _UNITS[found[2]])


# Sections


def _cluster(top: Fields) -> spec.Cluster:
    part = top.section("cluster")
    kubeconfig = part.text("kubeconfig", check=_file, hint="for a local site: kvedge site up")
    cluster = spec.Cluster(
        kubeconfig=Path(kubeconfig) if kubeconfig else None,
        context=part.text("context") or None,
        namespace=part.text("namespace", "default", check=_label),
        identifier=part.text("identifier"),
    )
    part.done()
    return cluster


def _hub(top: Fields) -> spec.Hub:
    part = top.section("hub")
    text = _secret(part, "connectionString")
    file = part.text("connectionStringFile", check=_file)
    if file:
        text = Path(file).read_text(encoding="utf-8").strip()
    host = ""
    given = part.has("connectionStringFile") or part.has("connectionString")
    # The section `azure` makes the hub, so before its first run nothing is known of it.
    if not given and top.has("azure"):
        host = f"{cloud.hub_name(top)}.azure-devices.net"
    elif not text and not given:
        part.problem(
            "", "no hub is named",
            "for a local site: kvedge site up, then source its env file; else: "
            "pulumi config set --secret --path kvedge:hub.connectionString '…'",
        )  # fmt: skip
    elif text and text != _ENCRYPTED:
        members = dict(item.split("=", 1) for item in text.split(";") if "=" in item)
        wanted = ["HostName", "SharedAccessKeyName", "SharedAccessKey"]
        if members.get("Authentication") == "EntraId":
            wanted = ["HostName"]
        lacks = [k for k in wanted if not members.get(k)]
        if lacks:
            part.problem(
                "connectionString", f"lacks {' and '.join(lacks)}",
                "take the connection string of a service policy, not of a device",
            )  # fmt: skip
        host = members.get("HostName", "").partition(":")[0]
    ca_file = part.text("caFile", check=_file)
    hub = spec.Hub(
        connection_string=Secret(text),
        device_host=part.text("deviceHost", host, check=_host_name),
        ca_file=Path(ca_file) if ca_file else None,
    )
    part.done()
    return hub


def _dps(top: Fields) -> spec.Dps | None:
    if not top.has("dps"):
        top.raw("dps")
        return None
    part, plain = top.section("dps"), spec.Dps(id_scope="", group_key=Secret(""))
    dps = spec.Dps(
        id_scope=part.text("idScope", check=_id_scope, hint="as the service's overview shows it"),
        group_key=Secret(_secret(part, "groupKey", check=_base64)),
        endpoint=part.text("endpoint", plain.endpoint, check=_https),
    )
    for field, found in (("idScope", dps.id_scope), ("groupKey", dps.group_key.reveal())):
        if part.usable and not found and not part.has(field):
            part.problem(field, "is missing", "both are in the portal, or take the section out")
    part.done()
    return dps


def _registry(top: Fields, *, needed: bool) -> spec.Registry:
    part = top.section("registry")
    push = part.text("push", check=_host_port, hint="HOST or HOST:PORT, without https://")
    if needed and not push and not part.has("push"):
        part.problem("push", "no registry is named", "images that are built here go through one")
    ca_file = part.text("caFile", check=_file)
    registry = spec.Registry(
        push=push,
        pull=part.text("pull", push, check=_host_port, hint="HOST or HOST:PORT, without https://"),
        ca_file=Path(ca_file) if ca_file else None,
    )
    part.done()
    return registry


def _image(top: Fields) -> spec.Image:
    part = top.section("image")
    image = spec.Image(
        recipe=part.text("recipe", "debian-12-edge", check=_dns_name),
        reference=part.text("reference", check=_reference, hint="REPOSITORY@sha256:DIGEST"),
    )
    part.done()
    return image


def _ssh(top: Fields) -> spec.Ssh:
    part = top.section("ssh")
    ssh = spec.Ssh(
        authorized_keys=part.texts(
            "authorizedKeys", check=_public_key, hint="a line of a .pub file"
        ),
        service_type=part.choice(
            "serviceType", "LoadBalancer", ("LoadBalancer", "ClusterIP", "NodePort", "None")
        ),
        port=part.whole("port", 22, 1, 65535),
        source_ranges=part.texts("sourceRanges", check=_network, hint="such as 10.0.0.0/8"),
        annotations=part.mapping("annotations"),
    )
    part.done()
    return ssh


def _edge(top: Fields) -> spec.EdgeRuntime:
    part = top.section("edge")
    plain = spec.EdgeRuntime()
    edge = spec.EdgeRuntime(
        agent_image=part.text("agentImage", plain.agent_image, check=_image_name),
        hub_image=part.text("hubImage", plain.hub_image, check=_image_name),
    )
    part.done()
    return edge


def _fleet(top: Fields) -> tuple[spec.Vm, ...]:
    plain = spec.Vm(name="")
    if not top.is_mapping("fleet"):
        parts = list(top.sections("fleet"))
        return _unique(top, [(part.path, _vm(part, plain, own=_ITEM)) for part in parts])
    part = top.section("fleet")
    template = _vm(part.section("template"), plain, own=())
    prefix = part.text("namePrefix", "edge", check=_vm_prefix, hint="small letters, digits, '-'")
    count = part.whole("count", 0, 0, 1000)
    found = [(vm.path, _vm(vm, template, own=_ITEM)) for vm in part.sections("vms")]
    numbered = [dataclasses.replace(template, name=f"{prefix}{n}") for n in range(1, count + 1)]
    made = {vm.name: ("fleet.count", vm) for vm in numbered}
    for name, inner in part.named_sections("overrides"):
        vm = _vm(inner, template, own=("mac",))
        if name in made:
            made[name] = (inner.path, dataclasses.replace(vm, name=name))
        else:
            inner.problem(
                "", f"no VM of that name is made by count{did_you_mean(name, made)}",
                f"names are {prefix}1 to {prefix}{count}" if count else "count is 0",
            )  # fmt: skip
    part.done()
    return _unique(top, [*found, *made.values()])


def _unique(top: Fields, found: list[tuple[str, spec.Vm]]) -> tuple[spec.Vm, ...]:
    """Return the VMs; two of one name or of one MAC are told."""
    seen: dict[tuple[str, str], str] = {}
    for place, vm in found:
        for field, value in (("name", vm.name), ("mac", vm.mac)):
            taken = seen.setdefault((field, value), place)
            if value and taken != place:
                top.problem(f"{place}.{field}", f"{value!r} is taken by {taken}", "one VM's own")
    return tuple(vm for _, vm in found)


def _vm(part: Fields, plain: spec.Vm, *, own: tuple[str, ...]) -> spec.Vm:
    """Return the VM; fields that are not given are as in `plain`.

    Args:
        own: which of `name` and `mac`, which two VMs never share, may be given here.
    """
    if "name" in own and part.usable and not part.has("name"):
        part.problem("name", "is missing", "each VM needs a name")
    name = part.text("name", check=_vm_name, hint=_NAME_HINT) if "name" in own else ""
    mac = part.text("mac", check=_mac, hint="such as 02:00:00:12:34:56") if "mac" in own else ""
    if part.has("instancetype"):
        for field in ("vcpus", "memory"):
            if part.has(field):
                part.problem(field, "is given by the instancetype", "take one of the two out")
    strategies = ("None", "LiveMigrate", "LiveMigrateIfPossible", "External")
    vm = dataclasses.replace(
        plain,
        name=name,
        mac=mac.lower(),
        key_version=part.whole("keyVersion", plain.key_version, 1, 1_000_000),
        vcpus=part.whole("vcpus", plain.vcpus, 1, 64),
        memory=part.text("memory", plain.memory, check=_at_least("256Mi"), hint="such as 1Gi"),
        instancetype=part.text("instancetype", plain.instancetype, check=_dns_name),
        preference=part.text("preference", plain.preference, check=_dns_name),
        os_disk=part.text("osDisk", plain.os_disk, check=_at_least("2Gi"), hint="such as 4Gi"),
        data_disk=part.text(
            "dataDisk", plain.data_disk, check=_at_least("64Mi"), hint="such as 4Gi"
        ),
        storage_class=part.text("storageClass", plain.storage_class, check=_dns_name),
        access_mode=part.choice(
            "accessMode", plain.access_mode, ("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod")
        ),
        volume_mode=part.choice("volumeMode", plain.volume_mode, ("Filesystem", "Block")),
        firmware=part.choice("firmware", plain.firmware, ("bios", "efi", "secure-boot")),
        tpm=part.flag("tpm", default=plain.tpm),
        eviction_strategy=part.choice("evictionStrategy", plain.eviction_strategy, strategies),
        priority_class=part.text("priorityClass", plain.priority_class, check=_dns_name),
        node_selector={
            **plain.node_selector,
            **part.mapping("nodeSelector", key=_label_key, value=_label_value),
        },
        tags={**plain.tags, **_tags(part)},
        cloud_init={**plain.cloud_init, **_cloud_init(part)},
    )
    part.done()
    return vm


def _rollout(top: Fields) -> spec.Rollout:
    part = top.section("rollout")
    plain = spec.Rollout()
    rollout = spec.Rollout(
        max_unavailable=part.text(
            "maxUnavailable", plain.max_unavailable, check=_share, hint="such as 2 or 25%",
            digits=True,
        ),
        ready_seconds=part.whole("readySeconds", plain.ready_seconds, 30, 86400),
    )  # fmt: skip
    part.done()
    return rollout


def _cloud_init(part: Fields) -> dict[str, Any]:
    """Take a mapping; what is in it is checked against the schema of the image's own cloud-init."""
    found = part.raw("cloudInit")
    if found is None:
        return {}
    if not isinstance(found, dict):
        part.problem("cloudInit", f"{found!r} is not a mapping", "write the keys of a cloud-config")
        return {}
    return found


def _tags(part: Fields) -> dict[str, Any]:
    tags = part.raw("tags")
    if tags is None:
        return {}
    if not isinstance(tags, dict):
        part.problem("tags", f"{tags!r} is not a mapping")
        return {}
    for key in tags:
        if key == "kvedge":
            part.problem("tags.kvedge", "is kept for kvedge itself", "choose another name")
        elif not key or re.search(r"[.$#\s]", str(key)):
            part.problem(
                f"tags.{key}", "has a character that the hub refuses", "no '.', '$', '#' or blank"
            )
    if len(json.dumps(tags)) > _TAG_BYTES:
        part.problem("tags", f"are longer than the hub's {_TAG_BYTES} bytes")
    return tags


def _platform(top: Fields) -> spec.Platform | None:
    if not top.has("platform"):
        top.raw("platform")
        return None
    part = top.section("platform")
    inner = part.section("connector")
    plain = spec.Connector()
    connector = spec.Connector(
        node_name=inner.text("nodeName", plain.node_name, check=_label),
        replicas=inner.whole("replicas", plain.replicas, 1, 10),
        image=inner.text("image", check=_image_name),
        exec=inner.flag("exec", default=plain.exec),
        connection_string=Secret(own) if (own := _secret(inner, "connectionString")) else None,
    )
    inner.done()
    platform = spec.Platform(
        connector=connector,
        base_target=part.text(
            "baseTarget", spec.Platform().base_target,
            check=lambda text: conditions.mistake_in(text) if text else "",
            hint="a target condition such as tags.site='lille'",
        ),
        module_images=part.texts("moduleImages", check=_label),
    )  # fmt: skip
    part.done()
    return platform


def _operators(top: Fields) -> spec.Operators | None:
    if not top.has("operators"):
        top.raw("operators")
        return None
    part, plain = top.section("operators"), spec.Operators()
    operators = spec.Operators(
        registry=part.text("registry", plain.registry, check=_image_name),
        emulation=part.flag("emulation", default=False),
    )
    part.done()
    return operators


def _secret(part: Fields, field: str, *, check: Callable[[str], str] | None = None) -> str:
    value = part.raw(field)
    if isinstance(value, dict) and set(value) == {"secure"}:
        return _ENCRYPTED
    text = part.text(field)
    if text and check and (wrong := check(text)):
        part.problem(field, wrong)
        return ""
    return text


# Checks: each returns what is wrong, or an empty text


def _label(text: str) -> str:
    return (
        "" if names.DNS_LABEL.fullmatch(text) else "is not a DNS label (a-z, 0-9, '-', at most 63)"
    )


def _vm_name(text: str) -> str:
    if len(text) > _VM_NAME_LIMIT:
        return f"is longer than {_VM_NAME_LIMIT} characters"
    return _label(text)


def _vm_prefix(text: str) -> str:
    return _vm_name(f"{text}1000") and "does not begin a DNS label of at most 40 characters"


def _share(text: str) -> str:
    found = re.fullmatch(r"(\d{1,4})%?", text)
    if not found or not int(found[1]) or (text.endswith("%") and int(found[1]) > 100):
        return "is neither a number from 1 on nor a share from 1% to 100%"
    return ""


def _dns_name(text: str) -> str:
    fits = len(text) <= 253 and all(names.DNS_LABEL.fullmatch(part) for part in text.split("."))
    return "" if fits else "is not a DNS name"


def _label_value(text: str) -> str:
    fits = re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", text)
    return "" if fits else "is not a label value (at most 63 of letters, digits, '-', '_', '.')"


def _label_key(text: str) -> str:
    domain, slash, name = text.rpartition("/")
    wrong = (slash and _dns_name(domain)) or not name or _label_value(name)
    return "is not a label key" if wrong else ""


def _host_name(text: str) -> str:
    return _dns_name(text.lower())


def _host_port(text: str) -> str:
    found = _HOST_PORT.fullmatch(text)
    if not found:
        return "is not HOST or HOST:PORT"
    if found[2] and not 1 <= int(found[2]) <= 65535:
        return f"has port {found[2]}, which is not from 1 to 65535"
    return ""


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return "is not an IP address"
    return ""


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as cause:
        return "has host bits set" if "host bits" in str(cause) else "is not a network"
    return ""


def _mac(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        return "is not a MAC address"
    return "is a multicast address" if int(text[:2], 16) & 1 else ""


def _at_least(least: str) -> Any:
    def check(text: str) -> str:
        try:
            return "" if quantity(text) >= quantity(least) else f"is less than {least}"
        except ValueError:
            return "is not a size"

    return check


def _reference(text: str) -> str:
    return "" if _DIGEST.fullmatch(text) else "is not an image by digest"


def _image_name(text: str) -> str:
    return "" if re.fullmatch(r"[a-z0-9][\w.:/@-]*", text) else "is not an image name"


def _id_scope(text: str) -> str:
    return "" if re.fullmatch(r"0ne[0-9A-Fa-f]{8}", text) else "is not an ID scope (0ne…)"


def _base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return "is not base64"
    return ""


def _https(text: str) -> str:
    return "" if re.fullmatch(r"https://[^\s/]+", text) else "is not https://HOST"


def _public_key(text: str) -> str:
    return "" if _PUBLIC_KEY.fullmatch(text) else "is not an OpenSSH public key"


def _file(text: str) -> str:
    return "" if Path(text).expanduser().is_file() else "is not a file"


# Raw values


def _alone(
    read: Callable[[Fields], _Part], stack: Mapping[str, Any], environ: Mapping[str, str]
) -> _Part:
    problems: list[errors.Problem] = []
    part = read(Fields(_merged(stack, environ, {}), "", problems))
    if problems:
        raise errors.SpecError("stack settings", sorted(problems))
    return part


def _merged(
    stack: Mapping[str, Any], environ: Mapping[str, str], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings with the winning flags, variables and defaults put in."""
    merged: dict[str, Any] = json.loads(json.dumps(dict(stack), default=str))
    for path in {*ENVIRONMENT, *_DEFAULTS, *flags}:
        section = _GIVEN.get(path)
        if section and _stacked(merged, section) is None:
            continue
        won = settle(path, flags=flags, environ=environ, stack=stack)
        if won.source != "settings" and won.value is not None:
            value = won.value.reveal() if isinstance(won.value, Secret) else won.value
            _put(merged, path, str(value) if isinstance(value, Path) else value)
    if environ.get(ENVIRONMENT["hub.connectionString"]) and isinstance(merged.get("hub"), dict):
        merged["hub"].pop("connectionStringFile", None)
    return merged


def _stacked(stack: Mapping[str, Any], path: str) -> Any:
    found: Any = stack
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            return None
        found = found[part]
    return found


def _leaves(value: Mapping[str, Any], path: str) -> list[str]:
    found: list[str] = []
    for key, inner in value.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(inner, dict) and set(inner) != {"secure"} and inner and place != "hosts":
            found += _leaves(inner, place)
        else:
            found.append(place)
    return found


def _put(target: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for part in above:
        inner = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            return  # the section itself is wrong and will be told so
        target = inner
    target[last] = value


def _from_variable(path: str, text: str) -> Any:
    if path != "hosts":
        return text
    # A malformed pair keeps an empty address, which is then refused with its path.
    return {
        k.strip(): v.strip() for k, _, v in (pair.partition("=") for pair in text.split(",")) if k
    }
