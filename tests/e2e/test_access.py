"""Into the one real VM on every way: Kubernetes API, LoadBalancer address, rotating proxy.

Shares the boot with the main job and leaves the VM running as it was.
"""

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import pytest

from kvedge import kube, processes
from kvedge.testing.hubs import hub_certificates  # noqa: F401 - a fixture
from kvedge.testing.proxies import running_proxy
from kvedge.testing.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1500)]

KVEDGE = str(Path(sys.executable).with_name("kvedge"))
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq"


@pytest.fixture(scope="module")
def booted(demo):
    """The demo, with a guest that lets people in."""
    demo.kvedge("ssh", "--wait", "300", "edge1", "true")
    return demo


def test_the_same_guest_on_each_way(booted, hub_certificates, tmp_path):  # noqa: F811
    """One boot id through the API, at the address and through a proxy, before and after rotations."""
    command = ("edge1", BOOT_ID)
    through_api = booted.kvedge("ssh", *command).stdout
    assert booted.kvedge("ssh", "--via", "address", *command).stdout == through_api
    upstream = kube.load_config(booted.site / "kubeconfig")
    with running_proxy(upstream, tmp_path, hub_certificates) as arc:
        for _ in range(2):
            given = ("--kubeconfig", str(arc.kubeconfig))
            assert booted.kvedge("ssh", *given, *command).stdout == through_api
            arc.rotate()
        assert arc.refused == 0


