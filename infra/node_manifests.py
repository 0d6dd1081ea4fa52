"""Pure builders of the connector's objects: identity, rights, Secret and Deployment.

The rights are what the virtual node does and no more; leases are granted by namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra import manifests
from kvedge import names

if TYPE_CHECKING:
    from kvedge import spec
    from kvedge.wire import KubeObject

__all__ = ["connector", "deployment", "hub_secret", "rights", "secret_name"]

HUB_KEY = "hub0-cs"
"""Key of the hub's connection string in the connector's Secret, as its predecessor named it."""
_CA_FOLDER = "/run/kvedge/hub-ca"
_CA_KEY = "ca.pem"
_NODE_LEASES = "kube-node-lease"
_USER = 65532


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


def rights(environment: spec.Environment) -> list[KubeObject]:
    """Return ServiceAccount, roles and bindings."""
    name = connector(environment).node_name
    namespace = environment.cluster.namespace
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    leases = [
        _rule("coordination.k8s.io", "leases", "get", "list", "watch", "create", "update", "patch")
    ]
    found: list[KubeObject] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(environment, name)},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": _metadata(environment, name, clusterwide=True),
            "rules": [
                _rule("", "pods", "get", "list", "watch", "patch", "delete"),
                _rule("", "pods/status", "get", "patch", "update"),
                _rule("", "nodes", "get", "list", "watch", "create", "update", "patch", "delete"),
                _rule("", "nodes/status", "get", "patch", "update"),
                _rule("", "configmaps secrets services", "get", "list", "watch"),
                _rule("", "events", "create", "patch"),
                _rule("events.k8s.io", "events", "create", "patch"),
                _rule("authentication.k8s.io", "tokenreviews", "create"),
                _rule("authorization.k8s.io", "subjectaccessreviews", "create"),
            ],
        },
        _binding("ClusterRoleBinding", "ClusterRole", name, subject,
                 _metadata(environment, name, clusterwide=True)),
    ]  # fmt: skip
    for place in (_NODE_LEASES, namespace):
        role = f"{name}-leases"
        found.append(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {**_metadata(environment, role), "namespace": place},
                "rules": leases,
            }
        )
        metadata = {**_metadata(environment, role), "namespace": place}
        found.append(_binding("RoleBinding", "Role", role, subject, metadata))
    return found


def deployment(environment: spec.Environment, image: Any, content: Any) -> KubeObject:
    """Return the connector's Deployment.

    Args:
        image: the container image as the cluster pulls it.
        content: hash of the Secret's content; a change rolls the pods.
    """
    wanted = connector(environment)
    name = wanted.node_name
    selector = {"app.kubernetes.io/name": "iot-edge-connector", "app.kubernetes.io/instance": name}
    secret = secret_name(environment)
    env: list[dict[str, Any]] = [
        {
            "name": "HUB_CONNECTION_STRING",
            "valueFrom": {"secretKeyRef": {"name": secret, "key": HUB_KEY}},
        },
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("VKUBELET_POD_IP", "status.podIP"),
        {"name": "KUBELET_PORT", "value": "10250"},
    ]
    if environment.cluster.identifier:
        env.append({"name": "KVEDGE_CLUSTER_ID", "value": environment.cluster.identifier})
    container: dict[str, Any] = {
        "name": "connector",
        "image": image,
        "args": ["connector", "run", "--node-name", name],
        "ports": [{"name": "kubelet", "containerPort": 10250, "protocol": "TCP"}],
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
    if environment.hub.ca_file:
        env.append({"name": "KVEDGE_HUB_CA_FILE", "value": f"{_CA_FOLDER}/{_CA_KEY}"})
        container["volumeMounts"] = [{"name": "hub-ca", "mountPath": _CA_FOLDER, "readOnly": True}]
        pod["volumes"] = [
            {
                "name": "hub-ca",
                "secret": {
                    "secretName": secret, "items": [{"key": _CA_KEY, "path": _CA_KEY}],
                },
            }
        ]  # fmt: skip
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


def _rule(group: str, resources: str, *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": list(verbs)}


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
