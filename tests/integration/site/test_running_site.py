"""A running site, seen from outside and from inside."""

from __future__ import annotations

import json

import pytest

from kvedge import processes
from kvedge.site import control
from kvedge.testing.sites import inside, kubectl
from kvedge.testing.waiting import until

pytestmark = pytest.mark.site

VM = {
    "apiVersion": "kubevirt.io/v1",
    "kind": "VirtualMachine",
    "metadata": {"name": "probe", "namespace": "default"},
    "spec": {
        "runStrategy": "Halted",
        "template": {
            "spec": {
                "domain": {
                    "memory": {"guest": "64Mi"},
                    "devices": {"disks": [{"name": "root", "disk": {"bus": "virtio"}}]},
                },
                "volumes": [{"name": "root", "containerDisk": {"image": "example.test/none"}}],
            }
        },
    },
}


def _identity(site, name):
    return f"--kubeconfig={site.folder.identities / f'{name}.kubeconfig'}"


def test_every_part_is_ready(site):
    """`status` looks at processes and readiness itself."""
    seen = control.status(site.directory)
    assert seen.state == "up"
    names = {part.name for part in seen.parts}
    assert {"etcd", "kube-apiserver", "virt-api", "virt-controller", "registry"} <= names


def test_kubectl_works_through_the_published_port(site):
    """The admin's kubeconfig leads to 127.0.0.1 and finds KubeVirt and CDI."""
    assert site.kubernetes.server.startswith("https://127.0.0.1:")
    found = kubectl(site, "get", "kubevirt", "-n", "kubevirt", "-o", "json")
    assert json.loads(found.stdout)["items"][0]["status"]["phase"] == "Deployed"
    served = kubectl(site, "api-resources", "-o", "name").stdout.split()
    assert {"datavolumes.cdi.kubevirt.io", "virtualmachines.kubevirt.io"} <= set(served)
    assert kubectl(site, "get", "--raw", "/apis/subresources.kubevirt.io/v1/version").stdout


def test_admission_answers_with_kubevirts_own_words(site):
    """A disk on an IDE bus is refused by virt-api's webhook; nothing is created."""
    bad = json.loads(json.dumps(VM))
    bad["spec"]["template"]["spec"]["domain"]["devices"]["disks"][0]["disk"]["bus"] = "ide"
    done = kubectl(site, "create", "-f", "-", check=False, stdin=json.dumps(bad))
    assert done.returncode != 0
    assert "devices.disks[0].disk.bus: IDE bus is not supported" in done.stderr


def test_admission_accepts_and_completes_a_good_machine(site):
    """The mutating webhook fills in what KubeVirt fills in (by dry run)."""
    done = kubectl(
        *(site, "create", "-f", "-", "--dry-run=server", "-o", "json"), stdin=json.dumps(VM)
    )
    spec = json.loads(done.stdout)["spec"]["template"]["spec"]
    assert spec["domain"]["machine"]["type"] == "q35"
    assert spec["domain"]["firmware"]["uuid"]


def test_service_accounts_get_tokens_that_work(site):
    """TokenRequest and the ServiceAccount admission are on."""
    until(
        lambda: kubectl(site, "get", "sa", "default", check=False).returncode == 0,
        what="the namespace's service account",
    )
    token = kubectl(site, "create", "token", "default").stdout.strip()
    anonymous = [
        f"--server={site.kubernetes.server}",
        f"--certificate-authority={site.folder.pki / 'cluster-ca.crt'}",
    ]
    from kvedge import tools

    done = processes.run(
        [
            tools.path("kubectl"),
            "--kubeconfig=/dev/null",
            *anonymous,
            f"--token={token}",
            "auth",
            "whoami",
            "-o",
            "json",
        ],
        what="whoami",
    )
    user = json.loads(done.stdout)["status"]["userInfo"]["username"]
    assert user == "system:serviceaccount:default:default"


@pytest.mark.parametrize(
    ("identity", "verb", "resource", "answer"),
    [
        ("node", "update", "nodes/status", "yes"),
        ("node", "list", "secrets", "no"),
        ("node", "create", "virtualmachines.kubevirt.io", "no"),
        ("handler", "update", "virtualmachineinstances.kubevirt.io", "yes"),
        ("handler", "create", "pods", "no"),
        ("volumes", "create", "persistentvolumes", "yes"),
        ("volumes", "update", "secrets", "no"),
        ("virt-api", "create", "subjectaccessreviews.authorization.k8s.io", "yes"),
        ("virt-controller", "create", "pods", "yes"),
        ("kube-scheduler", "create", "pods/binding", "yes"),
        ("kube-controller-manager", "create", "virtualmachines.kubevirt.io", "no"),
    ],
)
def test_each_component_may_do_its_own_work_only(site, identity, verb, resource, answer):
    """Identities are bound to upstream's roles, none of them to cluster-admin."""
    from kvedge import tools

    name, _, sub = resource.partition("/")
    done = inside(
        *(site, str(tools.path("kubectl")), _identity(site, identity)),
        *("auth", "can-i", verb, name, "-A", *([f"--subresource={sub}"] if sub else [])),
        check=False,
    )
    assert done.stdout.split()[0] == answer, done.stderr


def test_names_and_addresses_inside(site):
    """Inside, the site's names resolve, ports below 1024 are free, and there is no way out."""
    done = inside(site, "getent", "hosts", "hub.kvedge.test", "registry.kvedge.test")
    assert done.stdout.split()[0] == "10.77.0.2"
    code = "import socket; s=socket.create_server(('10.77.16.1', 22)); print(s.getsockname()[1])"
    assert inside(site, "python3", "-c", code).stdout.strip() == "22"
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert "unreachable" in inside(site, "python3", "-c", code, check=False).stderr


def test_the_registry_answers_on_the_published_port_with_the_sites_certificate(site):
    """Pushes come from outside, over TLS that the site's authority signed."""
    import ssl
    import urllib.request

    trust = ssl.create_default_context(cafile=site.registry.ca)
    with urllib.request.urlopen(f"https://{site.registry.endpoint}/v2/", context=trust) as answer:
        assert answer.status == 200


def test_the_env_file_leads_programs_to_the_site(site):
    """After sourcing it, plain kubectl and virtctl talk to this site."""
    script = '. "$1" && kubectl get ns kube-system -o jsonpath={.metadata.uid} && virtctl version'
    done = processes.run(["sh", "-c", script, "sh", site.folder.env_file], what="source env")
    assert done.stdout.startswith(site.kubernetes.cluster_id)
    assert "v1.8.2" in done.stdout


def test_up_on_a_running_site_is_quick_and_restarts_nothing(site):
    """A second `up` finds everything in place."""
    before = {part.name: part.pid for part in control.status(site.directory).parts}
    control.up(site.directory, site.name)
    after = {part.name: part.pid for part in control.status(site.directory).parts}
    assert after == before
