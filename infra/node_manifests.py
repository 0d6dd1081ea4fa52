"""Pure builders of the connector's objects: identity, rights, Secret, Deployment and guards.

The rights are what the virtual node does and no more. The chart iot-edge-connector renders the same
objects; a test compares the two.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from infra import manifests
from kvedge import names

if TYPE_CHECKING:
    from kvedge import spec
    from kvedge.wire import KubeObject

__all__ = [
    "connector",
    "content_of",
    "deployment",
    "exec_secret",
    "guards",
    "hub_secret",
    "rights",
    "secret_name",
]

HUB_KEY = "hub0-cs"
"""Key of the hub's connection string in the connector's Secret, as its predecessor named it."""
_CA_FOLDER = "/run/kvedge/hub-ca"
_CA_KEY = "ca.pem"
_EXEC_FOLDER = "/run/kvedge/exec"
_EXEC_FILE = "id"
_NODE_LEASES = "kube-node-lease"
_USER = 65532
_PORT = 10250


def connector(environment: spec.Environment) -> spec.Connector:
    """Return the platform's connector; only for environments that carry the platform."""
    if environment.platform is None:
        raise ValueError(environment.name)
    return environment.platform.connector


def secret_name(environment: spec.Environment) -> str:
    """Return the name of the connector's Secret."""
    return f"{connector(environment).node_name}-hub"


def hub_secret(environment: spec.Environment, connection_string: str, authority: str) -> KubeObject:
    """Return the Secret with the hub's connection string and, if it has one, its authority."""
    files = {HUB_KEY: connection_string}
    if authority:
        files[_CA_KEY] = authority
    return manifests.secret(environment, None, secret_name(environment), manifests.encoded(files))


def exec_secret(environment: spec.Environment, private_key: str) -> KubeObject:
    """Return the Secret with the key by which modules are entered."""
    files = {_EXEC_FILE: private_key}
    name = f"{connector(environment).node_name}-exec"
    return manifests.secret(environment, None, name, manifests.encoded(files))


def content_of(*secrets: KubeObject) -> str:
    """Return a hash of what Secrets hold."""
    held = "".join(json.dumps(secret["data"], sort_keys=True) for secret in secrets)
    return hashlib.sha256(held.encode()).hexdigest()[:16]


def rights(environment: spec.Environment) -> list[KubeObject]:
    """Return ServiceAccount, roles and bindings."""
    name = connector(environment).node_name
    namespace = environment.cluster.namespace
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    found: list[KubeObject] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(environment, name)},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": _metadata(environment, name, clusterwide=True),
            "rules": [
                _rule("", "nodes", "create"),
                _rule("", "nodes", "get", "list", "watch", "patch", only=name),
                _rule("", "nodes/status", "patch", only=name),
                _rule("", "namespaces", "get", only="kube-system"),
                _rule("authentication.k8s.io", "tokenreviews", "create"),
                _rule("authorization.k8s.io", "subjectaccessreviews", "create"),
                _rule("", "pods", "get", "list", "watch", "delete"),
                _rule("", "pods/status", "patch"),
                _rule("", "configmaps", "get", "list", "watch"),
                # By name only, as kubelets may: no list of all Secrets.
                _rule("", "secrets", "get"),
                _rule("", "events", "create"),
                *(_EXEC_RULES if connector(environment).exec else ()),
            ],
        },
        _binding("ClusterRoleBinding", "ClusterRole", name, subject,
                 _metadata(environment, name, clusterwide=True)),
    ]  # fmt: skip
    for place, lease, verb in (
        (_NODE_LEASES, name, "patch"),
        (namespace, f"kvedge-{name}", "update"),
    ):
        role = f"{name}-leases"
        metadata = {**_metadata(environment, role), "namespace": place}
        found.append(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": metadata,
                "rules": [
                    _rule("coordination.k8s.io", "leases", "create"),
                    _rule("coordination.k8s.io", "leases", "get", verb, only=lease),
                ],
            }
        )
        found.append(_binding("RoleBinding", "Role", role, subject, dict(metadata)))
    return found


_EXEC_RULES = (
    {"apiGroups": ["kubevirt.io"], "resources": ["virtualmachines"], "verbs": ["get"]},
    {
        "apiGroups": ["subresources.kubevirt.io"],
        "resources": ["virtualmachineinstances/portforward"],
        "verbs": ["get"],
    },
)


