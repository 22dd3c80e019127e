"""Which values fit the contract's type, whatever type the source has; none is changed."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_assets.quality.fitting import as_source, fit
from pipeline_assets.quality.types import (
    UnsupportedTypeError,
    arrow_type,
    is_wider,
    may_misfit,
    normal_type,
    travels_as_text,
)

NAN, INF = float("nan"), float("inf")
NOON = datetime(2026, 1, 7, 12, tzinfo=UTC)
INFINITY, MINUS_INFINITY = -9222425352054775809, -9222425352054775808  # as ADBC wraps them


def fitted(values: pa.Array, physical_type: str) -> tuple[list[Any], list[Any]]:
    """The values that fit, and those that don't, as the source has them."""
    column = pa.chunked_array([values.slice(0, 1), values.slice(1)])
    typed, misfits = fit(column, physical_type)
    assert typed.type == arrow_type(physical_type)
    if misfits is None:
        return typed.drop_null().to_pylist(), []
    assert pc.all(pc.is_null(typed.filter(misfits))).as_py()
    return typed.drop_null().to_pylist(), column.filter(misfits).to_pylist()


@pytest.mark.parametrize(
    ("source", "physical_type", "fits", "misfits"),
    [
        (pa.array([1, -1, None]), "numeric(4,2)", [Decimal("1.00"), Decimal("-1.00")], []),
        (pa.array([100, 99]), "numeric(4,2)", [Decimal("99.00")], [100]),
        (pa.array([0.1 + 0.2, 0.25]), "numeric(4,2)", [Decimal("0.25")], [0.1 + 0.2]),
        (pa.array([1e20, 0.1]), "numeric", ["1e+20", "0.1"], []),
        (pa.array([Decimal("1.50"), Decimal("1.55")]), "numeric(4,1)", [Decimal("1.5")], [Decimal("1.55")]),
        (pa.array(["1.500", "001.5", "+1", "1.505", "", "-", ".", "1e1", "1234e-2", "1e-3"]), "numeric(4,2)",
         [Decimal("1.50"), Decimal("1.50"), Decimal("1.00"), Decimal("10.00"), Decimal("12.34")],
         ["1.505", "", "-", ".", "1e-3"]),
        (pa.array([2**15, -(2**15), None]), "smallint", [-(2**15)], [2**15]),
        (pa.array([1.0, 1.5, NAN, INF]), "bigint", [1], [1.5, NAN, INF]),
        (pa.array([2**53, 2**53 + 1]), "double precision", [2.0**53], [2**53 + 1]),
        (pa.array([0.5, 0.1, 1e300, INF]), "real", [0.5, INF], [0.1, 1e300]),
        (pa.array(["1", "x", "1.0", " 1"]), "integer", [1], ["x", "1.0", " 1"]),
        (pa.array(["true", "f", "no"]), "boolean", [True], ["f", "no"]),
        (pa.array(["2026-01-07", "2026-02-30"]), "date", [date(2026, 1, 7)], ["2026-02-30"]),
        (pa.array(["2026-01-07 12:00:00+01:00", "2026-01-07"]), "timestamptz",
         [datetime(2026, 1, 7, 11, tzinfo=UTC)], ["2026-01-07"]),
        (pa.array([NOON], pa.timestamp("us")), "timestamptz", [NOON], []),
        (pa.array(["abc ", "abcd ", "ab"]), "char(3)", ["abc ", "ab"], ["abcd "]),
        (pa.array(["abc", "abc "]), "varchar(3)", ["abc"], ["abc "]),
        (pa.array(["0B0C9F7E-8F3E-4EC1-A1C5-5D3B8E7F0A01", "{0}"]), "uuid",
         ["0b0c9f7e-8f3e-4ec1-a1c5-5d3b8e7f0a01"], ["{0}"]),
        (pa.array(['{"a":1e999}', '"\\u0000"', "[" * 10**5, "[NaN]"]), "json",
         ['{"a":1e999}', '"\\u0000"'], ["[" * 10**5, "[NaN]"]),
        (pa.array(['"\\\\u0000"', '"\\u0000"', '"\\ud83d\\ude00"', '"\\ude00"']), "jsonb",
         ['"\\\\u0000"', '"\\ud83d\\ude00"'], ['"\\u0000"', '"\\ude00"']),
        (pa.array(["1.23", "12.3", "NaN", "Infinity", "0.123"]), "numeric(39,2)",
         ["1.23", "12.3", "NaN"], ["Infinity", "0.123"]),
        (pa.array([None, None], pa.string()), "numeric(4,2)", [], []),
        (pa.array([], pa.string()), "jsonb", [], []),
    ],
)  # fmt: skip
def test_a_value_fits_if_it_needs_no_change(
    source: pa.Array, physical_type: str, fits: list[Any], misfits: list[Any]
) -> None:
    found = fitted(source, normal_type(physical_type))
    assert [*map(str, found[0])] == [*map(str, fits)]
    assert [*map(str, found[1])] == [*map(str, misfits)]  # as text, because NaN != NaN


