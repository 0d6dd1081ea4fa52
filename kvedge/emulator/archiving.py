"""The whole state of a hub as one JSON object, to be kept or carried to another hub.

It holds the policies' and the devices' keys, so whoever writes it to a file guards that file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvedge.emulator import catalogue, records
from kvedge.emulator.store import fields_of, record_of

if TYPE_CHECKING:
    from kvedge.emulator.presence import Presence
    from kvedge.emulator.records import Json
    from kvedge.emulator.store import Store

__all__ = ["exported", "imported"]

_FORMAT = 1
_KINDS: dict[str, type[Any]] = {
    "identities": records.Identity,
    "twins": records.Twin,
    "configurations": records.Configuration,
    "messages": records.Message,
}
_STORED = {
    "identity": "identities",
    "twin": "twins",
    "configuration": "configurations",
    "message": "messages",
}
_VALUES = ("authority/", "enrollment/", "job/")
"""Beginnings of the small values that belong to the state; keys of policies stay the hub's own."""


def exported(store: Store) -> Json:
    """Return all that a hub remembers but its policies' keys and the telemetry it received."""
    state: Json = {"format": _FORMAT}
    for kind in _KINDS:
        state[kind] = [fields_of(item) for item in getattr(store, kind).values()]
    state["values"] = {key: value for key, value in store.values.items() if key.startswith(_VALUES)}
    return state


def imported(store: Store, presence: Presence, state: Any) -> Json:
    """Replace everything by an exported state; returns how many records there are now.

    All or nothing: a state that is not whole changes nothing.
    """
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise catalogue.HubError("ArgumentInvalid", f"A state of format {_FORMAT} is needed.")
    read: dict[str, list[Any]] = {}
    try:
        for kind, record in _KINDS.items():
            read[kind] = [record_of(record, item) for item in state.get(kind, [])]
        values = {str(key): value for key, value in state.get("values", {}).items()}
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        raise catalogue.HubError("ArgumentInvalid", f"The state is not whole: {error}") from error
    keys = {item.key for item in read["identities"]}
    devices = {item.device_id for item in read["identities"] if not item.module_id}
    twins = {item.key for item in read["twins"]}
    edges = {item.device_id for item in read["identities"] if item.edge}
    agents = {records.key_of(name, module) for name in edges for module in records.RUNTIME_MODULES}
    owners = {item.device_id for item in read["identities"]}
    owners |= {item.device_id for item in read["messages"]}
    if keys != twins or not owners <= devices or not agents <= keys:
        raise catalogue.HubError("ArgumentInvalid", "Identities and twins do not fit together.")
    if not all(key.startswith(_VALUES) for key in values):
        raise catalogue.HubError("ArgumentInvalid", "The state holds values of another hub.")
    gone = [*store.identities]
    with store.transaction() as transaction:
        for kind, name in _STORED.items():
            for key in getattr(store, name):
                transaction.delete(kind, key)
        for key in store.values:
            if key.startswith((*_VALUES, "subscriptions/")):
                transaction.delete("value", key)
        for items in read.values():
            for item in items:
                transaction.put(item)
        for key, value in values.items():
            transaction.put_value(key, value)
        newest = max((item.sequence for item in read["messages"]), default=0)
        known = int(store.values.get("message-sequence", 0))
        transaction.put_value("message-sequence", max(known, newest))
    for key in gone:
        presence.forget(key)
    return {kind: len(items) for kind, items in read.items()}
