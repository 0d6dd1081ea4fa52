"""Environment resolution: order, expansion, references and what is missing."""

from __future__ import annotations

import base64

import pytest

from kvedge.node import env

FACTS = env.Facts(node="n1", host_ip="10.0.0.1", allocatable={"cpu": "4", "memory": "1Gi"})


def pod(container: dict, **metadata) -> dict:
    """Return a pod of one container named c."""
    return {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1", **metadata},
        "spec": {"containers": [{"name": "c", "image": "i", **container}]},
    }


def resolved(given: dict, objects=None, services=None) -> env.Resolution:
    """Resolve a pod with the objects given."""
    return env.resolve(given, objects or {}, FACTS, services or {})


def config_map(**data) -> dict:
    """Return a ConfigMap."""
    return {"data": data}


def secret(**data) -> dict:
    """Return a Secret."""
    return {"data": {key: base64.b64encode(v.encode()).decode() for key, v in data.items()}}


def test_later_sources_win_and_expand():
    """Variables override sources, references expand from what was declared before."""
    container = {
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(P_X)-$(HOST)-$(NOT)-$$(A)"},
            {"name": "P_X", "value": "mine"},
        ],
    }
    found = resolved(pod(container), {("ConfigMap", "m"): config_map(X="x")}, {"HOST": "h"})
    assert found.env["c"] == {"HOST": "h", "P_X": "mine", "A": "1", "B": "1-x-h-$(NOT)-$(A)"}
    assert found.blocked == ""


def test_secret_values_are_decoded():
    """A Secret's values arrive as text."""
    value = {"secretKeyRef": {"name": "s", "key": "k"}}
    container = {"env": [{"name": "A", "valueFrom": value}]}
    assert resolved(pod(container), {("Secret", "s"): secret(k="hush")}).env["c"] == {"A": "hush"}


@pytest.mark.parametrize(
    ("kind", "field"), [("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")]
)
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("present", [True, False])
def test_reasons_of_missing_references(kind, field, optional, present):
    """Reasons are Virtual Kubelet's, and only mandatory ones block."""
    reference = {"name": "x", "key": "k", "optional": optional}
    container = {"env": [{"name": "A", "valueFrom": {field: reference}}]}
    objects = {(kind, "x"): {"data": {}} if present else None}
    found = resolved(pod(container), objects)
    prefix = "Optional" if optional else "Mandatory"
    assert [m.reason for m in found.missing] == [
        f"{prefix}{kind}{'Key' if present else ''}NotFound"
    ]
    assert bool(found.blocked) is not optional
    assert found.env["c"] == {}


def test_bad_names_are_skipped_and_told():
    """Keys that are no variable names are left out with one event."""
    container = {"envFrom": [{"configMapRef": {"name": "m"}}]}
    found = resolved(pod(container), {("ConfigMap", "m"): {"data": {"ok": "1", "9bad": "2"}}})
    assert found.env["c"] == {"ok": "1"}
    assert [m.reason for m in found.missing] == ["InvalidEnvironmentVariableNames"]
    assert "9bad" in found.missing[0].message


def test_downward_api():
    """Fields of the pod, its node and its resources, also those that Go's engine lacks."""

    def field(path):
        return {"fieldRef": {"fieldPath": path}}

    def resource(name, **rest):
        return {"resourceFieldRef": {"resource": name, **rest}}

    wanted = {
        "NAME": field("metadata.name"),
        "LABEL": field("metadata.labels['a/b']"),
        "NODE": field("spec.nodeName"),
        "POD_IP": field("status.podIP"),
        "HOST_IP": field("status.hostIP"),
        "CPU": resource("limits.cpu", divisor="1m"),
        "MEMORY": resource("limits.memory", divisor="1Mi"),
        "REQUEST": resource("requests.cpu"),
    }
    container = {
        "env": [{"name": name, "valueFrom": source} for name, source in wanted.items()],
        "resources": {"limits": {"cpu": "250m"}, "requests": {"cpu": "100m"}},
    }
    assert resolved(pod(container, labels={"a/b": "x"})).env["c"] == {
        "NAME": "p", "LABEL": "x", "NODE": "n1", "POD_IP": "10.0.0.1", "HOST_IP": "10.0.0.1",
        "CPU": "250", "MEMORY": "1024", "REQUEST": "1",
    }  # fmt: skip


def test_service_variables_skip_headless_services():
    """Services with an address get Docker's link variables."""
    services = [
        {
            "metadata": {"name": "my-db"},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"name": "sql", "port": 5432}]},
        },
        {"metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
    ]
    found = env.service_variables(services)
    assert found["MY_DB_SERVICE_HOST"] == "10.0.0.9"
    assert found["MY_DB_SERVICE_PORT_SQL"] == "5432"
    assert found["MY_DB_PORT"] == "tcp://10.0.0.9:5432"
    assert not any(name.startswith("HEADLESS") for name in found)
