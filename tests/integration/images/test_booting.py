"""A built image under QEMU: what a user of the machine finds there."""

import base64
import dataclasses
import json
import sys

import pytest

import cloudinit
import images
from images import booting, inspecting, proving
from kvedge import errors, processes
from kvedge.progress import silent
from kvedge.survey import guests
from kvedge.testing.waiting import until

from .conftest import FAMILIES

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]
NAME = "debian-12-edge"
DEADLINE = 900
SECRETS = {
    "config.toml": b"""\
[provisioning]
source = "manual"
connection_string = "HostName=hub.kvedge.test;DeviceId=edge-1;SharedAccessKey=cHJvdmluZw=="
""",
    "hosts": b"192.0.2.7 hub.kvedge.test\n",
    "trusted-ca.pem": b"-----BEGIN CERTIFICATE-----\n",
    "registries": b"registry.kvedge.test\n",
}


@pytest.fixture(scope="module")
def built():
    """The default image."""
    return images.build(NAME)


@pytest.fixture(scope="module")
def user_data(built):
    """First-boot data with a fragment of every documented family, as it is checked before use."""
    extra = {}
    for family in FAMILIES.values():
        extra = cloudinit.merge(extra, family)
    text = cloudinit.render(
        cloudinit.UserData(hostname="edge-1", https_proxy="http://proxy.example:3128", extra=extra)
    )
    assert cloudinit.lint(text) + cloudinit.validate(text, inspecting.schema(built.name)) == []
    return text


@pytest.fixture(scope="module")
def boot(built, user_data, tmp_path_factory):
    """A function that starts a guest with everything by BIOS, always the same one."""
    folder = tmp_path_factory.mktemp("guest")
    data = folder / "data.raw"
    with data.open("wb") as file:
        file.truncate(4 << 30)
    keys = booting.make_keys()

    def start(**options):
        return booting.boot(
            built.disk,
            folder / "run",
            secrets=SECRETS,
            data_disk=data,
            user_data=user_data,
            keys=keys,
            **options,
        )

    return start


@pytest.fixture(scope="module")
def machine(boot):
    """A guest that can be saved."""
    with boot(keep=True) as running:
        yield running


@pytest.fixture(scope="module")
def guest(machine):
    """A function that runs a command in the guest and returns its exit code and output."""
    client = machine.login(deadline=DEADLINE)
    yield lambda command: machine.run(client, command, timeout=DEADLINE)
    client.close()


def test_boots_through_without_a_failed_unit(guest):
    """The earliest login can wait for the system; then cloud-init is done and no unit failed."""
    assert guest("systemctl is-system-running --wait") == (0, "running\n")
    assert guest("cloud-init status") == (0, "status: done\n")
    assert guest("systemctl --failed --no-legend") == (0, "")


