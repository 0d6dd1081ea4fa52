"""A GUID partition table and GRUB's BIOS boot code, written into a disk file.

Hand-written because sgdisk takes no fixed disk and no file offset rules of ours, and because
grub-install wants a mounted, root-owned tree. Layouts: UEFI specification 2.10 §5; GRUB's
`include/grub/i386/pc/boot.h` and `kernel.h` for the two patched places.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
import zlib
from typing import IO

__all__ = ["BIOS_BOOT", "ESP", "ROOT_TYPES", "SECTOR", "Partition", "embed_grub", "write"]

SECTOR = 512
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
# https://uapi-group.org/specifications/specs/discoverable_partitions_specification/
ROOT_TYPES = {
    "amd64": uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "arm64": uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}
_ENTRIES = 128
_ENTRY = 128
_TABLE_SECTORS = _ENTRIES * _ENTRY // SECTOR
_BOOT_CODE = 440
_BOOT_KERNEL_SECTOR = 0x5C
_BOOT_DRIVE_CHECK = 0x66
_CORE_BLOCKLIST = 0x1F4
_CORE_SEGMENT = 0x820


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition; sectors of 512 bytes, `last` included."""

    name: str
    type: uuid.UUID
    guid: uuid.UUID
    first: int
    last: int


def write(disk: IO[bytes], *, sectors: int, guid: uuid.UUID, partitions: list[Partition]) -> None:
    """Write protective MBR, both headers and both tables."""
    table = b"".join(_entry(one) for one in partitions).ljust(_ENTRIES * _ENTRY, b"\0")
    last = sectors - 1
    disk.seek(0)
    disk.write(bytes(446) + _protective(sectors) + bytes(48) + b"\x55\xaa")
    disk.seek(SECTOR)
    disk.write(_header(1, last, 2, guid, sectors, table).ljust(SECTOR, b"\0") + table)
    disk.seek((last - _TABLE_SECTORS) * SECTOR)
    backup = _header(last, 1, last - _TABLE_SECTORS, guid, sectors, table)
    disk.write(table + backup.ljust(SECTOR, b"\0"))


def embed_grub(disk: IO[bytes], *, boot: bytes, core: bytes, at: Partition) -> None:
    """Write GRUB's first stage into the MBR and its core into the BIOS boot partition.

    Raises:
        ValueError: the core does not fit into the partition.
    """
    room = (at.last - at.first + 1) * SECTOR
    if len(core) > room:
        raise ValueError(f"GRUB core has {len(core)} bytes, the partition {room}")
    stage = bytearray(boot[:_BOOT_CODE])
    struct.pack_into("<Q", stage, _BOOT_KERNEL_SECTOR, at.first)
    # Two no-operations where old BIOSes' wrong drive number would be kept.
    stage[_BOOT_DRIVE_CHECK : _BOOT_DRIVE_CHECK + 2] = b"\x90\x90"
    body = bytearray(core)
    rest = -(-len(core) // SECTOR) - 1
    struct.pack_into("<QHH", body, _CORE_BLOCKLIST, at.first + 1, rest, _CORE_SEGMENT)
    disk.seek(0)
    disk.write(stage)
    disk.seek(at.first * SECTOR)
    disk.write(body)


def _entry(one: Partition) -> bytes:
    return struct.pack(
        "<16s16sQQQ72s",
        one.type.bytes_le,
        one.guid.bytes_le,
        one.first,
        one.last,
        0,
        one.name.encode("utf-16-le"),
    )


def _header(
    here: int, other: int, table_at: int, guid: uuid.UUID, sectors: int, table: bytes
) -> bytes:
    def packed(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            crc,
            0,
            here,
            other,
            2 + _TABLE_SECTORS,
            sectors - 2 - _TABLE_SECTORS,
            guid.bytes_le,
            table_at,
            _ENTRIES,
            _ENTRY,
            zlib.crc32(table),
        )

    return packed(zlib.crc32(packed(0)))


def _protective(sectors: int) -> bytes:
    size = min(sectors - 1, 0xFFFFFFFF)
    return struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, size)
