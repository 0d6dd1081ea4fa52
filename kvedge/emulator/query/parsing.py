"""Tokens to a tree.

query     = SELECT [TOP n] ("*" | column {"," column}) FROM table [WHERE expr]
            [GROUP BY path {"," path}]
column    = expr [[AS] name]
expr      = and {OR and};  and = not {AND not};  not = [NOT] compare
compare   = sum [("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") sum | [NOT] (IN | NIN) sum]
sum       = term {("+" | "-") term};  term = factor {("*" | "/" | "%") factor}
factor    = "-" factor | "(" expr ")" | literal | array | function | path
"""

from __future__ import annotations

import dataclasses
from typing import Any

from kvedge.emulator.query.lexing import QueryError, Token, tokenize

__all__ = [
    "AGGREGATES",
    "Aggregate",
    "Array",
    "Binary",
    "Column",
    "IsDefined",
    "Literal",
    "Node",
    "Path",
    "Query",
    "QueryError",
    "Unary",
    "parse_condition",
    "parse_query",
    "paths_of",
    "places",
]

AGGREGATES = ("COUNT", "AVG", "SUM", "MIN", "MAX")
_TABLES = ("devices", "devices.modules", "devices.jobs")
_COMPARISONS = ("=", "!=", "<>", "<", "<=", ">", ">=")
_TEXT_LIMIT = 8192
_DEPTH_LIMIT = 100
_KEYWORDS = frozenset((
    "SELECT", "TOP", "FROM", "WHERE", "GROUP", "BY", "AS", "AND", "OR", "NOT", "IN", "NIN",
    "TRUE", "FALSE", "NULL", "UNDEFINED", "ORDER", "JOIN",
))  # fmt: skip
_CANONICAL = {
    name.lower(): name
    for name in (
        "deviceId", "moduleId", "etag", "deviceEtag", "status", "statusReason", "statusUpdateTime",
        "connectionState", "connectionStateUpdatedTime", "lastActivityTime", "version", "tags",
        "cloudToDeviceMessageCount", "authenticationType", "x509Thumbprint", "modelId",
        "properties", "configurations", "capabilities", "deviceScope", "parentScopes",
    )
}  # fmt: skip
_CANONICAL_INNER = {
    ("properties", "desired"): "desired",
    ("properties", "reported"): "reported",
    ("capabilities", "iotedge"): "iotEdge",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Literal:
    """A number, text, boolean, null (None) or undefined."""

    value: Any
    defined: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """A list of expressions in brackets."""

    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Path:
    """A place in the row, such as `tags.site`."""

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class IsDefined:
    """Whether a place exists, be it null."""

    path: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Unary:
    """`NOT` or `-`."""

    operator: str
    operand: Node


@dataclasses.dataclass(frozen=True, slots=True)
class Binary:
    """Two operands; the operator is in capitals, `<>` is written `!=`."""

    operator: str
    left: Node
    right: Node


@dataclasses.dataclass(frozen=True, slots=True)
class Aggregate:
    """A value of a group of rows."""

    function: str
    argument: Node | None


Node = Literal | Array | Path | IsDefined | Unary | Binary | Aggregate


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One selected value and its name in the answer."""

    value: Node
    name: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A whole query."""

    table: str
    columns: tuple[Column, ...] | None
    """None for `*`."""
    top: int | None = None
    where: Node | None = None
    group_by: tuple[Path, ...] = ()

    @property
    def aggregates(self) -> bool:
        """Tell whether rows are put together."""
        return bool(self.group_by) or any(
            isinstance(column.value, Aggregate) for column in self.columns or ()
        )


def parse_query(text: str) -> Query:
    """Return the tree of a query; raises QueryError."""
    if len(text) > _TEXT_LIMIT:
        raise QueryError(f"The query is longer than {_TEXT_LIMIT} characters.")
    return _Parser(text).query()


def parse_condition(text: str) -> Node:
    """Return the tree of a bare condition; raises QueryError."""
    if len(text) > _TEXT_LIMIT:
        raise QueryError(f"The condition is longer than {_TEXT_LIMIT} characters.")
    parser = _Parser(text)
    node = parser.expression()
    parser.expect_end()
    return node


def paths_of(node: Node) -> list[Path]:
    """Return all places that an expression reads."""
    match node:
        case Path():
            return [node]
        case IsDefined(path):
            return [path]
        case Unary(_, operand):
            return paths_of(operand)
        case Binary(_, left, right):
            return paths_of(left) + paths_of(right)
        case Array(items):
            return [path for item in items for path in paths_of(item)]
        case Aggregate(_, argument):
            return paths_of(argument) if argument is not None else []
        case _:
            return []


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = tokenize(text)
        self._at = 0
        self._depth = 0

    def query(self) -> Query:
        self._expect_word("SELECT")
        top = self._top() if self._take_word("TOP") else None
        columns = None if self._take_sign("*") else self._columns()
        self._expect_word("FROM")
        table = self._table()
        where = self.expression() if self._take_word("WHERE") else None
        group_by: tuple[Path, ...] = ()
        if self._take_word("GROUP"):
            self._expect_word("BY")
            group_by = self._group()
        self.expect_end()
        query = Query(table=table, columns=columns, top=top, where=where, group_by=group_by)
        _check(query)
        return query

    def expression(self) -> Node:
        self._depth += 1
        if self._depth > _DEPTH_LIMIT:
            raise QueryError("The expression is nested too deeply.")
        node = self._conjunction()
        while self._take_word("OR"):
            node = Binary("OR", node, self._conjunction())
        self._depth -= 1
        return node

    def expect_end(self) -> None:
        if self._peek().kind != "end":
            self._fail()

    def _conjunction(self) -> Node:
        node = self._negation()
        while self._take_word("AND"):
            node = Binary("AND", node, self._negation())
        return node

    def _negation(self) -> Node:
        count = 0
        while self._take_word("NOT"):
            count += 1
            if count > _DEPTH_LIMIT:
                raise QueryError("The expression is nested too deeply.")
        node = self._comparison()
        for _ in range(count):
            node = Unary("NOT", node)
        return node

    def _comparison(self) -> Node:
        left = self._sum()
        token = self._peek()
        if token.kind == "sign" and token.value in _COMPARISONS:
            self._at += 1
            operator = "!=" if token.value == "<>" else str(token.value)
            return Binary(operator, left, self._sum())
        if self._take_word("IN"):
            return Binary("IN", left, self._sum())
        if self._take_word("NIN"):
            return Unary("NOT", Binary("IN", left, self._sum()))
        if self._is_word("NOT") and self._is_word("IN", ahead=1):
            self._at += 2
            return Unary("NOT", Binary("IN", left, self._sum()))
        return left

    def _sum(self) -> Node:
        node = self._term()
        while sign := self._take_sign("+", "-"):
            node = Binary(sign, node, self._term())
        return node

    def _term(self) -> Node:
        node = self._factor()
        while sign := self._take_sign("*", "/", "%"):
            node = Binary(sign, node, self._factor())
        return node

    def _factor(self) -> Node:
        token = self._next()
        if token.kind in ("text", "number"):
            return Literal(token.value)
        if token.value == "-" and token.kind == "sign":
            self._depth += 1
            if self._depth > _DEPTH_LIMIT:
                raise QueryError("The expression is nested too deeply.")
            operand = self._factor()
            self._depth -= 1
            if isinstance(operand, Literal) and isinstance(operand.value, int | float):
                return Literal(-operand.value)
            return Unary("-", operand)
        if token.value == "(" and token.kind == "sign":
            node = self.expression()
            self._expect_sign(")")
            return node
        if token.value == "[" and token.kind == "sign":
            return self._array()
        if token.kind == "name":
            return self._named(token)
        self._at -= 1
        return self._fail()

    def _named(self, token: Token) -> Node:
        word = str(token.value).upper()
        literals = {
            "TRUE": Literal(True),
            "FALSE": Literal(False),
            "NULL": Literal(None),
            "UNDEFINED": Literal(None, defined=False),
        }
        if word in literals:
            return literals[word]
        if self._peek().value == "(" and self._peek().kind == "sign":
            return self._call(token, word)
        if word in _KEYWORDS:
            self._at -= 1
            return self._fail()
        return self._path(token)

    def _call(self, token: Token, word: str) -> Node:
        self._at += 1
        if word == "IS_DEFINED":
            path = self._path(self._next())
            self._expect_sign(")")
            return IsDefined(path)
        if word not in AGGREGATES:
            raise QueryError(
                f"Function {token.value!r} at position {token.at} is not supported in this query."
            )
        argument = None
        if not self._take_sign(")"):
            argument = self.expression()
            self._expect_sign(")")
        if argument is None and word != "COUNT":
            raise QueryError(f"{word} at position {token.at} needs an argument.")
        return Aggregate(word, argument)

    def _array(self) -> Array:
        items: list[Node] = []
        if self._take_sign("]"):
            return Array(())
        while True:
            items.append(self.expression())
            if self._take_sign("]"):
                return Array(tuple(items))
            self._expect_sign(",")

    def _path(self, token: Token) -> Path:
        if token.kind != "name":
            self._at -= 1
            self._fail()
        names = [str(token.value)]
        while True:
            if self._take_sign("."):
                part = self._next()
                if part.kind not in ("name", "quoted"):
                    self._at -= 1
                    self._fail()
                names.append(str(part.value))
            elif (
                self._peek().value == "["
                and self._peek(1).kind == "text"
                and self._peek(2).value == "]"
            ):
                names.append(str(self._peek(1).value))
                self._at += 3
            else:
                return Path(_canonical(names))

    def _columns(self) -> tuple[Column, ...]:
        columns: list[Column] = []
        while True:
            value = self.expression()
            name = _default_name(value, len(columns))
            if self._take_word("AS") or (
                self._peek().kind == "name" and str(self._peek().value).upper() not in _KEYWORDS
            ):
                name = self._name()
            columns.append(Column(value, name))
            if not self._take_sign(","):
                return tuple(columns)

    def _group(self) -> tuple[Path, ...]:
        paths = [self._path(self._next())]
        while self._take_sign(","):
            paths.append(self._path(self._next()))
        return tuple(paths)

    def _table(self) -> str:
        names = [self._name()]
        while self._take_sign("."):
            names.append(self._name())
        table = ".".join(names).lower()
        if table not in _TABLES:
            raise QueryError(f"Unknown collection {'.'.join(names)!r}.")
        return table

    def _top(self) -> int:
        token = self._next()
        if token.kind != "number" or not isinstance(token.value, int) or token.value < 1:
            raise QueryError("TOP needs a whole number of at least 1.")
        return token.value

    def _name(self) -> str:
        token = self._next()
        if token.kind != "name":
            self._at -= 1
            self._fail()
        return str(token.value)

    def _peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def _next(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _is_word(self, word: str, ahead: int = 0) -> bool:
        token = self._peek(ahead)
        return token.kind == "name" and str(token.value).upper() == word

    def _take_word(self, word: str) -> bool:
        taken = self._is_word(word)
        self._at += taken
        return taken

    def _take_sign(self, *signs: str) -> str:
        token = self._peek()
        if token.kind == "sign" and token.value in signs:
            self._at += 1
            return str(token.value)
        return ""

    def _expect_word(self, word: str) -> None:
        if not self._take_word(word):
            self._fail(word)

    def _expect_sign(self, sign: str) -> None:
        if not self._take_sign(sign):
            self._fail(sign)

    def _fail(self, wanted: str = "") -> Any:
        token = self._peek()
        found = "the end" if token.kind == "end" else repr(str(token.value))
        hint = f", expected {wanted!r}" if wanted else ""
        raise QueryError(f"Unexpected {found} at position {token.at}{hint}.")


def _canonical(names: list[str]) -> tuple[str, ...]:
    """Return the names with the service's own ones in its spelling; they are case-insensitive."""
    names[0] = _CANONICAL.get(names[0].lower(), names[0])
    if len(names) > 1:
        names[1] = _CANONICAL_INNER.get((names[0], names[1].lower()), names[1])
    return tuple(names)


def _default_name(value: Node, index: int) -> str:
    return value.names[-1] if isinstance(value, Path) else f"${index + 1}"


def _check(query: Query) -> None:
    if query.table == "devices.jobs" and (query.columns is not None or query.aggregates):
        raise QueryError("Queries on devices.jobs support only SELECT *.")
    if query.where is not None and _has_aggregate(query.where):
        raise QueryError("Aggregates are not allowed in WHERE.")
    if not query.aggregates:
        if any(_has_aggregate(column.value) for column in query.columns or ()):
            raise QueryError("Aggregates are not allowed inside expressions.")
        return
    if query.columns is None:
        raise QueryError("SELECT * cannot be grouped.")
    for column in query.columns:
        if isinstance(column.value, Aggregate):
            if column.value.argument is not None and _has_aggregate(column.value.argument):
                raise QueryError("Aggregates cannot be nested.")
        elif column.value not in query.group_by:
            raise QueryError(f"Column {column.name!r} is neither grouped nor aggregated.")


def _has_aggregate(node: Node) -> bool:
    match node:
        case Aggregate():
            return True
        case Unary(_, operand):
            return _has_aggregate(operand)
        case Binary(_, left, right):
            return _has_aggregate(left) or _has_aggregate(right)
        case Array(items):
            return any(_has_aggregate(item) for item in items)
        case _:
            return False


def places(node: Node) -> list[tuple[str, ...]]:
    """Return the names of all places that an expression reads."""
    return [path.names for path in paths_of(node)]
