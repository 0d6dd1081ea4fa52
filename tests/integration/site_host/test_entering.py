"""A local process in its own mounts."""

import json
import sys

import pytest

from kvedge import errors, processes


def _run(tmp_path, **plan):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"mounts": [], "folder": "/", **plan}))
    return processes.run(
        [
            "unshare",
            "-Urm",
            "--propagation",
            "private",
            "--",
            sys.executable,
            "-m",
            "kvedge.site.host.entering",
            file,
        ],
        what="enter",
    ).stdout


def test_volumes_are_bound_below_run(tmp_path):
    """The rest of /run is hidden; /var/run shows the same."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "token").write_text("t")
    mount = {"source": str(tmp_path / "v"), "target": "/var/run/secrets/a", "read_only": True}
    out = _run(tmp_path, mounts=[mount], argv=["sh", "-c", "ls /run; cat /run/secrets/a/token"])
    assert out.split() == ["secrets", "t"]


def test_read_only_volumes_cannot_be_written(tmp_path):
    """A secret is not the process's to change; an emptyDir is."""
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
    mounts = [
        {"source": str(tmp_path / "ro"), "target": "/run/ro", "read_only": True},
        {"source": str(tmp_path / "rw"), "target": "/run/rw", "read_only": False},
    ]
    _run(tmp_path, mounts=mounts, argv=["touch", "/run/rw/x"])
    assert (tmp_path / "rw" / "x").exists()
    with pytest.raises(errors.BuildFailed, match="Read-only"):
        _run(tmp_path, mounts=mounts, argv=["touch", "/run/ro/x"])


def test_one_file_can_be_bound(tmp_path):
    """A subPath mount of a ConfigMap's key is a file."""
    (tmp_path / "f").write_text("x")
    mount = {"source": str(tmp_path / "f"), "target": "/run/etc/f.conf", "read_only": True}
    assert _run(tmp_path, mounts=[mount], argv=["cat", "/run/etc/f.conf"]) == "x"
