"""The kubelet API of a running node, over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ssl

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kvedge.node import running
from kvedge.node.mock import MockProvider
from kvedge.node.provider import Usage
from kvedge.testing.waiting import until_async

pytestmark = pytest.mark.timeout(180)


class Talking(MockProvider):
    """The mock with a log and an endless thirst for processor time."""

    seconds = 0.0

    async def logs(self, pod, container, options):
        lines = [f"{container} of {pod['metadata']['name']} line {n}\n" for n in range(5)]
        for line in lines[-options.tail :] if options.tail else lines:
            yield line.encode()

    async def usage(self):
        self.seconds += 2.5
        return {uid: {"c": Usage(self.seconds, 4096)} for uid in self._pods}


@pytest.fixture
async def kubelet(start_node, client, namespace, cluster):
    """A node with one running pod, and a session that trusts its self-signed certificate."""
    provider = Talking()
    serving = running.Serving(listen="127.0.0.1", port=0)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    async with start_node(provider=provider, serving=serving) as node:
        body = {
            "metadata": {"name": "a"},
            "spec": {
                "nodeName": node.spec.name,
                "enableServiceLinks": False,
                "containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}],
            },
        }
        await client.post(pods, body)

        async def running_pod():
            found = await client.get(f"{pods}/a")
            return (found.get("status") or {}).get("phase") == "Running"

        await until_async(running_pod)
        await until_async(lambda: node.api is not None)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connector = aiohttp.TCPConnector(ssl=context)
        admin = cluster.kubeconfig.read_text().split("token: ")[1].split("}")[0]
        async with aiohttp.ClientSession(
            f"https://127.0.0.1:{node.api.port}",
            connector=connector,
            headers={"Authorization": f"Bearer {admin}"},
        ) as session:
            yield session


async def test_strangers_are_refused(kubelet):
    """Without a token that the API server knows nothing is told, but health is."""
    strange = {"Authorization": "Bearer guess"}
    async with kubelet.get("/pods", headers=strange) as answer:
        assert answer.status == 401
    async with kubelet.get("/healthz", headers=strange) as answer:
        assert answer.status == 200
    async with kubelet.get("/readyz", headers=strange) as answer:
        assert answer.status == 200


async def test_rights_are_the_api_servers(kubelet, client, namespace):
    """A service account reads what a role allows it, by the fine names or by nodes/proxy."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    rights = "/apis/rbac.authorization.k8s.io/v1"
    tokens = {}
    for name, resource in (("none", ""), ("fine", "nodes/pods"), ("old", "nodes/proxy")):
        await client.post(accounts, {"metadata": {"name": name}})
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        made = await client.post(f"{accounts}/{name}/token", body)
        tokens[name] = {"Authorization": f"Bearer {made['status']['token']}"}
        if not resource:
            continue
        rules = [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]
        role = {"metadata": {"name": f"{namespace}-{name}"}, "rules": rules}
        await client.post(f"{rights}/clusterroles", role)
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        reference = {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": f"{namespace}-{name}",
        }  # fmt: skip
        binding = {"metadata": role["metadata"], "roleRef": reference, "subjects": [subject]}
        await client.post(f"{rights}/clusterrolebindings", binding)

    async def answer(name, path, **query):
        async with kubelet.get(path, headers=tokens[name], params=query) as got:
            return got.status

    assert await answer("none", "/pods") == 403
    assert await answer("fine", "/pods") == await answer("old", "/pods") == 200
    assert await answer("fine", "/stats/summary") == await answer("old", "/stats/summary") == 403
    where = f"/exec/{namespace}/a/c"
    assert await answer("old", where, command="ls", output="1") == 403, "get does not run commands"


async def test_pods_are_listed(kubelet):
    """Both lists hold the pod, with and without a slash at the end."""
    for path in ("/pods", "/runningpods/", "/runningpods"):
        async with kubelet.get(path) as answer:
            found = await answer.json()
        assert [pod["metadata"]["name"] for pod in found["items"]] == ["a"]


async def test_logs(kubelet, namespace):
    """Logs come by container, cut to the tail; an unknown container is not found."""
    path = f"/containerLogs/{namespace}/a"
    async with kubelet.get(f"{path}/c", params={"tailLines": "2"}) as answer:
        assert await answer.text() == "c of a line 3\nc of a line 4\n"
    async with kubelet.get(f"{path}/c", params={"follow": "true"}) as answer:
        assert (await answer.text()).count("\n") == 5
    async with kubelet.get(f"{path}/c", params={"limitBytes": "20"}) as answer:
        assert await answer.text() == "c of a line 0\nc of a"
    async with kubelet.get(f"{path}/c", params={"stream": "Stderr"}) as answer:
        assert answer.status == 400
    async with kubelet.get(f"{path}/x") as answer:
        assert answer.status == 404
    async with kubelet.get(f"{path}/c", params={"tailLines": "x"}) as answer:
        assert answer.status == 400


