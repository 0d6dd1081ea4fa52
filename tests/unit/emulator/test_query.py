"""The query language: parsing and evaluating."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvedge.emulator import query
from kvedge.emulator.query import parsing

ROW = {
    "deviceId": "edge-1",
    "status": "enabled",
    "tags": {"site": "lille", "line": 4, "spare": None, "order by": 1, "list": [1]},
    "properties": {
        "desired": {"$version": 5},
        "reported": {"lastDesiredVersion": 5, "lastDesiredStatus": {"code": 200}, "t": 21.5},
    },
    "capabilities": {"iotEdge": True},
    "configurations": {"my-layer.1": {"status": "Applied"}},
}


def holds(condition, row=ROW):
    return query.holds(query.parse_condition(condition))(row)


@pytest.mark.parametrize(
    "condition",
    [
        "tags.site = 'lille'",
        'tags.site = "lille"',
        "TAGS.site = 'lille' AND deviceid = 'edge-1'",
        "not tags.site = 'paris'",
        "tags.site IN ['paris', 'lille']",
        "tags.site NIN ['paris']",
        "tags.site NOT IN ['paris']",
        "tags.line >= 4 and tags.line < 5",
        "tags.line <> 5",
        "tags.line * 2 + 1 = 9",
        "tags.line % 3 = 1",
        "-tags.line = -4",
        "tags.line = 0x4",
        "properties.reported.t > 2.1e1",
        "properties.desired.$version = properties.reported.lastDesiredVersion",
        "capabilities.iotEdge = true",
        "configurations.[[my-layer.1]].status = 'Applied'",
        "tags.[[order by]] = 1",
        "tags['order by'] = 1",
        "is_defined(tags.spare)",
        "NOT IS_DEFINED(tags.none)",
        "tags.spare = null",
        "tags.site != null",
        "tags.none = 1 OR tags.line = 4",
        "(tags.line = 4)",
        "tags.site = '\\u006cille'",
        "tags.site > 'arras'",
    ],
)
def test_conditions_that_hold(condition):
    """Operators, constants, escapes and functions of the language."""
    assert holds(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "tags.none = 1",
        "tags.none != 1",
        "NOT tags.none = 1",
        "tags.line = '4'",
        "tags.line != '4'",
        "tags.site",
        "tags.line",
        "1",
        "capabilities.iotEdge = 1",
        "tags.spare != null",
        "tags.site = undefined",
        "tags.line / 0 = 1",
        "tags.list = [1]",
        "tags.none = 1 AND tags.line = 4",
        "tags.site.deeper = 1",
        "tags.Site = 'lille'",
    ],
)
def test_conditions_that_do_not_hold(condition):
    """What is undefined, of another type or no boolean does not count as true."""
    assert not holds(condition)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM devices",
        "select top 3 deviceId, tags.site as site from devices.modules where moduleId = '$edgeHub'",
        "SELECT COUNT() AS n FROM devices",
        "SELECT tags.site, AVG(tags.line) AS a FROM devices GROUP BY tags.site",
        "SELECT * FROM devices.jobs WHERE deviceId = 'x'",
    ],
)
def test_queries(text):
    """The forms of a query."""
    query.parse_query(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT * FROM devices ORDER BY deviceId", "'ORDER' at position 22"),
        ("SELECT COUNT() FROM devices.jobs", "only SELECT"),
        ("SELECT deviceId, COUNT() FROM devices", "neither grouped nor aggregated"),
        ("SELECT * FROM devices GROUP BY tags.a", "grouped"),
        ("SELECT * FROM devices WHERE COUNT() > 1", "not allowed in WHERE"),
        ("SELECT COUNT() + 1 FROM devices", "inside expressions"),
        ("SELECT * FROM devices WHERE STARTS_WITH(deviceId, 'a')", "STARTS_WITH"),
        ("SELECT TOP 0 * FROM devices", "TOP"),
        ("SELECT * FROM devices WHERE a = 'b", "not closed"),
        ("SELECT * FROM devices WHERE a.[[b = 1", "not closed"),
        ("SELECT * FROM devices WHERE a ! b", "character"),
        ("SELECT * FROM devices WHERE a = '\\x'", "escape"),
        ("SELECT * FROM devices WHERE " + "(" * 500 + "1" + ")" * 500, "nested too deeply"),
        ("SELECT * FROM devices WHERE " + "NOT " * 500 + "a", "nested too deeply"),
        ("SELECT * FROM devices WHERE " + "-" * 500 + "a = 1", "nested too deeply"),
        ("SELECT * FROM devices" + " " * 8192, "longer than 8192"),
    ],
)
def test_texts_that_are_no_query(text, message):
    """Each mistake is told with its place."""
    with pytest.raises(query.QueryError, match=message):
        query.parse_query(text)


def test_columns_are_projected():
    """Columns that do not exist are left out; the service's own names keep its spelling."""
    text = "SELECT DEVICEID, tags.site AS place, tags.none, tags.line * 2 FROM devices"
    evaluation = query.Evaluation(query.parse_query(text))
    assert evaluation.shown(ROW) == {"deviceId": "edge-1", "place": "lille", "$4": 8}


