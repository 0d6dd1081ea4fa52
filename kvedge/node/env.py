"""A pod's environment variables, resolved in declared order, and what is missing.

Reasons of the events are those that Virtual Kubelet writes, so that existing tools and its
end-to-end suite understand them. An optional source that is missing is skipped; a mandatory one
keeps the pod waiting until it arrives.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

from kvedge.quantity import parse_quantity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvedge.wire import KubeObject

__all__ = ["Facts", "Missing", "Resolution", "references", "resolve", "service_variables"]

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_FROM_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
Key = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a pod can ask about its node."""

    node: str
    host_ip: str
    allocatable: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A finding that becomes an Event."""

    reason: str
    message: str
    mandatory: bool


@dataclasses.dataclass(slots=True, kw_only=True)
class Resolution:
    """Variables by container, and what was found wanting."""

    env: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    missing: list[Missing] = dataclasses.field(default_factory=list)

    @property
    def blocked(self) -> str:
        """Why the pod must wait; empty if it need not."""
        return next((entry.message for entry in self.missing if entry.mandatory), "")


def _containers(pod: KubeObject) -> list[dict[str, Any]]:
    spec = pod["spec"]
    return [
        *(spec.get("initContainers") or ()),
        *spec["containers"],
        *(spec.get("ephemeralContainers") or ()),
    ]


def references(pod: KubeObject) -> set[Key]:
    """Return the ConfigMaps and Secrets (kind, name) that the pod's variables come from."""
    found: set[Key] = set()
    for container in _containers(pod):
        for source in container.get("envFrom") or ():
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if source.get(field):
                    found.add((kind, source[field].get("name", "")))
        for entry in container.get("env") or ():
            value = entry.get("valueFrom") or {}
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if value.get(field):
                    found.add((kind, value[field].get("name", "")))
    return found


def resolve(
    pod: KubeObject,
    objects: Mapping[Key, KubeObject | None],
    facts: Facts,
    services: Mapping[str, str],
) -> Resolution:
    """Return the variables of all containers of a pod.

    Args:
        pod: the pod.
        objects: what `references` named; None if it does not exist.
        facts: about the node.
        services: variables about Services.
    """
    result = Resolution()
    for container in _containers(pod):
        env = _Env(pod, container, objects, facts, services, result.missing)
        result.env[container["name"]] = env.resolve()
    return result


