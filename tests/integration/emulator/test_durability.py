"""The hub as a process: what was acknowledged is there after kill -9."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests.exceptions
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification, Twin
from msrest.exceptions import ClientException

from kvedge.testing.waiting import until

LISTENING = "0A"
LOOPBACK = "0100007F"
"""As /proc/net/tcp writes them."""


class Process:
    """`kvedge hub emulate` in a folder."""

    def __init__(self, folder, *options):
        self.folder = folder
        self.child = subprocess.Popen(
            [sys.executable, "-m", "kvedge", "hub", "emulate", "--dir", str(folder), *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.child.stdout.readline()
        assert line.startswith("hub ready"), line
        self.mqtt = int(line.rpartition(" ")[2])

    def manager(self):
        text = (self.folder / "service.connection").read_text()
        manager = IoTHubRegistryManager.from_connection_string(text)
        manager.protocol.config.connection.verify = str(self.folder / "pki" / "ca.crt")
        manager.protocol.config.retry_policy.retries = 0
        return manager

    def end(self, number):
        self.child.send_signal(number)
        self.child.wait(10)
        self.child.stdout.close()
        return self.child.returncode


@pytest.fixture
def start(tmp_path):
    """Start the hub; it is gone after the test."""
    started = []

    def make(*options):
        started.append(Process(tmp_path, *options))
        return started[-1]

    yield make
    for process in started:
        if process.child.poll() is None:
            process.end(signal.SIGKILL)


def test_an_orderly_end(start):
    """SIGTERM ends the hub with code 0, and the next one has the same keys and devices."""
    first = start()
    first.manager().create_device_with_sas("d", "", "", "enabled")
    before = (first.folder / "service.connection").read_text()
    assert first.end(signal.SIGTERM) == 0
    second = start()
    assert second.manager().get_device("d").device_id == "d"
    after = (second.folder / "service.connection").read_text()
    assert before.partition("SharedAccessKey=")[2] == after.partition("SharedAccessKey=")[2]


def test_secrets_are_for_the_owner_only(start):
    """Store, keys and connection strings have mode 0600."""
    folder = start().folder
    for name in ("hub.db", "service.connection", "inside.connection", "pki/hub.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def test_only_this_machine_can_reach_it(start):
    """Unless told otherwise both ports are open on 127.0.0.1 alone."""
    hub = start()
    https = (hub.folder / "service.connection").read_text().partition(";")[0].rpartition(":")[2]
    ports = {int(https), hub.mqtt}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{hub.child.pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == LISTENING and int(port, 16) in ports:
                addresses.add((address, int(port, 16)))
    assert addresses == {(LOOPBACK, port) for port in ports}


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_no_acknowledged_write_is_lost(start, rounds):
    """Killed in the middle of writing, the hub still has every write that it has answered."""
    acknowledged = {}
    for number in range(rounds + 1):
        process = start()
        manager = process.manager()
        if number == 0:
            manager.create_device_with_sas("d", "", "", "enabled")
        tags = manager.get_twin("d").tags
        lost = {name: count for name, count in acknowledged.items() if tags.get(name, -1) < count}
        assert not lost, f"after {number} kills"
        if number == rounds:
            break
        if len(acknowledged) > 400:
            manager.replace_twin("d", Twin(tags={}), "*")
            acknowledged.clear()
        count = 0
        with contextlib.suppress(ClientException, requests.exceptions.RequestException):
            while True:
                name = f"r{number}-{count % 40}"
                manager.update_twin("d", Twin(tags={name: count}), "*")
                acknowledged[name] = count
                if count == 0:
                    # Not before the first answer, however slow the machine is.
                    threading.Timer(random.uniform(0.0, 0.3), process.child.kill).start()
                count += 1
        process.end(signal.SIGKILL)
        assert count


def test_ephemeral_keeps_nothing(start):
    """With --ephemeral the next start knows no device and has other keys."""
    first = start("--ephemeral")
    first.manager().create_device_with_sas("d", "", "", "enabled")
    before = (first.folder / "service.connection").read_text()
    first.end(signal.SIGTERM)
    second = start("--ephemeral")
    assert second.manager().get_device_registry_statistics().total_device_count == 0
    after = (second.folder / "service.connection").read_text()
    assert before.partition("SharedAccessKey=")[2] != after.partition("SharedAccessKey=")[2]


def test_a_port_in_use_is_named(start):
    """A second hub on the same port says so and ends with code 1."""
    first = start()
    port = (first.folder / "service.connection").read_text().split(";")[0].rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "kvedge", "hub", "emulate", "--ephemeral",
         "--https", f"127.0.0.1:{port}"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "hint:" in done.stderr


def test_knobs_by_command(start, tmp_path):
    """Flags make the hub awkward from the start; `kvedge hub knobs` turns them while it runs."""
    hub = start("--tier=F1", "--fail-status=503", "--fail-count=2", "--drop-every-seconds=3600")

    def turned(*options):
        done = subprocess.run(
            [sys.executable, "-m", "kvedge", "hub", "knobs", "--connection-file",
             str(tmp_path / "service.connection"), "--ca", str(tmp_path / "pki" / "ca.crt"),
             *options],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = turned()
    assert (first["tier"], first["fail_count"], first["drop_every_seconds"]) == ("F1", 2, 3600)
    manager = hub.manager()
    for _ in range(2):
        with pytest.raises(ClientException):
            manager.get_device_registry_statistics()
    assert manager.get_device_registry_statistics().total_device_count == 0
    second = turned("--latency-seconds=0.1", "--drop-connections")
    assert (second["tier"], second["latency_seconds"]) == ("F1", 0.1)
    third = turned("--off")
    assert (third["tier"], third["latency_seconds"], third["fail_status"]) == ("", 0, 0)


def test_a_simulated_fleet_by_command(start, tmp_path):
    """`kvedge hub simulate` registers its devices, connects them and ends on Ctrl-C."""
    hub = start()
    with subprocess.Popen(
        [sys.executable, "-m", "kvedge", "hub", "simulate", "--devices", "5",
         "--mix", "success=4,offline=1", "--tag", "site=lille", "--mqtt", f"127.0.0.1:{hub.mqtt}",
         "--connection-file", str(tmp_path / "service.connection"),
         "--ca", str(tmp_path / "pki" / "ca.crt")],
        stdout=subprocess.PIPE, text=True,
    ) as fleet:  # fmt: skip
        try:
            assert fleet.stdout.readline() == (
                "5 devices (4 success, 1 offline); Ctrl-C ends them\n"
            )
            registry = hub.manager()
            rows = registry.query_iot_hub(
                QuerySpecification(query="SELECT * FROM devices WHERE tags.site = 'lille'")
            ).items
            assert len(rows) == 5
            query = "SELECT * FROM devices.modules WHERE connectionState = 'Connected'"
            rows = until(
                lambda: (
                    len(found := registry.query_iot_hub(QuerySpecification(query=query)).items) == 4
                    and found
                ),
                seconds=30,
                what="four of five devices are connected",
            )
            assert {row.module_id for row in rows} == {"$edgeAgent"}
        finally:
            fleet.send_signal(signal.SIGINT)
            assert fleet.wait(20) == 130


def test_state_by_command(start, tmp_path):
    """`kvedge hub export` writes what `kvedge hub import` reads, for the owner only."""
    first = start()
    first.manager().create_device_with_sas("d", "", "", "enabled")
    saved = tmp_path / "state.json"

    def command(name):
        done = subprocess.run(
            [sys.executable, "-m", "kvedge", "hub", name, "--connection-file",
             str(tmp_path / "service.connection"), "--ca", str(tmp_path / "pki" / "ca.crt"),
             str(saved)],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("export")
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    first.manager().delete_device("d")
    assert "1 identities" in command("import")
    assert first.manager().get_device("d").device_id == "d"
