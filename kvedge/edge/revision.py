"""A pod's whole deployment: derived id, labels of its owner, target and content.

The hub never changes the content of a deployment, so the id holds a hash of it: a changed pod gets
another id, equal pods share one, and a restarted connector finds its own work by computing again
(https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from kvedge import errors
from kvedge.edge import legacy, module, refusing
from kvedge.edge.face import Face, face_of
from kvedge.edge.legacy import RuntimeImages
from kvedge.names import ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge.wire import Configuration

__all__ = [
    "LABEL_CLUSTER",
    "LABEL_NAMESPACE",
    "LABEL_NODE",
    "LABEL_ROLLED_BACK",
    "LABEL_WORKLOAD",
    "SLOTS",
    "TWIN_LIMIT",
    "Inputs",
    "Revision",
    "RuntimeImages",
    "module_names",
    "revision_of",
]

LABEL_CLUSTER = "kvedge-cluster"
LABEL_NODE = "kvedge-node"
LABEL_NAMESPACE = "kvedge-namespace"
LABEL_WORKLOAD = "kvedge-workload"
LABEL_ROLLED_BACK = "kvedge-rolled-back"
"""Says since when a revision that did not become ready has been given up."""
_LABEL_HASH = "kvedge-hash"
_ID_LIMIT = 128
_ID_OTHER = re.compile(r"[^a-z0-9-]+")
SLOTS = 1000
"""Effective priorities for one priority of the user."""
TWIN_LIMIT = 32 * 1024
"""Bytes of a twin's desired properties."""
_CREDENTIAL = re.compile(r"[^.$# ]+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a deployment is made of; equal inputs make the same deployment."""

    pod: dict[str, Any]
    env: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    """Resolved variables by container."""
    config_maps: Mapping[str, Mapping[str, str] | None] = dataclasses.field(default_factory=dict)
    """Data of the ConfigMaps that the legacy face reads, by name; None if one is not there."""
    secrets: Mapping[str, Mapping[str, str] | None] = dataclasses.field(default_factory=dict)
    """Data (base64) of the pull secrets by name; None if one is not there."""
    cluster: str
    """The cluster's id: the UID of its kube-system namespace."""
    node: str
    default_condition: str = ""
    images: RuntimeImages = RuntimeImages()  # noqa: RUF009 - frozen


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One deployment as it shall stand in the hub, but for its revision slot."""

    id: str
    face: Face
    namespace: str
    labels: Mapping[str, str]
    content: Mapping[str, Any]
    modules: Mapping[str, str]
    """Module names by container name, in the pod's order."""
    images: Mapping[str, str]
    """Image by module name."""
    sidecars: int = 0
    """How many of the modules are restartable init containers; they come first."""
    also: frozenset[str] = frozenset()
    """Further deployments that have these modules, while a pack changes."""

    @property
    def ids(self) -> frozenset[str]:
        """All deployments that have these modules."""
        return self.also | {self.id}

    @property
    def workload(self) -> tuple[str, str]:
        """Namespace and name of what the deployment belongs to."""
        return self.namespace, self.face.workload

    def lowest_priority(self) -> int:
        """Return the effective priority of revision slot 0."""
        return self.face.priority * SLOTS

    def configuration(self, priority: int) -> Configuration:
        """Return the deployment as the hub takes it, at an effective priority."""
        return {
            "id": self.id,
            "schemaVersion": "2.0",
            "labels": dict(self.labels),
            "content": {"modulesContent": dict(self.content)},
            "targetCondition": self.face.condition,
            "priority": priority,
        }


def revision_of(inputs: Inputs) -> Revision:
    """Return the deployment of a pod.

    Raises:
        SpecError: the pod cannot be placed; holds every reason with its field path.
    """
    pod, problems = inputs.pod, list[errors.Problem]()
    spec, namespace = pod["spec"], pod["metadata"]["namespace"]
    face = face_of(pod, problems, inputs.default_condition)
    refusing.refuse(spec, problems)
    module.refuse_volumes(spec, problems)
    modules: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    twins: dict[str, Any] = {}
    routes: dict[str, Any] = {}
    for path, container, order in _containers(spec):
        name = _module_name(pod, face, container, path, problems)
        if name in modules:
            message = f"two containers would be module {name!r}"
            problems.append(errors.Problem(path=path, message=message))
        names[container["name"]] = name
        entry, twin = _module(inputs, face, container, path, problems)
        if order is not None:
            entry["startupOrder"] = order
        modules[name] = entry
        if twin is not None:
            twins[name] = twin
        routes.update(_routes(pod, container, name, problems))
    credentials = _credentials(inputs, spec, problems)
    content = (
        legacy.full_content(inputs, modules, twins, routes, credentials, problems)
        if face.kind == "full"
        else _layer(modules, twins, routes, credentials)
    )
    _check_size(content, problems)
    if problems:
        subject = f"cannot place pod '{namespace}/{pod['metadata'].get('name')}'"
        raise errors.SpecError(subject, problems)
    return Revision(
        **_identity(inputs, face, namespace, content),
        face=face,
        namespace=namespace,
        content=content,
        modules=names,
        images={name: entry["settings"]["image"] for name, entry in modules.items()},
        sidecars=len(spec.get("initContainers") or ()),
    )


def _containers(spec: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], int | None]]:
    """Return path, container and startup order; restartable init containers come first."""
    first = spec.get("initContainers") or ()
    found: list[tuple[str, dict[str, Any], int | None]] = [
        (f"spec.initContainers[{index}]", container, index) for index, container in enumerate(first)
    ]
    order = len(first) if first else None
    found += [
        (f"spec.containers[{index}]", container, order)
        for index, container in enumerate(spec["containers"])
    ]
    return found


