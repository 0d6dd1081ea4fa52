"""The supervisor and the publisher from outside: look for them, start them, wait for them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from kvedge import errors, processes
from kvedge.site import namespace, parts, processtable, publishing, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvedge.progress import Progress

__all__ = [
    "ensure_publisher",
    "ensure_supervisor",
    "publisher",
    "publisher_argv",
    "read_status",
    "record_alive",
    "supervisor",
    "supervisor_argv",
    "wait",
]

_POLL_SECONDS = 0.05
_UP_SECONDS = 300.0
_ANSWER_SECONDS = 15.0
_FAILURES = 4
"""Starts of one part without ever being ready, after which nobody waits for it any longer."""


def publisher_argv(folder: state.Folder) -> list[str]:
    """Return the publisher's command line."""
    return [sys.executable, "-m", "kvedge.site.publishing", "serve", str(folder.root)]


def publisher(folder: state.Folder) -> tuple[int, int] | None:
    """Return id and start time of the living publisher."""
    return next(iter(processtable.same_command(publisher_argv(folder))), None)


def ensure_publisher(folder: state.Folder, env: dict[str, str]) -> None:
    """Start the publisher unless it answers."""
    if publishing.is_alive(folder.publisher_socket):
        return
    for pid, start in processtable.same_command(publisher_argv(folder)):
        processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)
    child = processes.popen(
        publisher_argv(folder), env=env, clean_env=True, log=folder.log("publisher")
    )
    _until(
        lambda: child.poll() is not None or publishing.is_alive(folder.publisher_socket),
        "the site's publisher does not start",
        folder.log("publisher"),
    )


def read_status(folder: state.Folder) -> dict[str, Any]:
    """Return what the supervisor wrote last; empty if it never did."""
    try:
        return json.loads(folder.status_file.read_bytes())
    except (OSError, ValueError):
        return {}


def record_alive(record: dict[str, Any]) -> bool:
    """Tell whether the process of a record (pid, start) lives."""
    return bool(record.get("pid")) and processes.start_time(record["pid"]) == record["start"]


def supervisor(folder: state.Folder) -> tuple[int, int] | None:
    """Return id and start time of the living supervisor."""
    record = read_status(folder).get("supervisor", {})
    return (record["pid"], record["start"]) if record_alive(record) else None


def supervisor_argv(folder: state.Folder) -> list[str]:
    """Return the supervisor's command line."""
    return [sys.executable, "-m", "kvedge.site.supervising", str(folder.root)]


def ensure_supervisor(
    folder: state.Folder, inside: namespace.Namespace, plan: parts.Plan, env: dict[str, str]
) -> None:
    """Have a supervisor with this plan that checks everything anew."""
    alive = supervisor(folder)
    if alive and read_status(folder).get("plan") == plan.digest:
        token = secrets.token_hex(8)
        state.write_atomically(folder.asked_file, token)
        os.kill(alive[0], signal.SIGHUP)
        _until(
            lambda: read_status(folder).get("asked") == token or supervisor(folder) is None,
            "the site's supervisor does not answer",
            folder.log("supervisor"),
        )
        return
    # One with an older plan, or one that was started a moment before `up` was interrupted.
    for pid, start in processtable.same_command(supervisor_argv(folder)):
        processtable.end(pid, start, signal.SIGKILL, patience_seconds=5)
    processes.popen(
        [*inside.enter(), *supervisor_argv(folder)],
        env=env,
        clean_env=True,
        log=folder.log("supervisor"),
    )
    _until(
        lambda: read_status(folder).get("plan") == plan.digest and bool(supervisor(folder)),
        "the site's supervisor does not start",
        folder.log("supervisor"),
    )


def _until(fact: Callable[[], bool], complaint: str, log: Path) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not fact():
        if time.monotonic() > deadline:
            raise errors.SiteError(complaint, hint=f"see {log}")
        time.sleep(_POLL_SECONDS)


def wait(folder: state.Folder, progress: Progress) -> str:
    """Wait until the supervisor reports that all is ready; return the cluster's id."""
    deadline = time.monotonic() + _UP_SECONDS
    told: set[str] = set()
    while True:
        document = read_status(folder)
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
        if supervisor(folder) is None:
            raise errors.SiteError(
                "the site's supervisor ended", hint=f"see {folder.log('supervisor')}"
            )
        time.sleep(_POLL_SECONDS)


def _log_hint(folder: state.Folder, name: str) -> str:
    log = folder.log(name)
    return f"see {log if log.exists() else folder.log('kube-apiserver')}"
