"""Convert a source's values to the contract's types, and tell which of them don't fit.

Nothing is rounded or truncated: `numeric` comes as text and becomes an exact decimal, and a value that
would have to change is a misfit. Conditions beyond the type are left to the rules.
"""

import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from pipeline_assets.quality.types import (
    NUMBER,
    arrow_type,
    family,
    is_long_number,
    parts,
    unpadded,
)

if TYPE_CHECKING:
    import pyarrow as pa

# The years 1 to 9999, which Python's and pandas' calendars cover, in microseconds and days since 1970.
# ADBC silently wraps `infinity` and `-infinity` to moments far before them.
_DAYS = (date.min - date(1970, 1, 1)).days, (date.max - date(1970, 1, 1)).days
_MICROSECONDS_A_DAY = 86_400_000_000
_MICROSECONDS = _DAYS[0] * _MICROSECONDS_A_DAY, (_DAYS[1] + 1) * _MICROSECONDS_A_DAY - 1
# PostgreSQL counts from 2000: the values to which its infinities, the 64- and 32-bit extremes, wrap.
_INFINITIES = {
    64: {(946_684_800_000_000 + end + 2**63) % 2**64 - 2**63 for end in (2**63 - 1, -(2**63))},
    32: {(10_957 + end + 2**31) % 2**32 - 2**31 for end in (2**31 - 1, -(2**31))},
}

_EARLIEST = -210_866_803_200_000_000  # microseconds: 4713 BC, where PostgreSQL's range begins

_UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_FORMS = {
    "time without time zone": r"^(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?|24:00:00)$",
    "numeric": NUMBER,
}


def fit(
    values: "pa.ChunkedArray", physical_type: str
) -> "tuple[pa.ChunkedArray, pa.ChunkedArray | None]":
    """Turn a source column into its contract's type, without changing a value.

    Returns the column as `arrow_type`, and a mask of the misfits (null in the column), or None if there
    are none. Misfits are: NaN or too many digits for a `numeric(p,s)`, an integer out of range, a moment
    that is infinite or outside the years 1 to 9999, text that is too long or malformed.

    Raises:
        pa.ArrowNotImplementedError: the source's type can't become the contract's at all.
    """
    import pyarrow.compute as pc

    wanted, source = arrow_type(physical_type), values
    if outside := _outside_calendar(values):
        values = _keep(pc.invert(outside[0]), values)
    typed = values if values.type == wanted else _cast(values, wanted)
    form = _form(physical_type)
    typed = form(typed) if form else typed
    if typed.null_count == source.null_count:
        return typed, None
    return typed, pc.and_(pc.is_valid(source), pc.is_null(typed))


