"""The fleet page: server-rendered HTML without scripts, read-only, safe to leave open.

Rendering is pure (`render`); the server reads the fleet at most once in a few seconds, however
many browsers look.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import html
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from kvedge import errors
from kvedge.survey.fleet import read_fleet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from kvedge import iothub, kube
    from kvedge.survey.fleet import Fleet
    from kvedge.wire import Configuration

__all__ = ["Rollout", "View", "read_view", "render", "serve"]

_REFRESH_SECONDS = 5
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STYLE = """\
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #1b1f24; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .25rem 1rem .25rem 0;
border-bottom: 1px solid #d5d9de; vertical-align: top } .good { color: #116329 }
.bad { color: #a40e26; font-weight: 600 } .note { color: #7d4e00 } footer { margin-top: 2rem }
@media (prefers-color-scheme: dark) { body { color: #e6e9ee; background: #14171c }
th, td { border-color: #3a4049 } .good { color: #57c478 } .bad { color: #ff7b87 } }
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How far a deployment of the hub has come."""

    name: str
    workload: str
    """`NAMESPACE/NAME` of the pods behind it; empty if it has none."""
    condition: str
    """Its target condition."""
    priority: int
    targeted: int
    applied: int
    succeeded: int
    failed: int

    @property
    def word(self) -> str:
        """Where it stands: `waits`, `rolls out`, `failing` or `done`."""
        if self.failed:
            return "failing"
        if not self.targeted:
            return "waits"
        return "done" if self.succeeded >= self.targeted else "rolls out"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the page shows."""

    fleet: Fleet
    rollouts: tuple[Rollout, ...]
    cluster: str
    hub: str
    """Empty if none was named."""
    time: str


async def read_view(client: kube.Client, hub: iothub.Hub | None) -> View:
    """Read cluster and hub.

    Raises:
        RemoteError: the cluster does not answer. A hub that does not is a note of the fleet.
    """
    fleet = await read_fleet(client, hub)
    found: list[Configuration] = []
    if hub is not None:
        with contextlib.suppress(errors.RemoteError):
            found = await hub.configurations()
    return View(
        fleet=fleet,
        rollouts=tuple(sorted(map(_rollout, found), key=lambda one: (-one.priority, one.name))),
        cluster=client.config.server,
        hub=hub.host if hub else "",
        time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    )


def _rollout(found: Configuration) -> Rollout:
    from kvedge import edge

    labels = found.get("labels") or {}
    results: Any = (found.get("systemMetrics") or {}).get("results") or {}
    workload = labels.get(edge.LABEL_WORKLOAD, "")
    return Rollout(
        name=found["id"],
        workload=f"{labels.get(edge.LABEL_NAMESPACE, '')}/{workload}" if workload else "",
        condition=found.get("targetCondition", ""),
        priority=int(found.get("priority", 0)),
        targeted=int(results.get("targetedCount", 0)),
        applied=int(results.get("appliedCount", 0)),
        succeeded=int(results.get("reportedSuccessfulCount", 0)),
        failed=int(results.get("reportedFailedCount", 0)),
    )


def render(view: View) -> str:
    """Return the page."""
    fleet = view.fleet
    vms = _table(
        "vms",
        ("VM", "Environment", "Status", "Ready", "Guest agent", "Address"),
        (
            (
                f"{vm.namespace}/{vm.name}",
                vm.environment,
                _mark(vm.status, good=vm.status == "Running"),
                _yes(vm.ready),
                _yes(vm.agent),
                vm.address,
            )
            for vm in fleet.vms
        ),
    )
    devices = _table(
        "devices",
        ("Device", "Connection", "Deployments", "Modules"),
        (
            (
                vm.device,
                _mark(vm.connection, good=vm.connection == "Connected"),
                _pairs(vm.deployments, good="Applied"),
                _pairs(vm.modules, good="running"),
            )
            for vm in fleet.vms
        ),
    )
    rollouts = _table(
        "rollouts",
        ("Deployment", "State", "Workload", "Priority", "Devices", "Applied", "Good", "Failed"),
        (
            (
                one.name,
                _mark(one.word, good=one.word == "done"),
                one.workload,
                one.priority,
                f"{one.targeted} of {one.condition or 'all'}",
                one.applied,
                one.succeeded,
                _mark(str(one.failed), good=not one.failed),
            )
            for one in view.rollouts
        ),
    )
    pods = _table(
        "pods",
        ("Pod", "Ready", "Status", "Workload"),
        (
            (
                f"{pod.namespace}/{pod.name}",
                pod.ready,
                _mark(pod.status, good=pod.status in ("Running", "Succeeded")),
                pod.workload,
            )
            for pod in fleet.pods
        ),
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in fleet.notes)
    connected = sum(vm.connection == "Connected" for vm in fleet.vms)
    running = sum(vm.status == "Running" for vm in fleet.vms)
    summary = (
        f"{running} of {len(fleet.vms)} VMs run, {connected} of {len(fleet.vms)} devices are "
        f"connected, {sum(one.word == 'failing' for one in view.rollouts)} deployments fail"
    )
    return _document(
        f'<h1>kvedge fleet</h1><p id="summary">{summary}</p>{notes}'
        f"<h2>VMs</h2>{vms}<h2>Devices</h2>{devices}<h2>Deployments and roll-outs</h2>{rollouts}"
        f"<h2>Pods on virtual nodes</h2>{pods}"
        f"<footer>{html.escape(view.time)} · cluster {html.escape(view.cluster)} · hub "
        f"{html.escape(view.hub or 'none')}</footer>"
    )


def _document(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">'
        '<meta name="viewport" content="width=device-width"><title>kvedge fleet</title>'
        f'<link rel="stylesheet" href="/style.css"></head><body>{body}</body></html>\n'
    )


class _Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def _mark(text: str, *, good: bool) -> _Markup:
    return _Markup(f'<span class="{"good" if good else "bad"}">{html.escape(text)}</span>')


def _yes(fact: bool) -> _Markup:
    return _mark("yes" if fact else "no", good=fact)


def _pairs(found: Any, *, good: str) -> _Markup:
    return _Markup(
        "<br>".join(
            f"{html.escape(name)}: {_mark(value, good=value == good)}"
            for name, value in sorted(found.items())
        )
    )


def _table(name: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    if not body:
        return f'<p id="{name}">none</p>'
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(cell: object) -> str:
    return cell if isinstance(cell, _Markup) else html.escape(str(cell))


@contextlib.asynccontextmanager
async def serve(
    read: Callable[[], Awaitable[View]], *, address: str = "127.0.0.1", port: int = 0
) -> AsyncGenerator[str, None]:
    """Serve the page on an address and yield its URL.

    Raises:
        KvedgeError: the address is taken.
    """
    kept: tuple[float, str] = (float("-inf"), "")
    reading = asyncio.Lock()
    loopback = address in _LOCAL_HOSTS

    async def page(request: web.Request) -> web.Response:
        nonlocal kept
        # On loopback only local names are ours: a foreign page must not rebind its own to us.
        if loopback and (request.url.host or "") not in _LOCAL_HOSTS:
            return web.Response(status=421, text="this page is for this machine only")
        async with reading:
            now = asyncio.get_running_loop().time()
            if now - kept[0] >= _REFRESH_SECONDS / 2:
                try:
                    kept = (now, render(await read()))
                except errors.KvedgeError as error:
                    text = f'<h1>kvedge fleet</h1><p class="bad">{html.escape(error.message)}</p>'
                    return web.Response(
                        status=503, text=_document(text), content_type="text/html", headers=_HEADERS
                    )
        return web.Response(text=kept[1], content_type="text/html", headers=_HEADERS)

    async def style(request: web.Request) -> web.Response:
        del request
        return web.Response(text=_STYLE, content_type="text/css", headers=_HEADERS)

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/style.css", style)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address, port).start()
        except OSError as cause:
            raise errors.KvedgeError(
                f"cannot listen on {address}:{port}: {cause.strerror}",
                hint="choose another one with --port or --address",
            ) from cause
        host = f"[{address}]" if ":" in address else address
        yield f"http://{host}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()
