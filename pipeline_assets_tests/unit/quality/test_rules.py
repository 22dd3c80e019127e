"""Each kind of rule on its own: which values break it, and which never do."""

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from pipeline_assets.quality.contract import Bound, Contract
from pipeline_assets.quality.rules import find_duplicates
from pipeline_assets.quality.validation import Verdict, validate
from pipeline_assets_tests.contracts import contract

NOON = datetime(2026, 1, 7, 12, tzinfo=UTC)
MOMENTS = pa.timestamp("us", "UTC")
DATES = pa.array([date(2026, 1, 7), date(2026, 1, 6)])


def table(**columns: Any) -> pa.Table:
    """Rows of `things` with these columns; their ids count from 0."""
    rows = len(next(iter(columns.values())))
    arrays = {name: pa.chunked_array([values]) for name, values in columns.items()}
    if "id" not in columns:
        arrays["id"] = pa.chunked_array([pa.array(range(rows), pa.int64())])
    arrays["changed_at"] = pa.chunked_array([pa.array([NOON] * rows, MOMENTS)])
    return pa.table(arrays)


def broken_rules(rows: pa.Table, its: Contract) -> list[list[str]]:
    """The rules that each row breaks, in the order of the rows."""
    duplicates = find_duplicates(lambda columns: [rows.select(columns)], its)
    numbered = rows.append_column("place", pa.array(range(rows.num_rows)))
    rejected = validate(numbered, its, Verdict(its), duplicates=duplicates).rejected
    reasons = dict(
        zip(rejected["place"].to_pylist(), rejected["broken_rules"].to_pylist(), strict=True)
    )
    return [reasons.get(place, []) for place in range(rows.num_rows)]


def breaking(prop: dict[str, Any], values: Any) -> list[str]:
    """The values that break a rule of the property, as text."""
    rows = table(x=values if isinstance(values, pa.Array) else pa.array(values))
    its = contract([{"name": "x", **prop}])
    reasons = broken_rules(rows, its)
    return [
        str(value) for value, names in zip(rows["x"].to_pylist(), reasons, strict=True) if names
    ]


def options(physical_type: str, **keywords: Any) -> dict[str, Any]:
    return {"physicalType": physical_type, "logicalTypeOptions": keywords}


def metric(physical_type: str, name: str, **arguments: Any) -> dict[str, Any]:
    quality = {"metric": name, "mustBe": 0, **({"arguments": arguments} if arguments else {})}
    return {"physicalType": physical_type, "quality": [quality]}


