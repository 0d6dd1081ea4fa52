"""Two sites, one hub, one connector: a VM of the second site through an operator's second day.

Site `plant` carries hub, connector and a VM of its own; the VM of site `annex` reaches that hub by
a bridge which the tests cut. The tests run in order and share both boots.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import guest
from kvedge import iothub
from kvedge.emulator import monitoring
from kvedge.redact import Secret
from kvedge.testing.bridges import bridge
from kvedge.testing.demos import Demo
from kvedge.testing.waiting import until

if TYPE_CHECKING:
    from kvedge.site import state
    from kvedge.testing.bridges import Bridge

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
HUB, REGISTRY = "10.77.9.1", "10.77.9.2"
"""Addresses in site `annex` that lead to hub and registry of `plant`."""
GATE_SECONDS = 240
"""More than a boot takes, so that a VM that is late has booted and still has no edge runtime."""
COUNTER = """
import os, sys, time
sys.path.insert(0, "/app/vendor.zip")
from azure.iot.device import IoTHubModuleClient, Message
client = IoTHubModuleClient.create_from_edge_environment(connection_retry_interval=3)
while True:
    try:
        client.connect()
        break
    except Exception as error:
        print(error, flush=True)
        time.sleep(3)
file = "/data/count"
count = int(open(file).read()) if os.path.exists(file) else 0
while True:
    client.send_message_to_output(Message('{"count": %d}' % (count + 1)), "counts")
    count += 1
    with open(file + ".new", "w") as out:
        out.write(str(count))
        out.flush()
        os.fsync(out.fileno())
    os.rename(file + ".new", file)
    print(count, flush=True)
    time.sleep(2)
"""
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "counter",
        "annotations": {"kvedge.io/target-condition": "tags.kvedge.environment='annex'"},
    },
    "spec": {
        "nodeSelector": {"type": "virtual-kubelet"},
        "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        # A new docker volume belongs to root, and the image's own user is another.
        "securityContext": {"runAsUser": 0},
        "containers": [
            {
                "name": "counter",
                "image": "registry.kvedge.test/kvedge/temperature-sensor:1.0",
                "command": ["/usr/bin/python3", "-IS", "-c", COUNTER],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
    },
}


class Place(Demo):
    """One of the two sites, with its environment."""

    machine: str
    """Name of its VM."""
    registry: state.Registry
    way: Bridge
    """From site `annex` to the hub."""
    ca: Path
    """Of the hub."""
    identity: Path | None = None
    """The private key to log in with; None is the environment's own."""

    def logged_in(self, line):
        """Run a command in the VM and return how it went."""
        given = ["-i", str(self.identity)] if self.identity else []
        return self.kvedge("ssh", "--wait", "180", *given, self.machine, line, check=False)

    def guest(self, line):
        """Return what a command in the VM prints."""
        done = self.logged_in(line)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def boot_id(self):
        return self.guest("cat /proc/sys/kernel/random/boot_id")

    def host_key(self):
        """Return the key that sshd proves, as the VM's own file has it."""
        return self.guest("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")

    def get(self, *words):
        return json.loads(self.sourced(" ".join(["kubectl", "get", *words, "-o", "json"])).stdout)


def recipe(folder, name, *, mask=""):
    """Write a recipe that differs from the tested one by a file, and by a unit that never starts."""
    text = (ROOT / "images/recipes/debian-12-edge.toml").read_text()
    text = text.replace('name = "debian-12-edge"', f'name = "{name}"', 1)
    text = text.replace('overlays = ["guest"]', f'overlays = ["guest", "./{name}"]', 1)
    if mask:
        text = text.replace("mask = [", f'mask = ["{mask}", ', 1)
    (folder / name / "etc").mkdir(parents=True, exist_ok=True)
    (folder / name / "etc/plant-release").write_text(f"{name}\n")
    (folder / f"{name}.toml").write_text(text)
    return f"./{name}.toml"