class _Env:
    """The variables of one container while they are being resolved."""

    def __init__(
        self,
        pod: KubeObject,
        container: Mapping[str, Any],
        objects: Mapping[Key, KubeObject | None],
        facts: Facts,
        services: Mapping[str, str],
        missing: list[Missing],
    ) -> None:
        self.pod, self.container, self.objects = pod, container, objects
        self.facts, self.services, self.missing = facts, services, missing
        self.values: dict[str, str] = {}

    def resolve(self) -> dict[str, str]:
        for source in self.container.get("envFrom") or ():
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if source.get(field):
                    self._from(kind, source[field], source.get("prefix") or "")
        for entry in self.container.get("env") or ():
            value = self._value(entry)
            if value is not None:
                self.values[entry["name"]] = value
        return {**self.services, **self.values}

    def _miss(self, reason: str, message: str, *, optional: bool) -> None:
        mandatory = not optional
        prefix = "Mandatory" if mandatory else "Optional"
        found = Missing(reason=f"{prefix}{reason}", message=message, mandatory=mandatory)
        if found not in self.missing:
            self.missing.append(found)

    def _from(self, kind: str, reference: Mapping[str, Any], prefix: str) -> None:
        name, optional = reference.get("name", ""), bool(reference.get("optional"))
        obj = self.objects.get((kind, name))
        if obj is None:
            message = f"{kind} {name!r} not found in namespace {self._namespace!r}"
            self._miss(f"{kind}NotFound", message, optional=optional)
            return
        skipped = []
        for key, value in sorted(_data(kind, obj).items()):
            if _FROM_NAME.fullmatch(prefix + key):
                self.values[prefix + key] = value
            else:
                skipped.append(key)
        if skipped:
            where = f"{kind} {self._namespace}/{name}"
            message = f"keys {', '.join(skipped)} of {where} are no variable names and are skipped"
            reason = "InvalidEnvironmentVariableNames"
            self.missing.append(Missing(reason=reason, message=message, mandatory=False))

    @property
    def _namespace(self) -> str:
        return self.pod["metadata"]["namespace"]

    def _value(self, entry: Mapping[str, Any]) -> str | None:
        source = entry.get("valueFrom")
        if not source:
            return self._expanded(entry.get("value") or "")
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if source.get(field):
                return self._key(kind, source[field])
        if source.get("fieldRef"):
            return self._field(source["fieldRef"].get("fieldPath", ""))
        if source.get("resourceFieldRef"):
            return self._resource(source["resourceFieldRef"])
        return None

    def _key(self, kind: str, reference: Mapping[str, Any]) -> str | None:
        name, key = reference.get("name", ""), reference["key"]
        optional = bool(reference.get("optional"))
        obj = self.objects.get((kind, name))
        if obj is None:
            message = f"{kind} {name!r} not found in namespace {self._namespace!r}"
            self._miss(f"{kind}NotFound", message, optional=optional)
            return None
        data = _data(kind, obj)
        if key not in data:
            message = f"key {key!r} does not exist in {kind} {name!r}"
            self._miss(f"{kind}KeyNotFound", message, optional=optional)
            return None
        return data[key]

    def _expanded(self, text: str) -> str:
        if "$" not in text:
            return text

        def one(found: re.Match[str]) -> str:
            if found[1] == "$":
                return "$"
            name = found[2]
            if name in self.values:
                return self.values[name]
            return self.services.get(name, found[0])

        return _REFERENCE.sub(one, text)

    def _field(self, path: str) -> str:
        pod = self.pod
        metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        if found := _SUBSCRIPT.fullmatch(path):
            return (metadata.get(found[1]) or {}).get(found[2], "")
        host = status.get("hostIP") or self.facts.host_ip
        own = status.get("podIP") or self.facts.host_ip
        known = {
            "metadata.name": metadata.get("name"),
            "metadata.namespace": metadata.get("namespace"),
            "metadata.uid": metadata.get("uid"),
            "spec.nodeName": self.facts.node,
            "spec.serviceAccountName": spec.get("serviceAccountName"),
            "status.hostIP": host,
            "status.hostIPs": host,
            "status.podIP": own,
            "status.podIPs": own,
        }
        return str(known.get(path) or "")

    def _resource(self, reference: Mapping[str, Any]) -> str:
        name = reference.get("containerName") or self.container["name"]
        chosen = next((c for c in _containers(self.pod) if c["name"] == name), self.container)
        part, _, resource = reference["resource"].partition(".")
        given = (chosen.get("resources") or {}).get(part, {}).get(resource)
        if given is None:
            given = self.facts.allocatable.get(resource, "0") if part == "limits" else "0"
        divisor = parse_quantity(reference.get("divisor") or "1")
        return str(math.ceil(parse_quantity(given) / (divisor or 1)))


def _data(kind: str, obj: KubeObject) -> Mapping[str, str]:
    data = obj.get("data") or {}
    if kind == "ConfigMap":
        return data
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}


def service_variables(services: Sequence[KubeObject]) -> dict[str, str]:
    """Return the variables that Docker links once made for Services with a cluster address."""
    env: dict[str, str] = {}
    for service in services:
        address = service["spec"].get("clusterIP")
        ports = service["spec"].get("ports") or ()
        if not address or address == "None" or not ports:
            continue
        name = service["metadata"]["name"].replace("-", "_").upper()
        env[f"{name}_SERVICE_HOST"] = address
        env[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                label = port["name"].replace("-", "_").upper()
                env[f"{name}_SERVICE_PORT_{label}"] = str(port["port"])
        for index, port in enumerate(ports):
            protocol = port.get("protocol", "TCP")
            url = f"{protocol.lower()}://{address}:{port['port']}"
            prefix = f"{name}_PORT_{port['port']}_{protocol}"
            if index == 0:
                env[f"{name}_PORT"] = url
            env[prefix] = url
            env[f"{prefix}_PROTO"] = protocol.lower()
            env[f"{prefix}_PORT"] = str(port["port"])
            env[f"{prefix}_ADDR"] = address
    return env
