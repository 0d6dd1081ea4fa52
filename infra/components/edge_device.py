"""EdgeDevice: an edge device's identity in the hub, with its tags.

The hub makes the keys. A device that exists is adopted if its tags say that it is this
environment's, and refused otherwise; deleting leaves a foreign one alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra import dynamic, guest, hub_content
from kvedge import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvedge import spec

__all__ = ["EdgeDevice", "EdgeDeviceProvider"]


class EdgeDeviceProvider(dynamic.Provider):
    """Creates, adopts, changes and removes one device."""

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create the device or adopt ours, and write its tags."""
        return CreateResult(id_=props["device_id"], outs=self.run(self._ensure(props)))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Tags, host name and key change in place; another id is another device."""
        other = _olds["device_id"] != _news["device_id"]
        fields = ("tags", "device_host", "key_version")
        changed = other or any(_olds.get(k, 1) != _news.get(k) for k in fields)
        if wanted := hub_content.device_key(self.dps(), _news["device_id"]):
            changed = changed or wanted != guest.key_of(_olds["connection_string"])
        return DiffResult(changes=changed, replaces=["device_id"] if other else [])

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Write changed tags; another key version renews the key."""
        gone = dict.fromkeys(set(_olds["tags"]) - set(_news["tags"]))
        old = ""
        if _olds.get("key_version", 1) != _news["key_version"]:
            old = guest.key_of(_olds["connection_string"])
        return UpdateResult(outs=self.run(self._ensure(_news, gone, old)))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Tell whether the device is still there."""
        return self.run(self._read(id_, props))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Remove the device if it is ours."""
        self.run(self._delete(_id, _props))

    async def _ensure(
        self, props: dict[str, Any], gone: Mapping[str, None] | None = None, old: str = ""
    ) -> dict[str, Any]:
        device_id = props["device_id"]
        derived = hub_content.device_key(self.dps(), device_id)
        async with self.hub() as hub:
            identity = await hub.ensure_device(
                device_id, owner=_owner(props), tags=props["tags"], key=derived
            )
            if gone:
                await hub.update_twin(device_id, {"tags": dict(gone)})
            if old and not derived:
                identity = await hub.renew_device_key(device_id, old=old)
        key = identity.get("authentication", {})["symmetricKey"]["primaryKey"]
        text = guest.device_connection_string(props["device_host"], device_id, key)
        return {**props, "connection_string": text}

    async def _read(self, device_id: str, props: dict[str, Any]) -> ReadResult:
        async with self.hub() as hub:
            try:
                twin = await hub.get_twin(device_id)
            except errors.NotFound:
                return ReadResult("", {})
        return ReadResult(device_id, {**props, "tags": twin.get("tags") or {}})

    async def _delete(self, device_id: str, props: dict[str, Any]) -> None:
        async with self.hub() as hub:
            try:
                twin = await hub.get_twin(device_id)
                mine = (twin.get("tags") or {}).get("kvedge") or {}
                if all(mine.get(key) == value for key, value in _owner(props).items()):
                    await hub.delete_device(device_id)
            except errors.NotFound:
                return


class EdgeDevice(Resource, module="kvedge", name="EdgeDevice"):
    """A device of the hub."""

    device_id: pulumi.Output[str]
    connection_string: pulumi.Output[str]
    """Of the device, as it reaches the hub; a secret."""

    def __init__(
        self, name: str, environment: spec.Environment, vm: spec.Vm,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            EdgeDeviceProvider(),
            name,
            {
                "device_id": environment.device_id(vm),
                "device_host": environment.hub.device_host,
                "tags": hub_content.device_tags(environment, vm),
                "key_version": vm.key_version,
                "connection_string": None,
            },
            pulumi.ResourceOptions.merge(
                opts, pulumi.ResourceOptions(additional_secret_outputs=["connection_string"])
            ),
        )


def _owner(props: dict[str, Any]) -> dict[str, str]:
    return {key: props["tags"]["kvedge"][key] for key in hub_content.OWNER_TAGS}
