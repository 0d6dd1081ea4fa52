"""Checks of this machine: what the local site and image builds need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, processes, tools
from kvedge.survey.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_machine"]

_DISK_GIB = 25
"""A cold build of all programs leaves 15 GiB for a while, images and disks take the rest."""
_MEMORY_GIB = 4
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "grub-mkimage": "grub-common",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "zstd": "zstd",
    "ip": "iproute2",
    "unshare": "util-linux",
}


def check_machine() -> list[Finding]:
    """Check what the local site and the image build need of this machine."""
    return [
        *_programs(),
        _namespaces(),
        _subordinate_ids(),
        _disk(),
        _memory(),
        _acceleration(),
        _built(),
    ]


def _programs() -> Iterable[Finding]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for name, package in _PROGRAMS.items() if not shutil.which(name, path=path)]
    if missing:
        yield Finding(
            check="Debian packages",
            state="fail",
            found=f"missing: {', '.join(missing)}",
            fix=f"as root: apt-get install -y --no-install-recommends {' '.join(missing)}",
        )
    else:
        yield Finding(check="Debian packages", state="ok", found=f"{len(_PROGRAMS)} programs")


def _namespaces() -> Finding:
    try:
        processes.run(
            ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"],
            what="make a user namespace",
        )
    except errors.KvedgeError:
        return Finding(
            check="user namespaces",
            state="fail",
            found="an unprivileged user may not make one",
            fix="as root: sysctl -w user.max_user_namespaces=15000; on Debian also "
            "kernel.unprivileged_userns_clone=1; on Ubuntu "
            "kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return Finding(check="user namespaces", state="ok", found="can be made")


def _subordinate_ids() -> Finding:
    user = os.environ.get("USER") or str(os.getuid())
    if os.getuid() == 0:
        return Finding(check="subordinate ids", state="ok", found="not needed as root")
    for file in ("/etc/subuid", "/etc/subgid"):
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in {user, str(os.getuid())} for line in lines):
            return Finding(
                check="subordinate ids",
                state="fail",
                found=f"{file} has no range for {user!r}",
                fix="as root: usermod --add-subuids 100000-165535 "
                f"--add-subgids 100000-165535 {user}",
            )
    return Finding(check="subordinate ids", state="ok", found=f"range for {user!r}")


def _disk() -> Finding:
    folder = tools.cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < _DISK_GIB:
        return Finding(
            check="free disk",
            state="warn",
            found=f"{free:.0f} GiB at {str(folder)!r}",
            fix=f"a first build needs {_DISK_GIB} GiB; choose another place with KVEDGE_CACHE",
        )
    return Finding(check="free disk", state="ok", found=f"{free:.0f} GiB")


def _memory() -> Finding:
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if total < _MEMORY_GIB:
        return Finding(
            check="memory",
            state="warn",
            found=f"{total:.1f} GiB in all",
            fix="the site takes 1.3 GiB and each VM its own memory",
        )
    return Finding(check="memory", state="ok", found=f"{total:.0f} GiB in all, {pages:.0f} free")


def _acceleration() -> Finding:
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding(
            check="virtualization",
            state="ok",
            found="/dev/kvm is there; used only if a probe boots with it",
        )
    return Finding(
        check="virtualization", state="ok", found="no /dev/kvm: VMs are emulated (slower, complete)"
    )


def _built() -> Finding:
    missing = [row.name for row in tools.status() if not row.path]
    if missing:
        return Finding(
            check="tools",
            state="warn",
            found=f"not built yet: {', '.join(missing)}",
            fix="kvedge tools build (18 minutes on two cores; make demo does it by itself)",
        )
    return Finding(check="tools", state="ok", found="all there")
