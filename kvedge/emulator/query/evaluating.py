"""Trees to functions over rows.

A place that does not exist is UNDEFINED, and so is what is computed from it; comparing values of
different types is UNDEFINED too (comparing with null is not: `tags.x != null` holds for any other
value). AND and OR are three-valued. A condition holds only if it is exactly true.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson

from kvedge.emulator.query import parsing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvedge.emulator.records import Json

    Function = Callable[[Json], Any]

__all__ = ["UNDEFINED", "Evaluation", "holds"]


class _Undefined:
    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED = _Undefined()
"""The value of a place that does not exist."""


def holds(node: parsing.Node) -> Callable[[Json], bool]:
    """Return a function that tells whether a condition is true for a row."""
    function = _compile(node)
    return lambda row: function(row) is True


class Evaluation:
    """One query, ready to be run over rows."""

    def __init__(self, query: parsing.Query) -> None:
        self.query = query
        self._where = holds(query.where) if query.where is not None else None
        self._columns = [
            (column.name, _compile(column.value))
            for column in query.columns or ()
            if not isinstance(column.value, parsing.Aggregate)
        ]

    def matches(self, row: Json) -> bool:
        """Tell whether a row is selected."""
        return self._where is None or self._where(row)

    def shown(self, row: Json) -> Json:
        """Return what a selected row looks like in the answer."""
        if self.query.columns is None:
            return row
        values = ((name, function(row)) for name, function in self._columns)
        return {name: value for name, value in values if value is not UNDEFINED}

    def grouped(self, rows: Iterable[Json]) -> list[Json]:
        """Return the answer's rows of a query with aggregates."""
        keys = [_compile(path) for path in self.query.group_by]
        groups: dict[bytes, list[Json]] = {}
        for row in rows:
            if self.matches(row):
                groups.setdefault(_group_key(key(row) for key in keys), []).append(row)
        if not groups and not keys:
            groups[b""] = []
        return [self._group(members) for members in groups.values()]

    def _group(self, members: list[Json]) -> Json:
        shown: Json = {}
        for column in self.query.columns or ():
            if isinstance(column.value, parsing.Aggregate):
                value = _aggregate(column.value, members)
            else:
                value = _compile(column.value)(members[0])
            if value is not UNDEFINED:
                shown[column.name] = value
        return shown


def _group_key(values: Iterator[Any]) -> bytes:
    return b"\0".join(
        b"u" if value is UNDEFINED else orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        for value in values
    )


def _aggregate(aggregate: parsing.Aggregate, rows: list[Json]) -> Any:
    if aggregate.argument is None:
        return len(rows)
    function = _compile(aggregate.argument)
    values = [value for row in rows if (value := function(row)) is not UNDEFINED]
    if aggregate.function == "COUNT":
        return len(values)
    if aggregate.function in ("MIN", "MAX") and values and all(isinstance(v, str) for v in values):
        return min(values) if aggregate.function == "MIN" else max(values)
    numbers = [value for value in values if _is_number(value)]
    if not numbers:
        return UNDEFINED
    match aggregate.function:
        case "SUM":
            return sum(numbers)
        case "AVG":
            return sum(numbers) / len(numbers)
        case "MIN":
            return min(numbers)
        case _:
            return max(numbers)


def _compile(node: parsing.Node) -> Function:
    match node:
        case parsing.Literal(value, defined):
            constant = value if defined else UNDEFINED
            return lambda _row: constant
        case parsing.Path(names):
            return _path(names)
        case parsing.IsDefined(path):
            inner = _path(path.names)
            return lambda row: inner(row) is not UNDEFINED
        case parsing.Array(items):
            functions = [_compile(item) for item in items]
            return lambda row: [function(row) for function in functions]
        case parsing.Unary(operator, operand):
            return _unary(operator, _compile(operand))
        case parsing.Binary(operator, left, right):
            return _binary(operator, _compile(left), _compile(right))
        case _:
            raise parsing.QueryError("Aggregates are not allowed here.")


def _path(names: tuple[str, ...]) -> Function:
    def read(row: Json) -> Any:
        value: Any = row
        for name in names:
            if not isinstance(value, dict) or name not in value:
                return UNDEFINED
            value = value[name]
        return value

    return read


def _unary(operator: str, operand: Function) -> Function:
    if operator == "NOT":

        def negate(row: Json) -> Any:
            value = operand(row)
            return not value if isinstance(value, bool) else UNDEFINED

        return negate

    def minus(row: Json) -> Any:
        value = operand(row)
        return -value if _is_number(value) else UNDEFINED

    return minus


def _binary(operator: str, left: Function, right: Function) -> Function:
    match operator:
        case "AND":
            return _and(left, right)
        case "OR":
            return _or(left, right)
        case "IN":
            return lambda row: _within(left(row), right(row))
        case "=":
            return lambda row: _equal(left(row), right(row))
        case "!=":

            def differ(row: Json) -> Any:
                equal = _equal(left(row), right(row))
                return UNDEFINED if equal is UNDEFINED else not equal

            return differ
        case "<" | "<=" | ">" | ">=":
            return lambda row: _ordered(operator, left(row), right(row))
        case _:
            return lambda row: _computed(operator, left(row), right(row))


def _and(left: Function, right: Function) -> Function:
    def both(row: Json) -> Any:
        first = left(row)
        if first is False:
            return False
        second = right(row)
        if second is False:
            return False
        return True if first is True and second is True else UNDEFINED

    return both


def _or(left: Function, right: Function) -> Function:
    def either(row: Json) -> Any:
        first = left(row)
        if first is True:
            return True
        second = right(row)
        if second is True:
            return True
        return False if first is False and second is False else UNDEFINED

    return either


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comparable(left: Any, right: Any) -> bool:
    if isinstance(left, str):
        return isinstance(right, str)
    if isinstance(left, bool):
        return isinstance(right, bool)
    return _is_number(left) and _is_number(right)


def _equal(left: Any, right: Any) -> Any:
    if left is UNDEFINED or right is UNDEFINED:
        return UNDEFINED
    if left is None or right is None:
        return left is right
    return left == right if _comparable(left, right) else UNDEFINED


def _within(value: Any, array: Any) -> Any:
    if value is UNDEFINED or not isinstance(array, list):
        return UNDEFINED
    return any(_equal(value, item) is True for item in array)


def _ordered(operator: str, left: Any, right: Any) -> Any:
    if not _comparable(left, right):
        return UNDEFINED
    match operator:
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case _:
            return left >= right


def _computed(operator: str, left: Any, right: Any) -> Any:
    if not (_is_number(left) and _is_number(right)):
        return UNDEFINED
    try:
        match operator:
            case "+":
                value = left + right
            case "-":
                value = left - right
            case "*":
                value = left * right
            case "/":
                value = left / right
            case _:
                value = math.fmod(left, right)
        if isinstance(value, int) and abs(value) >= 2**63:
            value = float(value)
    except (ArithmeticError, ValueError):
        return UNDEFINED
    if isinstance(value, float) and not math.isfinite(value):
        return UNDEFINED
    return int(value) if isinstance(value, float) and operator in "%/" and _whole(value) else value


def _whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 2**53
