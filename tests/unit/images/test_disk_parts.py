"""The parts of a disk that are written by hand: partition table, boot code, initrd, accounts."""

import io
import struct
import uuid
import zlib

import pytest

from images import content, disk, gpt, recipe

MIB = 1 << 20


def _partition(first, last):
    return gpt.Partition(
        name="bios", type=gpt.BIOS_BOOT, guid=uuid.UUID(int=7), first=first, last=last
    )


def test_both_headers_are_right():
    """Primary and backup header carry right checksums and point to each other."""
    sectors = 64 * MIB // gpt.SECTOR
    out = io.BytesIO(bytes(sectors * gpt.SECTOR))
    gpt.write(out, sectors=sectors, guid=uuid.UUID(int=1), partitions=[_partition(2048, 4095)])
    data = out.getvalue()
    assert data[510:512] == b"\x55\xaa"
    assert data[450] == 0xEE
    for at, other in ((1, sectors - 1), (sectors - 1, 1)):
        head = data[at * 512 : at * 512 + 92]
        assert head[:8] == b"EFI PART"
        crc, here, there = struct.unpack_from("<I4xQQ", head, 16)
        assert (here, there) == (at, other)
        assert zlib.crc32(head[:16] + bytes(4) + head[20:]) == crc
        table_at, table_crc = struct.unpack_from("<Q", head, 72)[0], head[88:92]
        table = data[table_at * 512 : table_at * 512 + 128 * 128]
        assert struct.pack("<I", zlib.crc32(table)) == table_crc
        assert table[:16] == gpt.BIOS_BOOT.bytes_le


def test_grub_knows_where_its_core_is():
    """The boot sector points to the core, the core to its own rest."""
    out = io.BytesIO(bytes(8 * MIB))
    gpt.embed_grub(out, boot=bytes(512), core=b"c" * 5000, at=_partition(2048, 4095))
    data = out.getvalue()
    assert struct.unpack_from("<Q", data, 0x5C) == (2048,)
    assert data[0x66:0x68] == b"\x90\x90"
    assert struct.unpack_from("<QHH", data, 2048 * 512 + 0x1F4) == (2049, 9, 0x820)


def test_a_core_that_does_not_fit_is_refused():
    """Boot code is never written beyond its partition."""
    with pytest.raises(ValueError, match="GRUB core"):
        gpt.embed_grub(
            io.BytesIO(), boot=bytes(512), core=bytes(MIB + 1), at=_partition(2048, 4095)
        )


def test_modules_come_after_what_they_need():
    """Dependencies are loaded first, each once; built-in drivers are left out."""
    table = (
        "kernel/virtio.ko:\nkernel/ring.ko: kernel/virtio.ko\n"
        "kernel/virtio_blk.ko: kernel/ring.ko kernel/virtio.ko\n"
        "kernel/virtio-net.ko: kernel/ring.ko kernel/virtio.ko\n"
    )
    assert disk.module_order(table, ["virtio_blk", "virtio_net", "built_in"]) == [
        "kernel/virtio.ko",
        "kernel/ring.ko",
        "kernel/virtio_blk.ko",
        "kernel/virtio-net.ko",
    ]


def test_initrd_is_a_cpio_archive():
    """Each entry is where the format says, aligned to four bytes, with a trailer at the end."""
    data = disk.make_initrd({"init": b"#!/bin/sh\n", "bin/busybox": b"abc"})
    names, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        size, length = int(data[at + 54 : at + 62], 16), int(data[at + 94 : at + 102], 16)
        name = data[at + 110 : at + 110 + length - 1].decode()
        if name == "TRAILER!!!":
            break
        names.append(name)
        at += 110 + length
        at += -at % 4 + size
        at += -at % 4
    assert names == ["bin", "dev", "proc", "root", "sys", "bin/busybox", "init"]


def _members():
    edge = recipe.load("debian-12-edge")
    overlays = {name: content.overlay_files(name) for name in edge.content.overlays}
    units = {
        "usr/lib/systemd/system/serial-getty@.service": b"[Install]\nWantedBy=getty.target\n",
        "usr/lib/systemd/system/systemd-networkd.service": (
            b"[Install]\nWantedBy=multi-user.target\nAlias=dbus-org.freedesktop.network1.service\n"
            b"Also=systemd-networkd.socket\n"
        ),
        "usr/lib/systemd/system/systemd-networkd.socket": b"[Install]\nWantedBy=sockets.target\n",
    }
    return {member.path: member for member in content.members(edge, overlays, units)}


def test_units_are_enabled_as_systemctl_would():
    """Wants, aliases, templates and `Also=` become the links that systemctl makes."""
    members = _members()
    top = "etc/systemd/system"
    assert members[f"{top}/getty.target.wants/serial-getty@ttyS0.service"].target == (
        "/usr/lib/systemd/system/serial-getty@.service"
    )
    assert f"{top}/multi-user.target.wants/systemd-networkd.service" in members
    assert f"{top}/dbus-org.freedesktop.network1.service" in members
    assert f"{top}/sockets.target.wants/systemd-networkd.socket" in members
    assert members[f"{top}/multi-user.target.wants/kvedge-access.service"].target == (
        f"/{top}/kvedge-access.service"
    )
    assert members[f"{top}/apt-daily.timer"].target == "/dev/null"


def test_scripts_are_executable_and_rules_are_not():
    """Overlay files that begin with #! may run, all others may not."""
    members = _members()
    assert members["usr/lib/kvedge/apply"].mode == 0o755
    assert members["etc/docker/daemon.json"].mode == 0o644
    assert members["etc/sudoers.d/90-edge"].mode == 0o440


def test_accounts_join_groups_that_are_there():
    """The image's user is added to existing groups and gets no password."""
    amend = content.amendments(recipe.load("debian-12-edge"))
    group = amend["etc/group"](b"root:x:0:\ndocker:x:107:\niotedge:x:991:other\n").decode()
    assert "docker:x:107:edge\n" in group
    assert "iotedge:x:991:other,edge\n" in group
    assert "edge:x:1000:\n" in group
    shadow = amend["etc/shadow"](b"root:*:1:0:99999:7:::\n").decode().splitlines()
    assert shadow[1].startswith("edge:*:")
    gshadow = amend["etc/gshadow"](b"docker:!::\n").decode()
    assert gshadow == "docker:!::edge\nedge:!::\n"


def test_no_overlay_names_a_building_machine():
    """The image's own package sources are the project's, not the builder's."""
    sources = content.apt_sources(recipe.load("debian-12-edge"))
    addresses = [line.split()[1] for line in sources.splitlines() if line.startswith("URIs:")]
    assert all(one.startswith("http://deb.debian.org/") for one in addresses)
