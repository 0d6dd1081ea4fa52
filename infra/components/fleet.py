"""FleetReady: restarts what changed, a few VMs at once, and waits for all VMs and devices.

One resource for the whole fleet: dynamic resources run four at a time, so one a VM would wait in
a queue. It runs inside the engine's run because old OS disks are deleted at that run's end, when
no VM may need them any more. `kvedge up` waits for new VMs by itself and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any

from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra import dynamic, fleet, growing, manifests, rollout
from kvedge import errors, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pulumi

__all__ = ["FleetReady", "FleetReadyProvider"]

_WAIT_VARIABLE = "KVEDGE_FLEET_WAIT"
"""`no` in the environment: somebody else waits for new VMs."""
_STAGES_VARIABLE = "KVEDGE_FLEET_STAGES"
"""An abstract Unix socket (unix(7)), without its leading zero byte, that hears of stages."""
_WAIT_SECONDS = 900.0


class FleetReadyProvider(dynamic.Provider):
    """Rolls out on create and update; there is nothing to delete."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Restart what changed, then wait."""
        self.run(self._roll_out(props))
        return CreateResult(id_=f"fleet-{props['environment']}", outs=props)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Roll out when a member or any content changed, or a VM runs from a disk that is to go.

        The latter is what a stopped roll-out leaves; the state does not know of it.
        """
        changed = any(
            _olds.get(key) != _news.get(key) for key in ("members", "content", "data_disks")
        )
        return DiffResult(changes=changed or self.run(self._elsewhere(_news)))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Restart what changed, then wait."""
        self.run(self._roll_out(_news))
        return UpdateResult(outs=_news)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Nothing to read: it is an act, not an object."""
        return ReadResult(id_, props)

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Nothing to delete."""

    async def _roll_out(self, props: Mapping[str, Any]) -> None:
        members = _members(props)
        plan = spec.Rollout(
            max_unavailable=props["rollout"]["max_unavailable"],
            ready_seconds=int(props["rollout"]["ready_seconds"]),
        )
        with _teller() as tell:
            async with self.cluster() as client, self.hub() as hub:
                await growing.grow(client, props["namespace"], props["data_disks"])
                await rollout.roll_out(client, hub, members, plan, on_stage=tell)
                if os.environ.get(_WAIT_VARIABLE) != "no":
                    await fleet.wait_ready(client, hub, members, seconds=_WAIT_SECONDS)

    async def _elsewhere(self, props: Mapping[str, Any]) -> bool:
        disks = props.get("disks") or {}
        async with self.cluster() as client:
            try:
                objects = await fleet.objects_of(client, {m.namespace for m in _members(props)})
            except errors.NotFound:
                return False
        for (kind, _, name), obj in objects.items():
            if kind == "VirtualMachineInstance" and name in disks:
                volumes = obj["spec"].get("volumes") or ()
                used = {(volume.get("dataVolume") or {}).get("name") for volume in volumes}
                if disks[name] not in used:
                    return True
        return False


class FleetReady(Resource, module="kvedge", name="FleetReady"):
    """The fleet, up and connected."""

    def __init__(
        self, environment: spec.Environment, image_key: str,
        content: Mapping[str, pulumi.Input[str]],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        members = [
            {
                "name": vm.name,
                "namespace": environment.cluster.namespace,
                "device_id": environment.device_id(vm),
            }
            for vm in environment.fleet
        ]
        super().__init__(
            FleetReadyProvider(),
            "fleet",
            {
                "environment": environment.name,
                "namespace": environment.cluster.namespace,
                "data_disks": growing.sizes_of(environment),
                "members": members,
                "content": dict(content),
                "disks": {
                    vm.name: manifests.os_disk_name(vm, image_key) for vm in environment.fleet
                },
                "rollout": {
                    "max_unavailable": environment.rollout.max_unavailable,
                    "ready_seconds": environment.rollout.ready_seconds,
                },
            },
            opts,
        )


def _members(props: Mapping[str, Any]) -> list[fleet.Member]:
    return [fleet.Member(**member) for member in props["members"]]


@contextlib.contextmanager
def _teller() -> Iterator[Callable[[str, fleet.Stage], None]]:
    """Return what tells stages to the one who listens, if anybody does."""
    name = os.environ.get(_STAGES_VARIABLE, "")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:

        def tell(vm: str, stage: fleet.Stage) -> None:
            if name:
                text = json.dumps({"name": vm, "note": stage.text, "share": stage.share})
                with contextlib.suppress(OSError):
                    sender.sendto(text.encode(), f"\0{name}")

        yield tell
