"""Writes Debian packages in pure Python: an ar archive of two tars (deb(5)), always equal bytes."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Entry", "deb_bytes"]

_COMPRESSION_LEVEL: Final = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file or symbolic link of a package."""

    path: str
    """Absolute path in the installed system."""
    content: bytes = b""
    link: str = ""
    """Target, when this is a symbolic link."""
    mode: int = 0o644


def deb_bytes(
    *, control: str, scripts: Mapping[str, str], entries: Iterable[Entry], epoch: int
) -> bytes:
    """Return a package.

    Args:
        control: the control file's text; `Installed-Size` is added.
        scripts: maintainer scripts and other control members by name.
        entries: what the package installs, owned by root.
        epoch: time stamp of everything, in seconds.
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    size = sum(len(entry.content) for entry in ordered) // 1024 + 1
    members = {
        "control": f"{control.rstrip()}\nInstalled-Size: {size}\n",
        "md5sums": "".join(
            f"{hashlib.md5(entry.content, usedforsecurity=False).hexdigest()}  {entry.path[1:]}\n"
            for entry in ordered
            if not entry.link
        ),
        **scripts,
    }
    control_tar = _tar(
        (
            Entry(
                path=f"/{name}",
                content=text.encode(),
                mode=0o644 if name in {"control", "md5sums", "conffiles"} else 0o755,
            )
            for name, text in sorted(members.items())
        ),
        epoch=epoch,
    )
    return _ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.gz": _gzip(control_tar),
            "data.tar.gz": _gzip(_tar(ordered, epoch=epoch)),
        },
        epoch=epoch,
    )


def _tar(entries: Iterable[Entry], *, epoch: int) -> bytes:
    buffer = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            for parent in reversed(PurePosixPath(entry.path).parents):
                name = "./" if str(parent) == "/" else f".{parent}/"
                if name not in folders:
                    folders.add(name)
                    archive.addfile(_info(name, epoch=epoch, kind=tarfile.DIRTYPE, mode=0o755))
            info = _info(f".{entry.path}", epoch=epoch, kind=tarfile.REGTYPE, mode=entry.mode)
            if entry.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                archive.addfile(info)
            else:
                info.size = len(entry.content)
                archive.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()


def _info(name: str, *, epoch: int, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, epoch
    info.uname = info.gname = "root"
    return info


def _gzip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, buffer, mtime=0) as stream:
        stream.write(data)
    return buffer.getvalue()


def _ar(members: Mapping[str, bytes], *, epoch: int) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        header = f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        parts += [header.encode("ascii"), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)
