"""The site from outside: bring it up, take it down, look at it. Blocking; for the command line.

`up` is one path for every state it may find (nothing, half started, killed in parts, running):
make what is missing, then wait until the supervisor says that all is ready.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kvedge
from kvedge import errors, names, processes, tools
from kvedge.progress import silent
from kvedge.site import kubeconfigs, namespace, parts, pki, processtable, publishing, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvedge.progress import Progress

__all__ = ["PartStatus", "SiteStatus", "down", "log_files", "status", "up"]

_POLL_SECONDS = 0.05
_UP_SECONDS = 300.0
_STOP_SECONDS = 90.0
_ANSWER_SECONDS = 15.0
_FREE_MIB = 300
_FAILURES = 4
"""Starts of one part without ever being ready, after which `up` gives up waiting for it."""
_INHERITED = (
    "HOME",
    "KVEDGE_CACHE",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_CACHE_HOME",
)
"""What parts see of the caller's environment; a proxy in it would swallow the site's traffic."""


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
        _make_folders(folder)
        with _locked(folder):
            return _up(folder, name, progress)


def _up(folder: state.Folder, name: str, progress: Progress) -> state.Site:
    programs = tools.ensure(
        (*parts.PROGRAMS, "kubevirt-manifests", "kubectl", "virtctl"), progress=progress
    )
    env = _environment(folder)
    pki.ensure(folder.pki)
    kubeconfigs.write_inside(folder)
    known = _known_site(folder, name)
    ports = _choose_ports(folder, known, progress)
    _write_registry_settings(folder)
    cluster_id = known.kubernetes.cluster_id if known else ""
    site = state.site_from_ports(folder.root, name, ports, state="starting", cluster_id=cluster_id)
    state.save(site)
    kubeconfigs.write_outside(folder, site.kubernetes.server, name)
    plan = parts.plan(
        folder,
        programs=programs,
        manifests=programs["kubevirt-manifests"],
        routes={key: (ports[key], target) for key, target in state.PORTS.items()},
        has_hub=importlib.util.find_spec("kvedge.cli.hub") is not None,
        has_host=_is_there("kvedge.site.host.__main__"),
        stamp=_stamp(folder),
        code=_code_stamps(),
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
        _ensure_publisher(folder, env)
        _ensure_supervisor(folder, entered, plan, env)
        cluster_id = _wait(folder, progress)
    except errors.SiteError:
        if fresh:
            _stop_everything(folder, silent)
        raise
    site = state.site_from_ports(folder.root, name, ports, state="up", cluster_id=cluster_id)
    state.save(site)
    _link_programs(folder)
    state.write_env(site, path_folders=[folder.root / "bin", Path(sys.executable).parent])
    return site


def _link_programs(folder: state.Folder) -> None:
    """Put what people call by name into the site's bin folder: what there is, nothing is built."""
    there = {row.name for row in tools.status() if row.path is not None}
    wanted = ("kubectl", "virtctl", *tools.PULUMI)
    tools.link([name for name in wanted if name in there], folder.root / "bin")


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
    document = _read_status(folder)
    found = namespace.find(folder)
    rows: list[PartStatus] = []
    supervised = _supervisor(folder)
    if found is not None:
        rows = [_row(key, raw) for key, raw in document.get("parts", {}).items()]
        rows.append(_own_row("supervisor", supervised))
        rows.append(_own_row("publisher", _publisher(folder)))
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


def _make_folders(folder: state.Folder) -> None:
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.root.chmod(0o700)
    for path in (folder.identities, folder.logs, folder.run, folder.root / "pulumi"):
        path.mkdir(mode=0o700, exist_ok=True)
    free = shutil.disk_usage(folder.root).free // (1024 * 1024)
    if free < _FREE_MIB:
        raise errors.SiteError(
            f"only {free} MiB free for {str(folder.root)!r}, a site needs {_FREE_MIB} MiB",
            hint="free some space or choose another folder with --dir",
        )
    passphrase = folder.root / "passphrase"
    if not passphrase.exists():
        state.write_atomically(passphrase, secrets.token_urlsafe(24))


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


