"""`kvedge doctor` on sites that are broken in one way each: found by name, with the fix."""

from __future__ import annotations

import socket

import pytest

from kvedge import iothub, kube
from kvedge.redact import Secret
from kvedge.survey import checks
from kvedge.testing.proxies import running_proxy
from kvedge.testing.waiting import until_async

from .conftest import CDI, CLASSES, KUBEVIRT, cdi, kubevirt, storage_class

READ_ALL = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}


def problems(findings):
    """Return what is wrong, by name of the check."""
    for finding in findings:
        assert finding.state == "ok" or finding.fix, f"no fix: {finding}"
    return {f.check: (f.state, f.found, f.fix) for f in findings if f.state != "ok"}


async def test_a_good_site_has_no_problem(good):
    """Every check of the cluster runs and is content."""
    findings = await checks.check_cluster(good)
    assert problems(findings) == {}
    assert {f.check for f in findings} == {
        "cluster",
        "clock of the API server",
        "KubeVirt",
        "KubeVirt gates",
        "virtualization on nodes",
        "virt-api",
        "CDI",
        "storage class",
        "rights",
    }


async def test_no_cdi(good):
    """Without CDI's kinds nothing else is blamed."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for name in ("datavolumes", "cdis"):
        await good.delete(f"{definitions}/{name}.cdi.kubevirt.io")

    async def seen():
        found = problems(await checks.check_cluster(good))
        return found if found.get("CDI", ("", ""))[1] == "not installed" else None

    found = await until_async(seen, "the kinds are gone")
    assert found.keys() == {"CDI"}
    state, text, fix = found["CDI"]
    assert (state, text) == ("fail", "not installed")
    assert "cdi-operator.yaml" in fix


async def test_cdi_that_nobody_asked_for(good):
    """Kinds without a CDI object mean that no importer runs."""
    await good.delete(f"{CDI}/cdi")
    found = problems(await checks.check_cluster(good))
    assert found.keys() == {"CDI"}
    assert "no CDI object" in found["CDI"][1]


async def test_an_importer_of_another_kind(good):
    """Disks that were imported prove an importer, whoever it is (the local site's VM host)."""
    await good.delete(f"{CDI}/cdi")
    disk = {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "done", "namespace": "default"},
        "status": {"phase": "Succeeded"},
    }
    await good.apply(disk)
    try:
        assert problems(await checks.check_cluster(good)) == {}
    finally:
        await good.delete("/apis/cdi.kubevirt.io/v1beta1/namespaces/default/datavolumes/done")


async def test_cdi_that_is_not_ready(good):
    """An operator that is still at work is told with its phase."""
    await good.apply(cdi(phase="Deploying"))
    assert "Deploying" in problems(await checks.check_cluster(good))["CDI"][1]


async def test_a_gate_that_is_off(good):
    """Before the release that has it always on, a gate must be named; its use is told."""
    await good.apply(kubevirt(release="v1.7.4"))
    found = problems(await checks.check_cluster(good))
    assert found.keys() == {"KubeVirt gates"}
    state, text, fix = found["KubeVirt gates"]
    assert state == "warn"
    assert "ExpandDisks is off" in text
    assert "featureGates" in fix
    await good.apply(kubevirt(release="v1.7.4", featureGates=["ExpandDisks"]))
    assert problems(await checks.check_cluster(good)) == {}


async def test_nodes_without_kvm(good):
    """Without emulation a cluster without KVM would leave each VM unschedulable."""
    await good.apply(kubevirt(useEmulation=False))
    found = problems(await checks.check_cluster(good))
    assert found.keys() == {"virtualization on nodes"}
    assert "useEmulation" in found["virtualization on nodes"][2]


async def test_no_node_for_vms(good):
    """A node without virt-handler's label takes no VM."""
    await good.patch(
        "/api/v1/nodes/edge-host", {"metadata": {"labels": {"kubevirt.io/schedulable": None}}}
    )
    assert problems(await checks.check_cluster(good)).keys() == {"virtualization on nodes"}


@pytest.mark.parametrize(
    ("made", "state", "text"),
    [
        (kubevirt(release="v1.4.1", featureGates=["ExpandDisks"]), "warn", "older than 1.5"),
        (kubevirt(phase="Deploying"), "fail", "'Deploying'"),
    ],
)
async def test_kubevirt_that_will_not_do(good, made, state, text):
    """Age and phase of KubeVirt are told."""
    await good.apply(made)
    found = problems(await checks.check_cluster(good))
    assert found.keys() == {"KubeVirt"}
    assert found["KubeVirt"][0] == state
    assert text in found["KubeVirt"][1]


async def test_kubevirt_without_an_object(good):
    """Kinds alone run nothing."""
    await good.delete(f"{KUBEVIRT}/kubevirt")
    assert "no KubeVirt object" in problems(await checks.check_cluster(good))["KubeVirt"][1]