@pytest.mark.parametrize(
    ("prop", "values", "broken"),
    [
        ({"physicalType": "text", "required": True}, ["a", "", None], ["None"]),
        ({"physicalType": "text", "unique": True}, ["a", "b", "a", None, None, ""], ["a", "a"]),
        (
            {"physicalType": "numeric", "unique": True},
            ["1.0", "1.00", "2", "NaN"],
            ["1.0", "1.00"],
        ),
        ({"physicalType": "char(3)", "unique": True}, ["a", "a  ", "b"], ["a", "a  "]),
        (options("integer", minimum=1), [0, 1, 2, None], ["0"]),
        (options("integer", exclusiveMinimum=1), [0, 1, 2, None], ["0", "1"]),
        (options("integer", maximum=1), [0, 1, 2, None], ["2"]),
        (options("integer", exclusiveMaximum=1), [0, 1, 2, None], ["1", "2"]),
        (options("smallint", maximum=0.5), [0, 1], ["1"]),
        (options("numeric(14,2)", minimum=0.005), ["0.00", "0.01", None], ["0.00"]),
        (
            options("numeric(14,2)", maximum="9999999999.99"),
            ["9999999999.99", "10000000000"],
            ["10000000000"],
        ),
        (
            options("numeric", minimum=1),
            ["0." + "9" * 50, "1." + "0" * 50, None, "-Infinity"],
            ["0." + "9" * 50, "-Infinity"],
        ),
        (options("numeric", maximum=1), ["1", "1e50", "NaN", "-1"], ["1e50", "NaN"]),
        (options("numeric(50,2)", maximum=1), ["1.00", "1.01"], ["1.01"]),
        # More digits than Arrow's decimals have: the rule failed at every run, even without rows.
        (
            options("numeric(38,38)", minimum=0),
            ["0." + "0" * 37 + "1", "-0.1", None],
            ["-0.1"],
        ),
        (options("numeric(38,0)", maximum=1.5), ["1", "2", None], ["2"]),
        (options("numeric", maximum=1e60), ["1e60", "1.1e60", "NaN", None], ["1.1e60", "NaN"]),
        (options("bigint", minimum=1e-30), [0, 1, None], ["0"]),
        (
            options("double precision", maximum=1e300),
            [1e300, 1.1e300, float("nan")],
            ["1.1e+300", "nan"],
        ),
        (
            options("double precision", maximum=1),
            [1.0, float("nan"), float("inf"), None],
            ["nan", "inf"],
        ),
        (options("double precision", minimum=1), [1.0, float("nan"), float("-inf")], ["-inf"]),
        (
            options("timestamptz", minimum="2026-01-07T12:00:00Z"),
            pa.array([NOON, NOON.replace(hour=11)], MOMENTS),
            ["2026-01-07 11:00:00+00:00"],
        ),
        (
            options("timestamp", maximum="2026-01-07 12:00"),
            pa.array([NOON, NOON.replace(hour=13)], pa.timestamp("us")),
            ["2026-01-07 13:00:00"],
        ),
        (options("date", minimum="2026-01-07"), DATES, ["2026-01-06"]),
        (options("date", minimum=date(2026, 1, 7)), DATES, ["2026-01-06"]),
        (
            options("time", minimum="08:00:00.5"),
            ["08:00:00.5", "08:00:00.4", "24:00:00"],
            ["08:00:00.4"],
        ),
        (options("text", minLength=2), ["a", "ab", "é", "éé", None, ""], ["a", "é", ""]),
        (options("text", maxLength=2), ["ab", "abc", "éé", None], ["abc"]),
        (options("char(5)", maxLength=2), ["ab   ", "abc  "], ["abc  "]),
        (options("text", pattern="^[A-Z]+$"), ["AB", "ab", "A\nB", "", None], ["ab", "A\nB", ""]),
        (options("text", pattern="b"), ["abc", "ac"], ["ac"]),
        (metric("text", "nullValues"), ["a", None, ""], ["None"]),
        (metric("text", "missingValues"), ["a", None, ""], ["None"]),
        (
            metric("text", "missingValues", missingValues=[None, "", "N/A"]),
            ["a", None, "", "N/A"],
            ["None", "", "N/A"],
        ),
        (metric("integer", "missingValues", missingValues=[-1]), [1, -1, None], ["-1", "None"]),
        (metric("text", "duplicateValues"), ["a", "a", None, None], ["a", "a"]),
        (
            metric("text", "invalidValues", validValues=["a", "b"]),
            ["a", "c", "A", None],
            ["c", "A"],
        ),
        (
            metric("integer", "invalidValues", validValues=[1, 2, 5_000_000_000]),
            [1, 3, None],
            ["3"],
        ),
        (
            metric("numeric(4,1)", "invalidValues", validValues=[1, 1.5, 1.55]),
            ["1.0", "1.5", "1.6"],
            ["1.6"],
        ),
        (metric("numeric", "invalidValues", validValues=[1.5]), ["1.50", "1.51", None], ["1.51"]),
        (metric("boolean", "invalidValues", validValues=[True]), [True, False, None], ["False"]),
        (metric("date", "invalidValues", validValues=["2026-01-07"]), DATES, ["2026-01-06"]),
        (
            metric("time", "invalidValues", validValues=["08:00:00.50"]),
            ["08:00:00.5", "08:00:01"],
            ["08:00:01"],
        ),
        (
            metric("timestamptz", "invalidValues", validValues=["2026-01-07 13:00+01:00"]),
            pa.array([NOON, None], MOMENTS),
            [],
        ),
        (metric("text", "invalidValues", pattern="^a"), ["ab", "b", None], ["b"]),
        (
            metric("numeric(14,2)", "invalidValues", exclusiveMinimum=0),
            ["0.00", "0.01", None],
            ["0.00"],
        ),
        (
            {"physicalType": "text", "enum": [{"value": "a"}, {"value": None}]},
            ["a", "b", None],
            ["b"],
        ),
    ],
)
def test_a_rule_is_broken_by_exactly_these_values(
    prop: dict[str, Any], values: Any, broken: list[str]
) -> None:
    assert breaking(prop, values) == broken


@pytest.mark.parametrize(
    ("condition", "broken"),
    [
        ("a > b", [1]),
        ("a >= b AND NOT a = b", [1]),
        ("a > b OR note = 'it''s'", [1, 2]),
        ("a IS NULL", [3]),
        ("a IS NOT NULL AND a + 1 = b", [0]),
        ("a IN (1, 3)", [0, 1]),
        ("a NOT IN (1, 3)", [2]),
        ("NOT (a BETWEEN 1 AND 2)", [1]),
        ("a NOT BETWEEN 1 AND 2", [1]),
        ("note LIKE 'a%'", [0]),
        ("lower(note) = 'abc' or length(note) > 3", [0, 2]),
        ("amount * a > 4.49 AND -a < 0", [1, 2]),
        ("amount = 1.5", [0, 1]),
        ("at > '2026-01-07 11:00+00'", [0, 1, 2]),
        ("at + INTERVAL '2 hours' < other", [1]),
        ("other - at > INTERVAL '1 day'", [1]),
        ('"Odd Name"', [1]),
        ("abs(a - b) = 2", [1]),
    ],
)
def test_a_condition_picks_the_rows_that_break_it(condition: str, broken: list[int]) -> None:
    its = contract(
        [
            {"name": "a", "physicalType": "integer"},
            {"name": "b", "physicalType": "bigint"},
            {"name": "amount", "physicalType": "numeric(14,2)"},
            {"name": "note", "physicalType": "text"},
            {"name": "at", "physicalType": "timestamptz"},
            {"name": "other", "physicalType": "timestamptz"},
            {"name": "Odd Name", "physicalType": "boolean"},
        ],
        quality=[
            {
                "name": "rule",
                "type": "sql",
                "query": f"SELECT COUNT(*) FROM {{object}} WHERE {condition}",
                "mustBe": 0,
            }
        ],
    )
    rows = table(
        a=pa.array([1, 3, 2, None], pa.int32()),
        b=pa.array([2, 1, 2, 2], pa.int64()),
        amount=pa.array(["1.50", "1.50", "2.25", None]),
        note=pa.array(["abc", "x", "it's", None]),
        at=pa.array([NOON, NOON, NOON, None], MOMENTS),
        other=pa.array([NOON, NOON.replace(day=9), NOON, NOON], MOMENTS),
        **{"Odd Name": pa.array([False, True, None, None])},
    )
    reasons = broken_rules(rows, its)
    assert [place for place, names in enumerate(reasons) if names] == broken


