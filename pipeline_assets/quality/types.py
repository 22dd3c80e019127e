"""PostgreSQL types as a contract names them: their Arrow counterpart, and which values fit.

Money stays exact: `numeric` travels as text from the source and becomes an Arrow decimal here, never
a float (pandas alone turned 9007199254740993 into ...992).
"""

import re
from typing import TYPE_CHECKING

from pipeline_assets.failures import PermanentError

if TYPE_CHECKING:
    import pyarrow as pa

ALIASES = {
    "varchar": "character varying",
    "int": "integer",
    "int4": "integer",
    "int8": "bigint",
    "int2": "smallint",
    "bool": "boolean",
    "float8": "double precision",
    "decimal": "numeric",
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp without time zone",
}
SHAPE = re.compile(r"([a-z][a-z0-9 ]*?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?$")
# PostgreSQL's own range begins in 4713 BC (here in microseconds since 1970). ADBC wraps `infinity`
# and `-infinity` to moments far before it, in silence.
EARLIEST_MICROSECOND = -210_866_803_200_000_000


class UnsupportedTypeError(PermanentError):
    """A contract names a physical type that has no counterpart here."""


def normal_type(physical_type: str, column: str) -> str:
    """A type's full PostgreSQL name, e.g. `numeric(14,2)` or `timestamp with time zone`.

    Raises:
        UnsupportedTypeError: naming `column` and the type, when nothing here can carry it.
    """
    base, first, second = _parts(physical_type)
    name = f"{base}({first},{second})" if second else f"{base}({first})" if first else base
    if base not in _ARROW_NAMES:
        raise UnsupportedTypeError(f"{column}: physicalType {physical_type} is not supported")
    return name


def _parts(physical_type: str) -> tuple[str, str | None, str | None]:
    match = SHAPE.match(physical_type.strip().lower())
    base, first, second = match.groups() if match else (physical_type, None, None)
    base = ALIASES.get(base, base)
    return base, first, (second or "0") if base == "numeric" and first else second


_ARROW_NAMES = {
    "text": "string",
    "character varying": "string",
    "smallint": "int16",
    "integer": "int32",
    "bigint": "int64",
    "double precision": "float64",
    "boolean": "bool_",
    "date": "date32",
}
_ARROW_NAMES |= dict.fromkeys(
    ("numeric", "timestamp with time zone", "timestamp without time zone"), ""
)


def arrow_type(physical_type: str) -> "pa.DataType":
    """The Arrow type that carries a PostgreSQL type exactly."""
    import pyarrow as pa

    base, first, second = _parts(physical_type)
    if base == "numeric":
        return pa.decimal128(int(first or 38), int(second or 9))
    if base.startswith("timestamp"):
        return pa.timestamp("us", "UTC" if base.endswith("with time zone") else None)
    kind: pa.DataType = getattr(pa, _ARROW_NAMES[base])()
    return kind


def may_misfit(physical_type: str) -> bool:
    """Whether a value can fail to fit the type; any text is text."""
    base, first, _ = _parts(physical_type)
    return base not in ("text", "boolean", "double precision") and (
        base != "character varying" or first is not None
    )


def fit(
    values: "pa.ChunkedArray", physical_type: str
) -> "tuple[pa.ChunkedArray, pa.ChunkedArray | None]":
    """Cast a source column to its contract's type.

    Returns the typed column, and a mask of the values that don't fit (null in the typed column), or
    None when all do: NaN or too many digits for a `numeric`, an integer out of range, `infinity`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = arrow_type(physical_type)
    base, first, _ = _parts(physical_type)
    misfits = None
    if base == "character varying" and first:
        misfits = pc.greater(pc.utf8_length(values), int(first))
    elif pa.types.is_timestamp(wanted) and values.type == wanted:
        misfits = pc.less(values.cast(pa.int64()), EARLIEST_MICROSECOND)
    else:
        try:
            return values.cast(wanted), None
        except pa.ArrowInvalid:
            misfits = _cast_failures(values, wanted)
    misfits = pc.fill_null(misfits, False)
    if not pc.any(misfits).as_py():
        return values.cast(wanted), None
    return pc.if_else(misfits, pa.scalar(None, values.type), values).cast(wanted), misfits


def _cast_failures(values: "pa.ChunkedArray", wanted: "pa.DataType") -> "pa.ChunkedArray":
    """Which values the cast refuses. Only asked once the cast as a whole has failed."""
    import pyarrow as pa

    def fails(value: object) -> bool:
        try:
            pa.scalar(value, values.type).cast(wanted)
        except pa.ArrowInvalid:
            return True
        return False

    return pa.chunked_array([[fails(value) for value in values.to_pylist()]])