def _keep(fits: "pa.ChunkedArray", values: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """The values that fit, null in place of the others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(fits, values, pa.scalar(None, values.type))


def _outside_calendar(values: "pa.ChunkedArray") -> "tuple[pa.ChunkedArray] | None":
    """Mask of dates and moments outside the calendar, or None (a tuple: an array has no truth value)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(values.type) and values.type.unit == "us":
        numbers, (first, last) = values.cast(pa.int64()), _MICROSECONDS
    elif pa.types.is_date32(values.type):
        numbers, (first, last) = values.cast(pa.int32()), _DAYS
    else:
        return None
    ends = pc.min_max(numbers).as_py()
    if ends["min"] is None or (first <= ends["min"] and ends["max"] <= last):
        return None
    return (pc.or_(pc.less(numbers, first), pc.greater(numbers, last)),)


def _cast(values: "pa.ChunkedArray", wanted: "pa.DataType") -> "pa.ChunkedArray":
    """Values in another Arrow type, null where one has no exact counterpart there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def is_number(kind: "pa.DataType") -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))

    if is_number(values.type) and (is_number(wanted) or pa.types.is_boolean(wanted)):
        typed = values.cast(wanted, safe=False)
        back = typed.cast(values.type, safe=False)
        same = pc.equal(back, values)
        if pa.types.is_floating(values.type) and pa.types.is_floating(wanted):
            same = pc.or_(same, pc.is_nan(values))
        return _keep(same, typed)
    if pa.types.is_timestamp(values.type) and pa.types.is_date32(wanted):
        typed = values.cast(wanted)
        midnight = typed.cast(pa.timestamp("us")).cast(pa.int64())
        return _keep(pc.equal(midnight, values.cast(pa.int64())), typed)
    if pa.types.is_string(values.type) and pa.types.is_floating(wanted):
        numbers = _matching(NUMBER, values)
        typed = pa.chunked_array(_cast_pieces(numbers, wanted), wanted)
        return _keep(_same_numbers(numbers, typed), typed)
    if is_number(values.type) and pa.types.is_decimal(wanted):
        # Arrow would round a float, and refuses an integer whose type could be too wide.
        values = values.cast(pa.string())
    try:
        return values.cast(wanted)
    except pa.ArrowInvalid:
        if pa.types.is_decimal(wanted) and pa.types.is_string(values.type):
            whole = wanted.precision - wanted.scale
            # A whole column may be too long: one pass finds these, except exponents, which the cast handles.
            form = rf"^[-+]?0*[0-9]{{0,{whole}}}(\.[0-9]{{0,{wanted.scale}}}0*)?$|[0-9.][eE]"
            values = _keep(pc.match_substring_regex(values, form), values)
        return pa.chunked_array(_cast_pieces(values, wanted), wanted)


def _same_numbers(texts: "pa.ChunkedArray", floats: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """Where a text has the same number as the float's shortest unambiguous form: '0.1' does."""
    import pyarrow as pa

    def same(text: str | None, shown: str | None) -> bool:
        if text is None or shown is None:
            return False
        number, kept = Decimal(text), Decimal(shown)
        return number == kept or (number.is_nan() and kept.is_nan())

    pairs = zip(texts.to_pylist(), floats.cast(pa.string()).to_pylist(), strict=True)
    return pa.chunked_array([[same(*pair) for pair in pairs]], pa.bool_())


def _cast_pieces(values: "pa.ChunkedArray", wanted: "pa.DataType") -> "list[pa.Array]":
    """Cast in halves until each value that can't be cast is alone: cheap as long as these are few."""
    import pyarrow as pa

    try:
        return list(values.cast(wanted).chunks)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return [pa.nulls(1, wanted)]
        half = len(values) // 2
        return [*_cast_pieces(values[:half], wanted), *_cast_pieces(values[half:], wanted)]


def _form(physical_type: str) -> "Callable[[pa.ChunkedArray], pa.ChunkedArray] | None":
    """A filter that nulls texts PostgreSQL wouldn't accept as the type; None if none is needed."""
    import pyarrow.compute as pc

    base, first, second = parts(physical_type)
    if base == "uuid":
        return lambda texts: _matching(_UUID, pc.utf8_lower(texts))
    if base in _FORMS and first is None:
        return lambda texts: _matching(_FORMS[base], texts)
    if base in _TESTS:
        return lambda texts: _passing(_TESTS[base], texts)
    if is_long_number(physical_type) and first is not None:
        whole, fraction = rf"(?=\.?\d)0*\d{{0,{first - (second or 0)}}}", rf"\d{{0,{second}}}0*"
        digits = re.compile(rf"[-+]?{whole}(\.{fraction})?|NaN")
        return lambda texts: _passing(lambda text: digits.fullmatch(text) is not None, texts)
    if family(physical_type) == "text" and first is not None:
        return lambda texts: _keep(
            pc.less_equal(pc.utf8_length(unpadded(texts, physical_type)), first), texts
        )
    return None


def _matching(form: str, texts: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow.compute as pc

    return _keep(pc.match_substring_regex(texts, form), texts)


def _passing(test: Callable[[str], bool], texts: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow as pa

    passed = [text is not None and test(text) for text in texts.to_pylist()]
    return _keep(pa.chunked_array([passed], pa.bool_()), texts)


def _refuse(word: str) -> float:
    raise ValueError(f"JSON has no {word}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return True


def _is_jsonb(text: str) -> bool:
    """Whether a text is JSON without what `jsonb` can't store: NUL and halves of surrogate pairs."""
    if not _is_json(text):
        return False
    if "\\u" not in text:
        return True
    strings: list[str] = re.findall(r'"(?:[^"\\]|\\.)*"', text)
    return not any(
        letter == "\0" or "\ud800" <= letter <= "\udfff"
        for string in strings
        for letter in json.loads(string)
    )


_TESTS: dict[str, Callable[[str], bool]] = {"json": _is_json, "jsonb": _is_jsonb}


def as_source(values: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """A source column, as text if it holds moments that Arrow's consumers can't represent."""
    import pyarrow as pa

    if _outside_calendar(values) is None:
        return values
    days = pa.types.is_date32(values.type)
    numbers = values.cast(pa.int32() if days else pa.int64()).to_pylist()
    zone = "" if days or values.type.tz is None else "+00"
    return pa.chunked_array([[_moment(number, days, zone) for number in numbers]], pa.string())


def _moment(number: int | None, days: bool, zone: str) -> str | None:
    """Days or microseconds since 1970 as PostgreSQL writes them."""
    if number is None:
        return None
    wrapped = _INFINITIES[32 if days else 64]
    if number in wrapped:
        return "-infinity" if number == max(wrapped) else "infinity"
    if not days and number < _EARLIEST:  # the years from 294247 on wrap too
        number += 2**64
    # The calendar repeats every 400 years: any year is one that Python has, plus some cycles.
    cycle = 146_097 * _MICROSECONDS_A_DAY
    cycles, rest = divmod(number * (_MICROSECONDS_A_DAY if days else 1), cycle)
    moment = datetime(1970, 1, 1) + timedelta(microseconds=rest)  # noqa: DTZ001 - the zone is written below
    year = moment.year + 400 * cycles
    era = "" if year > 0 else " BC"
    text = moment.isoformat(" ")[5:10] if days else moment.isoformat(" ")[5:]
    return f"{year if year > 0 else 1 - year:04}-{text}{zone}{era}"
