"""Enter a pod's mounts, then become its program.

Started as `unshare -m -- python -m kvedge.site.host.entering PLAN` in a mount namespace of its
own: /run becomes empty memory, the plan's folders are bound below it, and the program is executed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["enter"]

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
"""From mount(2)."""


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def enter(plan: dict[str, Any]) -> None:
    """Mount what the plan says and execute its argv; returns only by an error."""
    # The sources may lie below /run themselves, so they are opened before it is covered.
    opened = [
        (os.open(item["source"], os.O_PATH), Path(item["source"]).is_dir(), item)
        for item in plan["mounts"]
    ]
    _mount("tmpfs", "/run", "tmpfs", _NOSUID | _NODEV, "mode=0755")
    if not Path("/var/run").is_symlink():
        _mount("/run", "/var/run", "", _BIND)
    for handle, is_folder, item in opened:
        target = Path(item["target"])
        if is_folder:
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        _mount(f"/proc/self/fd/{handle}", str(target), "", _BIND)
        if item["read_only"]:
            # A user namespace may not take away what the mount below forbids.
            kept = os.statvfs(target).f_flag & _NOEXEC
            _mount("", str(target), "", _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV | kept)
        os.close(handle)
    os.chdir(plan["folder"])
    os.execvp(plan["argv"][0], plan["argv"])  # noqa: S606 - this is what the module is for


if __name__ == "__main__":
    enter(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
