"""The conditions of a contract's SQL rules: parsed when the contract is read, run on Arrow columns.

Conditions on rows need only a small part of SQL: comparisons, `AND`, `OR`, `NOT`, `IS NULL`, `IN`,
`BETWEEN`, `LIKE`, `+ - *`, a few functions, intervals. Anything else, an unknown column, a type that
can't be compared or more digits than Arrow has are refused while definitions load; an embedded database
would report it only once there are rows, costs every process 0.07 to 0.2 s of import, and (DuckDB 1.5 and
2.0) has no time zones without a download. The semantics are PostgreSQL's: a comparison with NULL is
neither true nor false. Three things differ: a float's NaN is neither equal to, above nor below anything
here, text is ordered by its bytes, as in PostgreSQL's collation `C`, and `IN` with several numbers is
the same as `=` with each, where PostgreSQL makes them all `real` for a `real`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pipeline_assets.quality import types

if TYPE_CHECKING:
    import pyarrow as pa

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|'(?P<string>(?:[^']|'')*)'|"(?P<quoted>(?:[^"]|"")+)"
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<symbol><=|>=|<>|!=|[-+*(),<>=]))""",
    re.VERBOSE,
)
_COMPARISONS = {
    "=": "equal",
    "<>": "not_equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_ARITHMETIC = {"+": "add_checked", "-": "subtract_checked", "*": "multiply_checked"}
_FUNCTIONS: Mapping[str, tuple[str, str, str]] = {
    # name: kind of its argument, Arrow's function, kind of its result
    "length": ("text", "utf8_length", "number"),
    "char_length": ("text", "utf8_length", "number"),
    "lower": ("text", "utf8_lower", "text"),
    "upper": ("text", "utf8_upper", "text"),
    "abs": ("number", "abs_checked", "number"),
}
_UNITS = ("second", "minute", "hour", "day", "week")
# JSON and long numbers stay text here, which orders and equates differently; `bytea` is written escaped.
_INCOMPARABLE = ("json", "numeric", "bytea")
_RESERVED = {"and", "or", "not", "is", "in", "between", "like", "null", "interval", "true", "false"}

MOST_TOKENS = 300
"""Most tokens of a condition; each may nest its evaluation by two calls, of Python's 1,000."""
MOST_DIGITS = 18
"""Most digits of a number in a condition: what a 64-bit integer holds."""

Evaluate = Callable[["pa.Table"], Any]
Digits = tuple[int, int | None] | None
"""Digits and scale of an exact number, no scale for a whole one; None for a float and all else."""
# As many as Arrow reserves where a whole number meets a decimal.
_WHOLE: Mapping[str, Digits] = {"smallint": (5, None), "integer": (10, None), "bigint": (19, None)}


@dataclass(frozen=True)
class Condition:
    """A condition on the rows of a table: the columns that it names, and how to run it."""

    columns: tuple[str, ...]
    evaluate: Evaluate
    """Typed table -> boolean array; null where the condition is neither true nor false."""


@dataclass(frozen=True)
class _Term:
    """Part of a condition: the kind of its value, and how to evaluate it."""

    kind: str
    evaluate: Evaluate
    text: str | None = None
    """A string constant's text, until the other operand determines the kind of its value."""
    physical_type: str = ""
    """A column's type: string constants are read as values of it."""
    digits: Digits = None


def parse_condition(text: str, columns: Mapping[str, str]) -> Condition:
    """Read a condition on a table with these columns (name -> physical type).

    Raises:
        ValueError: it isn't in the supported part of SQL, names no column of the table, compares what
            can't be compared, or calculates with too many digits; the message says what.
    """
    parser = _Parser(text, columns)
    try:
        term = parser.disjunction()
    except (RecursionError, OverflowError):
        raise ValueError("it is nested too deep, or has too large a number") from None
    parser.end()
    if term.kind != "boolean":
        raise ValueError(f"it is a {term.kind}, not a condition")
    if not parser.named:
        raise ValueError("it names no column")
    return Condition(tuple(dict.fromkeys(parser.named)), term.evaluate)


class _Parser:
    """Recursive descent over the tokens, one method a level of precedence."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.named: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.position = 0
        text, place = text.rstrip(), 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if not match:
                raise ValueError(f"can't read {text[place:].strip()[:20]!r}")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match[kind]))
            if len(self.tokens) > MOST_TOKENS:
                raise ValueError(f"it has more than {MOST_TOKENS} words and signs")
            place = match.end()

    def take(self, *wanted: str) -> str | None:
        """The next token in lower case, if it is one of these words or symbols."""
        if self.position < len(self.tokens):
            kind, value = self.tokens[self.position]
            if kind in ("word", "symbol") and value.lower() in wanted:
                self.position += 1
                return value.lower()
        return None

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise ValueError(f"expected {wanted.upper()} {self.where()}")

    def where(self) -> str:
        rest = " ".join(value for _, value in self.tokens[self.position : self.position + 4])
        return f"before {rest!r}" if rest else "at the end"

    def end(self) -> None:
        if self.position < len(self.tokens):
            raise ValueError(f"can't go on {self.where()}")

    def disjunction(self) -> _Term:
        term = self.conjunction()
        while self.take("or"):
            term = _logical("or_kleene", term, self.conjunction())
        return term

    def conjunction(self) -> _Term:
        term = self.negation()
        while self.take("and"):
            term = _logical("and_kleene", term, self.negation())
        return term

    def negation(self) -> _Term:
        return _logical("invert", self.negation()) if self.take("not") else self.predicate()

    def predicate(self) -> _Term:
        term = self.sum()
        if symbol := self.take(*_COMPARISONS):
            return _compare(_COMPARISONS[symbol], term, self.sum())
        if self.take("is"):
            negated = self.take("not")
            self.expect("null")
            return _call("is_valid" if negated else "is_null", "boolean", term)
        negated = self.take("not")
        if self.take("in"):
            found = self.membership(term)
        elif self.take("between"):
            low = self.sum()
            self.expect("and")
            above = _compare("greater_equal", term, low)
            found = _logical("and_kleene", above, _compare("less_equal", term, self.sum()))
        elif self.take("like"):
            found = self.likeness(term)
        elif negated:
            raise ValueError(f"expected IN, BETWEEN or LIKE {self.where()}")
        else:
            return term
        return _logical("invert", found) if negated else found

    def membership(self, term: _Term) -> _Term:
        self.expect("(")
        found = _compare("equal", term, self.sum())
        while self.take(","):
            found = _logical("or_kleene", found, _compare("equal", term, self.sum()))
        self.expect(")")
        return found

    def likeness(self, term: _Term) -> _Term:
        pattern = self.factor()
        if term.kind != "text" or pattern.text is None:
            raise ValueError("LIKE compares text with a constant")
        if types.parts(term.physical_type)[0] == "character":
            raise ValueError("LIKE sees the padding of a char(n), which is not there any more")

        def evaluate(table: "pa.Table") -> Any:
            import pyarrow.compute as pc

            return pc.match_like(term.evaluate(table), pattern.text)

        return _Term("boolean", evaluate)

    def sum(self) -> _Term:
        term = self.product()
        while symbol := self.take("+", "-"):
            term = _calculate(symbol, term, self.product())
        return term

    def product(self) -> _Term:
        term = self.factor()
        while self.take("*"):
            term = _calculate("*", term, self.factor())
        return term

    def factor(self) -> _Term:
        if self.take("("):
            term = self.disjunction()
            self.expect(")")
            return term
        if self.take("-"):
            return _calculate("-", _constant("number", 0), self.factor())
        if self.position == len(self.tokens):
            raise ValueError("it ends too early")
        return self.value()

    def value(self) -> _Term:
        kind, value = self.tokens[self.position]
        self.position += 1
        if kind == "number":
            if len(value.replace(".", "")) > MOST_DIGITS:
                raise ValueError(f"{value[:MOST_DIGITS]}... has more than {MOST_DIGITS} digits")
            return _constant("number", Decimal(value) if "." in value else int(value))
        if kind == "string":
            return _string(value.replace("''", "'"))
        if kind == "quoted":
            return self.column(value.replace('""', '"'))
        word = value.lower()
        if word in ("true", "false"):
            return _constant("boolean", word == "true")
        if word == "interval":
            return self.interval()
        if kind == "symbol" or word in _RESERVED:
            self.position -= 1
            raise ValueError(f"expected a value {self.where()}")
        return self.function(word) if self.take("(") else self.column(word)

    def column(self, name: str) -> _Term:
        if name not in self.columns:
            raise ValueError(f"{name} is no source column of the table")
        physical_type = self.columns[name]
        kind: str = types.family(physical_type)
        if kind in ("moment", "other") or types.is_long_number(physical_type):
            kind = physical_type  # nothing else compares with it
        self.named.append(name)
        base, digits, scale = types.parts(physical_type)
        return _Term(
            kind,
            lambda table: types.unpadded(table[name], physical_type),
            physical_type=physical_type,
            digits=(digits, scale) if base == "numeric" and digits else _WHOLE.get(base),
        )

    def function(self, name: str) -> _Term:
        if name not in _FUNCTIONS:
            raise ValueError(f"{name}() isn't one of {', '.join(_FUNCTIONS)}")
        takes, function, gives = _FUNCTIONS[name]
        term = self.sum()
        self.expect(")")
        if term.kind != takes:
            raise ValueError(f"{name}() takes a {takes}, not a {term.kind}")
        counted = (takes, gives) == ("text", "number")
        digits = _WHOLE["integer"] if counted else term.digits
        return _call(function, gives, term, digits=digits)

    def interval(self) -> _Term:
        term = self.factor()
        number, _, unit = (term.text or "").strip().partition(" ")
        unit = unit.lower().removesuffix("s")
        if not number.isdecimal() or unit not in _UNITS:
            raise ValueError(f"an interval is a number of {', '.join(f'{u}s' for u in _UNITS)}")
        return _constant("interval", timedelta(**{f"{unit}s": int(number)}))


def _constant(kind: str, value: Any, physical_type: str = "") -> _Term:
    def evaluate(_: "pa.Table") -> Any:
        import pyarrow as pa

        return pa.scalar(value, types.arrow_type(physical_type) if physical_type else None)

    return _Term(kind, evaluate, digits=_digits(value))


def _digits(constant: Any) -> Digits:
    """The digits of a constant, as Arrow counts them."""
    if not isinstance(constant, Decimal):
        return _WHOLE["bigint"] if type(constant) is int else None
    _, digits, exponent = constant.as_tuple()
    scale = max(-int(exponent), 0)
    return _limited("a number", max(len(digits) + int(exponent) + scale, scale), scale)


def _string(text: str) -> _Term:
    term = _constant("text", text)
    return _Term(term.kind, term.evaluate, text=text)


def _call(function: str, kind: str, *terms: _Term, digits: Digits = None) -> _Term:
    def evaluate(table: "pa.Table") -> Any:
        import pyarrow.compute as pc

        return getattr(pc, function)(*(term.evaluate(table) for term in terms))

    return _Term(kind, evaluate, digits=digits)


def _logical(function: str, *terms: _Term) -> _Term:
    for term in terms:
        if term.kind != "boolean":
            raise ValueError(f"AND, OR and NOT join conditions, not a {term.kind}")
    return _call(function, "boolean", *terms)


def _compare(function: str, left: _Term, right: _Term) -> _Term:
    left, right = _read(left, right), _read(right, left)
    if left.kind != right.kind or left.kind.startswith(_INCOMPARABLE):
        raise ValueError(f"a {left.kind} can't be compared with a {right.kind}")
    left, right = _beside_floats(left, right)
    _promoted("a comparison", left.digits, right.digits)
    return _call(function, "boolean", left, right)


def _beside_floats(left: _Term, right: _Term) -> tuple[_Term, _Term]:
    """Two terms, an exact number among them in double precision if the other is a float.

    Arrow would make a whole number beside a `real` a `real`, and converts decimals inexactly: its 0.3 is
    another double than PostgreSQL's.
    """
    if left.kind == right.kind == "number" and bool(left.digits) != bool(right.digits):
        return (_double(left), right) if left.digits else (left, _double(right))
    return left, right


def _double(term: _Term) -> _Term:
    def evaluate(table: "pa.Table") -> Any:
        import pyarrow as pa

        values = term.evaluate(table)
        exact = values.cast(pa.string()) if pa.types.is_decimal(values.type) else values
        return exact.cast(pa.float64(), safe=False)  # a long number is rounded, as in PostgreSQL

    return replace(term, evaluate=evaluate, digits=None)


def _promoted(what: str, left: Digits, right: Digits) -> Digits:
    """The digits that Arrow needs to compare two numbers or calculate with them, whatever their values."""
    if left is None or right is None:
        return None
    if left[1] is None and right[1] is None:
        return max(left[0], right[0]), None
    scales = left[1] or 0, right[1] or 0
    if what == "*":
        return _limited(what, left[0] + right[0] + 1, sum(scales))
    whole, carry = max(left[0] - scales[0], right[0] - scales[1]), what in _ARITHMETIC
    return _limited(what, whole + max(scales) + carry, max(scales))


def _limited(what: str, digits: int, scale: int) -> Digits:
    if digits > types.LONGEST_DECIMAL:
        raise ValueError(f"{what} needs {digits} digits; {types.LONGEST_DECIMAL} are the most")
    return digits, scale


def _read(term: _Term, other: _Term) -> _Term:
    """A string constant as a value of the column that it is compared with."""
    if term.text is None or other.kind == "text" or not other.physical_type:
        return term
    value = types.constant(term.text, other.physical_type)
    if other.physical_type == "uuid":
        value = str(UUID(value))
    if other.kind == "number" and not other.digits:
        return _constant(other.kind, float(value), other.physical_type)
    return _constant(other.kind, types.comparable(value))


def _calculate(symbol: str, left: _Term, right: _Term) -> _Term:
    kinds = left.kind, right.kind
    if kinds == ("number", "number"):
        kind = "number"
    elif symbol != "*" and left.kind.startswith("timestamp") and right.kind == "interval":
        kind = left.kind
    elif symbol == "-" and left.kind.startswith("timestamp") and left.kind == right.kind:
        kind = "interval"
    else:
        raise ValueError(f"{left.kind} {symbol} {right.kind} is not supported")
    left, right = _beside_floats(left, right)
    digits = _promoted(symbol, left.digits, right.digits)
    calculated = _call(_ARITHMETIC[symbol], kind, left, right, digits=digits)
    return replace(calculated, physical_type=left.physical_type if kind == left.kind else "")
