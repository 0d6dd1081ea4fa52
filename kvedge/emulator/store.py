"""The hub's memory: all records in dicts, each change first in SQLite.

Reads come from memory. A transaction is committed to the write-ahead log before the dicts change
and before anyone gets an answer, so an acknowledged write is there after `kill -9`
(WAL with synchronous=NORMAL hands each commit to the kernel; only a crash of the whole machine may
lose the last ones: https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import base64
import bisect
import contextlib
import dataclasses
import sqlite3
from typing import TYPE_CHECKING, Any

import orjson

from kvedge import errors
from kvedge.emulator import records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Store", "Transaction", "fields_of", "record_of"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
"""
_PUT = "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)"
_VERSION = 1
_KINDS: dict[str, type[Any]] = {
    "identity": records.Identity,
    "twin": records.Twin,
    "configuration": records.Configuration,
    "message": records.Message,
}
_NAMES = {record: kind for kind, record in _KINDS.items()}


class Transaction:
    """Changes that are stored together or not at all."""

    def __init__(self) -> None:
        self.changes: dict[tuple[str, str], Any] = {}

    def put(self, record: Any) -> None:
        """Store an Identity, Twin, Configuration or Message."""
        self.changes[_NAMES[type(record)], _key(record)] = record

    def delete(self, kind: str, key: str) -> None:
        """Remove a record; it need not exist."""
        self.changes[kind, key] = None

    def put_value(self, key: str, value: Any) -> None:
        """Store a small JSON value that is no record, such as a policy's key."""
        self.changes["value", key] = value