def test_rows_are_grouped():
    """Aggregates count what is defined."""
    rows = [{"tags": {"a": a, **({"n": n} if n is not None else {})}}
            for a, n in (("x", 1), ("x", 3), ("y", None))]  # fmt: skip
    text = (
        "SELECT tags.a, COUNT() AS all, COUNT(tags.n) AS some, SUM(tags.n) AS s, "
        "AVG(tags.n) AS m, MIN(tags.n) AS lo, MAX(tags.n) AS hi FROM devices GROUP BY tags.a"
    )
    assert query.Evaluation(query.parse_query(text)).grouped(rows) == [
        {"a": "x", "all": 2, "some": 2, "s": 4, "m": 2.0, "lo": 1, "hi": 3},
        {"a": "y", "all": 1, "some": 0},
    ]


paths = st.sampled_from(["tags.site", "tags.line", "tags.none", "deviceId", "tags.[[order by]]"])
literals = (
    st.sampled_from(["true", "false", "null", "undefined", "'x'", "[1, 'lille']", "0x1f"])
    | st.integers(-9, 9).map(str)
    | st.floats(-9, 9).map(lambda value: f"{value:.3f}")
)
expressions = st.recursive(
    paths | literals,
    lambda inner: (
        st.tuples(
            inner,
            st.sampled_from(
                [
                    "=",
                    "!=",
                    "<>",
                    "<",
                    "<=",
                    ">",
                    ">=",
                    "+",
                    "-",
                    "*",
                    "/",
                    "%",
                    "IN",
                    "NIN",
                    "AND",
                    "OR",
                ]
            ),
            inner,
        ).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda text: f"(NOT {text})")
        | inner.map(lambda text: f"(-{text})")
        | paths.map(lambda text: f"IS_DEFINED({text})")
    ),
    max_leaves=12,
)


def written(node):
    """Write a tree as text again, with all brackets."""
    match node:
        case parsing.Literal(value, defined):
            if not defined:
                return "undefined"
            words = {True: "true", False: "false", None: "null"}
            if isinstance(value, bool) or value is None:
                return words[value]
            return f"'{value}'" if isinstance(value, str) else repr(value)
        case parsing.Path(names):
            return names[0] + "".join(f".[[{name}]]" for name in names[1:])
        case parsing.IsDefined(path):
            return f"IS_DEFINED({written(path)})"
        case parsing.Array(items):
            return f"[{', '.join(written(item) for item in items)}]"
        case parsing.Unary(operator, operand):
            return f"({operator} {written(operand)})"
        case parsing.Binary(operator, left, right):
            return f"({written(left)} {operator} {written(right)})"
    raise AssertionError(node)


@given(expressions)
def test_a_tree_written_out_is_the_same_tree(text):
    """Parsing what a tree says gives the tree; evaluating never fails."""
    node = query.parse_condition(text)
    assert query.parse_condition(written(node)) == node
    assert query.holds(node)(ROW) in (True, False)
    assert query.holds(node)({}) in (True, False)


NOTHING = object()


def modelled(node, row):
    """Evaluate a tree as the documentation words it: a place that is not there has no value."""
    match node:
        case parsing.Literal(value, defined):
            return value if defined else NOTHING
        case parsing.Path(names):
            for name in names:
                if type(row) is not dict or name not in row:
                    return NOTHING
                row = row[name]
            return row
        case parsing.IsDefined(path):
            return modelled(path, row) is not NOTHING
        case parsing.Array(items):
            return [modelled(item, row) for item in items]
        case parsing.Unary("NOT", operand):
            value = modelled(operand, row)
            return (
                {True: False, False: True}.get(value, NOTHING) if type(value) is bool else NOTHING
            )
        case parsing.Unary(_, operand):
            value = modelled(operand, row)
            return -value if type(value) in (int, float) else NOTHING
        case parsing.Binary(operator, left, right):
            return operated(operator, modelled(left, row), modelled(right, row))
    raise AssertionError(node)