# What each family of first-boot data leaves behind: command and output.
EFFECTS = {
    "users": ("id -nG ops; sudo cat /home/ops/.ssh/authorized_keys", "ops docker\n{key}\n"),
    "write_files": ("sudo stat -c %a:%U:%G /etc/plant.conf; sudo cat /etc/plant.conf",
                    "640:root:adm\nline = 7\n"),
    "runcmd": ("cat /var/tmp/ran", "hello world\n"),
    "mounts": ("findmnt -rno FSTYPE,OPTIONS /srv/scratch | cut -d, -f1; cat /proc/swaps | wc -l",
               "tmpfs rw\n2\n"),
    "ntp": ("systemctl is-active systemd-timesyncd; timedatectl show-timesync -p SystemNTPServers",
            "active\nSystemNTPServers=time.example\n"),
    "proxies": ("apt-config dump Acquire::http::Proxy; systemctl show -p Environment --value docker"
                " | tr ' ' '\\n' | grep ^https_proxy",
                'Acquire::http::Proxy "http://proxy.example:3128";\n'
                "https_proxy=http://proxy.example:3128\n"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_first_boot_data_has_its_effect(guest, family):
    """Each documented family of cloud-config does in the guest what it says."""
    guest("cloud-init status --wait")
    command, expected = EFFECTS[family]
    key = FAMILIES["users"]["users"][1]["ssh_authorized_keys"][0]
    assert guest(command)[1] == expected.format(key=key)


def test_secret_disk_is_applied(guest):
    """Keys, names and authorities are where they belong, and the result says so."""
    report = json.loads(guest("cat /run/kvedge/apply.json")[1])
    assert report["ok"], report
    assert set(report["changed"]) >= {"authorized_keys", "hosts", "ssh_host_ed25519_key"}
    assert "192.0.2.7" in guest("getent hosts hub.kvedge.test")[1]
    assert guest("test -f /etc/docker/certs.d/registry.kvedge.test/ca.crt")[0] == 0
    assert guest("sudo stat -c %a:%U /etc/ssh/ssh_host_ed25519_key")[1] == "600:root\n"


def test_a_failed_application_is_told_on_the_console(guest, machine):
    """The result stands on the console as in its file, without keys; a later success replaces it."""
    program = b"#!/bin/sh\necho 'no good: SharedAccessKey=c2VjcmV0; \"x\"'\nexit 1\n"
    assert "edge" in guest("sudo mv -v /usr/bin/iotedge /usr/bin/iotedge.away")[1]
    guest(
        f"echo {base64.b64encode(program).decode()} | base64 -d | sudo tee /usr/bin/iotedge;"
        " sudo chmod 755 /usr/bin/iotedge; sudo rm /etc/aziot/.kvedge-applied"
    )
    assert guest("sudo systemctl restart kvedge-apply")[0] != 0
    report = json.loads(guest("cat /run/kvedge/apply.json")[1])
    told = 'iotedge config apply: no good: SharedAccessKey=***; "x"'
    assert (report["ok"], report["error"]) == (False, told)
    console = machine.folder / "serial.log"
    assert guests.apply_error(console.read_text(errors="replace")) == told
    mended = "sudo mv /usr/bin/iotedge.away /usr/bin/iotedge && sudo systemctl restart kvedge-apply"
    assert guest(mended) == (0, "")
    assert guests.apply_error(console.read_text(errors="replace")) == ""


def test_data_disk_is_mounted(guest):
    """A blank data disk is formatted, grown, and bound over the folders that must outlive the OS."""
    text = guest("findmnt -rno TARGET,SOURCE -t ext4")[1]
    mounts = dict(line.split() for line in text.splitlines())
    disk = mounts["/var/lib/kvedge/data"]
    for target in ("/var/lib/aziot", "/etc/aziot", "/var/lib/docker", "/iotedge/storage"):
        assert mounts[target].startswith(f"{disk}["), text
    assert int(guest("df --output=size -m / | tail -1")[1]) > 5000


def test_engine_and_runtime_are_there(guest):
    """Docker answers to the image's user, and the runtime's command line is installed."""
    # First-boot data with a proxy restarts it once.
    version = "docker version --format '{{.Server.APIVersion}}'"
    until(lambda: guest(version) == (0, "1.41\n"), "docker answers", seconds=DEADLINE)
    assert guest("command -v iotedge")[0] == 0
    assert guest("systemctl is-enabled aziot-edged docker")[1] == "enabled\nenabled\n"


def test_a_foreign_host_key_is_refused(guest, machine):
    """A login to a machine with another host key than ours is refused, not trusted on first use."""
    import paramiko

    with pytest.raises(paramiko.BadHostKeyException):
        dataclasses.replace(machine, keys=booting.make_keys()).login(deadline=DEADLINE)


def _tested(*words):
    """Run `kvedge image test` and return its outcomes; all hold."""
    argv = [sys.executable, "-m", "kvedge", "image", "test", *words, "-o", "json"]
    done = processes.run(argv, what="test the image", check=False)
    outcomes = json.loads(done.stdout)
    assert [one for one in outcomes if not one["holds"]] == []
    assert done.returncode == 0, done.stderr
    return outcomes


@pytest.mark.slow
def test_image_test_of_a_registrys_image(built, registry):
    """An image that is only in a registry is pulled, and passes by BIOS and by UEFI."""
    host, ca = registry
    where = images.push(built, f"{host}/kvedge/tested", ca_file=ca)
    outcomes = _tested(where, "--ca-file", str(ca), "--deadline", str(DEADLINE))
    assert {one["stage"] for one in outcomes} == {"scan", "bios", "uefi"}
    for firmware in ("bios", "uefi"):
        claims = {one["claim"] for one in outcomes if one["stage"] == firmware}
        assert {"docker is active", "the edge runtime is active", "no unit failed"} <= claims


def test_image_test_tells_what_does_not_hold(built, tmp_path, monkeypatch):
    """A disk that cannot boot ends the command with 1 and the end of its console."""
    # Everything but the boot code, so that the scan passes and the firmware finds nothing to start.
    broken = tmp_path / "broken.qcow2"
    processes.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", built.disk, broken],
        what="make an overlay",
    )
    processes.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0 0 440", broken], what="blank it")
    outcomes = list(
        proving.prove(
            dataclasses.replace(built, disk=broken),
            firmwares=("bios",),
            deadline=3,
            progress=silent,
        )
    )
    assert [(one.stage, one.holds) for one in outcomes] == [("scan", True), ("bios", False)]
    assert "its network did not come up; console ends with" in outcomes[-1].found


def test_a_dead_guest_is_told(built, tmp_path):
    """A guest that ends is reported at once, with the path of its console's log."""
    with booting.boot(built.disk, tmp_path) as machine:
        machine.process.kill()
        with pytest.raises(errors.KvedgeError, match="ended") as caught:
            machine.login(deadline=DEADLINE)
    assert "serial.log" in caught.value.hint


def test_a_saved_guest_goes_on_as_often_as_wanted(boot, machine, guest):
    """What it had in memory and on disks is there each time; what is done then is thrown away.

    Last of all, because saving ends the guest.
    """
    marks = "/run/mark /etc/mark /var/lib/kvedge/data/mark"
    assert guest(f"echo before | sudo tee {marks}")[0] == 0
    started = guest("cat /proc/sys/kernel/random/boot_id")
    machine.save()
    assert machine.process.poll() is not None
    for _ in range(2):
        with boot(load=True) as again:
            client = again.login(deadline=DEADLINE)
            assert again.run(client, "cat /proc/sys/kernel/random/boot_id") == started
            assert again.run(client, f"cat {marks}") == (0, "before\n" * 3)
            assert again.run(client, f"echo after | sudo tee {marks} && sync")[0] == 0
            client.close()