async def test_statistics_and_metrics(kubelet, namespace):
    """Each container is there once, and the pod's name is the second label."""
    async with kubelet.get("/stats/summary/") as answer:
        summary = await answer.json()
    (stats,) = summary["pods"]
    assert [c["name"] for c in stats["containers"]] == ["c", "d"]
    assert summary["node"]["cpu"]["usageCoreNanoSeconds"] == 2_500_000_000
    assert stats["memory"]["workingSetBytes"] == 4096
    async with kubelet.get("/metrics/resource") as answer:
        text = await answer.text()
    family = "container_cpu_usage_seconds_total"
    lines = [line for line in text.splitlines() if line.startswith(family)]
    assert len(lines) == 2
    assert f'{family}{{namespace="{namespace}",pod="a",container="c"}} 5' in lines
    assert f'{family}{{namespace="{namespace}",pod="a",container="d"}} 0' in lines
    assert "\nnode_cpu_usage_seconds_total 5\n" in text
    async with kubelet.get("/metrics") as answer:
        assert "kvedge_node_status_patches_total 1" in await answer.text()


async def test_rates_come_from_two_looks(kubelet):
    """Processor use is told once there are two samples a second apart."""
    began = asyncio.get_running_loop().time()

    async def rate():
        async with kubelet.get("/stats/summary") as answer:
            summary = await answer.json()
        return summary["pods"][0]["containers"][0]["cpu"]["usageNanoCores"]

    assert await rate() == 0
    assert await until_async(rate) > 0
    assert asyncio.get_running_loop().time() - began >= 1


async def test_a_command_needs_an_upgrade(kubelet, namespace):
    """What is no upgrade to a known protocol is told so, and unknown containers are not found."""
    where = f"/exec/{namespace}/a"
    query = {"command": "ls", "output": "1"}
    async with kubelet.post(f"{where}/c", params=query) as answer:
        assert answer.status == 400
        assert "must be SPDY/3.1 or websocket" in await answer.text()
    async with kubelet.post(f"{where}/c", params={"output": "1"}) as answer:
        assert (answer.status, await answer.text()) == (400, "command: is empty")
    async with kubelet.post(f"{where}/x", params=query) as answer:
        assert answer.status == 404
    async with kubelet.get(f"{where}/c", params=query, headers={"Authorization": ""}) as answer:
        assert answer.status == 401


def signed(request: bytes, seconds: float) -> bytes:
    """Return a certificate for a request, as the cluster's signer makes it, valid for a while."""
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = x509.load_pem_x509_csr(request)
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(wanted.subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-signer")]))
        .public_key(wanted.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(seconds=seconds))
        .add_extension(
            wanted.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, False
        )
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


async def test_certificate_is_signed_by_the_cluster_and_renewed(start_node, client):
    """A request is made, its certificate served once it is signed, and another in good time."""
    serving = running.Serving(listen="127.0.0.1", port=0, request_certificate=True)
    path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    async with start_node(serving=serving) as node:
        await until_async(lambda: node.api is not None)

        async def pending():
            listed = await client.get(path)
            return [
                entry
                for entry in listed["items"]
                if entry["metadata"]["name"].startswith(f"{node.spec.name}-serving-")
                and not entry.get("status", {}).get("certificate")
            ]

        def shown():
            pem = ssl.get_server_certificate(("127.0.0.1", node.api.port))
            return x509.load_pem_x509_certificate(pem.encode()).issuer.rfc4514_string()

        assert "system:node" in await asyncio.to_thread(shown)
        for _ in range(2):
            (request,) = await until_async(pending)
            assert request["spec"]["signerName"] == "kubernetes.io/kubelet-serving"
            where = f"{path}/{request['metadata']['name']}"
            condition = {"type": "Approved", "status": "True", "reason": "Test"}
            request["status"] = {"conditions": [condition]}
            approved = await client.put(f"{where}/approval", request)
            pem = base64.b64decode(request["spec"]["request"])
            approved["status"]["certificate"] = base64.b64encode(signed(pem, 3)).decode()
            await client.put(f"{where}/status", approved)

            async def from_the_signer():
                return await asyncio.to_thread(shown) == "CN=test-signer"

            await until_async(from_the_signer)
