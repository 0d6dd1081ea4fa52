"""Logs of a guest's serial console and of modules in it.

The console's text comes from KubeVirt's own sidecar in the launcher pod (guest-console-log), so it
is there for guests that were never looked at; modules' logs come from the edge agent.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import aiohttp

from kvedge import errors
from kvedge.connector import logs as agent_logs
from kvedge.node.provider import LogOptions
from kvedge.survey import guests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kvedge import iothub, kube

__all__ = ["LogOptions", "console_log", "module_log"]


async def console_log(
    client: kube.Client, namespace: str, vm: str, options: LogOptions
) -> AsyncIterator[bytes]:
    """Yield the serial console's text of the guest that runs, or ran last.

    Raises:
        NotFound: the VM has no launcher pod, or its pod keeps no such log.
    """
    pod = await _launcher(client, namespace, vm)
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
    params: dict[str, Any] = {
        "container": guests.CONSOLE,
        "follow": str(options.follow).lower(),
        "timestamps": str(options.timestamps).lower(),
    }
    if options.tail is not None:
        params["tailLines"] = options.tail
    if options.since_seconds is not None:
        params["sinceSeconds"] = options.since_seconds
    attempt = f"read the console's log of '{namespace}/{vm}'"
    try:
        async with client.session.get(
            client.config.server + path,
            params=params,
            headers=client.headers(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
        ) as answer:
            if answer.status >= 400:
                text = (await answer.text())[:400]
                raise _refused(attempt, answer.status, text, vm)
            async for chunk in answer.content.iter_any():
                yield chunk
    except aiohttp.ClientError as cause:
        raise errors.RemoteError(attempt, reason="Unreachable", details=str(cause)) from cause


def _refused(attempt: str, status: int, text: str, vm: str) -> errors.RemoteError:
    with contextlib.suppress(ValueError, AttributeError):
        text = str(json.loads(text).get("message") or text)
    kind = {401: errors.Unauthorized, 403: errors.Unauthorized, 404: errors.NotFound}.get(
        status, errors.RemoteError
    )
    hint = (
        f"KubeVirt keeps it unless disableSerialConsoleLog is set; live: kvedge console {vm}"
        if status in (400, 404)
        else "reading logs needs the right to get pods/log"
    )
    return kind(attempt, status=status, details=text, hint=hint)


async def _launcher(client: kube.Client, namespace: str, vm: str) -> str:
    listed = await client.get(
        f"/api/v1/namespaces/{namespace}/pods", labelSelector=guests.LAUNCHERS
    )
    mine = [
        pod for pod in listed["items"]
        if (pod["metadata"].get("annotations") or {}).get("kubevirt.io/domain") == vm
    ]  # fmt: skip
    if not mine:
        raise errors.NotFound(
            f"read the console's log of '{namespace}/{vm}'",
            status=404,
            details="the VM has no launcher pod: it does not run",
            hint=f"kvedge start {vm} -n {namespace}; kvedge events {vm} -n {namespace}",
        )
    newest = max(mine, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    return newest["metadata"]["name"]


async def module_log(
    hub: iothub.Hub, device: str, module: str, options: LogOptions
) -> AsyncIterator[bytes]:
    """Yield a module's log, read by the edge agent's method GetModuleLogs.

    Raises:
        NotFound: the device is not connected, or has no such module; names those it has.
    """
    twin = await hub.get_twin(device, "$edgeAgent")
    attempt = f"read the log of module '{device}/{module}'"
    reported = (twin.get("properties") or {}).get("reported") or {}
    known = {*(reported.get("modules") or {}), "edgeAgent", "edgeHub"}
    if module not in known:
        raise errors.NotFound(
            attempt, status=404, details=f"the device has {', '.join(sorted(known))}",
            hint="modules come from pods: kvedge status",
        )  # fmt: skip
    if twin.get("connectionState") != "Connected":
        raise errors.NotFound(
            attempt, status=404, details="the device is not connected to the hub",
            hint="look at the VM: kvedge status; kvedge logs VM",
        )  # fmt: skip
    async for chunk in agent_logs.stream(hub, [device], module, options):
        yield chunk
