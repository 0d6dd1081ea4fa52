"""Seed and secret disks: the same bytes for the same input, readable by label and name."""

import io
import time

import pycdlib
import pytest

import cloudinit


def _content(image, name):
    disk = pycdlib.PyCdlib()
    disk.open_fp(io.BytesIO(image))
    out = io.BytesIO()
    disk.get_file_from_iso_fp(out, rr_path=f"/{name}")
    label = disk.pvd.volume_identifier.decode().strip()
    disk.close()
    return label, out.getvalue()


def test_same_input_same_bytes(monkeypatch):
    """The clock of the machine does not get in."""
    files = {"user-data": b"a", "ssh_host_ed25519_key.pub": b"b" * 3000}
    first = cloudinit.iso("EDGECONFIG", files)
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    assert cloudinit.iso("EDGECONFIG", files) == first
    assert cloudinit.iso("EDGECONFIG", files, epoch=1) != first


def test_files_come_out_as_they_went_in():
    """Label, long names and content are what the guest sees."""
    image = cloudinit.iso("EDGECONFIG", {"ssh_host_ed25519_key.pub": b"key", "empty": b""})
    assert _content(image, "ssh_host_ed25519_key.pub") == ("EDGECONFIG", b"key")
    assert _content(image, "empty")[1] == b""


def test_seed_has_the_names_that_cloud_init_reads():
    """user-data, meta-data and network-config are on a disk labelled cidata."""
    image = cloudinit.seed(user_data="#cloud-config\n", meta_data="{}", network_config="version: 2")
    assert _content(image, "user-data") == ("cidata", b"#cloud-config\n")
    assert _content(image, "network-config")[1] == b"version: 2"


@pytest.mark.parametrize(("label", "name"), [("", "a"), ("x" * 33, "a"), ("a", "b/c"), ("a", "")])
def test_bad_names_are_refused(label: str, name: str):
    """Labels and names that the format cannot hold are errors."""
    with pytest.raises(ValueError, match=r"must have|cannot be"):
        cloudinit.iso(label, {name: b""})