def _environment(folder: state.Folder) -> dict[str, str]:
    env = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    package = str(Path(kvedge.__file__).parent.parent)
    python_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([package, *filter(None, python_path)]))
    env["PATH"] = f"{env.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    env[namespace.SITE_VARIABLE] = str(folder.root)
    return env


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _stamp(folder: state.Folder) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.pki.glob("*.crt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_CODE = {
    "hub": ("emulator/**/*.py", "names.py"),
    "host": (
        *("site/host/*.py", "kube/*.py", "connector/*.py", "node/**/*.py", "edge/*.py"),
        *("iothub/*.py", "cli/connector.py"),
    ),
    "ports": ("site/publishing.py",),
    "supervisor": ("site/supervising.py", "site/bootstrap.py", "site/checking.py"),
}
"""Part -> what its code is in; whoever pulls a new version and says `up` gets it running."""


def _code_stamps() -> dict[str, str]:
    package = Path(kvedge.__file__).parent
    stamps = {}
    for part, patterns in _CODE.items():
        digest = hashlib.sha256()
        for pattern in patterns:
            for path in sorted(package.glob(pattern)):
                digest.update(path.read_bytes())
        stamps[part] = digest.hexdigest()[:16]
    return stamps


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


def _choose_ports(
    folder: state.Folder, known: state.Site | None, progress: Progress
) -> dict[str, int]:
    """Return the published ports: those of the last time unless somebody else took one."""
    wanted = dict(known.ports) if known else {}
    held = _record_alive(_read_status(folder).get("parts", {}).get("ports", {}))
    chosen: dict[str, int] = {}
    for key in state.PORTS:
        port = wanted.get(key, 0)
        if port and (held or _is_free(port)):
            chosen[key] = port
            continue
        chosen[key] = _free_port({*chosen.values(), *wanted.values()})
        if port:
            note = f"port {port} is taken by another program; {key} moves to {chosen[key]}"
            progress("ports", 1, 1, note)
    return chosen


def _free_port(taken: set[int]) -> int:
    # Below the range that outgoing connections take theirs from, so that it is free again tomorrow.
    first = int(
        Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0]
    )
    pool = range(20000, first) if first > 21000 else range(20000, 32000)
    for port in random.sample(pool, 200):
        if port not in taken and _is_free(port):
            return port
    raise errors.SiteError("no free port on 127.0.0.1", hint="see 'ss -ltn' for what listens")


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _write_registry_settings(folder: state.Folder) -> None:
    secret = folder.root / "registry.secret"
    if not secret.exists():
        state.write_atomically(secret, secrets.token_hex(16))
    settings = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder.root / "registry")},
            "delete": {"enabled": True},
        },
        "http": {
            "addr": f"{names.REGISTRY_ADDRESS}:443",
            "secret": secret.read_text(encoding="ascii"),
            "tls": {
                "certificate": str(folder.pki / "registry.crt"),
                "key": str(folder.pki / "registry.key"),
            },
        },
    }
    # YAML is a superset of JSON.
    state.write_atomically(folder.run / "registry.yml", json.dumps(settings))


def _publisher_argv(folder: state.Folder) -> list[str]:
    return [sys.executable, "-m", "kvedge.site.publishing", "serve", str(folder.root)]


def _publisher(folder: state.Folder) -> tuple[int, int] | None:
    return next(iter(processtable.same_command(_publisher_argv(folder))), None)


def _ensure_publisher(folder: state.Folder, env: dict[str, str]) -> None:
    if publishing.is_alive(folder.publisher_socket):
        return
    for pid, start in processtable.same_command(_publisher_argv(folder)):
        processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)
    child = processes.popen(
        _publisher_argv(folder), env=env, clean_env=True, log=folder.log("publisher")
    )
    _until(
        lambda: child.poll() is not None or publishing.is_alive(folder.publisher_socket),
        "the site's publisher does not start",
        folder.log("publisher"),
    )


def _read_status(folder: state.Folder) -> dict[str, Any]:
    try:
        return json.loads(folder.status_file.read_bytes())
    except (OSError, ValueError):
        return {}


def _record_alive(record: dict[str, Any]) -> bool:
    return bool(record.get("pid")) and processes.start_time(record["pid"]) == record["start"]


def _supervisor(folder: state.Folder) -> tuple[int, int] | None:
    record = _read_status(folder).get("supervisor", {})
    return (record["pid"], record["start"]) if _record_alive(record) else None


