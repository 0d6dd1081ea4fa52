"""Reading places of a disk image on demand, whatever its format: a client of qemu-nbd.

Only what is asked for is read and decompressed, so a look into a disk of gigabytes takes a fraction
of a second. Protocol: github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from kvedge import errors, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Blocks", "opened"]

_CHUNK = 1 << 17
_SECONDS = 20.0
_OPTION = b"IHAVEOPT"
_FIXED_NO_ZEROES = 3
_EXPORT_NAME = 1
_REQUEST = 0x25609513
_REPLY = 0x67446698


class Blocks:
    """The content of a disk; what was read once is kept."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.name = name
        """The image's file, for messages."""
        self._stream = stream
        self._kept: dict[int, bytes] = {}
        if self._take(8) != b"NBDMAGIC" or self._take(8) != _OPTION:
            raise self._broken()
        self._take(2)
        self._send(struct.pack(">I8sII", _FIXED_NO_ZEROES, _OPTION, _EXPORT_NAME, 0))
        self.size, _ = struct.unpack(">QH", self._take(10))

    def read(self, at: int, size: int) -> bytes:
        """Return bytes of the disk; fewer only at its end."""
        first, last = at // _CHUNK, (at + size - 1) // _CHUNK
        data = b"".join(self._chunk(number) for number in range(first, last + 1))
        return data[at - first * _CHUNK :][:size]

    def _chunk(self, number: int) -> bytes:
        if number not in self._kept:
            at = number * _CHUNK
            size = max(0, min(_CHUNK, self.size - at))
            self._kept[number] = self._ask(at, size) if size else b""
        return self._kept[number]

    def _ask(self, at: int, size: int) -> bytes:
        self._send(struct.pack(">IHHQQI", _REQUEST, 0, 0, at, at, size))
        magic, error, _ = struct.unpack(">IIQ", self._take(16))
        if magic != _REPLY or error:
            raise self._broken()
        return self._take(size)

    def _send(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()

    def _take(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise self._broken()
        return data

    def _broken(self) -> errors.KvedgeError:
        return errors.KvedgeError(
            f"cannot read disk {self.name!r}", hint="is the file whole? qemu-img check tells"
        )


@contextlib.contextmanager
def opened(image: Path, *, form: str = "qcow2") -> Iterator[Blocks]:
    """Serve a disk image to this process alone, until the block ends.

    Args:
        image: the file, which is not written to.
        form: its format as QEMU calls it.

    Raises:
        KvedgeError: the file is not of that format.
    """
    with tempfile.TemporaryDirectory(prefix="kvedge-nbd-") as name:
        folder = Path(name)
        argv = ["qemu-nbd", "--read-only", "--format", form, "--socket", folder / "s", image]
        child = processes.popen(argv, log=folder / "log")
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    _connect(sock, folder / "s", child)
                    stream = cast("IO[bytes]", sock.makefile("rwb"))
                    content = Blocks(str(image), stream)
                except (OSError, errors.KvedgeError) as cause:
                    # qemu-nbd may take the connection before it looks at the file.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(1)
                    said = (folder / "log").read_text(errors="replace").strip()[-300:]
                    raise errors.KvedgeError(f"cannot open disk {str(image)!r}: {said}") from cause
                with stream:
                    yield content
        finally:
            child.kill()
            child.wait()


def _connect(sock: socket.socket, place: Path, child: subprocess.Popen[bytes]) -> None:
    sock.settimeout(_SECONDS)
    end = time.monotonic() + _SECONDS
    while True:
        try:
            sock.connect(str(place))
        except OSError:
            if child.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.005)
        else:
            return
