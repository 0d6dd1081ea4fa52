"""The vendor's own ssh, scp and sftp with the configuration that kvedge writes."""

from __future__ import annotations

import subprocess

import pytest

OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtTXCjXpvyNRE3uQJ5Q3GTcPXJfPJrTwqQ9jM2d6aBq"


def openssh(config, program, *words):
    """Run an OpenSSH program with the written file and nothing else."""
    return subprocess.run(
        [program, "-F", str(config), "-o", "BatchMode=yes", *words],
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip


@pytest.fixture
def written(cli, fleet, tmp_path):
    """Write the include file for the fleet's VMs and return the config's path."""

    def write(*more, via="address"):
        folder = tmp_path / "ssh folder"
        code, out, err = cli(
            "ssh-config", "--dir", str(folder), "--via", via, "-i", str(fleet.user_key), *more
        )
        assert code == 0, err
        return folder / "config", out, err

    return write


def test_plain_ssh_works(fleet, written):
    """`ssh VM.ENVIRONMENT` logs in with the pinned key; the exit code is the command's."""
    fleet.add("edge1")
    config, out, _ = written()
    assert "ssh edge1.plant" in out
    done = openssh(config, "ssh", "edge1.plant", "echo hello; exit 7")
    assert (done.stdout, done.returncode) == ("hello\n", 7), done.stderr


def test_openssh_refuses_a_changed_key_and_learns_none(fleet, written):
    """With another key pinned OpenSSH stops, and known_hosts stays as it was."""
    fleet.add("edge1", pinned=OTHER)
    config, _, _ = written()
    known = (config.parent / "known_hosts").read_text()
    done = openssh(config, "ssh", "edge1.plant", "true")
    assert done.returncode == 255
    assert "HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert (config.parent / "known_hosts").read_text() == known
    assert known == f"vm.edge1.{fleet.namespace} {OTHER}\n"


def test_vms_that_cannot_be_pinned_are_left_out_by_name(fleet, written):
    """No block is written that would have to trust at first use."""
    fleet.add("edge1")
    path = f"/apis/kubevirt.io/v1/namespaces/{fleet.namespace}/virtualmachines/edge1"
    fleet.call("patch", path, {"metadata": {"annotations": {"kvedge.io/host-key": None}}})
    config, _, err = written()
    assert config.read_text() == ""
    assert "edge1.plant is left out: no pinned host key" in err


def test_install_adds_the_include_once(fleet, written, tmp_path, monkeypatch):
    """The line goes to the top of ~/.ssh/config, before any Host block, and only once."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    own = tmp_path / ".ssh" / "config"
    own.write_text("Host other\n  User me\n")
    fleet.add("edge1")
    config, _, _ = written("--install")
    written("--install")
    assert own.read_text() == f'Include "{config}"\n\nHost other\n  User me\n'


def test_the_api_way_is_a_proxy_command(fleet, written, cluster):
    """The command names the cluster and the VM, whatever the caller's folder and variables are."""
    fleet.add("edge1")
    config, _, _ = written(via="api")
    text = config.read_text()
    assert f"--kubeconfig {cluster.kubeconfig}" in text
    assert "port-forward --stdio" in text
    assert f"vmi/edge1/{fleet.namespace} 22" in text
    parsed = openssh(config, "ssh", "-G", "edge1.plant").stdout
    assert "stricthostkeychecking true" in parsed
    assert "updatehostkeys false" in parsed
    assert f"hostkeyalias vm.edge1.{fleet.namespace}" in parsed


def test_scp_copies_both_ways(cli, fleet, tmp_path):
    """Files go up and down by scp, between VMs too; names with blanks and colons survive."""
    first, second = fleet.add("a"), fleet.add("b")
    (tmp_path / "my: file").write_text("content")
    common = ("--via", "address", "-i", str(fleet.user_key))
    run = lambda *words: cli("scp", *common, *words)  # noqa: E731
    assert run(str(tmp_path / "my: file"), "a:/up")[0] == 0
    assert (first / "up").read_text() == "content"
    assert run("a:/up", str(tmp_path / "down"))[0] == 0
    assert (tmp_path / "down").read_text() == "content"
    assert run("a:/up", "b:/across")[0] == 0
    assert (second / "across").read_text() == "content"


def test_scp_wants_a_vm(cli, fleet, tmp_path):
    """Two local paths are refused before anything is started."""
    code, _, err = cli("scp", str(tmp_path / "a"), str(tmp_path / "b"))
    assert code == 1
    assert "neither end is TARGET:PATH" in err


def test_sftp_takes_a_batch(cli, fleet, tmp_path):
    """Sftp's own commands work."""
    folder = fleet.add("a")
    (folder / "there").write_text("content")
    batch = tmp_path / "batch"
    batch.write_text(f"get /there {tmp_path}/here\n")
    code, _, err = cli("sftp", "--via", "address", "-i", str(fleet.user_key), "-b", str(batch), "a")
    assert code == 0, err
    assert (tmp_path / "here").read_text() == "content"