def test_a_composite_key_is_unique_as_a_whole_and_every_part_required() -> None:
    its = contract(
        [
            {"name": "id", "physicalType": "bigint", "primaryKey": True, "primaryKeyPosition": 2},
            {"name": "shop", "physicalType": "text", "primaryKey": True, "primaryKeyPosition": 1},
        ]
    )
    rows = table(
        id=pa.array([1, 1, 1, None, None], pa.int64()), shop=pa.array(["a", "b", "a", "a", "a"])
    )
    assert its.key == ("shop", "id")
    assert broken_rules(rows, its) == [
        ["shop_id_unique"], [], ["shop_id_unique"], ["id_required"], ["id_required"],
    ]  # fmt: skip


def test_a_table_level_duplicate_rule_compares_several_columns() -> None:
    quality = {
        "name": "once", "metric": "duplicateValues", "mustBe": 0,
        "arguments": {"properties": ["x", "y"]},
    }  # fmt: skip
    columns = [{"name": name, "physicalType": "text"} for name in ("x", "y")]
    rows = table(x=pa.array(["a", "a", "a"]), y=pa.array(["1", "1", "2"]))
    assert broken_rules(rows, contract(columns, quality=[quality])) == [["once"], ["once"], []]


def test_a_condition_that_overflows_is_broken_and_says_why() -> None:
    quality = {
        "name": "product", "type": "sql", "mustBe": 0,
        "query": "SELECT COUNT(*) FROM {object} WHERE {property} * x > 1",
    }  # fmt: skip
    its = contract([{"name": "x", "physicalType": "bigint", "quality": [quality]}])
    verdict = Verdict(its)
    validate(table(x=pa.array([2**62], pa.int64())), its, verdict)
    assert [rule.name for rule in verdict.broken] == ["product"]
    assert '("x" * x > 1) can\'t be worked out: overflow' in verdict.unworkable["product"]


@pytest.mark.parametrize(
    ("operator", "limit", "unit", "held"),
    [
        ("mustBe", 2, "rows", [1, 3]),
        ("mustNotBe", 2, "rows", [2]),
        ("mustBeLessThan", 2, "rows", [2, 3]),
        ("mustBeLessOrEqualTo", 2, "rows", [3]),
        ("mustBeGreaterThan", 2, "rows", [1, 2]),
        ("mustBeGreaterOrEqualTo", 2, "rows", [1]),
        ("mustBeBetween", [2, 3], "rows", [1]),
        ("mustNotBeBetween", [2, 3], "rows", [2, 3]),
        ("mustBeLessOrEqualTo", 50, "percent", [3]),
        ("mustBeLessThan", 50, "percent", [2, 3]),
    ],
)
def test_a_bound_compares_rows_or_percent(
    operator: str, limit: Any, unit: Any, held: list[int]
) -> None:
    bound = Bound(operator, tuple(limit) if isinstance(limit, list) else (limit,), unit)
    assert [measured for measured in (1, 2, 3) if not bound.holds(measured, 4)] == held


def test_no_row_is_no_percent_and_a_row_count_holds_for_an_empty_partition() -> None:
    assert Bound("mustBeLessThan", (1,), "percent").holds(0, 0)
    its = contract([], quality=[{"name": "some", "metric": "rowCount", "mustBeGreaterThan": 0}])
    assert [rule.name for rule in Verdict(its).broken] == ["some"]
    verdict = Verdict(its)
    validate(table(id=pa.array([1], pa.int64())), its, verdict)
    assert verdict.passed


def test_severity_says_whether_a_broken_rule_holds_the_partition() -> None:
    def verdict(severity: str) -> Verdict:
        prop = metric("text", "nullValues")
        prop["quality"][0]["severity"] = severity
        its = contract([{"name": "x", **prop}])
        verdict = Verdict(its)
        assert validate(table(x=pa.array(["a", None])), its, verdict).rejected.num_rows == 1
        return verdict

    assert not verdict("error").passed
    assert verdict("warning").passed
    assert verdict("info").passed
