"""The host as users meet it: real admission, virt-controller, kubectl and virtctl around it."""

import json
import os
import signal
import ssl
import urllib.error
import urllib.request

import pytest
import yaml

from kvedge import processes, tools
from kvedge.testing.sites import kubectl
from kvedge.testing.waiting import until

pytestmark = pytest.mark.site

_IMAGE = "registry.kvedge.test/kvedge/kvedge:test"


@pytest.fixture(scope="module")
def namespace(site):
    """A namespace of this module's own, removed at its end."""
    name = "host-tests"
    kubectl(site, "create", "namespace", name, check=False)
    yield name
    kubectl(site, "delete", "vm,vmi,svc,pod,dv", "--all", "-n", name, "--wait=false", check=False)
    kubectl(site, "delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def cluster(site, namespace):
    """Short forms of kubectl in the module's namespace."""

    class Cluster:
        def apply(self, *objects):
            text = yaml.safe_dump_all(objects)
            kubectl(site, "apply", "-n", namespace, "-f", "-", stdin=text)

        def get(self, kind, name):
            found = kubectl(site, "get", kind, name, "-n", namespace, "-o", "json", check=False)
            return json.loads(found.stdout) if found.returncode == 0 else {}

        def delete(self, kind, name, *more):
            kubectl(site, "delete", kind, name, "-n", namespace, "--wait=false", *more)

        def logs(self, name):
            return kubectl(site, "logs", name, "-n", namespace).stdout

        def phase(self, kind, name):
            return self.get(kind, name).get("status", {}).get("phase")

        def condition(self, kind, name, wanted):
            conditions = self.get(kind, name).get("status", {}).get("conditions") or ()
            return next((item for item in conditions if item["type"] == wanted), {})

        def virtctl(self, *words):
            return processes.run(
                [tools.path("virtctl"), *words, "-n", namespace],
                what=f"virtctl {words[0]}",
                env={"KUBECONFIG": str(site.kubernetes.kubeconfig)},
                timeout=60,
            )

    return Cluster()


def _vm(name, *, devices=None, disks=None, volumes=None, **template):
    disks = disks or [{"name": "d", "disk": {"bus": "virtio"}}]
    volumes = volumes or [{"name": "d", "emptyDisk": {"capacity": "64Mi"}}]
    domain = {
        "memory": {"guest": "64Mi"},
        "devices": {
            "disks": disks,
            "interfaces": [{"name": "default", "masquerade": {}, "ports": [{"port": 22}]}],
            **(devices or {}),
        },
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {
            "runStrategy": "RerunOnFailure",
            "template": {
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "domain": domain,
                    "networks": [{"name": "default", "pod": {}}],
                    "volumes": volumes,
                    **template,
                }
            },
        },
    }


def _pod(name, *args, **spec):
    container = {"name": "c", "image": _IMAGE, "args": list(args), **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "containers": [container], **spec},
    }


def _data_volume(name, source, size="64Mi"):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name},
        "spec": {
            "source": source,
            "storage": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": size}},
            },
        },
    }


def _host_pid(site):
    found = processes.run(
        ["pgrep", "-f", f"kvedge.site.host --site {site.directory}$"],
        what="find the host",
    )
    return int(found.stdout.split()[0])


def _kill_host(site):
    """Kill the host and wait until the supervisor has started the next one."""
    old = _host_pid(site)
    os.kill(old, signal.SIGKILL)

    def renewed():
        try:
            return _host_pid(site) != old
        except Exception:  # noqa: BLE001 - there is none yet
            return False

    until(renewed, seconds=60, what="a new host")


def test_the_node_is_ready_under_its_own_identity(site):
    """The node has a lease, KubeVirt's labels and the pod that virt-api looks for."""
    node = json.loads(kubectl(site, "get", "node", "edge-host", "-o", "json").stdout)
    ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True"
    assert node["metadata"]["labels"]["machine-type.node.kubevirt.io/q35"] == "true"
    assert not node["spec"].get("taints")
    pod = kubectl(
        site, "get", "pod", "-n", "kubevirt", "-l", "kubevirt.io=virt-handler", "-o", "json"
    )
    assert [item["status"]["podIP"] for item in json.loads(pod.stdout)["items"]] == ["10.77.0.4"]


def test_a_vm_runs_pauses_restarts_and_stops(cluster):
    """Virtctl drives a guest through the real virt-api and our endpoints."""
    cluster.apply(_vm("life"))
    until(lambda: cluster.get("vm", "life").get("status", {}).get("ready"), seconds=90)
    vmi = cluster.get("vmi", "life")
    assert vmi["status"]["interfaces"][0]["ipAddress"].startswith("10.77.")
    assert vmi["status"]["nodeName"] == "edge-host"
    cluster.virtctl("pause", "vm", "life")
    until(lambda: cluster.get("vm", "life")["status"]["printableStatus"] == "Paused")
    until(lambda: not cluster.get("vm", "life")["status"].get("ready"))
    cluster.virtctl("unpause", "vm", "life")
    until(lambda: cluster.get("vm", "life")["status"].get("ready"))
    uid = vmi["metadata"]["uid"]
    cluster.virtctl("restart", "life")
    until(lambda: cluster.get("vmi", "life").get("metadata", {}).get("uid", uid) != uid, seconds=90)
    until(lambda: cluster.get("vm", "life")["status"].get("ready"), seconds=90)
    cluster.virtctl("stop", "life")
    until(lambda: cluster.get("vm", "life")["status"]["printableStatus"] == "Stopped", seconds=90)
    cluster.delete("vm", "life")
    until(lambda: not cluster.get("vm", "life"))