async def test_no_default_storage_class(good):
    """A class that is not the default is told with its name; none at all is worse."""
    await good.apply(storage_class(default=False))
    found = problems(await checks.check_cluster(good))
    assert found.keys() == {"storage class"}
    assert found["storage class"][:2] == ("warn", "none is the default of local")
    await good.delete(f"{CLASSES}/local")
    assert problems(await checks.check_cluster(good))["storage class"][0] == "fail"


async def test_a_verb_that_is_missing(good, operator):
    """The one verb that a role lacks is found, and the rule to add is given."""
    rules = [
        READ_ALL,
        {"apiGroups": ["subresources.kubevirt.io"], "resources": ["*"], "verbs": ["update"]},
        {
            "apiGroups": ["kubevirt.io", "cdi.kubevirt.io", ""],
            "resources": ["virtualmachines", "datavolumes", "secrets"],
            "verbs": ["create", "patch", "delete"],
        },
        {"apiGroups": [""], "resources": ["services"], "verbs": ["create", "delete"]},
    ]
    async with kube.Client(await operator(rules)) as limited:
        found = problems(await checks.check_cluster(limited))
    assert found.keys() == {"right to patch services"}
    state, text, fix = found["right to patch services"]
    assert (state, text) == ("fail", "refused in namespace 'default'")
    assert "resources: ['services'], verbs: ['patch']" in fix


async def test_a_user_who_may_not_look(good, operator):
    """Checks that may not read say so; the others still speak."""
    rules = [{"apiGroups": ["storage.k8s.io"], "resources": ["*"], "verbs": ["list"]}]
    async with kube.Client(await operator(rules)) as limited:
        findings = await checks.check_cluster(limited)
    found = problems(findings)
    assert "403" in found["KubeVirt"][1]
    assert "right to get pods/log" in found
    assert next(f for f in findings if f.check == "storage class").state == "ok"


@pytest.mark.parametrize(("shift", "state"), [(20, "warn"), (-300, "fail")])
async def test_a_skewed_clock(good, cluster, hub_certificates, tmp_path, shift, state):
    """A clock that is off is told with its distance and side."""
    upstream = kube.load_config(cluster.kubeconfig)
    with running_proxy(upstream, tmp_path, hub_certificates, shift_seconds=shift) as proxy:
        async with kube.Client(kube.load_config(proxy.kubeconfig)) as client:
            found = problems(await checks.check_cluster(client))
    assert found.keys() == {"clock of the API server"}
    told, text, _ = found["clock of the API server"]
    assert told == state
    assert ("ahead of" if shift > 0 else "behind") in text


async def test_a_cluster_that_is_not_there(tmp_path):
    """One finding, not a traceback."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        config = kube.Config(
            server=f"http://127.0.0.1:{held.getsockname()[1]}",
            ssl_context=None,
            token=lambda: None,
            namespace="default",
            source="test",
        )
        async with kube.Client(config) as client:
            assert problems(await checks.check_cluster(client)).keys() == {"cluster"}


def hub_client(hub, policy):
    """Return our client of the emulator with a policy's rights."""
    return iothub.Hub.from_connection_string(
        Secret(hub.policy(policy)),
        ca_file=hub.ca,
        backoff=iothub.Backoff(tries=1),
        budget=iothub.Budget(iothub.UNLIMITED),
    )


async def test_a_good_hub(hub):
    """An owner's policy passes, and nothing was made by looking."""
    async with hub_client(hub, "iothubowner") as client:
        assert problems(await checks.check_hub(client, ca_file=hub.ca)) == {}
        assert (await client.statistics())["totalDeviceCount"] == 0


@pytest.mark.parametrize(
    ("policy", "lacking"),
    [
        ("registryReadWrite", {"read twins", "write twins", "call methods"}),
        ("registryRead", {"write identities", "read twins", "write twins", "call methods"}),
    ],
)
async def test_a_policy_without_twin_rights(hub, policy, lacking):
    """Each right that a policy lacks is named, with the policy to make."""
    async with hub_client(hub, policy) as client:
        found = problems(await checks.check_hub(client, ca_file=hub.ca))
    assert found.keys() == {f"hub right to {what}" for what in lacking}
    assert "ServiceConnect" in found["hub right to read twins"][1]
    assert "az iot hub policy create" in found["hub right to read twins"][2]


async def test_a_crowded_hub(hub):
    """Many deployments are told before the hub refuses the next."""
    async with hub_client(hub, "iothubowner") as client:
        content = {"modulesContent": {"$edgeAgent": {"properties.desired.modules.a": {}}}}
        for number in range(80):
            await client.create_configuration(
                {"id": f"d{number}", "content": content, "priority": number,
                 "targetCondition": "tags.a='b'", "labels": {}}
            )  # fmt: skip
        found = problems(await checks.check_hub(client, ca_file=hub.ca))
    assert found["hub deployments"][:2] == ("warn", "80 of 100")


async def test_an_untrusted_hub(hub):
    """A certificate that nobody vouches for is told as such."""
    async with hub_client(hub, "iothubowner") as client:
        found = problems(await checks.check_hub(client))
    assert found.keys() == {"hub"}
    assert "certificate" in found["hub"][1].lower()
