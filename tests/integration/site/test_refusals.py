"""What can be in the way of a site, and how it is told."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from kvedge import processes
from kvedge.site import control
from kvedge.testing.sites import run_kvedge

pytestmark = pytest.mark.site


def test_an_unprivileged_user_can_run_a_site(as_nobody, short_tmp):
    """No root is needed for anything, and nothing is left behind."""
    directory = short_tmp / "home" / "site" if os.geteuid() == 0 else short_tmp / "site"
    words = ("plain", "--dir", str(directory))
    try:
        done = as_nobody("site", "up", *words)
        assert done.returncode == 0, done.stderr
        seen = json.loads(as_nobody("site", "status", *words, "-o", "json").stdout)
        assert seen["state"] == "up"
        pid = next(part["pid"] for part in seen["parts"] if part["name"] == "kube-apiserver")
        owner = Path(f"/proc/{pid}").stat().st_uid
        assert owner != 0
    finally:
        done = as_nobody("site", "down", "--purge", *words)
    assert done.returncode == 0, done.stderr
    assert not directory.exists()


def test_a_folder_that_cannot_be_written_is_told(short_tmp):
    """A file where the folder should be is an error with the path and a hint."""
    (short_tmp / "taken").write_text("x")
    done = run_kvedge("site", "up", "dev", "--dir", str(short_tmp / "taken/site"), check=False)
    assert done.returncode == 1
    assert "cannot keep the site" in done.stderr
    assert "--dir" in done.stderr


def test_a_port_that_somebody_took_meanwhile_moves_with_a_notice(own_site):
    """Published ports stay the same between starts unless another program listens there."""
    words = ("mine", "--dir", str(own_site.directory))
    run_kvedge("site", "down", *words)
    wanted = own_site.ports["registry"]
    with socket.create_server(("127.0.0.1", wanted)):
        done = run_kvedge("site", "up", *words)
    assert f"port {wanted} is taken" in done.stderr
    ports = json.loads(own_site.folder.site_file.read_text())["ports"]
    assert ports["registry"] != wanted
    assert ports["api"] == own_site.ports["api"]


def test_another_name_for_the_same_folder_is_refused(own_site):
    """A folder belongs to one site."""
    done = run_kvedge("site", "up", "other", "--dir", str(own_site.directory), check=False)
    assert done.returncode == 1
    assert "holds the site 'mine'" in done.stderr


def test_a_part_that_cannot_start_is_named_and_nothing_is_left(short_tmp):
    """When a first `up` fails it says which part and why, and stops what it started."""
    directory = short_tmp / "broken"
    (directory / "etcd").mkdir(parents=True)
    (directory / "etcd" / "member").write_text("not a folder")
    done = run_kvedge("site", "up", "broken", "--dir", str(directory), check=False)
    assert done.returncode == 1
    assert "'etcd' does not start" in done.stderr
    assert control.status(directory).state == "down"


def _up_in_a_user_namespace(directory, preparation):
    """Run `site up` after a shell line that only root of a user namespace may run."""
    words = ["site", "up", "dev", "--dir", str(directory)]
    return processes.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-ec",
            f'{preparation}; exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "kvedge",
            *words,
        ],
        what="site up on a restricted machine",
        check=False,
        timeout=120,
    )


def test_a_full_disk_is_told_before_anything_is_started(short_tmp):
    """Too little space is an error with the figure, not a crash of etcd later."""
    done = _up_in_a_user_namespace(
        short_tmp / "full", f"mount -t tmpfs -o size=16m none {short_tmp}"
    )
    assert done.returncode == 1
    assert "MiB free" in done.stderr
    assert "--dir" in done.stderr


def test_forbidden_user_namespaces_are_told_with_the_setting(short_tmp):
    """A machine that forbids user namespaces is told apart from every other failure."""
    done = _up_in_a_user_namespace(short_tmp / "s", "echo 0 > /proc/sys/user/max_user_namespaces")
    assert done.returncode == 1
    assert "user.max_user_namespaces is 0" in done.stderr
    assert "sysctl -w user.max_user_namespaces" in done.stderr
