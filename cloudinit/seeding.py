"""ISO 9660 disks that a guest reads at boot: NoCloud seed and secret disk. Deterministic."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SEED_LABEL", "iso", "seed"]

SEED_LABEL = "cidata"
_LOCK = threading.Lock()


def iso(label: str, files: Mapping[str, bytes], *, epoch: int = 0) -> bytes:
    """Return an ISO 9660 image with Rock Ridge and Joliet names, files in its root folder.

    Args:
        label: volume label, at most 32 characters.
        files: name to content; a name has no slash.
        epoch: seconds since 1970 that every date in the image has.

    Raises:
        ValueError: a name or the label cannot be used.
    """
    if not label or len(label) > 32:
        raise ValueError(f"label {label!r} must have 1 to 32 characters")
    # Most of those who import this room make no disk, and this import is a third of the room's.
    import pycdlib

    with _LOCK, _stopped_clock(epoch):
        image = pycdlib.PyCdlib()
        image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
        for number, (name, data) in enumerate(sorted(files.items())):
            if not name or "/" in name or len(name) > 64:
                raise ValueError(f"file name {name!r} cannot be in an ISO's root folder")
            image.add_fp(
                io.BytesIO(data),
                len(data),
                f"/F{number:07d}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        out = io.BytesIO()
        image.write_fp(out)
        image.close()
    return out.getvalue()


def seed(
    *, user_data: str, meta_data: str, network_config: str | None = None, epoch: int = 0
) -> bytes:
    """Return a NoCloud seed disk; the same bytes for the same input."""
    files = {"user-data": user_data.encode(), "meta-data": meta_data.encode()}
    if network_config is not None:
        files["network-config"] = network_config.encode()
    return iso(SEED_LABEL, files, epoch=epoch)


@contextlib.contextmanager
def _stopped_clock(epoch: int) -> Iterator[None]:
    """Give pycdlib a clock of its own: it asks the time everywhere and takes none from outside."""
    clock = types.SimpleNamespace(
        **{
            **vars(time),
            "time": lambda: float(epoch),
            "localtime": lambda seconds=None: time.gmtime(epoch if seconds is None else seconds),
        }
    )
    patched = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("pycdlib.") and getattr(module, "time", None) is time
    ]
    for module in patched:
        setattr(module, "time", clock)  # noqa: B010 - pyright knows no such attribute
    try:
        yield
    finally:
        for module in patched:
            setattr(module, "time", time)  # noqa: B010