class Store:
    """Identities, twins, configurations, messages and received telemetry."""

    def __init__(self, path: Path | None, *, events_kept: int = 10_000) -> None:
        """Open or make the file; without a path nothing outlives this object."""
        self.identities: dict[str, records.Identity] = {}
        self.twins: dict[str, records.Twin] = {}
        self.configurations: dict[str, records.Configuration] = {}
        self.messages: dict[str, records.Message] = {}
        self.values: dict[str, Any] = {}
        self.device_keys: list[str] = []
        """Keys of the devices' twins, ascending."""
        self.module_keys: list[str] = []
        """Keys of the modules' twins, ascending."""
        self._modules: dict[str, set[str]] = {}
        self._waiting: dict[str, dict[str, records.Message]] = {}
        self._thumbprints: dict[str, set[str]] = {}
        self._events_kept = events_kept
        self._by_kind: dict[str, dict[str, Any]] = {
            "identity": self.identities,
            "twin": self.twins,
            "configuration": self.configurations,
            "message": self.messages,
            "value": self.values,
        }
        try:
            self._connection = sqlite3.connect(path or ":memory:", isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._check_version(path)
            self._connection.executescript(_SCHEMA)
            self._load()
        except sqlite3.Error as cause:
            raise errors.KvedgeError(
                f"cannot open the hub's store {str(path)!r}: {cause}",
                hint="give another folder with --dir, or move the file away to start empty",
            ) from cause

    def close(self) -> None:
        """Close the file; what was acknowledged is in it already."""
        self._connection.close()

    def modules_of(self, device_id: str) -> list[records.Identity]:
        """Return a device's module identities, sorted by id."""
        names = sorted(self._modules.get(device_id, ()))
        return [self.identities[records.key_of(device_id, name)] for name in names]

    def messages_of(self, device_id: str) -> list[records.Message]:
        """Return the messages that wait for a device, oldest first."""
        found = self._waiting.get(device_id, {})
        return [found[key] for key in sorted(found)]

    def waiting(self, device_id: str) -> int:
        """Return how many messages wait for a device."""
        return len(self._waiting.get(device_id, ()))

    def knows_thumbprint(self, thumbprint: str) -> bool:
        """Tell whether an identity has this thumbprint (upper-case hex)."""
        return thumbprint in self._thumbprints

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Collect changes; commit them at the end of the block unless it raises."""
        collected = Transaction()
        yield collected
        if not collected.changes:
            return
        writes = [
            (kind, key, _dump(value))
            for (kind, key), value in collected.changes.items()
            if value is not None
        ]
        removals = [place for place, value in collected.changes.items() if value is None]
        if len(writes) == 1 and not removals:
            # By far the most common change: one statement is a transaction of its own.
            self._connection.execute(_PUT, writes[0])
        else:
            with self._committing() as cursor:
                cursor.executemany(_PUT, writes)
                cursor.executemany("DELETE FROM documents WHERE kind = ? AND key = ?", removals)
        for (kind, key), value in collected.changes.items():
            self._remember(kind, key, value)

    def append_event(self, event: records.Json) -> int:
        """Store a received message and return its number; the oldest ones make room."""
        with self._committing() as cursor:
            cursor.execute("INSERT INTO events (body) VALUES (?)", (orjson.dumps(event),))
            sequence = int(cursor.lastrowid or 0)
            if sequence % 256 == 0:
                cursor.execute(
                    "DELETE FROM events WHERE sequence <= ?", (sequence - self._events_kept,)
                )
        return sequence

    def events_after(self, sequence: int, *, limit: int) -> list[records.Json]:
        """Return received messages with a higher number, oldest first."""
        rows = self._connection.execute(
            "SELECT sequence, body FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (sequence, limit),
        )
        return [{"sequence": number, **orjson.loads(body)} for number, body in rows]

    def last_event(self) -> int:
        """Return the number of the newest received message, 0 without any."""
        row = self._connection.execute("SELECT max(sequence) FROM events").fetchone()
        return int(row[0] or 0)

    @contextlib.contextmanager
    def _committing(self) -> Iterator[sqlite3.Cursor]:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            yield cursor
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")

    def _check_version(self, path: Path | None) -> None:
        found = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if found not in (0, _VERSION):
            raise errors.KvedgeError(
                f"the hub's store {str(path)!r} has format {found}, this kvedge knows {_VERSION}",
                hint="use the kvedge that made it, or start with an empty folder",
            )
        self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _load(self) -> None:
        for kind, key, body in self._connection.execute("SELECT kind, key, body FROM documents"):
            self._remember(kind, key, _load(kind, body))

    def _remember(self, kind: str, key: str, value: Any) -> None:
        records_of_kind = self._by_kind[kind]
        old = records_of_kind.get(key)
        if value is None:
            records_of_kind.pop(key, None)
        else:
            records_of_kind[key] = value
        match kind:
            case "identity":
                self._index_identity(key, old, value)
            case "twin" if (old is None) is not (value is None):
                keys = self.module_keys if "/" in key else self.device_keys
                if value is None:
                    del keys[bisect.bisect_left(keys, key)]
                else:
                    bisect.insort(keys, key)
            case "message":
                if old is not None:
                    self._waiting[old.device_id].pop(key, None)
                if value is not None:
                    self._waiting.setdefault(value.device_id, {})[key] = value
            case _:
                pass

    def _index_identity(
        self, key: str, old: records.Identity | None, new: records.Identity | None
    ) -> None:
        for text in old.thumbprints if old else ():
            self._thumbprints[text].discard(key)
            if not self._thumbprints[text]:
                del self._thumbprints[text]
        for text in new.thumbprints if new else ():
            self._thumbprints.setdefault(text, set()).add(key)
        device_id, _, module_id = key.partition("/")
        if module_id:
            names = self._modules.setdefault(device_id, set())
            if new is None:
                names.discard(module_id)
            else:
                names.add(module_id)


def _key(record: Any) -> str:
    return record.id if isinstance(record, records.Configuration) else record.key


def fields_of(record: Any) -> records.Json:
    """Return a record as JSON can hold it."""
    fields = dataclasses.asdict(record)
    if isinstance(record, records.Message):
        fields["payload"] = base64.b64encode(record.payload).decode()
    return fields


def record_of(kind: type[Any], fields: records.Json) -> Any:
    """Return the record that `fields_of` told; unknown fields are passed over.

    Raises:
        TypeError, ValueError: a field is missing or is not what it should be.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    found = {name: value for name, value in fields.items() if name in known}
    if kind is records.Message:
        found["payload"] = base64.b64decode(found["payload"], validate=True)
    if kind is records.Identity:
        found["parent_scopes"] = tuple(found.get("parent_scopes") or ())
    return kind(**found)


def _dump(value: Any) -> bytes:
    return orjson.dumps(fields_of(value) if isinstance(value, records.Message) else value)


def _load(kind: str, body: bytes) -> Any:
    fields = orjson.loads(body)
    record = _KINDS.get(kind)
    return fields if record is None else record_of(record, fields)
