"""The chart: same objects as `kvedge up` makes, old values files, and rights that are enough."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import sys

import pytest
import yaml

from infra import node_manifests
from kvedge import errors, processes, settings, tools
from kvedge.testing.clusters import cluster  # noqa: F401 - a fixture
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(600)
ROOT = pathlib.Path(__file__).parents[3]
CHART = ROOT / "charts/iot-edge-connector"
OLD = ROOT / "tests/golden/chart/old-values.yaml"


@pytest.fixture(scope="session")
def helm():
    """Return the helm program."""
    return tools.ensure(["helm"])["helm"]


@pytest.fixture
def template(helm):
    """Return what renders the chart: `template("--set", "replicas=3")`."""

    def rendered(*words):
        argv = [helm, "template", "release", CHART, "--namespace", "edge", *words]
        done = processes.run(argv, what="helm template", timeout=60)
        return [obj for obj in yaml.safe_load_all(done.stdout) if obj]

    return rendered


def key(obj):
    """Return what identifies an object."""
    metadata = obj["metadata"]
    return obj["kind"], metadata.get("namespace", ""), metadata["name"]


def bare(obj):
    """Return an object without what names its maker."""
    obj = yaml.safe_load(yaml.safe_dump(obj))
    for metadata in (obj["metadata"], obj.get("spec", {}).get("template", {}).get("metadata", {})):
        metadata.pop("labels", None)
        metadata.pop("annotations", None)
    return obj


@pytest.fixture
def plant(tmp_path):
    """An environment with a hub that has an authority of its own."""
    authority = tmp_path / "ca.crt"
    authority.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    connection = "HostName=hub.example.net;SharedAccessKeyName=kvedge;SharedAccessKey=c2VjcmV0"
    raw = {
        "cluster": {"namespace": "edge", "identifier": "cluster-1"},
        "hub": {"connectionString": connection, "caFile": str(authority)},
        "registry": {"push": "localhost:5000", "pull": "registry.example.net"},
        "ssh": {"authorizedKeys": ["ssh-ed25519 AAAAC3Nz me"]},
        "fleet": [{"name": "edge1"}],
        "hosts": {"hub.example.net": "10.0.0.7"},
        "keySeed": "seed",
        "platform": {},
    }
    return settings.parse("plant", raw, environ={})


@pytest.mark.parametrize("enter", [False, True])
def test_same_objects_as_the_environment_makes(template, plant, enter):
    """One connector, two ways to install it: chart and `kvedge up` agree in every field."""
    plant = dataclasses.replace(
        plant,
        platform=dataclasses.replace(
            plant.platform, connector=dataclasses.replace(plant.platform.connector, exec=enter)
        ),
    )
    name = plant.platform.connector.node_name
    values = {
        "image": {"repository": "registry.example.net/kvedge", "tag": "1"},
        "env": {"nodeName": name},
        "edgeproviderimage": {"secretsStoreName": f"{name}-hub"},
        "replicas": plant.platform.connector.replicas,
        "clusterId": plant.cluster.identifier,
        "hub": {"caSecretKey": "ca.pem"},
        "hostAliases": [
            {"ip": ip, "hostnames": [host]} for host, ip in sorted(plant.hosts.items())
        ],
        "nodeSelector": None,
        "exec": {"enabled": enter, "secretName": f"{name}-exec"},
    }
    found = {key(obj): bare(obj) for obj in template("--set-json", json.dumps(values))}
    wanted = [
        *node_manifests.rights(plant),
        *node_manifests.guards(plant),
        node_manifests.deployment(plant, "registry.example.net/kvedge:1", "x"),
    ]
    found[next(k for k in found if k[0] == "Deployment")]["spec"]["template"]["spec"]["containers"][
        0
    ].pop("imagePullPolicy")
    assert found == {key(obj): bare(obj) for obj in wanted}


def test_old_values_render(template):
    """A values file of the archived connector installs unchanged."""
    found = template("--values", str(OLD))
    (deployment,) = [obj for obj in found if obj["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    secret = container["env"][0]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "my-secrets", "key": "hub1-cs"}
    assert container["resources"]["limits"] == {"cpu": "100m", "memory": "250Mi"}
    assert container["args"][-1] == "iot-edge-connector-hub1"
    assert "cluster-admin" not in str(found)


def test_rights_are_narrow(template):
    """No wildcard, no list of all Secrets, no reading of Secrets at all if that is wished."""
    found = template("--set", "rbac.secretsByName=false,rbac.secretNamespaces={plant}")
    for obj in found:
        for rule in obj.get("rules", ()):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if "secrets" in rule["resources"]:
                assert (obj["kind"], obj["metadata"]["namespace"]) == ("Role", "plant")
    only = template("--set", "env.monitoredNamespace=plant")
    (role,) = [obj for obj in only if obj["kind"] == "ClusterRole"]
    assert "pods" not in str(role["rules"])


def test_several_hubs(template):
    """Each entry of hubs is a node with its own port; the rights name all of them."""
    found = template(
        "--set-json",
        'hubs=[{"nodeName":"north","secretKey":"a"},{"nodeName":"south","secretKey":"b","units":2}]',
    )
    (config,) = [obj for obj in found if obj["kind"] == "ConfigMap"]
    nodes = yaml.safe_load(config["data"]["nodes.yaml"])["nodes"]
    assert [(n["name"], n["units"]) for n in nodes] == [("north", 1), ("south", 2)]
    (policy,) = [obj for obj in found if obj["kind"] == "NetworkPolicy"]
    assert [p["port"] for p in policy["spec"]["ingress"][0]["ports"]] == [10250, 10251]


async def test_installed_rights_are_enough(
    helm, cluster, client, service, devices, hub, tmp_path  # noqa: F811
):  # fmt: skip
    """Installed by helm, the connector's own account runs a pod with a Secret and reports it."""
    node = "iot-edge-connector-hub1"
    argv = [helm, "install", "hub1", CHART, "--namespace", "edge", "--create-namespace",
            "--kubeconfig", cluster.kubeconfig, "--values", OLD]  # fmt: skip
    await asyncio.to_thread(processes.run, argv, what="helm install", timeout=120)
    token = await client.post(
        f"/api/v1/namespaces/edge/serviceaccounts/{node}/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token["status"]["token"]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    secret = {"metadata": {"name": "password"}, "stringData": {"word": "one"}}
    await client.post("/api/v1/namespaces/default/secrets", secret)
    process = processes.popen(
        [sys.executable, "-m", "kvedge", "connector", "run", "--node-name", node, "--hub-ca-file",
         hub.ca, "--hub-units", "0", "--poll-seconds", "0.5", "--kubelet-port", "0",
         "--address", "127.0.0.1", "--leader-elect"],
        env={
            **os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "POD_NAMESPACE": "edge",
            "HUB_CONNECTION_STRING": hub.connection_string,
        },
        log=tmp_path / "log",
    )  # fmt: skip
    env = [{"name": "W", "valueFrom": {"secretKeyRef": {"name": "password", "key": "word"}}}]
    pod = {
        "metadata": {"name": "a", "annotations": {"kvedge.io/target-condition": "*"}},
        "spec": {"nodeName": node, "containers": [{"name": "m", "image": "r/m:1", "env": env}]},
    }
    try:
        async with devices(1) as simulation:
            await client.post("/api/v1/namespaces/default/pods", pod)

            async def runs():
                found = await client.get("/api/v1/namespaces/default/pods/a")
                return (found.get("status") or {}).get("phase") == "Running"

            await until_async(runs, seconds=60)
            reported = simulation.devices["sim-1"].reported["modules"]["a-m"]
            assert reported["env"] == {"W": {"value": "one"}}
            await client.delete("/api/v1/namespaces/default/pods/a")

            async def gone():
                with contextlib.suppress(errors.NotFound):
                    await client.get("/api/v1/namespaces/default/pods/a")
                    return False
                return True

            await until_async(gone, seconds=60)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
    log = (tmp_path / "log").read_text()
    assert "forbidden" not in log.lower()
    events = (await client.get("/api/v1/namespaces/default/events"))["items"]
    assert "ProviderCreateSuccess" in {event["reason"] for event in events}