def guards(environment: spec.Environment) -> list[KubeObject]:
    """Return what protects the connector's pods: disruption budget and network policy."""
    name = connector(environment).node_name
    selector = {"matchLabels": _selector(name)}
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(environment, name),
            "spec": {"maxUnavailable": 1, "selector": selector},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _metadata(environment, name),
            "spec": {
                "podSelector": selector,
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [{"protocol": "TCP", "port": _PORT}]}],
            },
        },
    ]


def deployment(environment: spec.Environment, image: Any, content: Any) -> KubeObject:
    """Return the connector's Deployment.

    Args:
        image: the container image as the cluster pulls it.
        content: hash of the Secret's content; a change rolls the pods.
    """
    wanted = connector(environment)
    name = wanted.node_name
    selector = _selector(name)
    secret = secret_name(environment)
    env: list[dict[str, Any]] = [
        {
            "name": "HUB_CONNECTION_STRING",
            "valueFrom": {"secretKeyRef": {"name": secret, "key": HUB_KEY}},
        },
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("VKUBELET_POD_IP", "status.podIP"),
        {"name": "KUBELET_PORT", "value": str(_PORT)},
    ]
    if environment.cluster.identifier:
        env.append({"name": "KVEDGE_CLUSTER_ID", "value": environment.cluster.identifier})
    container: dict[str, Any] = {
        "name": "connector",
        "image": image,
        "args": ["connector", "run", "--node-name", name],
        "ports": [{"name": "kubelet", "containerPort": _PORT, "protocol": "TCP"}],
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "kubelet", "scheme": "HTTPS"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 12,
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "kubelet", "scheme": "HTTPS"},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "env": env,
    }
    pod: dict[str, Any] = {
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if environment.hub.ca_file:
        env.append({"name": "KVEDGE_HUB_CA_FILE", "value": f"{_CA_FOLDER}/{_CA_KEY}"})
        mounts.append({"name": "hub-ca", "mountPath": _CA_FOLDER, "readOnly": True})
        items = [{"key": _CA_KEY, "path": _CA_KEY}]
        volumes.append({"name": "hub-ca", "secret": {"secretName": secret, "items": items}})
    if wanted.exec:
        env.append({"name": "KVEDGE_EXEC_KEY_FILE", "value": f"{_EXEC_FOLDER}/{_EXEC_FILE}"})
        env.append({"name": "KVEDGE_EXEC_USER", "value": "edge"})
        mounts.append({"name": "exec", "mountPath": _EXEC_FOLDER, "readOnly": True})
        volumes.append(
            {"name": "exec", "secret": {"secretName": f"{name}-exec", "defaultMode": 0o440}}
        )
    if volumes:
        container["volumeMounts"], pod["volumes"] = mounts, volumes
    if environment.hosts:
        pod["hostAliases"] = [
            {"ip": address, "hostnames": [host]}
            for host, address in sorted(environment.hosts.items())
        ]
    metadata = _metadata(environment, name)
    metadata["labels"].update(selector)
    # A pod that cannot start is told by name by the fleet's waiting instead of a bare timeout.
    metadata["annotations"] = {"pulumi.com/skipAwait": "true"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": wanted.replicas,
            "selector": {"matchLabels": selector},
            "template": {
                "metadata": {
                    "labels": {**manifests.labels(environment), **selector},
                    "annotations": {f"{names.ANNOTATION}/content": content},
                },
                "spec": pod,
            },
        },
    }


def _selector(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "iot-edge-connector", "app.kubernetes.io/instance": name}


def _rule(group: str, resource: str, *verbs: str, only: str = "") -> dict[str, Any]:
    rule: dict[str, Any] = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    return {**rule, "resourceNames": [only]} if only else rule


def _binding(
    kind: str, role_kind: str, role: str, subject: dict[str, str], metadata: dict[str, Any]
) -> KubeObject:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
        "subjects": [subject],
    }


def _metadata(
    environment: spec.Environment, name: str, *, clusterwide: bool = False
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "labels": manifests.labels(environment)}
    if not clusterwide:
        found["namespace"] = environment.cluster.namespace
    return found


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
