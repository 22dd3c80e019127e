"""A table of every type and every kind of rule, the values that spoil it, and its rules in plain SQL.

`VIOLATIONS` and `BOUNDS` restate in PostgreSQL's SQL what the contract says in ODCS: they are written by
hand from the contract's meaning, without any code of the package.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from pipeline_assets.quality.contract import Contract
from pipeline_assets_tests.conftest import FIRST_DAY
from pipeline_assets_tests.contracts import contract

UUIDS = [f"00000000-0000-0000-0000-0000000000{number}" for number in (10, 11, 12)]
BIG = "1" + "0" * 40


@dataclass(frozen=True)
class Column:
    """A column: its type by the contract, its type in the source, and its values there as text."""

    name: str
    physical_type: str
    source_type: str
    good: list[str]
    odd: list[str]
    """Values on either side of each limit."""
    rules: dict[str, Any] = field(default_factory=dict)


def _library(metric: str, arguments: dict[str, Any] | None = None, **bound: Any) -> dict[str, Any]:
    given = {"arguments": arguments} if arguments else {}
    return {"type": "library", "metric": metric, **given, **(bound or {"mustBe": 0})}


COLUMNS = [
    Column("small", "smallint", "bigint", [str(n) for n in range(1, 400)],
           ["32767", "32768", "-32769", "0", "-1"],
           {"logicalTypeOptions": {"minimum": 0}}),
    Column("whole", "integer", "bigint", ["500", "900"], ["1000", "1001", "2147483648", "-2147483648"],
           {"required": True, "logicalTypeOptions": {"maximum": 1000}}),
    Column("large", "bigint", "bigint", ["3"], ["9223372036854775807", "-9223372036854775808"],
           {"logicalTypeOptions": {"exclusiveMaximum": 9223372036854775807}}),
    Column("amount", "numeric(8,2)", "numeric", ["10.00", "0.01", "3"],
           ["0", "-1", "1.005", "1.500", "999999.99", "1000000", "NaN", "Infinity", BIG],
           {"quality": [_library("invalidValues", {"exclusiveMinimum": 0},
                                 mustBeLessOrEqualTo=20, unit="percent")]}),
    Column("long", "numeric(60,10)", "numeric", ["1", BIG], ["1.00000000001", "NaN", "-0.5", "9" * 51],
           {"logicalTypeOptions": {"minimum": 0}}),
    Column("price", "numeric(6,2)", "numeric(6,2)", ["9.99", "19.99"], ["19.9", "10", "0", "NaN"],
           {"quality": [_library("invalidValues", {"validValues": [9.99, 19.99]}, mustBeLessThan=3)]}),
    Column("free", "numeric", "numeric", ["1", "0.1", BIG], ["0", "-1e-20", "NaN", "Infinity", "-Infinity"],
           {"logicalTypeOptions": {"exclusiveMinimum": 0}}),
    Column("grade", "smallint", "smallint", ["1", "2"], ["3", "4", "0"],
           {"enum": [{"value": 1}, {"value": 2}, {"value": 3}]}),
    Column("ratio", "double precision", "double precision", ["0.5", "0.25"],
           ["1", "1.0000001", "NaN", "Infinity", "-Infinity"], {"logicalTypeOptions": {"maximum": 1}}),
    Column("single", "real", "double precision", ["0.5", "2"], ["0.1", "1e39", "NaN", "Infinity"]),
    Column("flag", "boolean", "boolean", ["t", "f"], [],
           {"quality": [_library("nullValues", mustBeLessThan=2)]}),
    Column("code", "varchar(5)", "text", ["AB", "ABCDE"], ["ABCDEF", "A", "ab", "", "ÄÖÜ", "AB "],
           {"logicalTypeOptions": {"minLength": 2, "pattern": "^[A-Z ]*$"}}),
    Column("fixed", "char(3)", "text", ["abc", "ab"], ["abcd", "abc  ", "", "    "]),
    Column("name", "text", "text", ["first", "second"],
           ["elevenchars", "tenletters", "日本語の長い名前です。。", "'; DROP TABLE public.things; --"],
           {"logicalTypeOptions": {"maxLength": 10}}),
    Column("kind", "text", "text", ["red", "green"], ["blue", "Red", "n/a", "", "red "],
           {"quality": [
               _library("invalidValues", {"validValues": ["red", "green", "n/a"]}, mustBeLessThan=2),
               _library("missingValues", {"missingValues": ["n/a"]}, mustBeBetween=[0, 1])]}),
    Column("hint", "text", "text", ["some"], [],
           {"quality": [{"severity": "warning", **_library("nullValues")}]}),
    Column("uid", "uuid", "text", UUIDS, ["none", UUIDS[0][1:], "AAAAAAAA-0000-0000-0000-00000000000F"]),
    Column("document", "json", "text", ['{"a": 1}', "[]"], ["{", "", "NaN", "\\\\u0000", '"\\\\ud800"']),
    Column("object", "jsonb", "text", ['{"a": 1}', "null"], ["{'a': 1}", '"\\\\u0000"', '{"a": 1,}']),
    Column("born", "date", "date", ["2020-02-29"], ["infinity", "0001-01-01 BC", "1899-12-31", "9999-12-31"],
           {"logicalTypeOptions": {"minimum": "1900-01-01"}}),
    Column("rings", "time", "time", ["08:00:00"], ["00:00:00", "23:00:00", "23:00:00.000001", "24:00:00"],
           {"logicalTypeOptions": {"maximum": "23:00:00"}}),
    Column("seen", "timestamp", "timestamp", ["2026-01-01 00:00:00"],
           ["-infinity", "2030-01-01 00:00:00", "2029-12-31 23:59:59.999999", "0044-03-15 12:00:00 BC"],
           {"logicalTypeOptions": {"exclusiveMaximum": "2030-01-01 00:00:00"}}),
    Column("noted", "timestamptz", "timestamptz", ["2026-01-01 00:00:00+00"],
           ["infinity", "2020-01-01 01:00+01", "2019-12-31 23:59:59.999999+00", "0044-03-15 12:00+00 BC"],
           {"logicalTypeOptions": {"minimum": "2020-01-01T00:00:00Z"}}),
    Column("raw", "bytea", "bytea", ["\\\\x00ff"], ["\\\\x"]),
]  # fmt: skip
KEY = {"id": "bigint", "part": "smallint"}
"""Its columns have these types in the source too, as a contract demands."""
QUALITY = [
    {"name": "rows_enough", **_library("rowCount", mustBeGreaterThan=3)},
    _library("duplicateValues", {"properties": ["code", "small"]}, mustBeLessOrEqualTo=50, unit="percent"),
    {
        "name": "small_above_whole",
        "type": "sql",
        "query": "SELECT COUNT(*) FROM {object} WHERE small > whole OR kind = 'blue' AND name LIKE 'fir%'",
        "mustNotBe": 1,
    },
]  # fmt: skip

_FITS = {
    "small": "small BETWEEN -32768 AND 32767",
    "whole": "whole BETWEEN -2147483648 AND 2147483647",
    "amount": "amount <> 'NaN' AND abs(amount) < 1e6 AND amount = round(amount, 2)",
    "long": "(long = 'NaN' OR abs(long) < 1e50 AND long = round(long, 10))",
    "price": "price <> 'NaN'",
    "single": "CASE WHEN abs(single) < 3e38 THEN single::real::float8 = single"
    " ELSE single IN ('NaN', 'Infinity', '-Infinity') END",
    "code": "length(code) <= 5",
    "fixed": "length(rtrim(fixed, ' ')) <= 3",
    "uid": "uid ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'",
    "document": "document IS JSON",
    "object": "pg_input_is_valid(object, 'jsonb')",
    "born": "born BETWEEN '0001-01-01' AND '9999-12-31'",
    "seen": "seen BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'",
    "noted": "noted BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999999+00'",
}
VIOLATIONS = {
    **{f"{name}_type": f"NOT ({fits})" for name, fits in _FITS.items()},
    # In the source these columns have the contract's own type, so that every value fits.
    **{
        f"{name}_type": "false"
        for name in ("id", "part", "large", "grade", "ratio", "flag", "rings", "changed_at")
    },
    "id_required": "id IS NULL",
    "part_required": "part IS NULL",
    "id_part_unique": "id IS NOT NULL AND part IS NOT NULL"
    " AND count(*) OVER (PARTITION BY day, id, part) > 1",
    "small_minimum": f"{_FITS['small']} AND small < 0",
    "whole_required": "whole IS NULL",
    "whole_maximum": f"{_FITS['whole']} AND whole > 1000",
    "large_exclusive_maximum": "large >= 9223372036854775807",
    "amount_exclusive_minimum": f"{_FITS['amount']} AND amount <= 0",
    "long_minimum": f"{_FITS['long']} AND long < 0",
    "price_valid_values": f"{_FITS['price']} AND price NOT IN (9.99, 19.99)",
    "free_exclusive_minimum": "free <= 0",
    "grade_enum": "grade NOT IN (1, 2, 3)",
    "ratio_maximum": "ratio > 1",
    "flag_null_values": "flag IS NULL",
    "code_min_length": f"{_FITS['code']} AND length(code) < 2",
    "code_pattern": f"{_FITS['code']} AND code !~ '^[A-Z ]*$'",
    "name_max_length": "length(name) > 10",
    "kind_valid_values": "kind NOT IN ('red', 'green', 'n/a')",
    "kind_missing_values": "kind IS NULL OR kind = 'n/a'",
    "hint_null_values": "hint IS NULL",
    "rings_maximum": "rings > '23:00:00'",
    "born_minimum": f"{_FITS['born']} AND born < '1900-01-01'",
    "seen_exclusive_maximum": f"{_FITS['seen']} AND seen >= '2030-01-01'",
    "noted_minimum": f"{_FITS['noted']} AND noted < '2020-01-01 00:00:00+00'",
    "code_small_duplicate_values": f"""code IS NOT NULL AND small IS NOT NULL AND {_FITS["code"]}
        AND {_FITS["small"]} AND count(*) FILTER (WHERE {_FITS["code"]} AND {_FITS["small"]})
        OVER (PARTITION BY day, code, small) > 1""",
    "small_above_whole": f"""CASE WHEN {_FITS["small"]} AND {_FITS["whole"]} THEN small > whole END
        OR kind = 'blue' AND name LIKE 'fir%%'""",
}
"""Rule -> which rows break it. A value that doesn't fit its type breaks the type's rule and no other."""

BOUNDS = {
    "amount_exclusive_minimum": "100.0 * {} / rows <= 20",
    "price_valid_values": "{} < 3",
    "flag_null_values": "{} < 2",
    "kind_valid_values": "{} < 2",
    "kind_missing_values": "{} BETWEEN 0 AND 1",
    "hint_null_values": "{} >= 0",  # a warning
    "code_small_duplicate_values": "100.0 * {} / rows <= 50",
    "small_above_whole": "{} <> 1",
}
"""Rule -> how many rows may break it; none without an entry. A batch also needs more than three rows."""


def spoiled_contract() -> Contract:
    """The contract of the table, from its ODCS document."""
    properties = [
        {"name": column.name, "physicalType": column.physical_type, **column.rules}
        for column in COLUMNS
    ]
    key = [
        {"name": name, "physicalType": kind, "primaryKey": True, "primaryKeyPosition": place}
        for place, (name, kind) in enumerate(KEY.items(), 1)
    ]
    return contract([*key, *properties], quality=QUALITY)


def source_table() -> str:
    """The statement that creates the source, wider than the contract so that values may not fit."""
    kinds = KEY | {column.name: column.source_type for column in COLUMNS}
    columns = ", ".join(f'"{name}" {kind}' for name, kind in kinds.items())
    return f"CREATE TABLE public.source ({columns}, changed_at timestamptz)"


def batch(random: Random, day: int) -> list[tuple[str | None, ...]]:
    """A day's rows as texts: good ones, of which at least one value is replaced, set to null or doubled."""
    rows: list[list[str | None]] = [
        [
            str(day * 1000 + number),
            str(number % 2),
            *(random.choice(column.good) for column in COLUMNS),
            str(FIRST_DAY + timedelta(days=day, seconds=random.randrange(86_400))),
        ]
        for number in range(random.randrange(3, 12))
    ]
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        row, place = random.choice(rows), random.randrange(len(COLUMNS) + 1)
        if place == len(COLUMNS):
            other = random.choice([each for each in rows if each is not row])
            row[:2] = random.choice([other[:2], [None, row[1]], [row[0], None]])
        else:
            values: list[str | None] = [*COLUMNS[place].odd, None]
            row[len(KEY) + place] = random.choice(values)
    return [tuple(row) for row in rows]


def verdicts() -> str:
    """The query: day -> rows, rows that break a rule, violations by rule, whether the day passes."""
    masks = ", ".join(f'coalesce({sql}, false) AS "{name}"' for name, sql in VIOLATIONS.items())
    counts = ", ".join(f'count(*) FILTER (WHERE "{name}") AS "{name}"' for name in VIOLATIONS)
    any_broken = " OR ".join(f'"{name}"' for name in VIOLATIONS)
    bounds = " AND ".join(
        f"({BOUNDS.get(n, '{} = 0').format(f'{chr(34)}{n}{chr(34)}')})" for n in VIOLATIONS
    )
    return f"""
        WITH days AS (SELECT *, (changed_at AT TIME ZONE 'UTC')::date::text AS day FROM public.source),
        judged AS (SELECT day, {masks} FROM days),
        counted AS (SELECT day, count(*) AS rows, count(*) FILTER (WHERE {any_broken}) AS rejected, {counts}
                    FROM judged GROUP BY day)
        SELECT day, rows, rejected, {", ".join(f'"{name}"' for name in VIOLATIONS)},
               rows > 3 AND {bounds} FROM counted""".replace("%%", "%")
