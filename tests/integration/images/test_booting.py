"""A built image under QEMU: what a user of the machine finds there."""

import json

import pytest

import cloudinit
import images
from images import booting, inspecting
from kvedge import errors, processes

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]
DEADLINE = 900
# After cloud-init's own documentation: docs.cloud-init.io/en/latest/reference/yaml_examples.
STOCK_FAMILIES = {
    "users": {
        "users": [
            "default",
            {
                "name": "ops",
                "gecos": "Plant operator",
                "groups": ["docker"],
                "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
                "lock_passwd": True,
                "shell": "/bin/bash",
                "ssh_authorized_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA ops@plant"],
            },
        ]
    },
    "write_files": {
        "write_files": [
            {
                "path": "/etc/plant.conf",
                "encoding": "b64",
                "content": "bGluZSA9IDcK",
                "owner": "root:adm",
                "permissions": "0640",
            }
        ]
    },
    "runcmd": {
        "runcmd": [["sh", "-c", "echo hello world > /var/tmp/ran"], "true && ls -l / >/dev/null"]
    },
    "mounts": {
        "mounts": [
            ["tmpfs", "/srv/scratch", "tmpfs", "size=8m,nofail", "0", "0"],
        ]
    },
    "ntp": {
        "ntp": {"enabled": True, "ntp_client": "systemd-timesyncd", "servers": ["time.example"]}
    },
    "proxies": {"apt": {"http_proxy": "http://proxy.example:3128", "preserve_sources_list": True}},
}
STOCK = cloudinit.render(
    cloudinit.UserData(
        hostname="edge-1",
        https_proxy="http://proxy.example:3128",
        extra={key: value for one in STOCK_FAMILIES.values() for key, value in one.items()},
    )
)
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
def saved(built, tmp_path_factory):
    """Options of a guest with everything that has booted through by BIOS and was saved then."""
    folder = tmp_path_factory.mktemp("guest")
    data = folder / "data.qcow2"
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", data, "4G"], what="make a disk")
    options = {
        "secrets": SECRETS,
        "data_disk": data,
        "user_data": STOCK,
        "keys": booting.make_keys(),
        "folder": folder / "run",
    }
    with booting.boot(built.disk, **options) as machine:
        client = machine.login(deadline=DEADLINE)
        machine.run(client, "systemctl is-system-running --wait", timeout=DEADLINE)
        client.close()
        machine.save("ready")
    return {**options, "load": "ready"}


@pytest.fixture(scope="module")
def guest(built, saved):
    """A function that runs a command in the saved guest."""
    with booting.boot(built.disk, **saved) as machine:
        client = machine.login(deadline=DEADLINE)
        yield lambda command: machine.run(client, command, timeout=DEADLINE)
        client.close()


def test_boots_through_without_a_failed_unit(guest):
    """cloud-init is done, the system is running, no unit failed, and first-boot data is applied."""
    code, text = guest("cloud-init status --wait; systemctl is-system-running --wait")
    why = "systemctl --failed; grep -e WARN -e ERROR -A9 /var/log/cloud-init.log"
    assert (code, text.split()[-1]) == (0, "running"), text + guest(why)[1]
    assert guest("systemctl --failed --no-legend") == (0, "")


def test_stock_first_boot_data_is_applied(guest):
    """Each documented family of cloud-config did its work: accounts, files and so on."""
    assert guest("id -nG ops")[1].split() == ["ops", "docker"]
    assert guest("sudo grep -c ssh-ed25519 /home/ops/.ssh/authorized_keys") == (0, "1\n")
    assert guest("cat /etc/plant.conf; stat -c %a:%G /etc/plant.conf")[1] == "line = 7\n640:adm\n"
    assert guest("cat /var/tmp/ran") == (0, "hello world\n")
    assert guest("findmnt -no FSTYPE /srv/scratch") == (0, "tmpfs\n")
    assert "time.example" in guest("cat /etc/systemd/timesyncd.conf.d/cloud-init.conf")[1]
    assert "http://proxy.example:3128" in guest("cat /etc/apt/apt.conf.d/90cloud-init-aptproxy")[1]
    unit = "systemctl show -p Environment docker"
    assert "https_proxy=http://proxy.example:3128" in guest(unit)[1]


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


@pytest.mark.parametrize("family", STOCK_FAMILIES)
def test_stock_first_boot_data_is_valid(built, family):
    """Each documented family renders, passes the guest's own schema and has none of the traps."""
    text = cloudinit.render(cloudinit.UserData(hostname="edge-1", extra=STOCK_FAMILIES[family]))
    assert cloudinit.lint(text) == []
    assert cloudinit.validate(text, inspecting.schema("debian-12-edge")) == []


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


def test_a_foreign_host_key_is_refused(built, saved):
    """A login to a machine with another host key than ours is refused, not trusted on first use."""
    import paramiko

    with booting.boot(built.disk, **saved) as machine:
        machine.keys = booting.make_keys()
        with pytest.raises(paramiko.BadHostKeyException):
            machine.login(deadline=DEADLINE)


def test_rotated_keys_and_settings_need_a_restart_only(built, tmp_path):
    """The secret disk is applied at each boot, before sshd, when it changed; the report says what."""

    def report(machine):
        client = machine.login(deadline=DEADLINE)
        command = "systemctl is-system-running --wait >/dev/null; cat /run/kvedge/apply.json"
        found = json.loads(machine.run(client, command, timeout=DEADLINE)[1])
        text = machine.run(client, "sudo cat /etc/aziot/config.toml; sync")[1]
        client.close()
        return found, text

    first, second = booting.make_keys(), booting.make_keys()
    hosts = {"hosts": b"192.0.2.7 hub.kvedge.test\n"}
    with booting.boot(built.disk, tmp_path, keys=first, secrets=hosts) as machine:
        report(machine)
    secrets = {**hosts, "config.toml": b"# nothing that the runtime would know\n"}
    with booting.boot(built.disk, tmp_path, keys=second, secrets=secrets, again=True) as machine:
        found, text = report(machine)
    assert set(found["changed"]) == {
        "authorized_keys", "config.toml", "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub",
    }  # fmt: skip
    assert text.startswith("# nothing")
    # The runtime refuses such settings, and the report carries its words.
    assert not found["ok"]
    assert "iotedge config apply" in found["error"]


def test_a_dead_guest_is_told(built, tmp_path):
    """A guest that ends is reported at once, with the path of its console's log."""
    with booting.boot(built.disk, tmp_path) as machine:
        machine.process.kill()
        with pytest.raises(errors.KvedgeError, match="ended") as caught:
            machine.login(deadline=DEADLINE)
    assert "serial.log" in caught.value.hint
