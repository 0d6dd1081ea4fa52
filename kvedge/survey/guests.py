"""What guests tell on their serial consoles: whether they took their secret disk.

KubeVirt lets nobody but its own probes run a program in a guest, so the unit that applies the
secret disk also prints its result, and this reads it from KubeVirt's log of the console. See
docs/decisions/0014-results-by-the-console.md.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kvedge import kube

__all__ = ["CONSOLE", "LAUNCHERS", "apply_error", "read_apply_errors"]

CONSOLE = "guest-console-log"
"""Container of a launcher pod that prints the serial console."""
LAUNCHERS = "kubevirt.io=virt-launcher"
_RESULT = re.compile(r"kvedge-apply: (\{.*\})")


def apply_error(console: str) -> str:
    """Return the error that the last application of a secret disk ended with; empty if none did."""
    for text in reversed(_RESULT.findall(console)):
        try:
            result = json.loads(text)
        except ValueError:
            # Something else wrote into the line.
            continue
        return "" if result.get("ok") else str(result.get("error") or "failed")
    return ""


async def read_apply_errors(
    client: kube.Client, vms: Collection[tuple[str, str]]
) -> tuple[Mapping[tuple[str, str], str], list[str]]:
    """Return the errors of VMs, given as namespace and name, and notes of what was not read."""
    if not vms:
        return {}, []
    try:
        listed = await client.get("/api/v1/pods", labelSelector=LAUNCHERS)
    except errors.RemoteError as error:
        return {}, [f"no console was read: {error.message}"]
    newest: dict[tuple[str, str], tuple[str, str]] = {}
    for pod in listed["items"]:
        about = pod["metadata"]
        key = (about["namespace"], (about.get("annotations") or {}).get("kubevirt.io/domain", ""))
        found = (about.get("creationTimestamp", ""), about["name"])
        if key in vms:
            newest[key] = max(newest.get(key, found), found)
    async with asyncio.TaskGroup() as group:
        tasks = {
            key: group.create_task(_console(client, key[0], pod), name=f"console {pod}")
            for key, (_, pod) in newest.items()
        }
    told: dict[tuple[str, str], str] = {}
    notes: set[str] = set()
    for key, task in tasks.items():
        text = task.result()
        if isinstance(text, errors.RemoteError):
            notes.add(text.message)
        elif error := apply_error(text):
            told[key] = error
    return told, sorted(notes)


async def _console(client: kube.Client, namespace: str, pod: str) -> str | errors.RemoteError:
    """Return the end of a console's log; a log that is not kept or not there yet is empty."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
    params = {"container": CONSOLE, "tailLines": 400}
    try:
        raw = await client.request("GET", path, params=params, raw=True, accept="*/*", timeout=10)
    except errors.RemoteError as error:
        return "" if error.status in {400, 404} else error
    return raw.decode(errors="replace")
