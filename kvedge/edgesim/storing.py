"""The edge hub's memory on disk: messages that wait, and the last known twins of modules."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["Store", "StoredMessage"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message that waits for its way out."""

    number: int
    module: str
    """The module that sent it."""
    properties: str
    """Its property bag as the MQTT topic carries it."""
    body: bytes


class Store:
    """One SQLite file; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        # A crash of the process loses nothing; a power failure may lose the last moments.
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=NORMAL",
            "PRAGMA cache_size=-512",
            "CREATE TABLE IF NOT EXISTS messages (number INTEGER PRIMARY KEY AUTOINCREMENT,"
            " endpoint TEXT NOT NULL, priority INTEGER NOT NULL, expires REAL NOT NULL,"
            " module TEXT NOT NULL, properties TEXT NOT NULL, body BLOB NOT NULL)",
            "CREATE INDEX IF NOT EXISTS waiting ON messages (endpoint, priority, number)",
            "CREATE TABLE IF NOT EXISTS twins (module TEXT PRIMARY KEY, twin TEXT NOT NULL,"
            " pending TEXT NOT NULL)",
        ):
            self._database.execute(statement)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def put(
        self,
        *,
        endpoints: Collection[tuple[str, int, float]],
        module: str,
        properties: str,
        body: bytes,
    ) -> None:
        """Keep a message for each endpoint: name, priority, seconds to live (0: for ever)."""
        now = time.time()
        with self._lock:
            self._database.executemany(
                "INSERT INTO messages (endpoint, priority, expires, module, properties, body)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        endpoint,
                        priority,
                        now + seconds if seconds else 1e12,
                        module,
                        properties,
                        body,
                    )
                    for endpoint, priority, seconds in endpoints
                ],
            )

    def waiting(
        self, endpoint: str, *, without: Collection[int], limit: int
    ) -> list[StoredMessage]:
        """Return the next messages of an endpoint, those under way left out."""
        marks = ",".join("?" * len(without))
        select = (  # the marks are question marks only
            "SELECT number, module, properties, body FROM messages WHERE endpoint = ?"  # noqa: S608
            f" AND expires > ? AND number NOT IN ({marks}) ORDER BY priority, number LIMIT ?"
        )
        with self._lock:
            rows = self._database.execute(
                select, (endpoint, time.time(), *without, limit)
            ).fetchall()
        return [
            StoredMessage(number=number, module=module, properties=properties, body=body)
            for number, module, properties, body in rows
        ]

    def done(self, number: int) -> None:
        """Forget a message that arrived."""
        with self._lock:
            self._database.execute("DELETE FROM messages WHERE number = ?", (number,))

    def endpoints(self) -> dict[str, int]:
        """Return the number of waiting messages by endpoint."""
        with self._lock:
            rows = self._database.execute(
                "SELECT endpoint, COUNT(*) FROM messages GROUP BY endpoint"
            ).fetchall()
        return dict(rows)

    def expire(self) -> int:
        """Drop messages whose time to live is over and return their number."""
        with self._lock:
            return self._database.execute(
                "DELETE FROM messages WHERE expires <= ?", (time.time(),)
            ).rowcount

    def twin(self, module: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a module's last known twin and the reported patch that the hub lacks."""
        with self._lock:
            row = self._database.execute(
                "SELECT twin, pending FROM twins WHERE module = ?", (module,)
            ).fetchone()
        return (json.loads(row[0]), json.loads(row[1])) if row else ({}, {})

    def keep_twin(self, module: str, twin: dict[str, Any], pending: dict[str, Any]) -> None:
        """Remember a module's twin."""
        with self._lock:
            self._database.execute(
                "INSERT INTO twins VALUES (?, ?, ?) ON CONFLICT (module)"
                " DO UPDATE SET twin = excluded.twin, pending = excluded.pending",
                (module, json.dumps(twin), json.dumps(pending)),
            )
