"""The way through the Kubernetes API: a real API server, a stand-in of virt-api, real ssh."""

from __future__ import annotations

import json
import subprocess

from kvedge import access, kube
from kvedge.access import parallel
from kvedge.access.guests import Guest
from kvedge.testing.proxies import running_proxy

OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq"


def test_twenty_execs_over_five_vms(fleet, api_way):
    """Twenty sessions through twenty websockets, eight at a time, all with their own VM's answer."""
    folders = {name: fleet.add(name) for name in ("a", "b", "c", "d", "e")}
    guests = [
        Guest(
            target=access.Target(name=name, namespace=fleet.namespace),
            environment="plant",
            host_key=fleet.host_keys[name],
            address="",
        )
        for name in folders
    ] * 4
    plan = parallel.Plan(command="pwd", identities=[fleet.user_key], sessions=8)
    outcomes = list(parallel.execute(fleet.config, guests, plan))
    assert [one.error for one in outcomes if one.failed] == []
    assert sorted(one.stdout.strip() for one in outcomes) == sorted(
        str(folder) for folder in folders.values() for _ in range(4)
    )


def test_plain_ssh_by_proxy_command(cli, fleet, api_way, tmp_path):
    """OpenSSH comes in through kvedge port-forward, and refuses a changed key."""
    fleet.add("good")
    fleet.add("swapped", pinned=OTHER)
    words = ("ssh-config", "--dir", str(tmp_path / "c"), "-i", str(fleet.user_key))
    code, _, err = cli(*words)
    assert code == 0, err

    def ssh(host):
        argv = ["ssh", "-F", str(tmp_path / "c/config"), "-o", "BatchMode=yes", host, "echo in"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)

    done = ssh("good.plant")
    assert done.stdout == "in\n", done.stderr
    done = ssh("swapped.plant")
    assert (done.stdout, done.returncode) == ("", 255)
    assert "HOST IDENTIFICATION HAS CHANGED" in done.stderr


def test_ssh_through_a_rotating_proxy(cli, fleet, api_way, hub_certificates, tmp_path):
    """The websocket passes a proxy with a path and a token of its own, after each rotation too."""
    fleet.add("good")
    fleet.add("swapped", pinned=OTHER)
    with running_proxy(fleet.config, tmp_path, hub_certificates) as arc:
        for _ in range(2):
            code, out, err = cli(
                "exec", "-i", str(fleet.user_key), "--selector", "kvedge.io/vm=good",
                "-o", "json", "echo in", kubeconfig=arc.kubeconfig,
            )  # fmt: skip
            assert code == 0, err
            assert json.loads(out)["vms"][0]["stdout"] == "in\n"
            arc.rotate()
        code, _, err = cli(
            "ssh", "-i", str(fleet.user_key), "swapped", "true", kubeconfig=arc.kubeconfig
        )
        assert (code, err.count("SHA256:")) == (1, 2)
        assert arc.refused == 0


def test_an_open_forward_outlives_its_token(fleet, api_way, hub_certificates, tmp_path):
    """A listener that goes on opens new connections with the proxy's new token."""
    import asyncio

    fleet.add("good")
    target = access.Target(name="good", namespace=fleet.namespace)

    async def banner(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(60):
            text = await reader.readexactly(8)
        writer.close()
        return text

    async def run(arc):
        async with (
            kube.Client(kube.load_config(arc.kubeconfig)) as client,
            access.forward(client, target, access.tcp(22)) as port,
        ):
            assert await banner(port) == b"SSH-2.0-"
            arc.rotate_token()
            assert await banner(port) == b"SSH-2.0-"

    with running_proxy(fleet.config, tmp_path, hub_certificates) as arc:
        asyncio.run(run(arc))
        assert arc.refused == 0


def test_a_vm_that_does_not_run_is_told(cli, fleet, api_way):
    """The API server's own words and the next act."""
    fleet.add("stopped")
    del fleet.places["stopped"]
    code, _, err = cli("ssh", "--wait", "1", "-i", str(fleet.user_key), "stopped", "true")
    assert code == 1
    assert "no ssh from 'vm.stopped" in err
    assert "kvedge console stopped" in err
