"""From what devices report to what a pod's status says.

Status is computed anew from the `$edgeAgent` twins each time. A container counts as running on a
device when the device's last applied manifest is the current one and the agent reports the module
of this deployment with runtime status `running`
(https://learn.microsoft.com/azure/iot-edge/module-edgeagent-edgehub).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvedge.edge.revision import Revision
    from kvedge.wire import QueryRow

__all__ = [
    "DEPLOYMENT_CONDITION",
    "DeviceReport",
    "device_reports",
    "enough_run",
    "failing",
    "pod_status",
    "runs_everywhere",
]

DEPLOYMENT_CONDITION = "kvedge.io/Deployment"
"""Type of the pod condition that tells targeted, applied, running and failed devices."""
_WORST = ("failed", "dead", "backoff", "unhealthy", "stopped", "unknown")
"""Runtime statuses that are not running, the worst first."""
_COMING = 2
"""Ranks of badness up to here mean that the device has not got so far yet."""
_MESSAGE_LIMIT = 900


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """What one device's edge agent says."""

    device: str
    connected: bool
    applied: frozenset[str]
    """Ids of the deployments that the hub has merged into the device's manifest."""
    targeted: frozenset[str]
    current: bool
    """The agent has worked on the newest manifest."""
    code: int
    """`lastDesiredStatus.code`: 200 is fine, 0 means that nothing was reported yet."""
    description: str
    modules: Mapping[str, Mapping[str, Any]]
    """Reported modules by name."""
    desired: Mapping[str, tuple[str, Mapping[str, Any], str]]
    """Image, variables and, if told, the deployment that each module of the manifest is from."""


def device_reports(rows: Iterable[QueryRow]) -> dict[str, DeviceReport]:
    """Return the reports of `SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'`."""
    return {row["deviceId"]: _report(row) for row in rows}


def _report(row: QueryRow) -> DeviceReport:
    properties = row.get("properties") or {}
    desired, reported = properties.get("desired") or {}, properties.get("reported") or {}
    status = reported.get("lastDesiredStatus") or {}
    placed = row.get("configurations") or {}
    return DeviceReport(
        device=row["deviceId"],
        connected=row.get("connectionState") == "Connected",
        applied=frozenset(k for k, v in placed.items() if v.get("status") == "Applied"),
        targeted=frozenset(placed),
        current=reported.get("lastDesiredVersion") == desired.get("$version"),
        code=int(status.get("code") or 0),
        description=str(status.get("description") or ""),
        modules={
            name: {
                key: value
                for key, value in entry.items()
                if key not in ("imagePullPolicy", "startupOrder", "type")
            }
            for name, entry in (reported.get("modules") or {}).items()
            if isinstance(entry, dict)
        },
        desired={
            name: (
                (entry.get("settings") or {}).get("image", ""),
                entry.get("env") or {},
                (entry.get("configuration") or {}).get("id", ""),
            )
            for name, entry in (desired.get("modules") or {}).items()
            if isinstance(entry, dict)
        },
    )


def _bad(report: DeviceReport, revision: Revision, module: str) -> tuple[int, str, str]:
    """Return how bad a module's state is (0 running), with reason and message."""
    image = revision.images[module]
    if revision.ids.isdisjoint(report.applied):
        words = "the hub has not merged the deployment yet"
        if len(report.targeted) == 1 and revision.id in report.targeted:
            words += "; no full deployment is below it"
        return 1, "DeploymentPending", words
    wanted, env, origin = report.desired.get(module, ("", {}, ""))
    if wanted != image or origin not in ("", *revision.ids):
        return (
            8,
            "ModuleConflict",
            (
                f"another deployment of higher priority owns module {module!r} (image {wanted})"
                if wanted
                else f"the device's manifest has no module {module!r}"
            ),
        )
    if report.code not in (0, 200):
        reason = {412: "SchemaUnsupported", 400: "ManifestRejected", 417: "ManifestEmpty"}
        if not report.current or report.code != 200:
            entry = report.modules.get(module) or {}
            if entry.get("runtimeStatus") != "running" or not _same_image(entry, image):
                return (
                    7,
                    reason.get(report.code, "DeploymentFailed"),
                    (f"the edge agent answered {report.code} {report.description}".strip()),
                )
    entry = report.modules.get(module)
    # Other modules of the device may be changing: then this one counts as it is.
    same = report.current or (entry or {}).get("env", env) == env
    if entry is None or not same or not _same_image(entry, image):
        return 2, "ContainerCreating", "the device has not started the module yet"
    state = str(entry.get("runtimeStatus") or "unknown")
    if state == "running":
        return 0, "", ""
    rank = 3 + len(_WORST) - (_WORST.index(state) if state in _WORST else len(_WORST))
    words = str(entry.get("statusDescription") or state)
    if entry.get("exitCode"):
        words += f" (exit code {entry['exitCode']})"
    return min(rank, 6), _reason(state), words