def _note(pod: Mapping[str, Any], container: Mapping[str, Any], name: str) -> tuple[str, str]:
    key = f"{container['name']}.{ANNOTATION}/{name}"
    return f"metadata.annotations[{key}]", (pod["metadata"].get("annotations") or {}).get(key, "")


def _note_json(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    name: str,
    problems: list[errors.Problem],
) -> dict[str, Any] | None:
    path, text = _note(pod, container, name)
    return legacy.parse_object(text, path, problems) if text else None


def module_names(pod: Mapping[str, Any]) -> list[str]:
    """Return the names of the modules that a pod is, whether or not it can be placed."""
    face, ignored = face_of(dict(pod), []), list[errors.Problem]()
    return [
        _module_name(pod, face, container, path, ignored)
        for path, container, _ in _containers(pod["spec"])
    ]


def _module_name(
    pod: Mapping[str, Any],
    face: Face,
    container: Mapping[str, Any],
    path: str,
    problems: list[errors.Problem],
) -> str:
    where, name = _note(pod, container, "module")
    if not name:
        where = f"{path}.name"
        name = container["name"] if face.legacy else f"{face.workload}-{container['name']}"
        name = name.replace(".", "-")
    if not module.MODULE_NAME.fullmatch(name):
        message = f"{name!r} is no module name (letters, digits, '-' and '_', at most 128)"
        problems.append(errors.Problem(path=where, message=message))
    return name