@pytest.mark.parametrize("way", ["api", "address"])
def test_a_changed_host_key_is_refused_on_each_way(booted, way):
    """Both fingerprints are told, and the command is not run."""
    words = ("ssh", "--via", way, "--host-key", OTHER_KEY, "edge1", "echo reached")
    done = booted.kvedge(*words, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("SHA256:") == 2


@pytest.mark.parametrize("way", ["api", "address"])
def test_plain_ssh_and_scp(booted, tmp_path, way):
    """OpenSSH gets in with the written file; files come back as they went."""
    booted.kvedge("ssh-config", "--dir", str(tmp_path / "c"), "--via", way)
    own = tmp_path / "config"
    own.write_text(f'Include "{tmp_path}/c/config"\n\nHost *\n  BatchMode yes\n')
    argv = ["ssh", "-F", str(own), "edge1.dev", "hostname"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "dev-edge1\n", done.stderr
    known = tmp_path / "c/known_hosts"
    known.write_text(f"{known.read_text().split()[0]} {OTHER_KEY}\n")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (255, "")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    content = os.urandom(300_000)
    (tmp_path / "up").write_bytes(content)
    booted.kvedge("scp", "--via", way, str(tmp_path / "up"), "edge1:/tmp/a file")
    booted.kvedge("scp", "--via", way, "edge1:/tmp/a file", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == content


def test_sftp(booted, tmp_path):
    """A batch of sftp's own commands runs in the guest."""
    batch = tmp_path / "batch"
    batch.write_text(f"mkdir /tmp/of-sftp\nput {batch} /tmp/of-sftp/x\n")
    booted.kvedge("sftp", "-b", str(batch), "edge1")
    assert booted.ssh("ls /tmp/of-sftp").stdout == "x\n"


def test_exec_takes_the_vms_of_a_selector(booted):
    """Lines carry the VM's name; one that fails makes the whole fail; no VM at all is an error."""
    done = booted.kvedge("exec", "--selector", "kvedge.io/vm=edge1", "hostname")
    assert done.stdout == "default/edge1: dev-edge1\n"
    done = booted.kvedge("exec", "-o", "json", "exit 4", check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["failed"], found["vms"][0]["exit_code"]) == (1, 1, 4)
    done = booted.kvedge("exec", "--selector", "kvedge.io/vm=edge2", "true", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "kvedge.io/vm=edge2" in done.stderr


def test_console(booted):
    """The serial console shows the guest's prompt to Enter; Ctrl-] leaves."""
    ours, theirs = pty.openpty()
    argv = [KVEDGE, "console", "edge1"]
    child = subprocess.Popen(
        argv, cwd=booted.folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        seen = b""
        end = time.monotonic() + 120
        while b"login:" not in seen:
            assert time.monotonic() < end, seen
            ready, _, _ = select.select([ours], [], [], 2)
            if ready:
                seen += os.read(ours, 4096)
            else:
                os.write(ours, b"\r")
        os.write(ours, b"\x1d")
        assert child.wait(30) == 0
    finally:
        child.kill()
        os.close(ours)


def listening(demo, *words, log):
    """Start a command that prints where it listens; returns the process and what it printed."""
    child = processes.popen([KVEDGE, *words], cwd=demo.folder, log=log)
    return child, until(lambda: log.read_text().strip(), f"{words[0]} listens", seconds=60)


@pytest.mark.parametrize(
    ("words", "greeting"),
    [(("vnc", "edge1", "--proxy-only"), b"RFB "), (("port-forward", "edge1", "0:22"), b"SSH-2.0")],
    ids=["screen", "port"],
)
def test_a_local_port_leads_to_the_guest(booted, tmp_path, words, greeting):
    """The screen greets as RFC 6143 says, sshd as RFC 4253 says."""
    child, said = listening(booted, *words, log=tmp_path / "log")
    try:
        port = re.search(r"127\.0\.0\.1:(\d+)", said)[1]
        with socket.create_connection(("127.0.0.1", int(port)), timeout=60) as stream:
            assert stream.recv(len(greeting), socket.MSG_WAITALL) == greeting
    finally:
        child.kill()
        child.wait()


def test_dashboard(booted, tmp_path):
    """The page names VM and device as status does."""
    child, url = listening(booted, "dashboard", "--port", "0", log=tmp_path / "log")
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(url, timeout=60).read().decode()
        assert "default/edge1" in text
        assert booted.status()["vms"][0]["device"] in text
    finally:
        child.kill()
        child.wait()


def test_events_and_logs(booted):
    """The VM's start is among its events; console and edge agent can be read."""
    rows = json.loads(booted.kvedge("events", "edge1", "-o", "json").stdout)
    assert "virtualmachineinstance/edge1" in {row["subject"] for row in rows}
    assert "login:" in booted.kvedge("logs", "edge1").stdout
    assert booted.kvedge("logs", "edge1", "--tail", "1").stdout.count("\n") <= 1
    done = booted.kvedge("logs", "edge1", "no-such-module", check=False)
    assert "edgeAgent" in done.stderr
    lines = booted.kvedge("logs", "edge1", "edgeAgent", "--tail", "3").stdout.splitlines()
    assert 1 <= len(lines) <= 3


def test_doctor_finds_nothing_wrong_on_a_good_site(booted):
    """No check of cluster, image or hub fails or warns on the running demo."""
    found = json.loads(booted.kvedge("doctor", "-o", "json", check=False).stdout)
    begin = next(n for n, row in enumerate(found) if row["check"] == "cluster")
    assert [row for row in found[begin:] if row["state"] != "ok"] == []
    assert any(row["check"].startswith("image ") for row in found)


def test_support_bundle_has_no_key_of_the_site(booted, tmp_path):
    """Not one key, token or connection string of the site's folder is in the archive."""
    file = tmp_path / "b.tar.gz"
    booted.kvedge("support-bundle", "--file", str(file))
    with tarfile.open(file) as archive:
        members = {m.name.partition("/")[2]: archive.extractfile(m).read() for m in archive}
    whole = b"\n".join(members.values())
    connection = (booted.site / "hub/service.connection").read_text()
    assert connection.rpartition("SharedAccessKey=")[2].strip().encode() not in whole
    assert b"PRIVATE KEY-----\n" not in whole
    assert "console/default/edge1.log" in members
    assert b"edge1" in members["status.json"]


def test_stop_start_and_restart_leave_the_spec_alone(booted):
    """Each start is another boot of the same VM, whose generation stays the same."""
    generation = "kubectl get vm edge1 -o jsonpath='{.metadata.generation}'"
    before, boots = booted.sourced(generation).stdout, [booted.ssh(BOOT_ID).stdout]
    booted.kvedge("stop", "edge1")
    assert booted.status()["vms"][0]["status"] == "Stopped"
    refused = booted.kvedge("stop", "edge1", check=False)
    assert "not running" in refused.stderr
    for words in (("start",), ("restart", "--force")):
        booted.kvedge(*words, "edge1", "--timeout", "600")
        booted.kvedge("ssh", "--wait", "300", "edge1", "true")
        boots.append(booted.ssh(BOOT_ID).stdout)
    assert len(set(boots)) == 3
    assert booted.sourced(generation).stdout == before
