"""Which changes of a contract are breaking: a real database refuses them, or they may hold rows back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_assets.quality.compatibility import breaking_changes, is_new_major
from pipeline_assets.quality.contract import Bound, Contract
from pipeline_assets.quality.ddl import TableMismatchError, ensure_table
from pipeline_assets_tests.contracts import contract

Properties = Sequence[dict[str, Any]]


def column(name: str, physical_type: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "physicalType": physical_type, **more}


A = [column("a", "integer")]
REQUIRED = [column("a", "integer", required=True)]


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [
        (A, A, None),
        (A, [*A, column("b", "text")], None),
        (A, [column("a", "bigint")], None),
        (REQUIRED, A, None),
        ([column("a", "numeric(5,2)")], [column("a", "numeric(8,3)")], None),
        ([column("a", "varchar(5)")], [column("a", "text")], None),
        (REQUIRED, [], "column a is gone"),
        (REQUIRED, [column("c", "integer")], "column a is gone"),
        (A, [column("a", "smallint")], "column a is smallint, which can't hold all of integer"),
        (
            [column("a", "numeric(5,2)")],
            [column("a", "numeric(6,4)")],
            "column a is numeric(6,4), which can't hold all of numeric(5,2)",
        ),
        (A, REQUIRED, "column a became required"),
        (
            A,
            [*A, column("b", "text", required=True)],
            "column b is new and required: rows that are there have no value",
        ),
        (
            A,
            [column("a", "integer", primaryKey=True, primaryKeyPosition=2)],
            "the key is (id, a), it was (id)",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_it_is_breaking_exactly_where_the_database_would_be_refused(
    warehouse: psycopg.Connection, before: Properties, after: Properties, broken: str | None
) -> None:
    old, new = contract(list(before)), contract(list(after))
    ensure_table(warehouse, old)
    warehouse.execute(
        "INSERT INTO things (id, changed_at) VALUES (1, now())"
    ) if before is not REQUIRED else (
        warehouse.execute("INSERT INTO things (id, changed_at, a) VALUES (1, now(), 1)")
    )
    if broken is None:
        assert breaking_changes(old, new) == []
        ensure_table(warehouse, new)
    else:
        assert broken in breaking_changes(old, new)
        with pytest.raises(TableMismatchError):
            ensure_table(warehouse, new)


def limited(**options: Any) -> Contract:
    return contract([column("a", "integer", logicalTypeOptions=options)])


def invalid(values: list[int], **more: Any) -> Contract:
    quality = {"name": "known", "metric": "invalidValues", "arguments": {"validValues": values}}
    bound = {"mustBe": 0} if not any(key.startswith("must") for key in more) else {}
    return contract([column("a", "integer", quality=[{**quality, **bound, **more}])])


def missing(**bound: Any) -> Contract:
    quality = [{"metric": "nullValues", **bound}] if bound else []
    return contract([column("a", "integer", quality=quality)])


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [
        (limited(minimum=1), limited(minimum=0), ""),
        (limited(minimum=1), limited(), ""),
        (limited(minimum=1), limited(minimum=2), "rule a_minimum is tighter"),
        (limited(maximum=5), limited(maximum=9), ""),
        (limited(maximum=5), limited(maximum=4), "rule a_maximum is tighter"),
        (limited(), limited(maximum=4), "rule a_maximum is new"),
        (invalid([1, 2]), invalid([2, 1, 3]), ""),
        (invalid([1, 2]), invalid([1]), "rule known is tighter"),
        (invalid([1], mustBeLessThan=5), invalid([1], mustBeLessThan=6), ""),
        (invalid([1], mustBeLessThan=5), invalid([1], mustBeLessThan=4), "rule known is tighter"),
        (invalid([1], mustBeLessThan=5), invalid([1]), "rule known is tighter"),
        (invalid([1]), invalid([1], mustBeLessThan=5), ""),
        (
            invalid([1], mustBeLessThan=5),
            invalid([1], mustBeLessThan=5, unit="percent"),
            "rule known is tighter",
        ),
        (invalid([1]), invalid([1], severity="warning"), ""),
        (invalid([1], severity="warning"), invalid([1]), "rule known holds a partition"),
        (missing(), missing(mustBe=0), "rule a_null_values is new"),
        (missing(mustBeLessThan=50), missing(mustBe=0), "rule a_null_values is tighter"),
        (missing(mustBe=0), missing(mustBeLessThan=50), ""),
        (
            missing(mustBe=0, severity="warning"),
            missing(mustBe=0),
            "rule a_null_values holds a partition",
        ),
        (
            contract(A),
            contract([*A, column("b", "integer", logicalTypeOptions={"minimum": 1})]),
            "",
        ),
        (
            contract(A),
            contract(
                A,
                quality=[
                    {
                        "name": "sane",
                        "type": "sql",
                        "query": "SELECT COUNT(*) FROM {object} WHERE a > id",
                        "mustBe": 0,
                    }
                ],
            ),
            "rule sane is new",
        ),
        (contract(A), contract(A, physicalName="public.others"), "the table is public.others"),
    ],
)
def test_a_rule_that_may_hold_rows_back_is_breaking(
    before: Contract, after: Contract, broken: str
) -> None:
    found = breaking_changes(before, after)
    assert len(found) == bool(broken)
    assert "".join(found).startswith(broken)


KNOWN = invalid([1])
UPPER = st.sampled_from(["mustBeLessThan", "mustBeLessOrEqualTo", "mustBe"])
BOUNDS = st.builds(
    lambda operator, limit, unit: (operator, 0 if operator == "mustBe" else limit, unit),
    UPPER,
    st.integers(1, 20),
    st.sampled_from(["rows", "percent"]),
)


@given(BOUNDS, BOUNDS, st.integers(0, 30), st.integers(0, 30))
def test_no_partition_is_held_by_a_bound_that_is_not_called_tighter(
    old: tuple[str, int, str], new: tuple[str, int, str], broken: int, fine: int
) -> None:
    before, after = (Bound(operator, (limit,), unit) for operator, limit, unit in (old, new))  # type: ignore[arg-type]  # of the two units
    contracts = [
        replace(KNOWN, rules=(replace(KNOWN.rules[-1], bound=bound),)) for bound in (before, after)
    ]
    if breaking_changes(*contracts):
        return
    if before.holds(broken, broken + fine):
        assert after.holds(broken, broken + fine)


@pytest.mark.parametrize(
    ("old", "new", "major"),
    [
        ("1.4.2", "2.0.0", True),
        ("1.4.2", "1.5.0", False),
        ("2.0.0", "1.0.0", False),
        ("v9", "v10", True),
    ],
)
def test_a_major_version_is_the_first_number(old: str, new: str, major: bool) -> None:
    assert is_new_major(old, new) == major
