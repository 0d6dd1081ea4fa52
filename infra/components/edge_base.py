"""EdgeBase: the hub's full deployment under all layers of this hub's managed devices.

The hub never changes the content of a deployment, so other content is another id, made before the
old one is retired (https://learn.microsoft.com/azure/iot-edge/module-deployment-monitoring).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra import dynamic, hub_content
from kvedge import errors

if TYPE_CHECKING:
    import pulumi

    from kvedge import spec

__all__ = ["EdgeBase", "EdgeBaseProvider"]


class EdgeBaseProvider(dynamic.Provider):
    """Creates, adopts, changes and removes the base deployment."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create the deployment; the same id is the same content, so ours is adopted."""
        self.run(self._create(props["configuration"]))
        return CreateResult(id_=props["configuration"]["id"], outs=props)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Another content is another deployment, made before the old one goes."""
        old, new = _olds["configuration"], _news["configuration"]
        other = old["id"] != new["id"]
        return DiffResult(
            changes=old != new, replaces=["configuration"] if other else [],
            delete_before_replace=False,
        )  # fmt: skip

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Write labels and target condition."""
        self.run(self._update(_news["configuration"]))
        return UpdateResult(outs=_news)

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Tell whether the deployment is still there."""
        return self.run(self._read(id_, props))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Retire the deployment."""
        self.run(self._delete(_id))

    async def _create(self, wanted: dict[str, Any]) -> None:
        async with self.hub() as hub:
            await hub_content.ensure_base(hub, wanted)

    async def _update(self, wanted: dict[str, Any]) -> None:
        async with self.hub() as hub:
            await hub.update_configuration(hub_content.whole(wanted))

    async def _read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        async with self.hub() as hub:
            try:
                await hub.get_configuration(id_)
            except errors.NotFound:
                return ReadResult("", {})
        return ReadResult(id_, props)

    async def _delete(self, id_: str) -> None:
        async with self.hub() as hub:
            try:
                await hub.delete_configuration(id_)
            except errors.NotFound:
                return


class EdgeBase(Resource, module="kvedge", name="EdgeBase"):
    """The hub's base deployment."""

    def __init__(
        self, name: str, environment: spec.Environment, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        configuration = hub_content.base_configuration(environment)
        super().__init__(EdgeBaseProvider(), name, {"configuration": configuration}, opts)
