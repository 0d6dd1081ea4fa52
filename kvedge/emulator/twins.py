"""Reading and writing twins, by the service and by their devices."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, documents, patching, records, times
from kvedge.emulator.registry import match_etag

if TYPE_CHECKING:
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.records import Json, Twin
    from kvedge.emulator.store import Store

__all__ = ["Twins"]


class Twins:
    """All twins of the hub."""

    def __init__(self, store: Store, presence: Presence) -> None:
        self._store = store
        self._presence = presence

    def find(self, device_id: str, module_id: str = "") -> Twin:
        """Return a twin; the live service says DeviceNotFound for a missing module too."""
        twin = self._store.twins.get(records.key_of(device_id, module_id))
        if twin is None:
            what = f"Module {module_id} on device {device_id}" if module_id else device_id
            raise catalogue.HubError("DeviceNotFound", f"{what} not registered.")
        return twin

    def shown(self, twin: Twin) -> Json:
        """Return a twin's JSON."""
        return documents.twin_json(self._store, twin, self._presence.of(twin.key))

    def write(self, twin: Twin, body: Any, if_match: str | None, *, replace: bool) -> Twin:
        """Merge tags and desired properties into a twin, or replace both whole."""
        if not isinstance(body, dict):
            raise catalogue.HubError("IotHubFormatError", "The body must be a JSON object.")
        if if_match is not None:
            match_etag(if_match, twin.etag)
        tags = body.get("tags")
        properties = body.get("properties") or {}
        if not isinstance(properties, dict):
            raise catalogue.HubError("IotHubFormatError", "'properties' must be a JSON object.")
        desired = properties.get("desired")
        if replace:
            tags, desired = tags or {}, desired or {}
        new = twin
        if tags is not None:
            patching.check("Tags", tags)
            base = {} if replace else twin.tags
            new = dataclasses.replace(new, tags=patching.merged_values(base, tags))
            patching.check_size("Tags", new.tags)
        if desired is not None:
            patching.check("Properties.Desired", desired)
            merge = patching.replaced if replace else patching.merged
            document = merge(twin.desired, desired, times.stamp(), versioned=True)
            patching.check_size("Properties.Desired", document)
            new = dataclasses.replace(new, desired=document)
        if new is twin:
            return twin
        new = dataclasses.replace(new, writes=twin.writes + 1, version=twin.version + 1)
        with self._store.transaction() as transaction:
            transaction.put(new)
        if desired is not None:
            patch = (
                patching.difference(patching.values(twin.desired), patching.values(new.desired))
                if replace
                else patching.values(desired)
            )
            self.tell(new, patch)
        self._presence.announce(twin.device_id)
        return new

    def report(self, key: str, patch: Any) -> int:
        """Merge reported properties, as the device sends them; returns the new `$version`."""
        twin = self._store.twins[key]
        patching.check("Properties.Reported", patch)
        document = patching.merged(twin.reported, patch, times.stamp(), versioned=False)
        patching.check_size("Properties.Reported", document)
        with self._store.transaction() as transaction:
            transaction.put(dataclasses.replace(twin, reported=document, version=twin.version + 1))
        self._presence.announce(twin.device_id)
        return document["$version"]

    def set_model(self, key: str, model_id: str) -> None:
        """Note the plug-and-play model that a device names when it connects."""
        twin = self._store.twins[key]
        if twin.model_id != model_id:
            with self._store.transaction() as transaction:
                transaction.put(dataclasses.replace(twin, model_id=model_id))

    def tell(self, twin: Twin, patch: Json) -> None:
        """Send changed desired properties to the device if it is there and listens."""
        session = self._presence.session(twin.key)
        if session is not None:
            session.notify_desired({**patch, "$version": twin.desired["$version"]})
