"""From an empty folder to a container in a VM that Kubernetes tells the truth about.

One boot serves all; the tests run in the order of an operator's day.
"""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from kvedge.testing.waiting import until

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/temperature-sensor.yaml"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

POD = "kubectl get pods -l app.kubernetes.io/name=temperature-sensor -o json"


def pods(demo):
    return json.loads(demo.sourced(POD).stdout)["items"]


def ready(demo):
    found = [pod for pod in pods(demo) if not pod["metadata"].get("deletionTimestamp")]
    return len(found) == 1 and found[0]["status"]["containerStatuses"][0]["ready"]


def module_rows(demo):
    """Return the NAME and STATUS columns of `iotedge list` in the VM."""
    lines = demo.ssh("sudo iotedge list").stdout.splitlines()[1:]
    return {line.split()[0]: line.split()[1] for line in lines}


def boot_id(demo):
    return demo.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()


def pid_of(demo, part):
    found = json.loads(demo.kvedge("site", "status", "dev", "-o", "json").stdout)
    return next(row["pid"] for row in found["parts"] if row["name"] == part)


def test_pod_runs_in_the_vm_and_every_view_agrees(demo):
    """kubectl, kvedge status, iotedge in the VM and the hub's twin all show the module."""
    demo.sourced(f"kubectl apply -f {EXAMPLE}")
    demo.sourced("kubectl rollout status deployment/temperature-sensor --timeout=600s", timeout=660)
    assert re.search(r"\s1/1\s+Running\s", demo.sourced("kubectl get pods").stdout)
    vm = demo.status()["vms"][0]
    assert (vm["name"], vm["status"], vm["connection"]) == ("edge1", "Running", "Connected")
    assert vm["modules"] == {"temperature-sensor-sensor": "running"}
    assert vm["pods"] == ["default/temperature-sensor"]
    assert module_rows(demo)["temperature-sensor-sensor"] == "running"


def test_telemetry_of_the_module_arrives_at_the_hub(demo):
    """A message that the container sends passes the edge hub and is read out at the hub."""
    site = demo.site
    done = demo.kvedge(
        "hub", "monitor-events", "--connection-file", str(site / "hub/service.connection"),
        "--ca", str(site / "pki/site-ca.crt"), "--count", "1",
        timeout=120,
    )  # fmt: skip
    assert "temperature" in done.stdout


def test_cloud_init_has_nothing_to_complain_about(demo):
    """All stages ended well, and the guest's own schema takes what it was told."""
    assert demo.ssh("cloud-init status --wait").stdout.strip(". \n") == "status: done"
    assert demo.ssh("sudo cloud-init schema --system", check=False).returncode == 0
    told = demo.ssh("sudo grep -e WARNING -e ERROR /var/log/cloud-init.log", check=False)
    assert told.stdout == ""


def test_kubectl_enters_the_module(demo):
    """`kubectl exec` runs in the module's container, with its exit code; the key does no more."""
    target = "deployment/temperature-sensor"
    done = demo.sourced(f"kubectl exec {target} -- sh -c 'hostname; exit 3'", check=False)
    inside = demo.ssh("docker exec temperature-sensor-sensor hostname").stdout
    assert (done.returncode, done.stdout) == (3, inside)
    done = demo.sourced(f"echo typed | kubectl exec -i {target} -- cat")
    assert done.stdout == "typed\n"


def test_second_up_changes_nothing(demo):
    """Neither kvedge nor a bare pulumi finds anything to do."""
    assert "no changes" in demo.kvedge("up", "dev").stdout
    before = boot_id(demo)
    demo.sourced(f"cd {ROOT} && pulumi up --stack dev --yes --expect-no-changes")
    assert boot_id(demo) == before


def test_unmodified_virtctl_reaches_the_guest(demo):
    """The guest agent query of virtctl and port-forward work through the real virt-api."""
    info = json.loads(demo.sourced("virtctl guestosinfo edge1").stdout)
    assert info["os"]["id"] == "debian"
    line = "timeout 20 virtctl port-forward --stdio vmi/edge1 22 < <(sleep 10) | head -c 7"
    assert demo.sourced(line, check=False).stdout == "SSH-2.0"


def test_load_balancer_address_is_listened_on(demo):
    """The Service's published address answers with the guest's ssh banner."""
    address = demo.status()["vms"][0]["address"]
    host, _, port = address.rpartition(":")
    done = subprocess.run(
        ["bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}; head -c 7 <&3"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "SSH-2.0"


def test_wrong_host_key_is_refused_with_both_fingerprints(demo):
    """A guest that proves another key is not logged in to."""
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq"
    done = demo.kvedge("ssh", "--host-key", other, "edge1", "true", check=False)
    assert done.returncode == 1
    assert done.stderr.count("SHA256:") == 2


@pytest.mark.parametrize("part", ["host", "hub"])
def test_killed_part_is_mended_and_the_guest_never_notices(demo, part):
    """After kill -9 and `site up`, guest, module and pod are as before."""
    before = boot_id(demo)
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid_of(demo, part))], check=True)
    demo.kvedge("site", "up", "dev")
    until(lambda: ready(demo), f"the pod is ready after the {part} was killed", seconds=180)
    assert boot_id(demo) == before
    until(
        lambda: demo.status()["vms"][0]["connection"] == "Connected",
        "the device is connected again",
        seconds=180,
    )


def test_killed_connector_adopts_what_it_finds(demo):
    """A new connector process makes no new deployment."""
    before = demo.status()["vms"][0]["deployments"]
    listed = subprocess.run(
        ["pgrep", "-f", "kvedge connector run"], check=False, capture_output=True, text=True
    )
    ours = [
        pid for pid in listed.stdout.split()
        if str(demo.site) in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    ]  # fmt: skip
    assert ours
    for pid in ours:
        subprocess.run(["kill", "-9", pid], check=False)
    until(lambda: ready(demo), "the pod is ready after the connector was killed", seconds=180)
    assert demo.status()["vms"][0]["deployments"] == before


def test_delete_takes_deployment_and_container_away(demo):
    """After kubectl delete, the hub has no layer and the VM no container."""
    demo.sourced(f"kubectl delete -f {EXAMPLE}")
    until(lambda: not pods(demo), "the pod is gone", seconds=120)
    until(
        lambda: len(demo.status()["vms"][0]["deployments"]) == 1,
        "only the base deployment is left",
        seconds=120,
    )
    until(
        lambda: "temperature-sensor-sensor" not in module_rows(demo),
        "the container is gone from the VM",
        seconds=240,
    )


def test_down_leaves_nothing(demo):
    """After `kvedge down`, no object, device, deployment or image is left; the site goes on."""
    demo.kvedge("down", "dev")
    found = demo.sourced(
        "kubectl get vms,vmis,datavolumes,pvc,services,secrets,deployments -A"
        " -l app.kubernetes.io/managed-by=kvedge -o name"
    )
    assert found.stdout == ""
    assert demo.status()["vms"] == []
    done = subprocess.run(
        ["pgrep", "-f", f"qemu-system.*{demo.site}"], check=False, capture_output=True
    )
    assert done.returncode == 1
    left = demo.kvedge("site", "down", "dev")
    assert left.returncode == 0
