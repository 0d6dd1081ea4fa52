"""A root file system as a stream of tar records: read, amended and passed on without unpacking.

Records that nobody touches go through byte for byte, so a tree of ten thousand files costs little
more than a copy, needs no root rights and loses neither owners, capabilities nor hard links.
"""

from __future__ import annotations

import dataclasses
import io
import tarfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "KEEP",
    "Member",
    "Record",
    "directory",
    "file",
    "merge",
    "read",
    "records",
    "skip",
    "symlink",
]

KEEP = -1
"""Mode of a folder that is made 0755 of root unless it is there."""
_BLOCK = 512
_CHUNK = 1 << 20
_TELL_EACH = 16 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One tar member with the extension headers in front of it, as raw blocks."""

    path: str
    """Without leading `./` or `/`."""
    kind: str
    """Tar's type flag: 0 file, 1 hard link, 2 symbolic link, 5 folder …"""
    size: int
    """Bytes of content."""
    raw: bytes
    """All header blocks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file, folder or symbolic link that is laid over the tree."""

    path: str
    """Without leading slash."""
    kind: str = "file"
    """`file`, `dir` or `link`."""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    target: str = ""


def file(path: str, data: bytes | str, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Member:
    """Return a file."""
    content = data.encode() if isinstance(data, str) else data
    return Member(path=path, data=content, mode=mode, uid=uid, gid=gid)


def directory(path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Member:
    """Return a folder."""
    return Member(path=path, kind="dir", mode=mode, uid=uid, gid=gid)


def symlink(path: str, target: str) -> Member:
    """Return a symbolic link."""
    return Member(path=path, kind="link", target=target, mode=0o777)


def records(stream: IO[bytes]) -> Iterator[Record]:
    """Yield the records of a tar; the caller reads or skips the content before the next one."""
    extra = b""
    long_name = ""
    while len(head := stream.read(_BLOCK)) == _BLOCK:
        if not any(head):
            return
        kind = head[156:157].decode("latin-1").replace("\0", "0")
        size = _number(head[124:136])
        if kind in "xgLK":
            body = stream.read(_padded(size))
            extra += head + body
            if kind == "L":
                long_name = body[:size].rstrip(b"\0").decode(errors="surrogateescape")
            elif kind == "x":
                long_name = _pax_path(body[:size]) or long_name
            continue
        name = long_name or _name(head)
        yield Record(
            path=_clean(name), kind=kind, size=size if kind in "07" else 0, raw=extra + head
        )
        extra, long_name = b"", ""


def read(stream: IO[bytes], wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the content of the wanted files; a symbolic link's content is `-> target`."""
    found: dict[str, bytes] = {}
    for record in records(stream):
        if record.kind == "0" and wanted(record.path):
            found[record.path] = stream.read(_padded(record.size))[: record.size]
            continue
        if record.kind == "2" and wanted(record.path):
            found[record.path] = b"-> " + record.raw[-_BLOCK:][157:257].rstrip(b"\0")
        skip(stream, record)
    return found


def merge(
    stream: IO[bytes],
    sink: IO[bytes],
    *,
    members: Iterable[Member],
    amend: Mapping[str, Callable[[bytes], bytes]],
    epoch: int,
    drop: tuple[str, ...] = (),
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Copy a tree and lay members over it; `amend` rewrites single files by path.

    A member replaces what was at its path (an existing folder stays as it is). Members come last,
    parents first, with missing parents made as folders 0755 of root. Paths that begin with one of
    `drop` are left out.
    """
    over = {member.path: member for member in members}
    folders = {""}
    waiting = dict(amend)
    copied = told = 0
    for record in records(stream):
        path = record.path
        if drop and path.startswith(drop):
            skip(stream, record)
            continue
        if record.kind == "5":
            folders.add(path)
            mine = over.get(path)
            if mine is None or mine.kind == "dir":
                if mine is not None:
                    del over[path]
                if mine is not None and mine.mode != KEEP:
                    sink.write(_header(mine, epoch))
                else:
                    sink.write(record.raw)
                continue
        if path in over:
            skip(stream, record)
            continue
        if path in waiting and record.kind == "0":
            old = stream.read(_padded(record.size))[: record.size]
            _write(sink, record, waiting.pop(path)(old))
            continue
        sink.write(record.raw)
        left = _padded(record.size)
        copied += left
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk:
                raise EOFError(f"tar ends inside {path!r}")
            sink.write(chunk)
            left -= len(chunk)
        if on_bytes and copied - told >= _TELL_EACH:
            told = copied
            on_bytes(copied)
    for member in sorted(over.values(), key=lambda one: one.path):
        parent = ""
        for part in member.path.split("/")[:-1]:
            parent = f"{parent}/{part}" if parent else part
            if parent not in folders:
                folders.add(parent)
                sink.write(_header(directory(parent), epoch))
        if member.kind == "dir":
            folders.add(member.path)
        sink.write(_header(member, epoch))
        sink.write(_pad(member.data))
    sink.write(bytes(_BLOCK * 2))


def _write(sink: IO[bytes], record: Record, data: bytes) -> None:
    head = tarfile.TarInfo.frombuf(record.raw[-_BLOCK:], "utf-8", "surrogateescape")
    head.size = len(data)
    sink.write(record.raw[:-_BLOCK] + head.tobuf(tarfile.GNU_FORMAT) + _pad(data))


def _header(member: Member, epoch: int) -> bytes:
    info = tarfile.TarInfo(f"./{member.path}")
    info.type = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[
        member.kind
    ]
    info.mode = 0o755 if member.mode == KEEP else member.mode
    info.uid, info.gid, info.mtime = member.uid, member.gid, epoch
    info.size, info.linkname = len(member.data), member.target
    return info.tobuf(tarfile.GNU_FORMAT)


def skip(stream: IO[bytes], record: Record) -> None:
    """Read past a record's content."""
    left = _padded(record.size)
    if left and stream.seekable():
        stream.seek(left, io.SEEK_CUR)
        return
    while left:
        left -= len(stream.read(min(left, _CHUNK)))


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.rstrip(b"\0 ") or b"0", 8)


def _name(head: bytes) -> str:
    name = head[:100].split(b"\0", 1)[0]
    if head[257:263] == b"ustar\0" and head[345] != 0:
        name = head[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _pax_path(body: bytes) -> str:
    while body:
        length = int(body.split(b" ", 1)[0])
        key, _, value = body[:length].split(b" ", 1)[1].partition(b"=")
        if key == b"path":
            return value.rstrip(b"\n").decode(errors="surrogateescape")
        body = body[length:]
    return ""


def _clean(name: str) -> str:
    return name.removeprefix("./").strip("/").removeprefix("./") if name != "." else ""
