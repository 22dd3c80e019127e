"""A contract's SQL conditions mean here what they mean in PostgreSQL: both pick the same rows.

Only NaN is left out: PostgreSQL orders it above all numbers, a condition here compares it as IEEE 754 does.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from pipeline_assets.quality.conditions import parse_condition
from pipeline_assets.resources import embedded_postgres

COLUMNS = {
    "n": "integer",
    "big": "bigint",
    "amount": "numeric(14,2)",
    "ratio": "double precision",
    "single": "real",
    "note": "text",
    "code": "character(3)",
    "at": "timestamp with time zone",
    "day": "date",
    "o'clock": "time without time zone",
    "ok": "boolean",
    "ref": "uuid",
}
NOON = datetime(2026, 1, 7, 12, tzinfo=UTC)
UUIDS = "0b0c9f7e-8f3e-4ec1-a1c5-5d3b8e7f0a01", "ffffffff-8f3e-4ec1-a1c5-5d3b8e7f0a01"
# Nulls and the values that decide something; `rows` combines those of any two columns.
VALUES: dict[str, list[Any]] = {
    "n": [None, -1, 0, 3],
    "big": [None, 0, 2**40, 2**53 + 1],
    "amount": [None, Decimal("0.00"), Decimal("1.50"), Decimal("-7.25")],
    "ratio": [None, 0.5, -0.0, float("inf"), 0.3],
    "single": [None, 0.5, 0.3, 16777216.0],
    "note": [None, "", "abc", "it's 100%_", "ÄB"],
    "code": [None, "a  ", "abc"],
    "at": [None, NOON, NOON.replace(day=9)],
    "day": [None, NOON.date(), NOON.date().replace(day=9)],
    "o'clock": [None, "08:00:00", "08:00:00.5", "24:00:00"],
    "ok": [None, True, False],
    "ref": [None, *UUIDS],
}
CONDITIONS = [
    *(f"n {symbol} 0" for symbol in ("=", "<>", "!=", "<", "<=", ">", ">=")),
    *("n = 0 AND amount > 1", "n = 0 OR amount > 1", "NOT (n = 0 OR amount > 1)", "NOT NOT ok"),
    *("n = 0 OR amount > 1 AND ok", "ok AND n = 0 OR NOT ok AND n <> 0", "(ok OR n = 0) AND n = 0"),
    *(
        "n IS NULL",
        "n IS NOT NULL",
        "NOT n IS NULL",
        "ok IS NULL OR ok",
        "ok = TRUE",
        "ok <> (n > 0)",
    ),
    *("n IN (0, 3)", "n NOT IN (0, 3)", "note IN ('abc')", "NOT note IN ('abc', '')"),
    *(
        "n BETWEEN -1 AND 0",
        "n NOT BETWEEN 0 AND 2",
        "amount BETWEEN n AND big",
        "n + 1 BETWEEN 0 AND 1",
    ),
    *(
        "note LIKE 'a%'",
        "note NOT LIKE 'a%'",
        "note LIKE '_b_'",
        "note LIKE '%100\\%\\_'",
        "note LIKE ''",
    ),
    *("length(note) > 2", "lower(note) = 'äb'", "UPPER(note) = 'ABC'", "char_length(note) = 0"),
    *("code = 'a'", "code < 'ab'", "length(code) = 1", "code = note", "code IN ('abc', 'x')"),
    *(
        "amount * 2 = 3",
        "amount * 1.005 > 1.5",
        "amount - n > big",
        "amount + 0.005 = 1.505",
        "-amount > n",
    ),
    *(
        "abs(n) = 1",
        "abs(amount) > 7.24",
        "n - 1 - 1 = 1",
        "n - (1 - 1) = 3",
        "n * big > amount",
        "2 * n + 1 > 1",
    ),
    *("ratio = 0", "ratio > n", "ratio * 2 = 1", "ratio < amount"),
    *("ratio = 0.3", "ratio = '0.3'", "ratio * 3 = 0.9", "ratio = big", "ratio - amount > 0.3"),
    *("single = 0.3", "single = '0.3'", "single > ratio", "single * single = 0.09", "single < big"),
    *("single + 1 = 1.3", "single * amount > n", "0.3 < single"),
    *("at > '2026-01-07 13:00+00'", "at = '2026-01-07 13:00+01:00'", "at >= '2026-01-09 12:00'"),
    *("at + INTERVAL '2 days' > '2026-01-10'", "at - INTERVAL '1 week' < '2026-01-01'"),
    *("at - INTERVAL '36 hours' < '2026-01-06 00:00:01'", "'2026-01-08' < at"),
    *("day = '2026-01-07'", "day > '2026-01-07'", "day IN ('2026-01-07', '2026-01-08')"),
    *("\"o'clock\" = '08:00'", "\"o'clock\" > '08:00:00.499999'", "\"o'clock\" < '08:00:00.50'"),
    *(
        f"ref = '{UUIDS[0]}'",
        f"ref = '{UUIDS[0].upper()}'",
        f"ref < '{UUIDS[1]}'",
        "ref IS NULL",
        "note = 'it''s 100%_'",
        "\"note\" = ''",
    ),
]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Rows with every combination of the values of any two columns."""
    found, base = [], {name: values[1] for name, values in VALUES.items()}
    for first, second in product(VALUES, VALUES):
        if first < second:
            for left, right in product(VALUES[first], VALUES[second]):
                found.append(base | {first: left, second: right})
    return found


@pytest.fixture(scope="module")
def database(
    server: embedded_postgres.Server, rows: list[dict[str, Any]]
) -> Iterator[psycopg.Connection]:
    """The same rows in a real table, for as long as the connection lasts."""
    connection = psycopg.connect(server.url(), autocommit=True, options="-c TimeZone=UTC")
    columns = ", ".join(f'"{name}" {physical_type}' for name, physical_type in COLUMNS.items())
    connection.execute(f"CREATE TEMP TABLE conditions (place int, {columns})")
    with connection.cursor().copy("COPY conditions FROM STDIN") as copy:
        for place, row in enumerate(rows):
            copy.write_row((place, *(row[name] for name in COLUMNS)))
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def table(rows: list[dict[str, Any]]) -> pa.Table:
    carriers = {
        "n": pa.int32(),
        "amount": pa.decimal128(14, 2),
        "single": pa.float32(),
        "at": pa.timestamp("us", "UTC"),
    }
    return pa.table(
        {
            name: pa.chunked_array([pa.array([row[name] for row in rows], carriers.get(name))])
            for name in COLUMNS
        }
    )


@pytest.mark.parametrize("condition", CONDITIONS)
def test_postgresql_picks_the_same_rows(
    condition: str, database: psycopg.Connection, table: pa.Table
) -> None:
    here = parse_condition(condition, COLUMNS).evaluate(table).to_pylist()
    there = database.execute(
        f"SELECT {condition} FROM conditions ORDER BY place".encode()
    ).fetchall()
    assert here == [found for (found,) in there]