def test_a_vm_can_be_started_paused(cluster):
    """The first instruction waits for the unpause."""
    vm = _vm("waits")
    vm["spec"]["runStrategy"] = "Manual"
    cluster.apply(vm)
    until(lambda: cluster.get("vm", "waits").get("status"))
    cluster.virtctl("start", "waits", "--paused")
    until(
        lambda: cluster.get("vm", "waits")["status"].get("printableStatus") == "Paused", seconds=60
    )
    cluster.virtctl("unpause", "vm", "waits")
    until(lambda: cluster.get("vm", "waits")["status"].get("ready"), seconds=60)
    cluster.delete("vm", "waits")
    until(lambda: not cluster.get("vm", "waits"), seconds=60)


def test_a_guest_survives_a_killed_host(site, cluster):
    """The next host adopts the same process, and the VM stays ready."""
    cluster.apply(_vm("kept"))
    until(lambda: cluster.get("vm", "kept").get("status", {}).get("ready"), seconds=90)
    uid = cluster.get("vmi", "kept")["metadata"]["uid"]
    record = site.directory / "vms" / uid / "record.json"
    pid = json.loads(record.read_text())["pid"]
    _kill_host(site)
    _until_answers(cluster)
    assert json.loads(record.read_text())["pid"] == pid
    assert processes.start_time(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: cluster.get("vmi", "kept").get("metadata", {}).get("uid", uid) != uid, seconds=90)
    cluster.delete("vm", "kept")
    until(lambda: not (record.parent).exists(), seconds=60)


def _until_answers(cluster):
    def paused():
        try:
            cluster.virtctl("pause", "vm", "kept")
        except Exception:  # noqa: BLE001 - the host is still starting
            return False
        return True

    until(paused, seconds=60)
    cluster.virtctl("unpause", "vm", "kept")


def test_a_guests_own_power_off_is_no_failure(site, cluster):
    """Under RerunOnFailure the VM then stays stopped."""
    cluster.apply(_data_volume("off", {"blank": {}}))
    until(lambda: cluster.phase("dv", "off") == "Succeeded")
    claim = cluster.get("pvc", "off")
    disk = site.directory / "volumes" / claim["spec"]["volumeName"] / "disk.qcow2"
    raw = disk.with_suffix(".raw")
    # mov dx,0x604; mov ax,0x2000; out dx,ax: ACPI power off on q35.
    raw.write_bytes(b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa")
    os.truncate(raw, 64 * 2**20)
    processes.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], what="write disk")
    vm = _vm("off", volumes=[{"name": "d", "dataVolume": {"name": "off"}}])
    cluster.apply(vm)
    until(
        lambda: cluster.get("vm", "off").get("status", {}).get("printableStatus") == "Stopped",
        seconds=90,
    )
    assert "startFailure" not in cluster.get("vm", "off")["status"]
    cluster.delete("vm", "off")
    cluster.delete("dv", "off")
    until(lambda: not disk.parent.exists(), seconds=60)


def test_what_a_vm_asks_in_vain_is_told_in_a_condition(cluster):
    """A SATA disk is named with its path; nothing is started."""
    disks = [{"name": "d", "disk": {"bus": "sata"}}]
    cluster.apply(_vm("vain", disks=disks))
    until(lambda: cluster.condition("vm", "vain", "Synchronized"), seconds=60)
    told = cluster.condition("vm", "vain", "Synchronized")
    assert (told["status"], told["reason"]) == ("False", "Unsupported")
    assert "disks[0].disk.bus" in told["message"]
    cluster.delete("vm", "vain")
    until(lambda: not cluster.get("vm", "vain"), seconds=60)


def test_a_missing_image_shows_as_err_image_pull(cluster):
    """The VM's own status names the cause."""
    volumes = [{"name": "d", "containerDisk": {"image": "registry.kvedge.test/kvedge/none:1"}}]
    cluster.apply(_vm("pull", volumes=volumes))
    until(
        lambda: cluster.get("vm", "pull").get("status", {}).get("printableStatus")
        == "ErrImagePull",
        seconds=60,
    )
    cluster.delete("vm", "pull")
    until(lambda: not cluster.get("vm", "pull"), seconds=60)