def kind(value):
    return {bool: "boolean", str: "text", int: "number", float: "number"}.get(type(value), "other")


def operated(operator, left, right):
    if operator in ("AND", "OR"):
        strong = operator == "OR"
        if left is strong or right is strong:
            return strong
        return not strong if left is right is (not strong) else NOTHING
    if operator == "IN":
        if left is NOTHING or type(right) is not list:
            return NOTHING
        return any(operated("=", left, item) is True for item in right)
    if left is NOTHING or right is NOTHING:
        return NOTHING
    if operator in ("=", "!=") and (left is None or right is None):
        return (left is right) is (operator == "=")
    if operator in ("=", "!=", "<", "<=", ">", ">="):
        if kind(left) != kind(right) or kind(left) == "other":
            return NOTHING
        return {
            "=": left == right, "!=": left != right, "<": left < right,
            "<=": left <= right, ">": left > right, ">=": left >= right,
        }[operator]  # fmt: skip
    if kind(left) != "number" or kind(right) != "number":
        return NOTHING
    try:
        value = {
            "+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right,
            "/": lambda: left / right, "%": lambda: math.fmod(left, right),
        }[operator]()  # fmt: skip
    except (ArithmeticError, ValueError):
        return NOTHING
    return value if math.isfinite(value) else NOTHING


rows = st.fixed_dictionaries(
    {"deviceId": st.text("abx", max_size=2)},
    optional={
        "tags": st.dictionaries(
            st.sampled_from(["site", "line", "order by"]),
            st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["x", "lille"]),
        )
    },
)


@given(expressions, rows)
def test_conditions_mean_what_the_model_says(text, row):
    """The compiled condition and a slow walk over the tree agree on every row."""
    node = query.parse_condition(text)
    assert query.holds(node)(row) is (modelled(node, row) is True)


@given(st.lists(rows, max_size=12), expressions)
def test_groups_are_what_the_model_says(several, condition):
    """Selecting, grouping and counting agree with loops over all rows."""
    text = (
        "SELECT tags.site, COUNT() AS n, SUM(tags.line) AS s, MAX(tags.line) AS m "
        f"FROM devices WHERE {condition} GROUP BY tags.site"
    )
    node = query.parse_condition(condition)
    expected = {}
    for row in several:
        if modelled(node, row) is True:
            site = row.get("tags", {}).get("site", NOTHING)
            expected.setdefault((type(site), site), []).append(
                row.get("tags", {}).get("line", NOTHING)
            )
    found = query.Evaluation(query.parse_query(text)).grouped(several)
    assert len(found) == len(expected)
    for group in found:
        site = group.get("site", NOTHING)
        lines = expected[type(site), site]
        numbers = [line for line in lines if kind(line) == "number"]
        assert group["n"] == len(lines)
        assert group.get("s", NOTHING) == (sum(numbers) if numbers else NOTHING)
        present = [line for line in lines if line is not NOTHING]
        if present and all(kind(line) == "text" for line in present):
            assert group["m"] == max(present)
        else:
            assert group.get("m", NOTHING) == (max(numbers) if numbers else NOTHING)


tokens = st.sampled_from(
    [
        "SELECT",
        "FROM",
        "WHERE",
        "devices",
        "devices.modules",
        "*",
        ",",
        ".",
        "(",
        ")",
        "[",
        "]",
        "[[",
        "]]",
        "'",
        '"',
        "tags.a",
        "=",
        "!=",
        "<",
        "IN",
        "AND",
        "OR",
        "NOT",
        "COUNT()",
        "GROUP",
        "BY",
        "AS",
        "TOP",
        "1",
        "0x",
        "-1",
        "IS_DEFINED(",
        "\\",
        "é",
    ]
)


@given(st.lists(tokens, max_size=15).map(" ".join) | st.text(max_size=60))
def test_no_text_crashes_the_parser(text):
    """Every text is a query or a QueryError."""
    for parse in (query.parse_query, query.parse_condition):
        try:
            parse(text)
        except query.QueryError:
            continue
