"""A root file system to look into: a tar of it, or the disk itself."""

from __future__ import annotations

import dataclasses
import stat
from typing import IO, TYPE_CHECKING, Protocol

from images import roottree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from images.ext4 import FileSystem

__all__ = ["DiskTree", "Entry", "TarTree", "Tree"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, folder or link."""

    path: str
    """Without leading slash."""
    mode: int
    """Permissions with set-user-id and set-group-id."""
    size: int
    regular: bool
    read: Callable[[], bytes]
    """Its content; only while the entry is the latest one."""


class Tree(Protocol):
    """What can be scanned."""

    def entries(self) -> Iterator[Entry]:
        """Yield everything."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return a file's content, or None."""
        ...


class TarTree:
    """A tar that can be read again and again."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def entries(self) -> Iterator[Entry]:
        """Yield every record."""
        stream = self._stream
        stream.seek(0)
        for record in roottree.records(stream):
            begin = stream.tell()
            head = record.raw[-512:]
            yield Entry(
                path=record.path,
                mode=int(head[100:107].rstrip(b"\0 ") or b"0", 8),
                size=record.size,
                regular=record.kind == "0",
                read=lambda size=record.size: stream.read(size),
            )
            stream.seek(begin)
            roottree.skip(stream, record)

    def read(self, path: str) -> bytes | None:
        """Return a file's content, or None."""
        self._stream.seek(0)
        return roottree.read(self._stream, lambda one: one == path).get(path)


class DiskTree:
    """A disk's own file system."""

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def entries(self) -> Iterator[Entry]:
        """Yield every file."""
        for file in self._files.walk():
            yield Entry(
                path=file.path,
                mode=stat.S_IMODE(file.mode),
                size=file.size if stat.S_ISREG(file.mode) else 0,
                regular=stat.S_ISREG(file.mode),
                read=lambda file=file: self._files.read(file),
            )

    def read(self, path: str) -> bytes | None:
        """Return a file's content, or None."""
        file = self._files.find(path)
        return self._files.read(file) if file else None
