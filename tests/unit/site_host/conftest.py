"""A VMI as KubeVirt's admission hands it over."""

import copy

import pytest

_VMI = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "VirtualMachineInstance",
    "metadata": {
        "name": "edge1",
        "namespace": "plant",
        "uid": "0b9b28a4-6f0c-4f63-9d8e-0123456789ab",
    },
    "spec": {
        "domain": {
            "cpu": {"sockets": 1, "cores": 2, "threads": 1},
            "memory": {"guest": "1Gi"},
            "machine": {"type": "q35"},
            "firmware": {"uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223"},
            "devices": {
                "disks": [
                    {"name": "os", "disk": {"bus": "virtio"}, "bootOrder": 1},
                    {"name": "edge", "disk": {"bus": "virtio"}, "serial": "edge-config"},
                    {"name": "ci", "disk": {"bus": "virtio"}},
                ],
                "interfaces": [
                    {"name": "default", "masquerade": {}, "ports": [{"name": "ssh", "port": 22}]}
                ],
                "rng": {},
            },
        },
        "networks": [{"name": "default", "pod": {}}],
        "volumes": [
            {"name": "os", "dataVolume": {"name": "edge1-os"}},
            {"name": "edge", "secret": {"secretName": "edge1-edge"}},
            {"name": "ci", "cloudInitNoCloud": {"secretRef": {"name": "edge1-ci"}}},
        ],
    },
    "status": {"phase": "Scheduled"},
}


@pytest.fixture
def vmi():
    """A VMI that this host can run; tests change their own copy."""
    return copy.deepcopy(_VMI)
