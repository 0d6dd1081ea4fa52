"""The site's own user, network and mount namespace: made without root, found again, emptied.

Its loopback interface carries all of 10.77.0.0/16, so every address and every port below 1024 is
free in it and two sites never meet. A tiny process holds it (`sleep`); any other process of the
site serves as a door as well, which is how a later `up` gets in after the holder was killed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import ipaddress
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvedge import errors, names, processes
from kvedge.site import processtable, state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["SITE_VARIABLE", "Namespace", "create", "find", "kill_members", "members", "refresh"]

SITE_VARIABLE = "KVEDGE_SITE_FOLDER"
"""Set in the environment of every process of a site; tells whose a process is."""

_PATIENCE_SECONDS = 10.0
_SETTINGS = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A living set of namespaces."""

    door: int
    """Id of a process that is in all of them."""
    network: int
    """Inode of the network namespace."""

    def enter(self) -> list[str]:
        """Return the words to put before a command that shall run inside."""
        return [
            "nsenter",
            f"--target={self.door}",
            "--user",
            "--net",
            "--mount",
            "--preserve-credentials",
            "--",
        ]


def create(folder: state.Folder, env: Mapping[str, str]) -> Namespace:
    """Make fresh namespaces and a process that holds them.

    Raises:
        SiteError: this machine forbids user namespaces; the hint names the setting.
    """
    folder.namespace_file.unlink(missing_ok=True)
    log = folder.log("holder")
    child = processes.popen(
        ["unshare", "-Urnm", "--", sys.executable, "-m", __name__, str(folder.root)],
        env=env,
        clean_env=True,
        log=log,
    )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise _refused(log)
        found = find(folder)
        if found is not None:
            return found
        time.sleep(0.01)
    child.kill()
    raise errors.SiteError(
        f"the site's namespaces were not ready after {_PATIENCE_SECONDS:.0f} s",
        hint=f"see {log}",
    )


def find(folder: state.Folder) -> Namespace | None:
    """Return the site's namespaces if any of its processes still lives in them."""
    record = _record(folder)
    if record is None:
        return None
    doors: list[tuple[int, int]] = []
    ours = False
    for pid in _pids_in(record["network"]):
        if processtable.inode(pid, "mnt") != record["mount"]:
            continue
        # Inode numbers of namespaces are used again, so one process must prove whose it is.
        ours = ours or _belongs_to(pid, folder)
        doors.append((0 if pid == record["holder"] else 1, pid))
    if not (doors and ours):
        return None
    return Namespace(door=min(doors)[1], network=record["network"])


def refresh(folder: state.Folder, found: Namespace, env: Mapping[str, str]) -> Namespace:
    """Start a new holder if the old one was killed."""
    record = _record(folder)
    if record is None or record["holder"] == found.door:
        return found
    holder = processes.popen([*found.enter(), "sleep", "infinity"], env=env, clean_env=True)
    _write_record(folder, holder=holder.pid, network=found.network, mount=record["mount"])
    return found


def members(folder: state.Folder) -> list[int]:
    """Return the ids of all processes in the site's network namespace, whoever started them."""
    record = _record(folder)
    if record is None:
        return []
    pids = list(_pids_in(record["network"]))
    return pids if any(_belongs_to(pid, folder) for pid in pids) else []


def kill_members(folder: state.Folder, *, patience_seconds: float = 10.0) -> int:
    """Kill every process in the site's network namespace and wait until the last is gone.

    Returns:
        How many had to be killed, the holder not counted.
    """
    record = _record(folder)
    killed: set[int] = set()
    deadline = time.monotonic() + patience_seconds
    while record is not None and (left := _pids_in_checked(folder, record, killed)):
        for pid in left:
            killed.add(pid)
            _kill(pid)
        if time.monotonic() > deadline:
            raise errors.SiteError(
                f"processes {left} of the site do not end", hint="see 'ps' for their state"
            )
        time.sleep(0.02)
    folder.namespace_file.unlink(missing_ok=True)
    return len(killed - {record["holder"]}) if record else 0