def test_a_missing_image_fails_an_import_with_its_reason(cluster):
    """Running=False tells the registry's answer, and the import is tried again."""
    digest = "sha256:" + "0" * 64
    url = f"docker://registry.kvedge.test/kvedge/none@{digest}"
    cluster.apply(_data_volume("none", {"registry": {"url": url}}))
    until(lambda: cluster.condition("dv", "none", "Running").get("reason") == "Error")
    assert "not in the registry" in cluster.condition("dv", "none", "Running")["message"]
    until(lambda: cluster.get("dv", "none")["status"]["restartCount"] >= 2, seconds=30)
    cluster.delete("dv", "none")


def test_other_sources_are_refused(cluster):
    """An upload has no server here: the DataVolume fails and says so."""
    cluster.apply(_data_volume("upload", {"upload": {}}))
    until(lambda: cluster.phase("dv", "upload") == "Failed")
    assert cluster.condition("dv", "upload", "Running")["reason"] == "Unsupported"
    cluster.delete("dv", "upload")


def test_our_image_runs_as_a_local_process(cluster):
    """Exit code and log come through the kubelet's API."""
    cluster.apply(_pod("once", "--version"))
    until(lambda: cluster.phase("pod", "once") == "Succeeded", seconds=60)
    assert "kvedge" in cluster.logs("once")
    cluster.delete("pod", "once")
    cluster.apply(_pod("wrong", "no-such-command"))
    until(lambda: cluster.phase("pod", "wrong") == "Failed", seconds=60)
    state = cluster.get("pod", "wrong")["status"]["containerStatuses"][0]["state"]
    assert state["terminated"]["exitCode"] == 2
    cluster.delete("pod", "wrong")


def test_any_other_image_is_refused(cluster):
    """There is no container runtime, and the pod says so."""
    cluster.apply(_pod("foreign", container={"image": "docker.io/library/nginx"}))

    def waiting():
        statuses = cluster.get("pod", "foreign").get("status", {}).get("containerStatuses") or [{}]
        return statuses[0].get("state", {}).get("waiting", {})

    until(lambda: waiting().get("reason") == "Unsupported")
    assert "runs no containers" in waiting()["message"]
    cluster.delete("pod", "foreign")
    until(lambda: not cluster.get("pod", "foreign"))


def test_a_service_leads_to_a_pod_that_survives_the_host(site, cluster):
    """Secret, address, probe, balancer and published port work together, before and after."""
    pki = site.directory / "pki" / "site-ca.crt"
    folder = pki.parent
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "tls"},
        "stringData": {name: (folder / name).read_text() for name in ("hub.crt", "hub.key")},
    }
    args = [
        *("hub", "emulate", "--dir", "/run/data", "--https", "$(POD_IP):8443"),
        *("--mqtt", "$(POD_IP):8883", "--cert", "/run/tls/hub.crt", "--key", "/run/tls/hub.key"),
        *("--host", "hub.kvedge.test"),
    ]
    container = {
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "https", "containerPort": 8443}],
        "readinessProbe": {
            "exec": {"command": ["grep", "-q", "192.0.2.7 alias.test", "/etc/hosts"]},
            "periodSeconds": 1,
        },
        "volumeMounts": [
            {"name": "tls", "mountPath": "/run/tls", "readOnly": True},
            {"name": "data", "mountPath": "/run/data"},
        ],
    }
    volumes = [{"name": "tls", "secret": {"secretName": "tls"}}, {"name": "data", "emptyDir": {}}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "served"},
        "spec": {
            "type": "LoadBalancer",
            "selector": {"app": "served"},
            "ports": [{"port": 443, "targetPort": "https"}],
        },
    }
    pod = _pod("served", *args, container=container, volumes=volumes, restartPolicy="Always")
    pod["spec"]["hostAliases"] = [{"ip": "192.0.2.7", "hostnames": ["alias.test"]}]
    cluster.apply(secret, pod, service)

    def published():
        annotations = cluster.get("svc", "served")["metadata"].get("annotations") or {}
        return annotations.get("kvedge.io/published", "").removeprefix("443=127.0.0.1:")

    until(lambda: cluster.condition("pod", "served", "Ready").get("status") == "True", seconds=60)
    until(published)
    port = published()
    until(lambda: _status(port, pki) == 401, seconds=30, what="the hub's answer")
    ingress = cluster.get("svc", "served")["status"]["loadBalancer"]["ingress"]
    assert ingress[0]["ip"].startswith("10.77.32.")
    started = cluster.get("pod", "served")["status"]["containerStatuses"][0]
    _kill_host(site)
    until(lambda: _status(port, pki) == 401, seconds=60, what="the same port after the host")
    again = cluster.get("pod", "served")["status"]["containerStatuses"][0]
    assert again["containerID"] == started["containerID"]
    assert again["restartCount"] == 0
    cluster.delete("svc", "served")
    cluster.delete("pod", "served", "--grace-period=2")
    until(lambda: not cluster.get("pod", "served"), seconds=30)


def _status(port, authority):
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with urllib.request.urlopen(
            f"https://localhost:{port}/devices", context=context, timeout=3
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
