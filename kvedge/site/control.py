"""The site from outside: bring it up, take it down, look at it. Blocking; for the command line.

`up` is one path for every state it may find (nothing, half started, killed in parts, running):
make what is missing, then wait until the supervisor says that all is ready.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvedge import errors, processes, tools
from kvedge.progress import silent
from kvedge.site import (
    attending,
    kubeconfigs,
    namespace,
    parts,
    pki,
    preparing,
    processtable,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvedge.progress import Progress

__all__ = ["PartStatus", "SiteStatus", "down", "log_files", "status", "up"]

_STOP_SECONDS = 90.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """One part or bootstrap step as seen now."""

    name: str
    state: str
    """`ready`, `starting`, `failing` or `gone`."""
    pid: int = 0
    restarts: int = 0
    rss_mib: int = 0
    ready_after: float = 0.0
    """Seconds from its start until it was ready."""
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """A site as seen now."""

    name: str
    directory: str
    state: str
    """`up`, `starting`, `degraded` or `down`."""
    parts: tuple[PartStatus, ...]
    kubeconfig: str
    hub: str
    registry: str
    door: int = 0
    """Id of a process inside, for nsenter."""


def up(directory: Path, name: str, *, progress: Progress = silent) -> state.Site:
    """Bring a site up, mend it, or find that it is up; returns when everything is ready.

    Raises:
        SiteError: it cannot be started; what this call started is stopped again.
        ToolMissing, BuildFailed: a program cannot be had.
    """
    folder = state.Folder(root=directory.absolute().resolve())
    with _filesystem_errors(folder.root):
        preparing.make_folders(folder)
        with _locked(folder):
            return _up(folder, name, progress)


def _up(folder: state.Folder, name: str, progress: Progress) -> state.Site:
    programs = tools.ensure(
        (*parts.PROGRAMS, "kubevirt-manifests", "kubectl", "virtctl"), progress=progress
    )
    env = preparing.environment(folder)
    pki.ensure(folder.pki)
    kubeconfigs.write_inside(folder)
    known = _known_site(folder, name)
    ports = preparing.choose_ports(folder, known, progress)
    preparing.write_registry_settings(folder)
    cluster_id = known.kubernetes.cluster_id if known else ""
    site = state.site_from_ports(folder.root, name, ports, state="starting", cluster_id=cluster_id)
    state.save(site)
    kubeconfigs.write_outside(folder, site.kubernetes.server, name)
    plan = parts.plan(
        folder,
        programs=programs,
        manifests=programs["kubevirt-manifests"],
        routes={key: (ports[key], target) for key, target in state.PORTS.items()},
        has_hub=preparing.is_there("kvedge.cli.hub"),
        has_host=preparing.is_there("kvedge.site.host.__main__"),
        stamp=preparing.stamp(folder),
        code=preparing.code_stamps(),
    )
    state.write_atomically(folder.plan_file, plan.to_json())
    folder.stopping_file.unlink(missing_ok=True)
    found = namespace.find(folder)
    fresh = found is None
    if fresh:
        # Whatever is recorded is of namespaces that are gone with all their processes.
        folder.status_file.unlink(missing_ok=True)
    try:
        entered = (
            namespace.create(folder, env)
            if found is None
            else namespace.refresh(folder, found, env)
        )
        attending.ensure_publisher(folder, env)
        attending.ensure_supervisor(folder, entered, plan, env)
        cluster_id = attending.wait(folder, progress)
    except errors.SiteError:
        if fresh:
            _stop_everything(folder, silent)
        raise
    site = state.site_from_ports(folder.root, name, ports, state="up", cluster_id=cluster_id)
    state.save(site)
    preparing.link_programs(folder)
    state.write_env(site, path_folders=[folder.root / "bin", Path(sys.executable).parent])
    return site


def down(directory: Path, *, purge: bool = False, progress: Progress = silent) -> bool:
    """Stop a site in order and see to it that no process is left.

    Args:
        purge: remove the folder with all state as well.

    Returns:
        False: there was nothing to stop.
    """
    folder = state.Folder(root=directory.absolute().resolve())
    if not folder.run.is_dir():
        if purge and folder.root.is_dir():
            _remove(folder)
            return True
        return False
    with _filesystem_errors(folder.root), _locked(folder):
        acted = _stop_everything(folder, progress)
        with contextlib.suppress(errors.SiteError):
            state.save(dataclasses.replace(state.load(folder.root), state="down"))
        if purge:
            _remove(folder)
    return acted or purge


def status(directory: Path) -> SiteStatus:
    """Look at a site without changing it.

    Raises:
        SiteError: there is none in that folder.
    """
    site = state.load(directory.absolute())
    folder = site.folder
    document = attending.read_status(folder)
    found = namespace.find(folder)
    rows: list[PartStatus] = []
    supervised = attending.supervisor(folder)
    if found is not None:
        rows = [_row(key, raw) for key, raw in document.get("parts", {}).items()]
        rows.append(_own_row("supervisor", supervised))
        rows.append(_own_row("publisher", attending.publisher(folder)))
    if found is None:
        seen = "down"
    elif all(row.state == "ready" for row in rows):
        seen = "up" if document.get("state") == "ready" else "starting"
    else:
        seen = "starting" if document.get("state") == "starting" and supervised else "degraded"
    return SiteStatus(
        name=site.name,
        directory=str(site.directory),
        state=seen,
        parts=tuple(rows),
        kubeconfig=site.kubernetes.kubeconfig,
        hub=site.hub.endpoint,
        registry=site.registry.endpoint,
        door=found.door if found else 0,
    )


def log_files(directory: Path, wanted: tuple[str, ...] = ()) -> dict[str, Path]:
    """Return the log of each part that has one.

    Raises:
        SiteError: a named part has no log.
    """
    folder = state.load(directory.absolute()).folder
    found = {path.stem: path for path in sorted(folder.logs.glob("*.log"))}
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise errors.SiteError(
            f"no log of {unknown[0]!r}", hint=f"there are: {', '.join(found) or 'none'}"
        )
    return {name: path for name, path in found.items() if not wanted or name in wanted}


@contextlib.contextmanager
def _filesystem_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        if cause.errno not in {
            *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
            *(errno.ENOTDIR, errno.EEXIST, errno.ENOENT),
        }:
            raise
        raise errors.SiteError(
            f"cannot keep the site in {str(root)!r}: {(cause.strerror or str(cause)).lower()}"
            + (f" ({cause.filename})" if cause.filename else ""),
            hint="choose a writable folder with free space: --dir",
        ) from cause


@contextlib.contextmanager
def _locked(folder: state.Folder) -> Iterator[None]:
    """Let one command at a time change the site; another one waits."""
    with (folder.run / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _known_site(folder: state.Folder, name: str) -> state.Site | None:
    if not folder.site_file.exists():
        return None
    site = state.load(folder.root)
    if site.name != name:
        raise errors.SiteError(
            f"folder {str(folder.root)!r} holds the site {site.name!r}, not {name!r}",
            hint="use its name, or another folder with --dir",
        )
    return site


def _stop_everything(folder: state.Folder, progress: Progress) -> bool:
    found = namespace.find(folder)
    acted = found is not None
    progress("stopping", 0, None)
    folder.stopping_file.touch()
    alive = attending.supervisor(folder)
    if alive:
        os.kill(alive[0], signal.SIGTERM)
        processtable.end(*alive, signal.SIGTERM, patience_seconds=_STOP_SECONDS)
    elif found is not None and folder.plan_file.exists():
        # The supervisor was killed: another one ends its parts in order.
        processes.run(
            [*found.enter(), *attending.supervisor_argv(folder), "--stop"],
            what="stop the site",
            env=preparing.environment(folder),
            log=folder.log("supervisor"),
            check=False,
            timeout=_STOP_SECONDS,
        )
    namespace.kill_members(folder)
    for pid, start in processtable.same_command(attending.publisher_argv(folder)):
        acted = True
        processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)
    for path in (folder.publisher_socket, folder.status_file, folder.stopping_file):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.temporary, ignore_errors=True)
    progress("stopping", 1, 1)
    return acted


def _remove(folder: state.Folder) -> None:
    if not (folder.run.is_dir() or folder.site_file.exists()):
        raise errors.SiteError(
            f"{str(folder.root)!r} does not look like a site, so it is not removed",
            hint="remove it by hand if you are sure",
        )
    shutil.rmtree(folder.root)


def _row(name: str, raw: dict[str, Any]) -> PartStatus:
    if raw["pid"] and not attending.record_alive(raw):
        seen = "gone"
    elif raw["ready"]:
        seen = "ready"
    else:
        seen = "failing" if raw["error"] else "starting"
    return PartStatus(
        name=name,
        state=seen,
        pid=raw["pid"],
        restarts=raw["restarts"],
        rss_mib=processtable.rss_mib(raw["pid"]) if raw["pid"] else 0,
        ready_after=raw["ready_after"],
        error=raw["error"],
    )


def _own_row(name: str, alive: tuple[int, int] | None) -> PartStatus:
    if alive is None:
        return PartStatus(name=name, state="gone")
    return PartStatus(
        name=name, state="ready", pid=alive[0], rss_mib=processtable.rss_mib(alive[0])
    )
