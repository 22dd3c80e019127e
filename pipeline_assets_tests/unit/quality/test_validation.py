"""Whole partitions: compared with a naive row-by-row oracle in Python, for any rows and batches."""

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_assets.quality.contract import Bound, ContractError
from pipeline_assets.quality.rules import find_duplicates
from pipeline_assets.quality.validation import (
    SchemaMismatchError,
    Verdict,
    apply,
    empty,
    unchanged,
    validate,
)
from pipeline_assets_tests.contracts import contract

CONTRACT = contract(
    [
        {"name": "id", "physicalType": "bigint", "primaryKey": True, "primaryKeyPosition": 1},
        {"name": "part", "physicalType": "text", "primaryKey": True, "primaryKeyPosition": 2},
        {
            "name": "amount",
            "physicalType": "numeric(4,2)",
            "required": True,
            "logicalTypeOptions": {"minimum": 0},
        },
        {
            "name": "code",
            "physicalType": "varchar(2)",
            "unique": True,
            "logicalTypeOptions": {"minLength": 1, "pattern": "^[ab]*$"},
        },
        {
            "name": "kind",
            "physicalType": "text",
            "quality": [
                {"metric": "invalidValues", "arguments": {"validValues": ["x", "y"]}, "mustBe": 0},
                {
                    "metric": "missingValues",
                    "arguments": {"missingValues": ["", "?"]},
                    "mustBeLessThan": 50,
                    "unit": "percent",
                },
            ],
        },
        {"name": "size", "physicalType": "smallint", "logicalTypeOptions": {"maximum": 100}},
    ],
    quality=[
        {
            "name": "size_for_kind",
            "type": "sql",
            "query": "SELECT COUNT(*) FROM {object} WHERE kind = 'x' AND NOT size > id OR size IS NULL"
            " AND amount > 1.5",
            "mustBe": 0,
        },
        {"name": "rows", "metric": "rowCount", "mustBeLessThan": 9},
    ],
)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("part", pa.string()),
        ("amount", pa.string()),
        ("code", pa.string()),
        ("kind", pa.string()),
        ("size", pa.int32()),
        ("changed_at", pa.timestamp("us", "UTC")),
    ]
)
MOMENT = datetime(2026, 1, 7, tzinfo=UTC)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.none() | st.integers(0, 2),
            "part": st.sampled_from([None, "a", "b"]),
            "amount": st.sampled_from(
                [None, "0.00", "1.5", "1.50", "1.505", "-1", "99.99", "100", "NaN", "Infinity", ""]
            ),
            "code": st.sampled_from([None, "", "a", "b", "ab", "ba", "aab", "c", "ä"]),
            "kind": st.sampled_from([None, "", "?", "x", "y", "z"]),
            "size": st.sampled_from([None, -1, 0, 1, 2, 100, 101, 32767, 32768]),
            "changed_at": st.just(MOMENT),
        }
    ),
    max_size=12,
)


def decimal(text: str | None) -> Decimal | None:
    """The number that a numeric(4,2) makes of a text, or None."""
    try:
        number = Decimal(text or "-")
    except InvalidOperation:
        return None
    fits = number.is_finite() and abs(number) < 100 and number == round(number, 2)
    return number if fits else None


def oracle(rows: list[dict[str, Any]]) -> list[set[str]]:
    """The rules that each row breaks, found one row at a time."""
    keys = Counter((row["id"], row["part"]) for row in rows)
    codes = Counter(row["code"] for row in rows if row["code"] is None or len(row["code"]) <= 2)
    found = []
    for row in rows:
        number, amount, code = row["id"], decimal(row["amount"]), row["code"]
        size = row["size"] if row["size"] is not None and row["size"] < 2**15 else None
        code = code if code is not None and len(code) <= 2 else None
        smaller = None if size is None or number is None else not size > number
        tests = {
            "id_required": number is None,
            "part_required": row["part"] is None,
            "id_part_unique": number is not None
            and row["part"] is not None
            and keys[number, row["part"]] > 1,
            "amount_type": row["amount"] is not None and amount is None,
            "amount_required": row["amount"] is None,
            "amount_minimum": amount is not None and amount < 0,
            "code_type": row["code"] is not None and len(row["code"]) > 2,
            "code_unique": code is not None and codes[code] > 1,
            "code_min_length": code == "",
            "code_pattern": code is not None and not re.search("^[ab]*$", code),
            "kind_valid_values": row["kind"] is not None and row["kind"] not in ("x", "y"),
            "kind_missing_values": row["kind"] in (None, "", "?"),
            "size_type": row["size"] is not None and size is None,
            "size_maximum": size is not None and size > 100,
            "size_for_kind": (row["kind"] == "x" and smaller is True)
            or (size is None and amount is not None and amount > Decimal("1.5")),
        }
        found.append({name for name, is_broken in tests.items() if is_broken})
    return found


