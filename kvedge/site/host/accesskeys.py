"""Ssh keys of Secrets in running guests: KubeVirt's accessCredentials by the guest agent.

A changed Secret reaches the guest without a restart. Only sshPublicKey with the method
qemuGuestAgent is done; `vmspec` refuses the rest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kvedge.site.host.monitor import GuestAgent

__all__ = ["follow_keys", "unsupported"]

_LOG = logging.getLogger("kvedge.site.host")
_POLL_SECONDS = 5.0


def unsupported(credential: Mapping[str, Any]) -> bool:
    """Tell whether a credential is none that is done here."""
    key = credential.get("sshPublicKey") or {}
    by_agent = (key.get("propagationMethod") or {}).get("qemuGuestAgent") or {}
    return set(credential) != {"sshPublicKey"} or not by_agent.get("users")


async def follow_keys(
    name: str,
    credentials: list[Mapping[str, Any]],
    read: Callable[[str], Awaitable[Mapping[str, bytes]]],
    agent: GuestAgent,
    answers: Callable[[], bool],
    told: Callable[[bool, str], None],
) -> None:
    """Keep the guest's authorized keys as the Secrets have them.

    Args:
        name: for the log.
        read: returns a Secret's content.
        answers: whether the agent is known to answer; a command to a booting guest would hold up
            those of its probes.
        told: called with whether the keys are in the guest, and why not.
    """
    done: dict[str, list[str]] = {}
    while True:
        if not answers():
            done.clear()  # a guest that boots anew takes the keys of its secret disk
            await asyncio.sleep(_POLL_SECONDS)
            continue
        try:
            for user, keys in (await _wanted(credentials, read)).items():
                if done.get(user) != keys:
                    await agent.command(
                        "guest-ssh-add-authorized-keys", username=user, keys=keys, reset=True
                    )
                    done[user] = keys
                    _LOG.info("%s: %d ssh keys of user %s", name, len(keys), user)
            told(True, "")
        except errors.KvedgeError as error:
            told(False, error.message)
        await asyncio.sleep(_POLL_SECONDS)


async def _wanted(
    credentials: list[Mapping[str, Any]], read: Callable[[str], Awaitable[Mapping[str, bytes]]]
) -> dict[str, list[str]]:
    """Return each user's keys, in the order of the Secrets' entries."""
    found: dict[str, list[str]] = {}
    for credential in credentials:
        key = credential["sshPublicKey"]
        content = await read(key["source"]["secret"]["secretName"])
        lines = [
            line
            for _, data in sorted(content.items())
            for line in data.decode(errors="replace").splitlines()
            if line.strip()
        ]
        for user in key["propagationMethod"]["qemuGuestAgent"]["users"]:
            found.setdefault(user, []).extend(lines)
    return found
