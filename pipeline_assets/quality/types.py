"""PostgreSQL types as a contract names them: their Arrow counterpart, and how their values compare.

Money is an Arrow decimal, never a float (pandas alone turned 9007199254740993 into ...992). A type
without an exact Arrow counterpart stays text until PostgreSQL casts it, on load. `fitting` tells which
of a source's values fit a type.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

ALIASES = {
    "varchar": "character varying",
    "char": "character",
    "bpchar": "character",
    "int": "integer",
    "int4": "integer",
    "int8": "bigint",
    "int2": "smallint",
    "bool": "boolean",
    "float4": "real",
    "float8": "double precision",
    "float": "double precision",
    "decimal": "numeric",
    "time": "time without time zone",
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp without time zone",
}
SHAPE = re.compile(r"([a-z][a-z0-9 ]*?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?$")

Family = Literal["text", "number", "moment", "date", "time", "boolean", "other"]
"""Groups of types whose values compare with each other and with the same kind of constants."""

_FAMILIES: dict[str, Family] = {
    "text": "text",
    "character varying": "text",
    "character": "text",
    "uuid": "other",
    "json": "other",
    "jsonb": "other",
    "bytea": "other",
    "smallint": "number",
    "integer": "number",
    "bigint": "number",
    "numeric": "number",
    "real": "number",
    "double precision": "number",
    "boolean": "boolean",
    "date": "date",
    "time without time zone": "time",
    "timestamp with time zone": "moment",
    "timestamp without time zone": "moment",
}
_ARROW_NAMES = {
    "smallint": "int16",
    "integer": "int32",
    "bigint": "int64",
    "real": "float32",
    "double precision": "float64",
    "boolean": "bool_",
    "date": "date32",
    "bytea": "binary",
}
_PARAMETERS = {"character varying": 1, "character": 1, "numeric": 2}
LONGEST_DECIMAL = 38
"""Digits of Arrow's 128-bit decimal; pandas and binary COPY support no wider one."""
MOST_DIGITS = 1000
"""The highest precision that PostgreSQL allows in a `numeric(p,s)`."""

NUMBER = r"^([-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?|NaN|-?Infinity)$"


class UnsupportedTypeError(ValueError):
    """A physical type that nothing here can carry."""


def normal_type(physical_type: str) -> str:
    """A type's full PostgreSQL name, e.g. `numeric(14,2)` or `timestamp with time zone`.

    Raises:
        UnsupportedTypeError: nothing here can carry it.
    """
    base, *numbers = parts(physical_type)
    parameters = [number for number in numbers if number is not None]
    if base not in _FAMILIES or len(parameters) > _PARAMETERS.get(base, 0):
        raise UnsupportedTypeError(f"physicalType {physical_type} is not supported")
    if base == "numeric" and parameters:
        digits, scale = parameters
        if not scale <= digits <= MOST_DIGITS or not digits:
            raise UnsupportedTypeError(f"physicalType {physical_type} has no such digits")
    return f"{base}({','.join(map(str, parameters))})" if parameters else base


@cache
def parts(physical_type: str) -> tuple[str, int | None, int | None]:
    """A type's full name without its parameters, and the parameters."""
    match = SHAPE.match(physical_type.strip().lower())
    if not match:
        return physical_type, None, None
    base = ALIASES.get(match[1], match[1])
    first, second = (int(number) if number else None for number in match.groups()[1:])
    if base == "character":
        first = 1 if first is None else first
    if base == "numeric" and first is not None:
        second = second or 0
    return base, first, second


def family(physical_type: str) -> Family:
    """What the type's values can be compared with."""
    return _FAMILIES[parts(physical_type)[0]]


def travels_as_text(physical_type: str) -> bool:
    """Whether Arrow has no exact counterpart, so that the text goes from database to database."""
    base, digits, _ = parts(physical_type)
    return base in ("uuid", "json", "jsonb", "time without time zone") or (
        base == "numeric" and (digits is None or digits > LONGEST_DECIMAL)
    )


def arrow_type(physical_type: str) -> "pa.DataType":
    """The Arrow type that carries a PostgreSQL type exactly; `string` where there is none."""
    import pyarrow as pa

    base, first, second = parts(physical_type)
    if travels_as_text(physical_type) or family(physical_type) == "text":
        return pa.string()
    if base == "numeric":
        return pa.decimal128(first, second)
    if base.startswith("timestamp"):
        return pa.timestamp("us", "UTC" if base.endswith("with time zone") else None)
    carrier: pa.DataType = getattr(pa, _ARROW_NAMES[base])()
    return carrier


