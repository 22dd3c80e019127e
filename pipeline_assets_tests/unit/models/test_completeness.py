"""How many of the days that a week rests on may be missing."""

import pytest

from pipeline_assets.models.completeness import IncompleteDaysError, require_days


def test_days_are_required_up_to_a_share() -> None:
    incomplete = {"2026-02-01": "missing", "2026-02-03": "held by amount_positive"}
    require_days(incomplete, 100, 0.02, "training_snapshots 2026-03-02")
    with pytest.raises(IncompleteDaysError) as error:
        require_days(incomplete, 100, 0.01, "training_snapshots 2026-03-02")
    assert "2026-02-01 missing; 2026-02-03 held by amount_positive" in str(error.value)
    assert "2 aren't" in str(error.value)
    many = {f"day {number}": "missing" for number in range(12)}
    with pytest.raises(IncompleteDaysError, match="and 2 more"):
        require_days(many, 100, 0.0, "it")