def _supervisor_argv(folder: state.Folder) -> list[str]:
    return [sys.executable, "-m", "kvedge.site.supervising", str(folder.root)]


def _ensure_supervisor(
    folder: state.Folder, inside: namespace.Namespace, plan: parts.Plan, env: dict[str, str]
) -> None:
    alive = _supervisor(folder)
    if alive and _read_status(folder).get("plan") == plan.digest:
        token = secrets.token_hex(8)
        state.write_atomically(folder.asked_file, token)
        os.kill(alive[0], signal.SIGHUP)
        _until(
            lambda: _read_status(folder).get("asked") == token or _supervisor(folder) is None,
            "the site's supervisor does not answer",
            folder.log("supervisor"),
        )
        return
    # One with an older plan, or one that was started a moment before `up` was interrupted.
    for pid, start in processtable.same_command(_supervisor_argv(folder)):
        processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)
    processes.popen(
        [*inside.enter(), *_supervisor_argv(folder)],
        env=env,
        clean_env=True,
        log=folder.log("supervisor"),
    )
    _until(
        lambda: _read_status(folder).get("plan") == plan.digest and bool(_supervisor(folder)),
        "the site's supervisor does not start",
        folder.log("supervisor"),
    )


def _until(fact: Callable[[], bool], complaint: str, log: Path) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not fact():
        if time.monotonic() > deadline:
            raise errors.SiteError(complaint, hint=f"see {log}")
        time.sleep(_POLL_SECONDS)


def _wait(folder: state.Folder, progress: Progress) -> str:
    """Wait until the supervisor reports that all is ready; return the cluster's id."""
    deadline = time.monotonic() + _UP_SECONDS
    told: set[str] = set()
    while True:
        document = _read_status(folder)
        items = {**document.get("parts", {}), **document.get("steps", {})}
        for name, raw in items.items():
            if raw["ready"] and name not in told:
                told.add(name)
                progress(name, 1, 1, f"{raw['ready_after']:.1f} s")
        if document.get("state") == "ready":
            return document["cluster_id"]
        late = time.monotonic() > deadline
        for name, raw in items.items():
            hopeless = raw["restarts"] >= _FAILURES and not raw["ready_after"]
            if not raw["ready"] and raw["error"] and (hopeless or late):
                raise errors.SiteError(
                    f"{name!r} does not start: {raw['error']}", hint=_log_hint(folder, name)
                )
        if late:
            waiting = [name for name, raw in items.items() if not raw["ready"]]
            raise errors.SiteError(
                f"not ready after {_UP_SECONDS:.0f} s: {', '.join(waiting)}",
                hint=_log_hint(folder, waiting[0] if waiting else "supervisor"),
            )
        if _supervisor(folder) is None:
            raise errors.SiteError(
                "the site's supervisor ended", hint=f"see {folder.log('supervisor')}"
            )
        time.sleep(_POLL_SECONDS)


def _log_hint(folder: state.Folder, name: str) -> str:
    log = folder.log(name)
    return f"see {log if log.exists() else folder.log('kube-apiserver')}"


def _stop_everything(folder: state.Folder, progress: Progress) -> bool:
    found = namespace.find(folder)
    acted = found is not None
    progress("stopping", 0, None)
    folder.stopping_file.touch()
    alive = _supervisor(folder)
    if alive:
        os.kill(alive[0], signal.SIGTERM)
        processtable.end(*alive, signal.SIGTERM, patience_seconds=_STOP_SECONDS)
    elif found is not None and folder.plan_file.exists():
        # The supervisor was killed: another one ends its parts in order.
        processes.run(
            [*found.enter(), *_supervisor_argv(folder), "--stop"],
            what="stop the site",
            env=_environment(folder),
            log=folder.log("supervisor"),
            check=False,
            timeout=_STOP_SECONDS,
        )
    namespace.kill_members(folder)
    for pid, start in processtable.same_command(_publisher_argv(folder)):
        acted = True
        processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)
    for path in (folder.publisher_socket, folder.status_file, folder.stopping_file):
        path.unlink(missing_ok=True)
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
    if raw["pid"] and not _record_alive(raw):
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
