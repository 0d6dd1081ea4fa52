"""What a site tells others."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from kvedge import errors, processes
from kvedge.site import state

if TYPE_CHECKING:
    from pathlib import Path

PORTS = {"api": 20001, "hub": 20002, "mqtt": 20003, "registry": 20004}


@pytest.fixture
def site(tmp_path: Path) -> state.Site:
    return state.site_from_ports(tmp_path, "dev", PORTS, state="up", cluster_id="uid-1")


def test_a_saved_site_is_read_back(site: state.Site) -> None:
    """What `save` wrote is what `load` returns."""
    state.save(site)
    assert state.load(site.directory) == site


def test_site_file_is_private_and_has_the_promised_shape(site: state.Site) -> None:
    """Other rooms and people's scripts read these keys."""
    state.save(site)
    path = site.folder.site_file
    raw = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert raw["version"] == 1
    assert raw["kubernetes"]["server"] == "https://127.0.0.1:20001"
    assert raw["kubernetes"]["inside_server"] == "https://10.77.0.1:6443"
    assert (raw["hub"]["endpoint"], raw["hub"]["mqtt_port"]) == ("localhost:20002", 20003)
    assert raw["registry"] == {
        "endpoint": "localhost:20004",
        "host": "registry.kvedge.test",
        "ca": str(site.directory / "pki/site-ca.crt"),
    }
    assert raw["hosts"]["hub.kvedge.test"] == "10.77.0.2"
    assert "directory" not in raw


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no site in"),
        ("{", "cannot read"),
        ('{"version": 9}', "has version 9"),
        ('{"version": 1, "name": "x"}', "is not a site file"),
    ],
)
def test_unusable_site_files_are_told(tmp_path: Path, content: str | None, complaint: str) -> None:
    """Each way a site file can be wrong has its own sentence and a hint."""
    if content is not None:
        (tmp_path / "site.json").write_text(content)
    with pytest.raises(errors.SiteError, match=complaint) as caught:
        state.load(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["", "Dev", "a/b", "..", "x" * 64])
def test_names_that_are_no_labels_are_refused(name: str) -> None:
    """A site's name becomes a folder and a context, so it must be a DNS label."""
    with pytest.raises(errors.SpecError, match="not a DNS label"):
        state.default_directory(name)


def test_env_file_can_be_sourced_from_a_folder_with_odd_characters(tmp_path: Path) -> None:
    """Spaces, quotes and dollars in the path survive a POSIX shell."""
    root = tmp_path / "it's $HOME here"
    root.mkdir()
    odd = state.site_from_ports(root, "dev", PORTS, state="up", cluster_id="uid-1")
    state.write_env(odd, path_folders=[root / "bin"])
    done = processes.run(
        [
            "sh",
            "-c",
            '. "$1"; printf "%s\\n" "$KUBECONFIG" "$KVEDGE_HOSTS" "$PATH"',
            "sh",
            odd.folder.env_file,
        ],
        what="source",
    )
    kubeconfig, hosts, path = done.stdout.splitlines()
    assert kubeconfig == str(root / "kubeconfig")
    assert hosts == "hub.kvedge.test=10.77.0.2,registry.kvedge.test=10.77.0.3"
    assert path.startswith(f"{root / 'bin'}:")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """A folder that cannot be written gives a clear error and leaves no half file."""
    missing = tmp_path / "gone" / "file"
    with pytest.raises(errors.SiteError, match="cannot write"):
        state.write_atomically(missing, "x")
    state.write_atomically(tmp_path / "file", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
