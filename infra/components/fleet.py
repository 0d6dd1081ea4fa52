"""FleetReady: restarts what changed and waits for all VMs and devices at once.

One resource for the whole fleet: dynamic resources run four at a time, so one a VM would wait in
a queue. `kvedge up` waits by itself, with progress, and tells this resource not to.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra import dynamic, fleet

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pulumi

    from kvedge import spec

__all__ = ["WAIT_VARIABLE", "FleetReady", "FleetReadyProvider"]

WAIT_VARIABLE = "KVEDGE_FLEET_WAIT"
"""`no` in the environment: somebody else waits."""
_WAIT_SECONDS = 900.0


class FleetReadyProvider(dynamic.Provider):
    """Rolls out on create and update; there is nothing to delete."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Restart what changed, then wait."""
        self.run(self._roll_out(props))
        return CreateResult(id_=f"fleet-{props['environment']}", outs=props)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Roll out when a member or any content changed."""
        changed = any(_olds.get(key) != _news.get(key) for key in ("members", "content"))
        return DiffResult(changes=changed)

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
        members = [fleet.Member(**member) for member in props["members"]]
        async with self.cluster() as client:
            await fleet.restart_changed(client, members)
            if os.environ.get(WAIT_VARIABLE) == "no":
                return
            async with self.hub() as hub:
                await fleet.wait_ready(client, hub, members, seconds=_WAIT_SECONDS)


class FleetReady(Resource, module="kvedge", name="FleetReady"):
    """The fleet, up and connected."""

    def __init__(
        self, environment: spec.Environment, content: Mapping[str, pulumi.Input[str]],
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
            {"environment": environment.name, "members": members, "content": dict(content)},
            opts,
        )
