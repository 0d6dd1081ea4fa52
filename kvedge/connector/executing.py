"""`kubectl exec`: by ssh into the device's VM, and there by the engine into the module's container.

Only a device that is a VM of this cluster can be entered; its twin's tags say which VM it is. The
host key that the VM must prove is in its annotation.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

from kvedge import errors, kube, names
from kvedge.access import sessions
from kvedge.access.targets import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import paramiko

    from kvedge.iothub import Hub
    from kvedge.node.provider import Terminal

__all__ = ["Executing"]

_BUFFER = 32768
_LOGIN_SECONDS = 20.0
_HOST_KEY = f"{names.ANNOTATION}/host-key"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Executing:
    """What is needed to enter VMs."""

    config: kube.Config
    key: Path
    """Private key whose public half the VMs know."""
    user: str = "edge"

    async def run(
        self, hub: Hub, device: str, module: str, command: Sequence[str], terminal: Terminal
    ) -> int:
        """Run a command in a module's container and return its exit code.

        Raises:
            KvedgeError: the device cannot be entered; the message says why.
        """
        target = await self._target(hub, device)
        host_key = await self._host_key(target)
        words = ["docker", "exec", *(["-i"] if terminal.stdin else []),
                 *(["-t"] if terminal.tty else []), module, *command]  # fmt: skip
        async with contextlib.AsyncExitStack() as stack:
            entered = sessions.connect(
                self.config,
                target,
                public_host_key=host_key,
                identities=[self.key],
                deadline_seconds=_LOGIN_SECONDS,
            )
            session = await asyncio.to_thread(entered.__enter__)
            stack.push_async_callback(asyncio.to_thread, entered.__exit__, None, None, None)
            size = await terminal.resized() if terminal.tty else None
            channel = await asyncio.to_thread(session.start, shlex.join(words), size=size)
            stack.callback(channel.close)
            return await _carried(channel, terminal)

    async def _target(self, hub: Hub, device: str) -> Target:
        twin = await hub.get_twin(device)
        tags: dict[str, Any] = (twin.get("tags") or {}).get("kvedge") or {}
        if not tags.get("vm") or not tags.get("namespace"):
            raise errors.Unsupported("exec", f"device {device!r} is not a VM of this cluster")
        return Target(user=self.user, name=tags["vm"], namespace=tags["namespace"])

    async def _host_key(self, target: Target) -> str:
        path = f"/apis/kubevirt.io/v1/namespaces/{target.namespace}/virtualmachines/{target.name}"
        async with kube.Client(self.config) as client:
            try:
                vm = await client.get(path)
            except errors.NotFound:
                raise errors.Unsupported(
                    "exec", f"this cluster has no VM '{target.namespace}/{target.name}'"
                ) from None
        found = (vm["metadata"].get("annotations") or {}).get(_HOST_KEY, "")
        if not found:
            raise errors.Unsupported("exec", f"VM {target.name!r} has no annotation {_HOST_KEY!r}")
        return found


async def _carried(channel: paramiko.Channel, terminal: Terminal) -> int:
    """Carry a command's streams until it has ended; return its exit code (255 if it had none)."""

    async def out() -> None:
        while data := await asyncio.to_thread(channel.recv, _BUFFER):
            await terminal.write(data)

    async def err() -> None:
        while data := await asyncio.to_thread(channel.recv_stderr, _BUFFER):
            await terminal.write_error(data)

    async def typed() -> None:
        while data := await terminal.read():
            await asyncio.to_thread(channel.sendall, data)
        await asyncio.to_thread(channel.shutdown_write)

    async def resized() -> None:
        while True:
            size = await terminal.resized()
            await asyncio.to_thread(channel.resize_pty, size.columns, size.rows)

    try:
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(out(), name="exec-out")]
            if not terminal.tty:
                ends.append(group.create_task(err(), name="exec-err"))
            inputs = [group.create_task(typed(), name="exec-in")]
            if terminal.tty:
                inputs.append(group.create_task(resized(), name="exec-size"))
            await asyncio.wait(ends)
            for task in inputs:
                task.cancel()
    except* OSError as cause:
        raise errors.KvedgeError(f"the ssh session broke: {cause.exceptions[0]}") from cause
    code = await asyncio.to_thread(channel.recv_exit_status)
    return 255 if code < 0 else code
