"""A built image under QEMU: what a user of the machine finds there."""

import json

import pytest

import images
from images import booting
from kvedge import errors

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]
DEADLINE = 900
SECRETS = {
    "hosts": b"192.0.2.7 hub.kvedge.test\n",
    "trusted-ca.pem": b"-----BEGIN CERTIFICATE-----\n",
    "registries": b"registry.kvedge.test\n",
}


@pytest.fixture(scope="module")
def built():
    """The default image."""
    return images.build("debian-12-edge")


@pytest.fixture(scope="module")
def guest(built, tmp_path_factory):
    """A guest with everything, booted by BIOS, and a client that is logged in."""
    folder = tmp_path_factory.mktemp("guest")
    data = folder / "data.raw"
    with data.open("wb") as file:
        file.truncate(4 << 30)
    user_data = "#cloud-config\nwrite_files: [{path: /run/first-boot, content: done}]\n"
    with booting.boot(
        built.disk, folder / "run", secrets=SECRETS, data_disk=data, user_data=user_data
    ) as machine:
        client = machine.login(deadline=DEADLINE)
        yield lambda command: machine.run(client, command, timeout=DEADLINE)
        client.close()


def test_boots_through_without_a_failed_unit(guest):
    """cloud-init is done, the system is running, no unit failed, and first-boot data is applied."""
    code, text = guest("cloud-init status --wait; systemctl is-system-running --wait")
    assert (code, text.split()[-1]) == (0, "running"), text
    assert guest("systemctl --failed --no-legend") == (0, "")
    assert guest("cat /run/first-boot") == (0, "done")


def test_secret_disk_is_applied(guest):
    """Keys, names and authorities are where they belong, and the result says so."""
    report = json.loads(guest("cat /run/kvedge/apply.json")[1])
    assert report["ok"], report
    assert set(report["changed"]) >= {"authorized_keys", "hosts", "ssh_host_ed25519_key"}
    assert "192.0.2.7" in guest("getent hosts hub.kvedge.test")[1]
    assert guest("test -f /etc/docker/certs.d/registry.kvedge.test/ca.crt")[0] == 0
    assert guest("sudo stat -c %a:%U /etc/ssh/ssh_host_ed25519_key")[1] == "600:root\n"


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
    assert guest("docker version --format '{{.Server.APIVersion}}'") == (0, "1.41\n")
    assert guest("command -v iotedge")[0] == 0
    assert guest("systemctl is-enabled aziot-edged docker")[1] == "enabled\nenabled\n"


def test_listens_only_where_it_should(guest):
    """From outside only sshd can be reached."""
    text = guest("ss -Htln4")[1]
    addresses = {line.split()[3] for line in text.splitlines()}
    outside = {one for one in addresses if not one.startswith(("127.", "172.17.0.1:"))}
    assert outside == {"0.0.0.0:22"}


def test_boots_by_uefi(built, tmp_path):
    """The same disk boots by UEFI, without a data disk."""
    with booting.boot(built.disk, tmp_path, firmware="uefi", secrets=SECRETS) as machine:
        client = machine.login(deadline=DEADLINE)
        assert machine.run(client, "test -d /sys/firmware/efi")[0] == 0
        _code, text = machine.run(
            client, "systemctl is-system-running --wait; systemctl --failed", timeout=DEADLINE
        )
        assert text.startswith("running"), text
        client.close()


def test_a_foreign_host_key_is_refused(built, tmp_path):
    """A login to a machine with another host key than ours is refused, not trusted on first use."""
    import paramiko

    mine, theirs = booting.make_keys(), booting.make_keys()
    with booting.boot(built.disk, tmp_path, keys=mine) as machine:
        machine.keys = theirs
        with pytest.raises(paramiko.BadHostKeyException):
            machine.login(deadline=DEADLINE)


def test_a_dead_guest_is_told(built, tmp_path):
    """A guest that ends is reported at once, with the path of its console's log."""
    with booting.boot(built.disk, tmp_path) as machine:
        machine.process.kill()
        with pytest.raises(errors.KvedgeError, match="ended") as caught:
            machine.login(deadline=DEADLINE)
    assert "serial.log" in caught.value.hint
