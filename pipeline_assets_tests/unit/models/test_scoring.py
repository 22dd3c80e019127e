"""What scoring does with streams of rows, and which weeks can be trained: no database needed."""

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets.models.automation import Weeks, missing_snapshots, trainable
from pipeline_assets.models.scoring import Sample
from pipeline_assets.models.status import figures_in_words
from pipeline_assets.settings import Settings


@settings(deadline=None)  # the first example imports numpy
@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40))
def test_a_sample_is_every_nth_row_however_the_stream_is_cut(sizes: list[int], rows: int) -> None:
    sample, total = Sample(rows), sum(sizes)
    sample.add(pa.table({"row": pa.array([], pa.int64())}))
    first = 0
    for size in sizes:
        sample.add(pa.table({"row": pa.array(range(first, first + size), pa.int64())}))
        first += size
    kept = sample.table()["row"].to_pylist()
    assert len(kept) <= rows
    assert kept == list(range(0, total, sample.step))
    assert sample.step == 1 or len(kept) > rows // 2 - 1


def test_a_week_can_be_trained_once_two_snapshots_lie_four_weeks_after_the_first_orders() -> None:
    early = Settings(warehouse_start_date=date(2026, 1, 7), models_start_date=date(2026, 3, 2))
    assert not trainable("2026-04-20", early)
    assert trainable("2026-04-27", early)  # of the weeks of March 2 and 30
    later = Settings(warehouse_start_date=date(2026, 11, 2), models_start_date=date(2026, 3, 2))
    assert not trainable("2026-11-09", later)


@pytest.mark.parametrize(
    ("start", "first", "learnt_from"),
    [
        # The cutoff of July 20's snapshot is June 29, four weeks after the first orders.
        (date(2026, 6, 1), "2026-09-14", ["2026-07-20", "2026-08-17"]),
        (date(2026, 6, 2), "2026-09-21", ["2026-07-27", "2026-08-24"]),
    ],
)
def test_a_warehouse_that_starts_later_trains_on_the_snapshots_that_there_can_be(
    start: date, first: str, learnt_from: list[str]
) -> None:
    """Training used to wait for all eight, so that the first model came half a year later."""
    later = Settings(warehouse_start_date=start)
    stored = Weeks([], datetime.now(UTC), set(), set(), set(), set(), {}, None, None)
    mondays = [str(date(2026, 3, 2) + timedelta(weeks=number)) for number in range(80)]
    assert [week for week in mondays if trainable(week, later)] == mondays[mondays.index(first) :]
    assert missing_snapshots(first, later, stored) == learnt_from


def test_the_snapshots_that_a_training_lacks_are_every_fourth_week_back() -> None:
    three = Settings(models_training_snapshots=3)
    closed = ["2026-11-02", "2026-11-09"]
    stored = Weeks(closed, datetime.now(UTC), {"2026-09-14"}, set(), set(), set(), {}, None, None)
    assert missing_snapshots("2026-11-09", three, stored) == ["2026-08-17", "2026-10-12"]


def test_figures_are_told_with_their_intervals() -> None:
    figures: dict[str, float | str] = {
        "auc": 0.81825,
        "auc_lower": 0.8,
        "auc_upper": 0.83,
        "at_least": 0.75,
        "by": "x",
    }
    assert figures_in_words(figures) == "auc 0.8183 (0.8 to 0.83), at least 0.75, by x"
