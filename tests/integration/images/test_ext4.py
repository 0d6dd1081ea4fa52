"""Reading a disk's file system without mounting it, against what mke2fs really writes."""

import os
import stat

import pytest

from images import blocks, disk, ext4, gpt
from kvedge import errors, processes, tools

FIRST = 2048


@pytest.fixture
def tree(tmp_path):
    """A folder with files of every size class, links, modes and a folder of many blocks."""
    top = tmp_path / "tree"
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "empty").touch()
    (top / "etc" / "small").write_bytes(b"x")
    (top / "etc" / "large").write_bytes(os.urandom(3_000_001))
    with (top / "etc" / "holes").open("wb") as file:
        file.seek(700_000)
        file.write(b"end")
    (top / "usr").mkdir()
    (top / "usr" / "tool").write_bytes(b"#!/bin/sh\n")
    (top / "usr" / "tool").chmod(0o4755)
    (top / "short").symlink_to("etc/small")
    (top / "long").symlink_to("etc/" + "../etc/" * 20 + "small")
    (top / "lib").symlink_to("usr")
    os.link(top / "etc" / "small", top / "etc" / "hard")
    (top / "many").mkdir()
    for number in range(600):
        (top / "many" / f"file-with-a-long-name-{number:04}").touch()
    return top


def _raw(tmp_path, tree, *options):
    raw = tmp_path / "disk.raw"
    sectors = 64 * 2048
    with raw.open("wb") as file:
        file.truncate(sectors * gpt.SECTOR)
        guid = gpt.ESP
        root = gpt.Partition(
            name="root", type=gpt.ROOT_TYPES["amd64"], guid=guid, first=FIRST, last=sectors - 2048
        )
        gpt.write(file, sectors=sectors, guid=guid, partitions=[root])
    size = (sectors - 2048 - FIRST) // 2
    mke2fs = tools.ensure(["mke2fs"])["mke2fs"]
    argv = [mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, *options]
    offset = f"offset={FIRST * gpt.SECTOR}"
    processes.run([*argv, "-E", offset, raw, f"{size}k"], what="make a file system")
    return raw


@pytest.mark.parametrize(
    "options",
    [[], ["-b", "1024"], ["-O", "^extent,^64bit"], ["-O", "^64bit,^metadata_csum"]],
    ids=str,
)
def test_everything_is_read_as_it_was_written(tmp_path, tree, options):
    """Names, modes, sizes and contents are those of the folder, for old and new layouts."""
    with blocks.opened(_raw(tmp_path, tree, *options), form="raw") as content:
        files = ext4.FileSystem(content)
        found = {file.path: file for file in files.walk()}
        del found["lost+found"]
        wanted = {str(path.relative_to(tree)): path for path in tree.rglob("*")}
        assert set(found) == set(wanted)
        for name, path in wanted.items():
            facts = path.lstat()
            assert found[name].mode == facts.st_mode, name
            if stat.S_ISREG(facts.st_mode):
                assert files.read(found[name]) == path.read_bytes(), name
            if stat.S_ISLNK(facts.st_mode):
                assert files.read(found[name]) == str(path.readlink()).encode(), name
        assert files.read(files.find("lib/tool")) == b"#!/bin/sh\n"
        assert files.find("etc/none") is None
        assert files.find("none/none") is None


def test_what_is_no_such_disk_is_told(tmp_path, tree):
    """A disk without the table, without a Linux partition, or with another file system."""
    raw = _raw(tmp_path, tree)
    whole = bytearray(raw.read_bytes())
    for start, text in (
        (gpt.SECTOR, "partition table"),
        (2 * gpt.SECTOR, "no Linux partition"),
        (FIRST * gpt.SECTOR + 1024 + 56, "not ext4"),
    ):
        damaged = whole.copy()
        damaged[start : start + 2] = b"\0\0"
        raw.write_bytes(damaged)
        with (
            blocks.opened(raw, form="raw") as content,
            pytest.raises(errors.KvedgeError, match=text),
        ):
            ext4.FileSystem(content)


def test_a_qcow2_disk_is_opened(tmp_path, tree):
    """The disk that machines start from is read as it is."""
    raw = _raw(tmp_path, tree)
    disk.make_qcow2(raw, tmp_path / "disk.qcow2")
    with blocks.opened(tmp_path / "disk.qcow2") as content:
        files = ext4.FileSystem(content)
        assert files.read(files.find("short")) == b"etc/small"


def test_a_file_that_is_no_disk_is_told(tmp_path):
    """QEMU's own words say what is wrong with the file."""
    file = tmp_path / "disk.qcow2"
    file.write_bytes(b"nothing")
    with pytest.raises(errors.KvedgeError, match="qcow2"), blocks.opened(file):
        pass