def _module(
    inputs: Inputs,
    face: Face,
    container: Mapping[str, Any],
    path: str,
    problems: list[errors.Problem],
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a module's entry and its twin's desired properties."""
    pod, spec = inputs.pod, inputs.pod["spec"]
    options = module.create_options(spec, container, face.workload, path, problems)
    own = _note_json(pod, container, "create-options", problems)
    if own:
        options = module.merged(options, own)
    twin = _note_json(pod, container, "desired-properties", problems)
    old = legacy.container_settings(inputs, container["name"], problems) if face.legacy else None
    if old:
        options = module.merged(options, old.create_options)
        twin = old.desired if twin is None else twin
    entry = module.module_of(
        container,
        options,
        inputs.env.get(container["name"], {}),
        spec.get("restartPolicy", "Always"),
        path,
        problems,
    )
    if old:
        entry |= {
            "status": old.status,
            "restartPolicy": old.restart_policy,
            "version": old.version,
        }
    return entry, twin


def _routes(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    name: str,
    problems: list[errors.Problem],
) -> dict[str, Any]:
    """Return the container's routes under names that no other module uses."""
    found = _note_json(pod, container, "routes", problems) or {}
    return {f"{name}-{key}": value for key, value in found.items()}


def _credentials(
    inputs: Inputs, spec: Mapping[str, Any], problems: list[errors.Problem]
) -> dict[str, dict[str, str]]:
    result: dict[str, dict[str, str]] = {}
    for index, reference in enumerate(spec.get("imagePullSecrets") or ()):
        path = f"spec.imagePullSecrets[{index}]"
        name = reference.get("name", "")
        data = inputs.secrets.get(name)
        if data is None:
            problems.append(errors.Problem(path=path, message=f"there is no Secret {name!r}"))
            continue
        for address, entry in _auths(data, path, problems).items():
            result[_ID_OTHER.sub("-", address.lower()).strip("-")] = entry
    return result


def _auths(
    data: Mapping[str, str], path: str, problems: list[errors.Problem]
) -> dict[str, dict[str, str]]:
    try:
        if ".dockerconfigjson" in data:
            auths = json.loads(base64.b64decode(data[".dockerconfigjson"]))["auths"]
        else:
            auths = json.loads(base64.b64decode(data[".dockercfg"]))
        result = {}
        for address, entry in auths.items():
            user, password = entry.get("username"), entry.get("password")
            if user is None and entry.get("auth"):
                user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            result[address] = {
                "address": address.removeprefix("https://").strip("/"),
                "username": user or "",
                "password": password or "",
            }
    except (KeyError, ValueError, TypeError, AttributeError):
        message = "is not a docker registry secret"
        problems.append(
            errors.Problem(path=path, message=message, hint="kubectl create secret docker-registry")
        )
        return {}
    return result


def _layer(
    modules: Mapping[str, Any],
    twins: Mapping[str, Any],
    routes: Mapping[str, Any],
    credentials: Mapping[str, Any],
) -> dict[str, Any]:
    agent: dict[str, Any] = {
        f"properties.desired.modules.{name}": entry for name, entry in modules.items()
    }
    for name, entry in credentials.items():
        agent[f"properties.desired.runtime.settings.registryCredentials.{name}"] = entry
    content: dict[str, Any] = {"$edgeAgent": agent}
    if routes:
        content["$edgeHub"] = {
            f"properties.desired.routes.{name}": route for name, route in routes.items()
        }
    for name, twin in twins.items():
        content[name] = {"properties.desired": twin}
    return content


def _check_size(content: Mapping[str, Any], problems: list[errors.Problem]) -> None:
    for name, part in content.items():
        size = len(json.dumps(part, separators=(",", ":")).encode())
        if size > TWIN_LIMIT:
            path = f"content[{name}]"
            message = f"{size} bytes of desired properties exceed a twin's {TWIN_LIMIT}"
            problems.append(errors.Problem(path=path, message=message))


def _identity(
    inputs: Inputs, face: Face, namespace: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the deployment's id and labels."""
    owner = [inputs.cluster, inputs.node, namespace, face.workload]
    whole = [owner, face.condition, face.priority, content]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    stem = _ID_OTHER.sub("-", f"{inputs.cluster[:8]}-{namespace}-{face.workload}".lower())
    labels = {
        **(inputs.pod["metadata"].get("labels") or {} if face.legacy else {}),
        LABEL_CLUSTER: inputs.cluster,
        LABEL_NODE: inputs.node,
        LABEL_NAMESPACE: namespace,
        LABEL_WORKLOAD: face.workload,
        _LABEL_HASH: digest,
    }
    room = _ID_LIMIT - len(digest) - 1
    return {"id": f"{stem[:room].strip('-')}-{digest}", "labels": labels}