@pytest.fixture(scope="module")
def sites():
    """Both sites with their VMs up, and the way from the second one to the hub."""
    folders = [Path(tempfile.mkdtemp(prefix="kvedge-e2e-")) for _ in range(2)]
    plant, annex = (Place(f, n) for f, n in zip(folders, ("plant", "annex"), strict=True))
    try:
        first = plant.begin()
        second = annex.begin(
            KVEDGE_HUB_CONNECTION_STRING_FILE=first.hub.connection_string_file,
            KVEDGE_HUB_CA_FILE=first.hub.ca,
            KVEDGE_HOSTS=f"hub.kvedge.test={HUB},registry.kvedge.test={REGISTRY}",
        )
        hub_ways = {f"{HUB}:443": first.ports["hub"], f"{HUB}:8883": first.ports["mqtt"]}
        with (
            bridge(second.folder, hub_ways) as way,
            bridge(second.folder, {f"{REGISTRY}:443": first.ports["registry"]}),
        ):
            annex.way, annex.registry, plant.ca = way, second.registry, Path(first.hub.ca)
            plant.machine, annex.machine = "p1", "a1"
            plant.write(
                fleet=[{"name": "p1", "memory": "768Mi"}],
                platform={"moduleImages": ["temperature-sensor"]},
            )
            plant.kvedge("up", "plant")
            yield plant, annex
    finally:
        annex.end()
        plant.end()


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Two key pairs of people: (private key's file, public line) each."""
    made = []
    for name in ("anna", "ben"):
        private, public = guest.new_key_pair(name)
        file = tmp_path_factory.mktemp("keys") / name
        file.touch(mode=0o600)
        file.write_text(private)
        made.append((file, public.strip()))
    return made


def pushed(place, name, **more):
    """Build a variant of the image, push it to a site's registry and return its reference."""
    words = recipe(place.folder, name, **more)
    where = f"{place.registry.endpoint}/kvedge/{name}"
    done = place.kvedge("image", "push", words, where, "--ca-file", place.registry.ca)
    return done.stdout.strip().replace(place.registry.endpoint, "registry.kvedge.test")


def configure(annex, people, *, image, seconds=600):
    """Write the second site's settings."""
    annex.write(
        image={"reference": image},
        fleet=[{"name": "a1", "memory": "768Mi"}],
        ssh={"authorizedKeys": [public for _, public in people]},
        rollout={"readySeconds": seconds},
    )


def received(plant):
    """Return the numbers of the module's messages that the hub has, in the order of arrival."""
    connection = (plant.site / "hub/service.connection").read_text()
    counts: list[int] = []
    after = 0
    while True:
        path = f"events?after={after}&limit=1000"
        answer = asyncio.run(monitoring.ask(connection, "GET", path, ca=plant.ca))
        if not answer["events"]:
            return counts
        after = answer["next"]
        mine = [one for one in answer["events"] if one.get("moduleId") == "counter-counter"]
        assert {one["deviceId"] for one in mine} <= {"annex-a1"}
        counts += [json.loads(one["body"])["count"] for one in mine]


def missing(plant, last):
    """Return which numbers up to the last one the hub has not."""
    return sorted(set(range(1, last + 1)) - set(received(plant)))


def counted(annex):
    """Return the number that is on the VM's data disk."""
    return int(annex.guest("sudo cat /var/lib/docker/volumes/counter-data/_data/count"))


def identity(plant):
    """Return what makes the device what it is: its generation and keys."""
    connection = Secret((plant.site / "hub/service.connection").read_text().strip())

    async def read():
        async with iothub.Hub.from_connection_string(connection, ca_file=plant.ca) as hub:
            return await hub.get_device("annex-a1")

    device = asyncio.run(read())
    assert device.get("generationId")
    return device.get("generationId"), device.get("authentication")


def instance(annex):
    """Return the uid of the guest that runs, or None."""
    found = annex.get("vmi")["items"]
    return found[0]["metadata"]["uid"] if found else None


def test_a_pod_reaches_the_devices_of_one_environment(sites, people):
    """The connector of the first site runs the module in the second site's VM, and nowhere else."""
    plant, annex = sites
    configure(annex, people[:1], image=pushed(annex, "first"))
    annex.identity = people[0][0]
    annex.kvedge("up", "annex")
    (plant.folder / "pod.json").write_text(json.dumps(POD))
    plant.sourced(f"kubectl apply -f {plant.folder}/pod.json")
    plant.sourced("kubectl wait pod/counter --for=condition=Ready --timeout=600s", timeout=660)
    assert annex.status()["vms"][0]["modules"] == {"counter-counter": "running"}
    assert annex.guest("cat /etc/plant-release") == "first"
    (other,) = plant.status()["vms"]
    assert (other["device"], other["connection"]) == ("plant-p1", "Connected")
    assert (other["modules"], other["pods"]) == ({}, [])
    until(lambda: not missing(plant, 3), "messages arrive", seconds=300, pause=2)


def test_keys_of_people_change_without_a_restart(sites, people):
    """The guest agent puts a new key in and takes an old one out of the running guest."""
    _, annex = sites
    before = annex.boot_id()
    configure(annex, people[1:], image=pushed(annex, "first"))
    annex.kvedge("up", "annex")
    annex.identity = people[1][0]
    until(lambda: annex.logged_in("true").returncode == 0, "ben gets in", seconds=180, pause=2)
    assert annex.boot_id() == before
    annex.identity = people[0][0]
    refused = annex.logged_in("true")
    assert refused.returncode == 1
    assert "refused user 'edge'" in refused.stderr
    annex.identity = people[1][0]


def test_an_upgrade_keeps_counter_identity_host_key_and_undelivered_messages(sites, people):
    """The way to the hub is cut before the restart and mended after it; no number is missing."""
    plant, annex = sites
    device, key = identity(plant), annex.host_key()
    image = pushed(annex, "second")
    annex.way.cut()
    arrived = max(received(plant))
    until(lambda: counted(annex) >= arrived + 8, "the module counts on", seconds=240, pause=2)
    before, guest_before = counted(annex), instance(annex)
    waiting = missing(plant, before)
    assert len(waiting) >= 5
    configure(annex, people[1:], image=image)
    log = annex.folder / "up.log"
    child = annex.start("up", "annex", log=log)
    try:
        until(
            lambda: instance(annex) not in (guest_before, None) or child.poll() is not None,
            "another guest runs", seconds=300, pause=2,
        )  # fmt: skip
        assert child.poll() is None, log.read_text()
        assert missing(plant, before) == waiting
        annex.way.mend()
        assert child.wait(900) == 0, log.read_text()
    finally:
        child.kill()
    assert annex.guest("cat /etc/plant-release") == "second"
    assert (identity(plant), annex.host_key()) == (device, key)
    assert counted(annex) >= before
    until(
        lambda: not missing(plant, before + 3), "what waited arrives, and more",
        seconds=300, pause=2,
    )  # fmt: skip


def test_a_broken_image_is_stopped_and_the_old_digest_brings_the_vm_back(sites, people):
    """Without its edge runtime the VM never gets past the gate; what it knows is still there."""
    plant, annex = sites
    before = counted(annex)
    broken = pushed(annex, "broken", mask="aziot-edged.service")
    configure(annex, people[1:], image=broken, seconds=GATE_SECONDS)
    done = annex.kvedge("up", "annex", check=False)
    assert done.returncode == 1
    late = f"connecting to the hub after {GATE_SECONDS} s"
    assert f"roll-out stopped: VM 'a1': {late}" in done.stderr
    assert annex.guest("cat /etc/plant-release") == "broken"
    configure(annex, people[1:], image=pushed(annex, "second"))
    annex.kvedge("up", "annex")
    assert annex.guest("cat /etc/plant-release") == "second"
    assert counted(annex) >= before
    until(
        lambda: not missing(plant, before + 3), "no number is missing, and more come",
        seconds=300, pause=2,
    )  # fmt: skip


def test_taking_one_environment_away_leaves_the_other(sites):
    """No guest, object or device of the second site stays; the first site's VM goes on."""
    plant, annex = sites
    boot = plant.boot_id()
    annex.kvedge("down", "annex")
    assert annex.status()["vms"] == []
    left = "kubectl get vm,vmi,dv,pvc,secret -A -l kvedge.io/environment=annex -o name"
    assert annex.sourced(left).stdout == ""
    (other,) = plant.status()["vms"]
    assert (other["device"], other["connection"]) == ("plant-p1", "Connected")
    assert plant.boot_id() == boot
