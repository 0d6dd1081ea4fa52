"""Running queries over the hub's twins, page by page."""

from __future__ import annotations

import base64
import binascii
import bisect
import dataclasses
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson

from kvedge.emulator import catalogue, documents, query

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from kvedge.emulator.presence import Presence
    from kvedge.emulator.records import Identity, Json, Twin
    from kvedge.emulator.store import Store

__all__ = ["PAGE", "Queries", "bad_query"]

PAGE = 100
"""Most rows in one answer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The hub as it was at a time."""

    taken: float
    identities: dict[str, Identity]
    twins: dict[str, Twin]
    device_keys: list[str]
    module_keys: list[str]
    counts: dict[str, int]
    """Messages that wait for each device that has some."""

    def waiting(self, device_id: str) -> int:
        """Return how many messages waited for a device."""
        return self.counts.get(device_id, 0)


class Queries:
    """Answers queries on `devices` and `devices.modules`."""

    def __init__(self, store: Store, presence: Presence, lag: Callable[[], float]) -> None:
        """Query a store; `lag` says how many seconds old the answers may be."""
        self._store = store
        self._presence = presence
        self._lag = lag
        self._snapshot: _View | None = None
        self.job_rows: Callable[[], list[Json]] = list
        """Where the rows of `devices.jobs` come from."""

    def run(self, text: Any, *, size: int, continuation: str) -> tuple[list[Json], str, str]:
        """Return one page of rows, its `x-ms-item-type` and the token of the next page."""
        if not isinstance(text, str) or not text.strip():
            raise catalogue.HubError("ArgumentInvalid", "The query is missing.")
        evaluation = query.Evaluation(self._parsed(text))
        start = _opened(continuation)
        view = self._view()
        wanted = evaluation.query
        if wanted.aggregates:
            rows = evaluation.grouped(row for _, row in self._keyed(wanted.table, "", view))[
                : wanted.top
            ]
            offset = start["offset"]
            rest = {"offset": offset + size} if len(rows) > offset + size else {}
            return rows[offset : offset + size], "Raw", _sealed(rest)
        if wanted.table == "devices.jobs":
            rows = [row for row in self.job_rows() if evaluation.matches(row)][: wanted.top]
            offset = start["offset"]
            rest = {"offset": offset + size} if len(rows) > offset + size else {}
            return rows[offset : offset + size], "DeviceJob", _sealed(rest)
        kind = "Twin" if wanted.columns is None else "Raw"
        given = start["given"]
        left = size if wanted.top is None else min(size, wanted.top - given)
        page: list[Json] = []
        last = ""
        for key, row in self._keyed(wanted.table, start["after"], view):
            if not evaluation.matches(row):
                continue
            if len(page) == left:
                rest = {"after": last, "given": given + left}
                done = wanted.top is not None and given + left >= wanted.top
                return page, kind, "" if done else _sealed(rest)
            page.append(evaluation.shown(row))
            last = key
        return page, kind, ""

    def counts(self, texts: Collection[str]) -> dict[str, int]:
        """Return how many rows each query has, as custom metrics count them; without lag."""
        evaluations = {text: query.Evaluation(self._parsed(text)) for text in texts}
        counts = dict.fromkeys(texts, 0)
        for table in {item.query.table for item in evaluations.values()}:
            here = [(text, item) for text, item in evaluations.items() if item.query.table == table]
            for row in self._rows(table):
                for text, item in here:
                    counts[text] += item.matches(row)
            for text, item in here:
                if item.query.aggregates:
                    counts[text] = len(item.grouped(self._rows(table)))
        return counts

    def keys(self, wanted: query.Query) -> list[str]:
        """Return the keys of the twins that a query selects; without lag."""
        evaluation = query.Evaluation(wanted)
        rows = self._keyed(wanted.table, "", self._store)
        return [key for key, row in rows if evaluation.matches(row)]

    def _parsed(self, text: str) -> query.Query:
        try:
            return query.parse_query(text)
        except query.QueryError as error:
            raise bad_query(str(error)) from error

    def _view(self) -> Store | _View:
        """Return the store, or with lag a copy of it that is renewed when it is too old."""
        lag = self._lag()
        if lag <= 0:
            self._snapshot = None
            return self._store
        now = time.monotonic()
        if self._snapshot is None or now - self._snapshot.taken >= lag:
            self._snapshot = _View(
                taken=now,
                identities=dict(self._store.identities),
                twins=dict(self._store.twins),
                device_keys=[*self._store.device_keys],
                module_keys=[*self._store.module_keys],
                counts=dict(Counter(item.device_id for item in self._store.messages.values())),
            )
        return self._snapshot

    def _rows(self, table: str) -> Iterable[Json]:
        """Return all rows of a table, without lag."""
        if table == "devices.jobs":
            return self.job_rows()
        return (row for _, row in self._keyed(table, "", self._store))

    def _keyed(self, table: str, after: str, view: Store | _View) -> Iterator[tuple[str, Json]]:
        """Yield rows by ascending key, so that a page can begin where the last one ended."""
        keys = view.module_keys if table == "devices.modules" else view.device_keys
        start = bisect.bisect_right(keys, after) if after else 0
        for key in itertools.islice(keys, start, None):
            twin = view.twins[key]
            yield key, documents.twin_json(view, twin, self._presence.of(key), row=True)


def bad_query(text: str) -> catalogue.HubError:
    """Return the service's error for a text that is no query."""
    return catalogue.HubError("ArgumentInvalid", f"BadRequest;Query is not valid. {text}")


def _sealed(place: Json) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode() if place else ""


def _opened(continuation: str) -> Json:
    if not continuation:
        return {"after": "", "given": 0, "offset": 0}
    try:
        place = orjson.loads(base64.urlsafe_b64decode(continuation))
        return {
            "after": str(place.get("after", "")),
            "given": int(place.get("given", 0)),
            "offset": max(0, int(place.get("offset", 0))),
        }
    except (ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise catalogue.HubError("ArgumentInvalid", "The continuation is not valid.") from error
