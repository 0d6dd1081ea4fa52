"""Starting, stopping and restarting VMs through KubeVirt's subresources.

With the run strategy that kvedge gives its VMs, these acts leave the VM's spec alone, so the next
`kvedge up` finds no difference.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from kvedge import errors

if TYPE_CHECKING:
    from kvedge import kube
    from kvedge.access.targets import Target

__all__ = ["Act", "request", "wait_for"]

Act = Literal["start", "stop", "restart"]
_PAUSE_SECONDS = 0.5


async def request(
    client: kube.Client, target: Target, act: Act, *, grace_seconds: int | None = None
) -> str:
    """Ask for an act and return the uid of the guest that runs now (empty if none does).

    Args:
        grace_seconds: how long the guest may take to go down by itself (stop only); 0 cuts the
            power, which KubeVirt allows for a restart as well.

    Raises:
        Conflict: the VM is in that state already, or does not allow it; the text is KubeVirt's.
        NotFound: there is no such VM.
    """
    before = await _running_uid(client, target)
    body: dict[str, Any] = {}
    if grace_seconds is not None:
        body["gracePeriod" if act == "stop" else "gracePeriodSeconds"] = grace_seconds
    try:
        await client.request("PUT", target.act_path(act), body, accept="*/*", raw=True)
    except errors.RemoteError as told:
        raise type(told)(
            f"{act} {target.alias!r}",
            status=told.status,
            reason=told.reason,
            details=told.details,
            hint=f"its state: kubectl get vm {target.name} -n {target.namespace}",
        ) from told
    return before


async def wait_for(
    client: kube.Client, target: Target, act: Act, *, before: str, seconds: float
) -> None:
    """Wait until the act is done: no guest after a stop, else another one that is ready.

    Args:
        before: what `request` returned.

    Raises:
        KvedgeError: it was not done in time; tells the VM's status.
    """
    try:
        async with asyncio.timeout(seconds):
            while not await _done(client, target, act, before):  # noqa: ASYNC110 - a remote fact
                await asyncio.sleep(_PAUSE_SECONDS)
    except TimeoutError as cause:
        vm = await client.get(target.vm_path)
        status = (vm.get("status") or {}).get("printableStatus", "unknown")
        raise errors.KvedgeError(
            f"{act} of {target.alias!r} not done within {seconds:g} s: VM is {status}",
            hint=f"kvedge events {target.name} -n {target.namespace}",
        ) from cause


async def _done(client: kube.Client, target: Target, act: Act, before: str) -> bool:
    if act == "stop":
        return not await _guest(client, target)
    guest = await _guest(client, target)
    conditions = (guest.get("status") or {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and guest["metadata"]["uid"] != before


async def _running_uid(client: kube.Client, target: Target) -> str:
    return (await _guest(client, target)).get("metadata", {}).get("uid", "")


async def _guest(client: kube.Client, target: Target) -> dict[str, Any]:
    path = f"/apis/kubevirt.io/v1/namespaces/{target.namespace}/virtualmachineinstances"
    try:
        return await client.get(f"{path}/{target.name}")
    except errors.NotFound:
        return {}
