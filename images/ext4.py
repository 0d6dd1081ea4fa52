"""Reading files out of a disk's ext4 file system, without mounting it and without root rights.

Only what images need: extents, directories, symbolic links in the inode. Layouts:
docs.kernel.org/filesystems/ext4. Libraries for it are either slow at walking a whole tree or not
licensed for a project like this one; e2fsprogs' debugfs copies all that it lists.
"""

from __future__ import annotations

import dataclasses
import itertools
import stat
import struct
import uuid
from typing import TYPE_CHECKING, Any

from images import gpt
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from images.blocks import Blocks

__all__ = ["File", "FileSystem"]

_MAGIC = 0xEF53
_EXTENT_MAGIC = 0xF30A
_ROOT_INODE = 2
_EXTENTS_FLAG = 0x80000
_INLINE_FLAG = 0x10000000
_64BIT = 0x80
_UNWRITTEN = 0x8000
_LINUX_DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_SUPERBLOCK = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One inode under one of its names."""

    path: str
    """Without leading slash."""
    mode: int
    """Type and permissions as in stat(2)."""
    size: int
    inode: int


class FileSystem:
    """The root file system of a disk with a GUID partition table.

    Raises:
        KvedgeError: there is no ext4 root partition.
    """

    def __init__(self, disk: Blocks) -> None:
        self._disk = disk
        self._at = self._root_partition()
        self._read_superblock()

    def _take(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack(form, self._disk.read(at, struct.calcsize(form)))

    def _fail(self, what: str) -> errors.KvedgeError:
        return errors.KvedgeError(
            f"cannot look into disk {self._disk.name!r}: {what}",
            hint="disks with a GUID partition table and an ext4 root can be read",
        )

    def _root_partition(self) -> int:
        """Return where the root partition begins: the largest one of a fitting type, in bytes."""
        disk = self._disk
        if disk.read(gpt.SECTOR, 8) != b"EFI PART":
            raise self._fail("no GUID partition table")
        table, count, size = self._take("<QII", gpt.SECTOR + 72)
        found: list[tuple[int, int]] = []
        wanted = {*gpt.ROOT_TYPES.values(), _LINUX_DATA}
        for number in range(min(count, 256)):
            start = table * gpt.SECTOR + number * size
            kind = uuid.UUID(bytes_le=disk.read(start, 16))
            if kind in wanted:
                first, last = self._take("<QQ", start + 32)
                found.append((last - first, first * gpt.SECTOR))
        if not found:
            raise self._fail("no Linux partition")
        return max(found)[1]

    def _read_superblock(self) -> None:
        at = self._at + _SUPERBLOCK
        if self._take("<H", at + 56)[0] != _MAGIC:
            raise self._fail("the root partition is not ext4")
        self._block = 1024 << self._take("<I", at + 24)[0]
        self._inodes_per_group = self._take("<I", at + 40)[0]
        self._inode_size = self._take("<H", at + 88)[0]
        first_block = self._take("<I", at + 20)[0]
        wide = self._take("<I", at + 96)[0] & _64BIT
        size = self._take("<H", at + 254)[0] if wide else 32
        inodes = self._take("<I", at)[0]
        start = self._at + (first_block + 1) * self._block
        self._tables: list[int] = []
        for group in range(-(-inodes // self._inodes_per_group)):
            low = self._take("<I", start + group * size + 8)[0]
            high = self._take("<I", start + group * size + 40)[0] if wide else 0
            self._tables.append(self._at + ((high << 32) + low) * self._block)

    def _inode(self, number: int) -> int:
        """Return where an inode is, in bytes."""
        group, index = divmod(number - 1, self._inodes_per_group)
        return self._tables[group] + index * self._inode_size

    def _file(self, path: str, number: int) -> File:
        at = self._inode(number)
        mode = self._take("<H", at)[0]
        low, high = (
            self._take("<I", at + 4)[0],
            self._take("<I", at + 108)[0],
        )
        return File(path, mode, low + (high << 32 if stat.S_ISREG(mode) else 0), number)

    def walk(self) -> Iterator[File]:
        """Yield everything below the root, folders before what is in them."""
        folders = [("", _ROOT_INODE)]
        while folders:
            above, number = folders.pop()
            for name, child in self._entries(number):
                file = self._file(f"{above}{name}", child)
                yield file
                if stat.S_ISDIR(file.mode):
                    folders.append((f"{file.path}/", child))

    def find(self, path: str) -> File | None:
        """Return the file of a path, with symbolic links in it followed once each, or None."""
        number, done = _ROOT_INODE, ""
        parts = path.split("/")
        for at, part in enumerate(parts):
            child = dict(self._entries(number)).get(part)
            if child is None:
                return None
            file = self._file(f"{done}{part}", child)
            if stat.S_ISLNK(file.mode) and at + 1 < len(parts):
                target = self.read(file).decode()
                base = "" if target.startswith("/") else done
                rest = "/".join(parts[at + 1 :])
                return self.find(f"{base}{target.lstrip('/')}/{rest}")
            number, done = child, f"{done}{part}/"
        return self._file(path, number)

    def _entries(self, number: int) -> Iterator[tuple[str, int]]:
        data = self.read(self._file("", number))
        at = 0
        while at + 8 <= len(data):
            child, length, size = struct.unpack_from("<IHB", data, at)
            if length < 8:
                return
            name = data[at + 8 : at + 8 + size]
            if child and name not in (b".", b".."):
                yield name.decode(errors="surrogateescape"), child
            at += length

    def read(self, file: File) -> bytes:
        """Return a file's content, a folder's blocks, or a link's target."""
        at = self._inode(file.inode)
        if stat.S_ISLNK(file.mode) and file.size < 60:
            return self._disk.read(at + 40, file.size)
        flags = self._take("<I", at + 32)[0]
        if flags & _INLINE_FLAG:
            raise self._fail(f"/{file.path} is kept in its inode")
        data = bytearray(file.size)
        needed = -(-file.size // self._block)
        places = self._extents if flags & _EXTENTS_FLAG else self._block_map
        for logical, start, count in places(at + 40):
            if logical >= needed:
                break
            low = logical * self._block
            part = self._disk.read(start, min(count * self._block, max(0, file.size - low)))
            data[low : low + len(part)] = part
        return bytes(data)

    def _block_map(self, at: int) -> Iterator[tuple[int, int, int]]:
        """Yield the same for files of the older kind: 12 blocks, then blocks of numbers."""
        numbers = self._block // 4
        logical = 0
        pointers = self._take("<15I", at)
        for slot, pointer in enumerate(pointers):
            for block in self._leaves(pointer, max(0, slot - 11), numbers):
                # Holes are told too, so that the reader sees when it is past the end.
                yield logical, self._at + block * self._block, int(block > 0)
                logical += 1

    def _leaves(self, pointer: int, depth: int, numbers: int) -> Iterator[int]:
        if depth == 0:
            yield pointer
        elif pointer:
            at = self._at + pointer * self._block
            for one in self._take(f"<{numbers}I", at):
                yield from self._leaves(one, depth - 1, numbers)
        else:
            yield from itertools.repeat(0, numbers**depth)

    def _extents(self, at: int) -> Iterator[tuple[int, int, int]]:
        """Yield first logical block, place on the disk in bytes, and number of blocks."""
        magic, count, _, depth = self._take("<HHHH", at)
        if magic != _EXTENT_MAGIC:
            raise self._fail("a damaged extent")
        for number in range(count):
            here = at + 12 * (number + 1)
            if depth:
                _, low, high = self._take("<IIH", here)
                yield from self._extents(self._at + ((high << 32) + low) * self._block)
                continue
            logical, length, high, low = self._take("<IHHI", here)
            if length <= _UNWRITTEN:
                yield logical, self._at + ((high << 32) + low) * self._block, length