def _same_image(entry: Mapping[str, Any], image: str) -> bool:
    return (entry.get("settings") or {}).get("image") == image


def _reason(state: str) -> str:
    return {"backoff": "CrashLoopBackOff", "failed": "Error", "dead": "Error"}.get(
        state, f"Module{state.capitalize()}"
    )


def _needed(min_ready: str, targeted: int) -> int:
    if min_ready == "all":
        return targeted
    if min_ready.endswith("%"):
        return -(-targeted * int(min_ready[:-1]) // 100)
    return min(int(min_ready), targeted)


@dataclasses.dataclass(slots=True, kw_only=True)
class _Tally:
    running: list[DeviceReport] = dataclasses.field(default_factory=list)
    worst: tuple[int, str, str, str] = (0, "", "", "")
    """Rank, reason, message, device."""
    failed: int = 0


def _tally(reports: Sequence[DeviceReport], revision: Revision, module: str) -> _Tally:
    tally = _Tally()
    for report in reports:
        rank, reason, words = _bad(report, revision, module)
        if rank == 0:
            tally.running.append(report)
            continue
        tally.failed += rank > _COMING
        if rank > tally.worst[0]:
            tally.worst = (rank, reason, words, report.device)
    return tally


def runs_everywhere(revision: Revision, reports: Sequence[DeviceReport]) -> bool:
    """Tell whether all modules of a deployment run on all devices that it targets, one at least."""
    return bool(reports) and all(
        report.current and _bad(report, revision, module)[0] == 0
        for report in reports
        for module in revision.images
    )


def enough_run(placed: Iterable[tuple[Revision, DeviceReport]], min_ready: str) -> bool:
    """Tell whether so many devices run the revision that counts on them as `min_ready` asks."""
    running = [runs_everywhere(revision, [report]) for revision, report in placed]
    return any(running) and sum(running) >= _needed(min_ready, len(running))


def failing(revision: Revision, reports: Sequence[DeviceReport]) -> list[str]:
    """Return the devices that report that a module of a deployment failed."""
    return [
        report.device
        for report in reports
        if any(_bad(report, revision, module)[0] > _COMING for module in revision.images)
    ]


def pod_status(
    revision: Revision,
    reports: Sequence[DeviceReport],
    previous: Mapping[str, Any],
    now: str,
    *,
    unknown: str = "",
    given_up: bool = False,
) -> dict[str, Any]:
    """Return the status of a pod whose deployment is in the hub.

    Args:
        revision: the pod's deployment.
        reports: of the devices that the deployment targets.
        previous: the status that the pod has; its transition times and start are kept.
        now: this moment as Kubernetes writes it.
        unknown: why the devices' state is not known at present; what was known last is kept.
        given_up: the deployment did not become ready, and its predecessor is back on the devices.
    """
    tallies = {name: _tally(reports, revision, name) for name in revision.images}
    targeted = len(reports)
    needed = _needed(revision.face.min_ready, targeted)
    ready = {name: targeted > 0 and len(t.running) >= needed for name, t in tallies.items()}
    whole = sum(all(r in t.running for t in tallies.values()) for r in reports)
    started = any(t.running for t in tallies.values()) or previous.get("phase") == "Running"
    applied = sum(not revision.ids.isdisjoint(report.applied) for report in reports)
    failed = max((t.failed for t in tallies.values()), default=0)
    away = sum(not report.connected for report in reports)
    counts = f"{targeted} targeted, {applied} applied, {whole} running, {failed} failed"
    counts += f", {away} disconnected" if away else ""
    worst = max((t.worst for t in tallies.values()), default=(0, "", "", ""))
    if not targeted:
        reason, words = "NoDevices", f"0 devices match {revision.face.condition}"
    elif given_up:
        reason = "RolledBack"
        words = (
            f"{counts}; the revision did not become ready in "
            f"{revision.face.rollback_seconds:g} s, so devices have the one before it"
        )
        ready = dict.fromkeys(ready, False)
    elif all(ready.values()):
        reason, words = "", ""
    else:
        reason = worst[1] or "ContainersNotReady"
        words = f"{counts}; {worst[3]}: {worst[2]}"[:_MESSAGE_LIMIT]
    all_ready = not reason
    status: dict[str, Any] = {
        "phase": "Running" if started and targeted else "Pending",
        "reason": None if all_ready else reason,
        "message": None if all_ready else words,
        "startTime": previous.get("startTime") or now,
        "conditions": _conditions(
            all_ready, reason, words, counts, targeted > 0, unknown, previous, now
        ),
    }
    for index, (container, name) in enumerate(revision.modules.items()):
        kind = "initContainerStatuses" if index < revision.sidecars else "containerStatuses"
        status.setdefault(kind, []).append(
            _container(
                container, revision.images[name], tallies[name], ready[name], targeted, words, name
            )
        )
    return status


def _conditions(
    ready: bool,
    reason: str,
    words: str,
    counts: str,
    placed: bool,
    unknown: str,
    previous: Mapping[str, Any],
    now: str,
) -> list[dict[str, Any]]:
    old = {entry["type"]: entry for entry in previous.get("conditions") or ()}

    def made(kind: str, value: bool | None, why: str = "", message: str = "") -> dict[str, Any]:
        text = "Unknown" if value is None else str(value)
        before = old.get(kind) or {}
        since = before.get("lastTransitionTime") if before.get("status") == text else None
        result: dict[str, Any] = {"type": kind, "status": text, "lastTransitionTime": since or now}
        # An explicit null makes the strategic merge patch take the old text away.
        result["reason"] = why or None
        result["message"] = message or None
        return result

    return [
        made("Initialized", True),
        made("ContainersReady", ready, reason, words),
        made("Ready", ready, reason, words),
        made(DEPLOYMENT_CONDITION, None, "HubUnreachable", f"{unknown}; last seen: {counts}")
        if unknown
        else made(DEPLOYMENT_CONDITION, placed, "" if placed else reason, counts),
    ]


def _container(
    name: str, image: str, tally: _Tally, ready: bool, targeted: int, words: str, module: str
) -> dict[str, Any]:
    entries = [(report, report.modules[module]) for report in tally.running]
    restarts = max((int(entry.get("restartCount") or 0) for _, entry in entries), default=0)
    result: dict[str, Any] = {
        "name": name,
        "image": image,
        "imageID": "",
        "ready": ready,
        "started": bool(entries),
        "restartCount": restarts,
    }
    if entries:
        result["imageID"] = str((entries[0][1].get("settings") or {}).get("imageHash") or "")
        started = min(str(entry.get("lastStartTimeUtc") or "") for _, entry in entries)
        # An agent that reports no start time leaves the field out.
        state = {"startedAt": _seconds(started)} if _seconds(started) else {}
        result["state"] = {"running": state}
    else:
        reason = tally.worst[1] if targeted else "NoDevices"
        message = f"{tally.worst[3]}: {tally.worst[2]}" if targeted else words
        result["state"] = {"waiting": {"reason": reason, "message": message[:_MESSAGE_LIMIT]}}
    return result


def _seconds(text: str) -> str:
    """Return a time with whole seconds: Kubernetes takes no seven-digit fractions."""
    if len(text) < 19 or text.startswith("0001"):
        return ""
    return text[:19] + "Z"