def _pids_in_checked(folder: state.Folder, record: dict[str, int], killed: set[int]) -> list[int]:
    pids = [pid for pid in _pids_in(record["network"]) if processes.start_time(pid) is not None]
    known = bool(killed) or any(_belongs_to(pid, folder) for pid in pids)
    return pids if known else []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _belongs_to(pid: int, folder: state.Folder) -> bool:
    return processtable.variable(pid, SITE_VARIABLE) == str(folder.root)


def _pids_in(network: int) -> Iterator[int]:
    return (pid for pid in processtable.pids() if processtable.inode(pid, "net") == network)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _record(folder: state.Folder) -> dict[str, int] | None:
    try:
        record = json.loads(folder.namespace_file.read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.get("boot") == _boot() else None


def _write_record(folder: state.Folder, *, holder: int, network: int, mount: int) -> None:
    record = {"boot": _boot(), "holder": holder, "network": network, "mount": mount}
    state.write_atomically(folder.namespace_file, json.dumps(record) + "\n")


def _refused(log: Path) -> errors.SiteError:
    try:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    except OSError:
        tail = []
    reason = tail[0] if tail else "no reason given"
    message = f"cannot make the site's user namespace: {reason}"
    for path, forbidding, fix in _SETTINGS:
        try:
            value = Path("/proc/sys", path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value == forbidding:
            setting = path.replace("/", ".")
            return errors.SiteError(f"{message} ({setting} is {value})", hint=f"as root: {fix}")
    return errors.SiteError(
        message,
        hint="in a container, allow unshare (seccomp and AppArmor 'unconfined'); then try again",
    )


def _hold(root: Path) -> None:
    """Furnish the namespaces that this process was born into, then sleep for ever."""
    folder = state.Folder(root=root)
    _set_up_loopback()
    _mount_files(folder)
    mount, network = processtable.inode("self", "mnt"), processtable.inode("self", "net")
    assert mount is not None
    assert network is not None
    _write_record(folder, holder=os.getpid(), network=network, mount=mount)
    os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606 - becomes the holder itself


def _set_up_loopback() -> None:
    """Bring lo up and put the whole site network on it.

    On a loopback interface an address with a prefix makes every address of the prefix local
    (netdevice(7) describes the calls), so no program of iproute2 is needed.
    """
    site = ipaddress.ip_network(names.SITE_NETWORK)
    set_address, set_mask, set_flags = 0x8916, 0x891C, 0x8914
    up_and_running = 0x1 | 0x40

    def address(value: str) -> bytes:
        return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, set_flags, struct.pack("=16sh14x", b"lo", up_and_running))
        fcntl.ioctl(
            control, set_address, struct.pack("=16s16s", b"lo:1", address(names.API_ADDRESS))
        )
        fcntl.ioctl(control, set_mask, struct.pack("=16s16s", b"lo:1", address(str(site.netmask))))


def _mount_files(folder: state.Folder) -> None:
    hosts = [
        "127.0.0.1 localhost",
        "::1 localhost",
        f"{names.HUB_ADDRESS} {names.HUB_HOST}",
        f"{names.REGISTRY_ADDRESS} {names.REGISTRY_HOST}",
        f"{names.NODE_ADDRESS} {names.NODE_NAME}",
        f"127.0.1.1 {socket.gethostname()}",
    ]
    # There is no name server in the site: an answer at once is better than a time-out.
    resolver = ["nameserver 127.0.0.1", "options timeout:1 attempts:1"]
    for target, lines in (("/etc/hosts", hosts), ("/etc/resolv.conf", resolver)):
        source = folder.run / Path(target).name
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        source.chmod(0o644)
        if Path(target).exists():
            processes.run(
                ["mount", "--bind", source, Path(target).resolve()], what=f"bind {target}"
            )
    # virt-api takes its namespace from the pod's secrets; a CI pod's own must not be seen.
    if Path("/var/run/secrets").is_dir():
        processes.run(
            ["mount", "-t", "tmpfs", "none", "/var/run/secrets"], what="hide /var/run/secrets"
        )


if __name__ == "__main__":
    _hold(Path(sys.argv[1]))
