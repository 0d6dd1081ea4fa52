"""A real API server that looks like a good site, and one thing broken at a time."""

from __future__ import annotations

import itertools

import pytest

from kvedge import kube
from kvedge.testing import kinds
from kvedge.testing.clusters import client, cluster  # noqa: F401 - fixtures
from kvedge.testing.hubs import hub, hub_certificates  # noqa: F401 - fixtures

_serial = itertools.count(1)

KUBEVIRT = "/apis/kubevirt.io/v1/namespaces/kubevirt/kubevirts"
CDI = "/apis/cdi.kubevirt.io/v1beta1/cdis"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


DEFINITIONS = (
    kinds.definition("kubevirt.io", "v1", "KubeVirt", "kubevirts"),
    kinds.definition("kubevirt.io", "v1", "VirtualMachine", "virtualmachines"),
    # Stands in for the aggregated API: served, which is what is looked at.
    kinds.definition("subresources.kubevirt.io", "v1", "Nothing", "nothings"),
    kinds.definition("cdi.kubevirt.io", "v1beta1", "DataVolume", "datavolumes"),
    kinds.definition("cdi.kubevirt.io", "v1beta1", "CDI", "cdis", namespaced=False),
)


def kubevirt(*, release="v1.8.2", phase="Deployed", **developer):
    """Return a KubeVirt object as virt-operator leaves it."""
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": {"name": "kubevirt", "namespace": "kubevirt"},
        "spec": {"configuration": {"developerConfiguration": {"useEmulation": True, **developer}}},
        "status": {"phase": phase, "observedKubeVirtVersion": release},
    }


def cdi(*, phase="Deployed"):
    """Return a CDI object as its operator leaves it."""
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "CDI",
        "metadata": {"name": "cdi"},
        "status": {"phase": phase, "observedVersion": "v1.65.0"},
    }


def storage_class(*, default=True):
    """Return a storage class."""
    annotations = {"storageclass.kubernetes.io/is-default-class": str(default).lower()}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": annotations},
        "provisioner": "kvedge.io/none",
    }


@pytest.fixture
async def good(client):  # noqa: F811
    """Make the cluster a good site again, whatever the test before did to it."""
    await kinds.install(client, DEFINITIONS)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubevirt"}}
    await client.apply(namespace)
    for one in (kubevirt(), cdi(), storage_class()):
        await client.apply(one)
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "edge-host", "labels": {"kubevirt.io/schedulable": "true"}},
    }
    await client.apply(node)
    return client


@pytest.fixture
def operator(client, cluster):  # noqa: F811
    """Return what makes a user who has just these rules."""

    async def make(rules):
        name = f"operator{next(_serial)}"
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        }
        account = {"apiVersion": "v1", "kind": "ServiceAccount",
                   "metadata": {"name": name, "namespace": "default"}}  # fmt: skip
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": name,
            },
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        }
        for one in (role, account, binding):
            await client.apply(one)
        answer = await client.post(
            f"/api/v1/namespaces/default/serviceaccounts/{name}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        )
        token = answer["status"]["token"]
        admin = kube.load_config(cluster.kubeconfig)
        return kube.Config(
            server=admin.server,
            ssl_context=admin.ssl_context,
            token=lambda: token,
            namespace="default",
            source="test",
        )

    return make
