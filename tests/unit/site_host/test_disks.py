"""Seeds as KubeVirt writes them, overlays over base images."""

import json

import pytest

from kvedge import errors, processes
from kvedge.site.host.disks import (
    backing_file,
    create_blank,
    create_overlay,
    grow,
    seed_files,
)
from kvedge.site.host.registry import BaseDisk, inspect_disk
from kvedge.site.host.vmspec import plan_guest


def test_the_instance_id_is_the_firmwares_uuid(vmi):
    """A VM that comes back over its old disk is the same instance."""
    files = seed_files(
        plan_guest(vmi), {"secretRef": {}}, {"secretRef": {"userdata": b"#cloud-config\n"}}
    )
    meta = json.loads(files["meta-data"])
    assert meta == {
        "instance-id": vmi["spec"]["domain"]["firmware"]["uuid"],
        "local-hostname": "edge1",
    }
    assert files["user-data"] == b"#cloud-config\n"
    assert "network-config" not in files


@pytest.mark.parametrize("key", ["networkdata", "networkData"])
def test_network_data_becomes_network_config(vmi, key):
    """Both of KubeVirt's key spellings are read."""
    files = seed_files(
        plan_guest(vmi),
        {"userDataBase64": "YQ==", "networkDataSecretRef": {}},
        {"networkDataSecretRef": {key: b"version: 2\n"}},
    )
    assert files["user-data"] == b"a"
    assert files["network-config"] == b"version: 2\n"


def test_a_secret_without_the_key_is_told(vmi):
    """An empty seed would boot and say nothing."""
    with pytest.raises(errors.SiteError, match="no key 'userdata'"):
        seed_files(plan_guest(vmi), {"secretRef": {}}, {"secretRef": {"other": b""}})


async def test_an_overlay_is_as_large_as_its_claim(tmp_path):
    """The base is not copied; the size is the claim's."""
    await create_blank(tmp_path / "base.qcow2", 2**20)
    base = await inspect_disk(tmp_path / "base.qcow2")
    await create_overlay(tmp_path / "disk.qcow2", base, 2**22)
    info = json.loads(
        processes.run(
            ["qemu-img", "info", "--output=json", tmp_path / "disk.qcow2"], what="look"
        ).stdout
    )
    assert info["virtual-size"] == 2**22
    assert info["backing-filename"] == str(tmp_path / "base.qcow2")


async def test_a_claim_smaller_than_the_image_is_refused(tmp_path):
    """A cut disk would not boot."""
    base = BaseDisk(file=tmp_path / "b", format="raw", size=2**30)
    with pytest.raises(errors.SiteError, match="too small"):
        await create_overlay(tmp_path / "disk.qcow2", base, 2**20)


async def test_an_image_that_leans_on_another_file_is_refused(tmp_path):
    """A backing file in a foreign image would read this machine's files."""
    await create_blank(tmp_path / "base.qcow2", 2**20)
    await create_overlay(tmp_path / "evil.qcow2", await inspect_disk(tmp_path / "base.qcow2"))
    with pytest.raises(errors.SiteError, match="leans on another file"):
        await inspect_disk(tmp_path / "evil.qcow2")


async def test_the_base_of_an_overlay_is_read_from_its_header(tmp_path):
    """Base images that something leans on are kept."""
    await create_blank(tmp_path / "base.qcow2", 2**20)
    await create_overlay(tmp_path / "disk.qcow2", await inspect_disk(tmp_path / "base.qcow2"))
    assert backing_file(tmp_path / "disk.qcow2") == str(tmp_path / "base.qcow2")
    assert backing_file(tmp_path / "base.qcow2") == ""
    (tmp_path / "raw").write_bytes(b"\0" * 64)
    assert backing_file(tmp_path / "raw") == ""


async def test_a_disk_grows_and_never_shrinks(tmp_path):
    """A claim that asks for more gives its guest more at the next start."""
    disk = tmp_path / "disk.qcow2"
    await create_blank(disk, 64 * 2**20)
    for size, seen in ((64, 64), (96, 96), (80, 96)):
        await grow(disk, size * 2**20)
        assert (await inspect_disk(disk)).size == seen * 2**20