def judge(batches: list[pa.Table]) -> tuple[Verdict, list[dict[str, Any]], list[dict[str, Any]]]:
    """Verdict, valid rows and rejected rows of a partition."""
    duplicates = find_duplicates(
        lambda columns: (batch.select(columns) for batch in batches), CONTRACT
    )
    verdict, valid, rejected = Verdict(CONTRACT), [], []
    for batch in batches:
        split = validate(batch, CONTRACT, verdict, duplicates=duplicates)
        assert split.valid.schema == empty(CONTRACT).schema
        valid += split.valid.to_pylist()
        rejected += split.rejected.to_pylist()
    return verdict, valid, rejected


@given(ROWS, st.lists(st.integers(0, 12), max_size=4))
def test_the_gate_says_what_a_naive_oracle_says(
    rows: list[dict[str, Any]], cuts: list[int]
) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut <= len(rows))})
    batches = [table.slice(start, end - start) for start, end in pairwise(edges)]
    verdict, valid, rejected = judge(batches)
    expected = oracle(rows)

    assert (verdict.rows, verdict.rejected) == (len(rows), len(rejected))
    assert len(valid) + len(rejected) == len(rows)
    assert +verdict.violations == Counter(name for names in expected for name in names)
    # The rejected rows are exactly the source's, each with its reasons; the others have none.
    bad = [(row, names) for row, names in zip(rows, expected, strict=True) if names]
    assert [({**row, "broken_rules": set(row["broken_rules"])}) for row in rejected] == [
        {**row, "broken_rules": names} for row, names in bad
    ]
    good = [row for row, names in zip(rows, expected, strict=True) if not names]
    assert valid == [row | {"amount": decimal(row["amount"])} for row in good]
    # The verdict.
    missing = verdict.violations["kind_missing_values"]
    over = {"kind_missing_values"} if rows and 100 * missing / len(rows) >= 50 else set()
    over |= {"rows"} if len(rows) >= 9 else set()
    over |= {name for name in verdict.violations if name != "kind_missing_values"}
    assert {rule.name for rule in verdict.broken} == over
    assert verdict.passed == (not over)


def test_an_empty_partition_passes_and_keeps_its_types() -> None:
    verdict, valid, rejected = judge([SCHEMA.empty_table()])
    assert (verdict.passed, verdict.rows, valid, rejected) == (True, 0, [], [])
    assert judge([])[0].passed


def test_a_duplicate_is_found_across_batches() -> None:
    row = {"part": "a", "amount": "1", "kind": "y", "size": 1, "changed_at": MOMENT}
    batches = [pa.Table.from_pylist([row | {"id": number}], SCHEMA) for number in (1, 2, 1)]
    verdict, _, rejected = judge(batches)
    assert verdict.violations["id_part_unique"] == 2
    assert [found["id"] for found in rejected] == [1, 1]


def test_normalisation_comes_before_the_rules_and_rejected_rows_stay_as_they_were() -> None:
    def trim(frame: "pd.DataFrame") -> "pd.DataFrame":
        return frame.assign(kind=frame["kind"].str.strip())

    base = {"id": 1, "part": "a", "amount": "1", "size": 5, "changed_at": MOMENT}
    table = pa.Table.from_pylist([base | {"kind": " x "}, base | {"id": 2, "kind": " z "}], SCHEMA)
    split = validate(table, CONTRACT, Verdict(CONTRACT), normalise=trim)
    assert split.valid["kind"].to_pylist() == ["x"]
    assert split.rejected["kind"].to_pylist() == [" z "]


def test_a_normalisation_must_leave_alone_what_must_be_unique() -> None:
    def upper(frame: "pd.DataFrame") -> "pd.DataFrame":
        return frame.assign(code=frame["code"].str.upper())

    table = pa.Table.from_pylist([{"id": 1, "part": "a", "amount": "1", "code": "a"}], SCHEMA)
    with pytest.raises(ContractError, match="changes code, which rule code_unique compares"):
        validate(table, CONTRACT, Verdict(CONTRACT), normalise=upper)


def test_data_without_a_column_or_of_another_kind_is_an_error_that_names_it() -> None:
    table = SCHEMA.empty_table()
    with pytest.raises(SchemaMismatchError, match=r"things: column size .* is missing"):
        validate(table.drop(["size"]), CONTRACT, Verdict(CONTRACT))
    lists = table.drop(["size"]).append_column("size", pa.array([], pa.list_(pa.int8())))
    with pytest.raises(SchemaMismatchError, match=r"column size comes as list<.*no smallint"):
        validate(lists, CONTRACT, Verdict(CONTRACT))


def test_a_frame_goes_through_pandas_and_back_without_a_change() -> None:
    numbers = pa.array([9007199254740993, None], pa.int64())
    exact = pa.table({"n": numbers, "d": pa.array([Decimal("0.1"), None], pa.decimal128(38, 20))})
    assert apply(lambda frame: frame.copy(), exact).equals(exact)
    assert apply(unchanged, exact) is exact


def test_a_verdict_can_be_written_down() -> None:
    verdict, _, _ = judge([pa.Table.from_pylist([{"id": 1}], SCHEMA)])
    assert json.loads(json.dumps(verdict.violations)) == dict(verdict.violations)
    lenient = replace(
        CONTRACT,
        rules=tuple(replace(rule, bound=Bound("mustBeLessThan", (9,))) for rule in CONTRACT.rules),
    )
    assert replace(verdict, contract=lenient).passed
