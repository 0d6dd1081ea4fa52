"""Running queries over the hub's twins, page by page."""

from __future__ import annotations

import base64
import binascii
import bisect
from typing import TYPE_CHECKING, Any

import orjson

from kvedge.emulator import catalogue, documents, query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvedge.emulator.presence import Presence
    from kvedge.emulator.records import Json
    from kvedge.emulator.store import Store

__all__ = ["PAGE", "Queries", "bad_query"]

PAGE = 100
"""Most rows in one answer."""


class Queries:
    """Answers queries on `devices` and `devices.modules`."""

    def __init__(self, store: Store, presence: Presence) -> None:
        self._store = store
        self._presence = presence

    def run(self, text: Any, *, size: int, continuation: str) -> tuple[list[Json], str, str]:
        """Return one page of rows, its `x-ms-item-type` and the token of the next page."""
        if not isinstance(text, str) or not text.strip():
            raise catalogue.HubError("ArgumentInvalid", "The query is missing.")
        evaluation = query.Evaluation(self._parsed(text))
        start = _opened(continuation)
        wanted = evaluation.query
        if wanted.aggregates:
            rows = evaluation.grouped(self._rows(wanted.table))[: wanted.top]
            offset = start.get("offset", 0)
            rest = {"offset": offset + size} if len(rows) > offset + size else {}
            return rows[offset : offset + size], "Raw", _sealed(rest)
        kind = "Twin" if wanted.columns is None else "Raw"
        given = start.get("given", 0)
        left = size if wanted.top is None else min(size, wanted.top - given)
        page: list[Json] = []
        last = ""
        for key, row in self._keyed(wanted.table, start.get("after", "")):
            if not evaluation.matches(row):
                continue
            if len(page) == left:
                rest = {"after": last, "given": given + left}
                done = wanted.top is not None and given + left >= wanted.top
                return page, kind, "" if done else _sealed(rest)
            page.append(evaluation.shown(row))
            last = key
        return page, kind, ""

    def count(self, text: str) -> int:
        """Return how many rows a query has, as custom metrics count them."""
        evaluation = query.Evaluation(self._parsed(text))
        rows = self._rows(evaluation.query.table)
        if evaluation.query.aggregates:
            return len(evaluation.grouped(rows))
        return sum(evaluation.matches(row) for row in rows)

    def _parsed(self, text: str) -> query.Query:
        try:
            parsed = query.parse_query(text)
        except query.QueryError as error:
            raise bad_query(str(error)) from error
        if parsed.table == "devices.jobs":
            raise catalogue.HubError("NotImplemented", "The emulator has no jobs yet.")
        return parsed

    def _rows(self, table: str) -> Iterator[Json]:
        return (row for _, row in self._keyed(table, ""))

    def _keyed(self, table: str, after: str) -> Iterator[tuple[str, Json]]:
        """Yield rows by ascending key, so that a page can begin where the last one ended."""
        modules = table == "devices.modules"
        keys = sorted(key for key in self._store.twins if ("/" in key) is modules)
        for key in keys[bisect.bisect_right(keys, after) if after else 0 :]:
            twin = self._store.twins[key]
            yield key, documents.twin_json(self._store, twin, self._presence.of(key), row=True)


def bad_query(text: str) -> catalogue.HubError:
    """Return the service's error for a text that is no query."""
    return catalogue.HubError("ArgumentInvalid", f"BadRequest;Query is not valid. {text}")


def _sealed(place: Json) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode() if place else ""


def _opened(continuation: str) -> Json:
    if not continuation:
        return {}
    try:
        place = orjson.loads(base64.urlsafe_b64decode(continuation))
        return {
            "after": str(place.get("after", "")),
            "given": int(place.get("given", 0)),
            "offset": max(0, int(place.get("offset", 0))),
        }
    except (ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise catalogue.HubError("ArgumentInvalid", "The continuation is not valid.") from error
