"""A condition's digits: what Arrow can't calculate or compare at all is refused when the contract is read."""

from collections.abc import Callable
from itertools import product

import pyarrow as pa
import pytest

from pipeline_assets.quality import types
from pipeline_assets.quality.conditions import parse_condition

NUMBERS = (
    *("smallint", "integer", "bigint", "real", "double precision"),
    *("numeric(14,2)", "numeric(19,0)", "numeric(20,4)", "numeric(38,0)", "numeric(38,10)"),
    *("numeric(38,20)", "numeric(38,38)"),
)


def error_of(call: Callable[..., object], *arguments: object) -> str:
    """What a call fails with; nothing if it succeeds."""
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "condition",
    [
        *("a < b", "a + b > 0.5", "a - b IN (1, 1.5)", "a * b IS NULL", "a * b + a * 1.005 < abs(b)"),
        *("a > 1", "a = -0.5", "-a BETWEEN -1.5 * 1.5 AND b", "a = '1e5'", "a < '1e-20'"),
        *("length(note) * 0.5 < a", "a > 2 OR ok = TRUE AND b = 0.001"),
    ],
)  # fmt: skip
def test_a_condition_is_refused_just_where_its_digits_are_too_many_for_arrow(
    condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of bigint and numeric(20,4) multiplied need 40 digits: that failed at every run."""
    outcomes = set()
    for a, b in product(NUMBERS, NUMBERS):
        columns = {"a": a, "b": b, "note": "text", "ok": "boolean"}
        refusal = error_of(parse_condition, condition, columns)
        with monkeypatch.context() as patched:
            patched.setattr(types, "LONGEST_DECIMAL", 1000)
            parsed = parse_condition(condition, columns)
        none = pa.schema([(name, types.arrow_type(its)) for name, its in columns.items()])
        failure = error_of(parsed.evaluate, none.empty_table())
        outcome = "digits; 38 are the most" in refusal, "precision out of range" in failure
        assert outcome == (bool(refusal), bool(failure)), (a, b, refusal, failure)
        outcomes.add(outcome)
    assert outcomes == {(True, True), (False, False)}