def is_wider(new: str, old: str) -> bool:
    """Whether a column of the type `old` can become `new` without changing a value."""
    new_base, new_first, new_second = parts(new)
    old_base, old_first, old_second = parts(old)
    if new_base == old_base == "numeric":
        if new_first is None or old_first is None:
            return new_first is None
        fraction = (new_second or 0) - (old_second or 0)
        return fraction >= 0 and new_first - old_first >= fraction
    if old_base == "character varying" and new_base in ("character varying", "text"):
        return new_first is None or (old_first is not None and new_first >= old_first)
    return (old_base, new_base) in {
        ("text", "character varying" if new_first is None else ""),
        ("smallint", "integer"),
        ("smallint", "bigint"),
        ("integer", "bigint"),
        ("real", "double precision"),
    }


def may_misfit(physical_type: str) -> bool:
    """Whether a value can fail to fit the type; any text is text."""
    base, first, _ = parts(physical_type)
    return base not in ("text", "bytea") and (base != "character varying" or first is not None)


def constant(value: object, physical_type: str) -> Any:
    """A constant of a contract as a value of a column's type.

    Text for a text column, `Decimal` for a number, else `datetime`, `date`, `time` or `bool`; a moment
    without a zone is UTC where the column has zones.

    Raises:
        ValueError: it isn't a value of that type.
    """
    accepted, parse = _CONSTANTS[family(physical_type)]
    # In Python a bool is an int, and in YAML an unquoted date or moment is no text.
    if not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool):
        raise ValueError(f"{value!r} is no {physical_type}")
    parsed = parse(str(value))
    if family(physical_type) == "moment":
        zoned = physical_type.endswith("with time zone")
        if parsed.tzinfo is None:
            return parsed.replace(tzinfo=UTC) if zoned else parsed
        if not zoned:
            raise ValueError(f"{value!r} has a zone, and {physical_type} has none")
        return parsed.astimezone(UTC)
    return parsed


def _decimal(text: str) -> Decimal:
    number = Decimal(text) if re.match(NUMBER, text) else None
    if number is None or not number.is_finite():
        raise ValueError(f"{text!r} is no number")
    return number


_CONSTANTS: dict[Family, tuple[Any, Callable[[str], Any]]] = {
    "text": (str, str),
    "other": (str, str),
    "boolean": (bool, "True".__eq__),
    "number": (int | float | str, _decimal),
    "moment": (str | date, datetime.fromisoformat),
    "date": (str | date, date.fromisoformat),
    "time": (str, time.fromisoformat),
}


def unpadded(texts: "pa.ChunkedArray", physical_type: str) -> "pa.ChunkedArray":
    """Text as PostgreSQL compares and measures it: without the padding of a `char(n)`."""
    import pyarrow.compute as pc

    return pc.utf8_rtrim(texts, " ") if parts(physical_type)[0] == "character" else texts


def is_long_number(physical_type: str) -> bool:
    """Whether values are numbers that only text carries: to be compared as `Decimal`."""
    return family(physical_type) == "number" and travels_as_text(physical_type)


def may_be_nan(physical_type: str) -> bool:
    """Whether a value that fits the type can be NaN."""
    is_float = parts(physical_type)[0] in ("real", "double precision")
    return is_float or is_long_number(physical_type)


def comparable(constant: Any) -> Any:
    """A `constant` as Arrow compares it with its column: a time of day is text there."""
    if not isinstance(constant, time):
        return constant
    text = constant.isoformat()
    return text.rstrip("0") if constant.microsecond else text


def texts(constants: tuple[Any, ...]) -> "pa.Array":
    """Constants as a column of text, as a source could have them."""
    import pyarrow as pa

    return pa.array([str(comparable(value)) for value in constants])


def equal_values(values: "pa.ChunkedArray", physical_type: str) -> list[Any]:
    """A typed column as Python values that are equal where PostgreSQL says so, but for NaN."""
    if is_long_number(physical_type):
        return [text if text is None else Decimal(text) for text in values.to_pylist()]
    listed: list[Any] = unpadded(values, physical_type).to_pylist()
    return listed