@given(
    st.lists(
        st.none()
        | st.decimals(-2000, 2000, places=3).map(str)
        | st.sampled_from(["NaN", "", "Infinity", "x", "1e1", "1234e-2", "5e-3", "0.1e4"]),
        max_size=40,
    ),
    st.integers(0, 40),
)
def test_a_few_misfits_among_many_are_found_alone(texts: list[str | None], cut: int) -> None:
    def exact(text: str | None) -> Decimal | None:
        if text is None or not text[-1:].isdigit():
            return None
        number = Decimal(text)
        return number if abs(number) < 1000 and number == round(number, 2) else None

    column = pa.chunked_array([texts[:cut], texts[cut:]], pa.string())
    typed, misfits = fit(column, "numeric(5,2)")
    assert typed.to_pylist() == [exact(text) for text in texts]
    expected = [text is not None and exact(text) is None for text in texts]
    assert (misfits.to_pylist() if misfits is not None else [False] * len(texts)) == expected


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([INFINITY, MINUS_INFINITY, None, 0], pa.timestamp("us", "UTC")),
         ["infinity", "-infinity", None, "1970-01-01 00:00:00+00"]),
        (pa.array([INFINITY], pa.timestamp("us")), ["infinity"]),
        (pa.array([-62135596800000001], pa.timestamp("us")), ["0001-12-31 23:59:59.999999 BC"]),
        (pa.array([253402300800000000], pa.timestamp("us")), ["10000-01-01 00:00:00"]),
        (pa.array([-2147472692, -2147472691, 2932897], pa.date32()),
         ["infinity", "-infinity", "10000-01-01"]),
        (pa.array([-719163, -2440588], pa.date32()), ["0001-12-31 BC", "4714-11-24 BC"]),
    ],
)  # fmt: skip
def test_moments_outside_the_calendar_are_shown_as_postgresql_writes_them(
    values: pa.Array, texts: list[str]
) -> None:
    assert as_source(pa.chunked_array([values])).to_pylist() == texts


def test_what_a_calendar_has_stays_as_it_is() -> None:
    column = pa.chunked_array([pa.array([0, None], pa.timestamp("us"))])
    assert as_source(column) is column


@pytest.mark.parametrize(
    ("written", "name", "carrier", "text", "misfit"),
    [
        ("VARCHAR(20)", "character varying(20)", pa.string(), False, True),
        ("varchar", "character varying", pa.string(), False, False),
        ("text", "text", pa.string(), False, False),
        ("char", "character(1)", pa.string(), False, True),
        ("decimal(9)", "numeric(9,0)", pa.decimal128(9, 0), False, True),
        ("numeric(14 , 2)", "numeric(14,2)", pa.decimal128(14, 2), False, True),
        ("numeric(39,2)", "numeric(39,2)", pa.string(), True, True),
        ("numeric", "numeric", pa.string(), True, True),
        ("int4", "integer", pa.int32(), False, True),
        ("float4", "real", pa.float32(), False, True),
        ("timestamptz", "timestamp with time zone", pa.timestamp("us", "UTC"), False, True),
        ("Timestamp without time zone", "timestamp without time zone", pa.timestamp("us"), False, True),
        ("time", "time without time zone", pa.string(), True, True),
        ("jsonb", "jsonb", pa.string(), True, True),
        ("bytea", "bytea", pa.binary(), False, False),
    ],
)  # fmt: skip
def test_a_type_has_one_name_and_one_carrier(
    written: str, name: str, carrier: pa.DataType, text: bool, misfit: bool
) -> None:
    assert normal_type(written) == name == normal_type(name)
    assert (arrow_type(name), travels_as_text(name), may_misfit(name)) == (carrier, text, misfit)
    assert not is_wider("smallint", name)


@pytest.mark.parametrize(
    "name", ["money", "interval", "text[]", "int(4)", "", "numeric(-1)", "bit(3)"]
)
def test_a_type_without_a_carrier_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedTypeError, match="physicalType"):
        normal_type(name)
