"""What the status reports as a problem, and how its page words it."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pipeline_assets.models.records import Deployment
from pipeline_assets.operations.alerts import Alert, Book
from pipeline_assets.operations.metrics import _tables
from pipeline_assets.operations.page import INLINE, details, headline, summary
from pipeline_assets.operations.problems import Kind
from pipeline_assets.operations.status import Status, TableState, _closed
from pipeline_assets.resources.dagster_history import Check, Instigator, Run, Slow

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
LATE = timedelta(minutes=10)
TABLE = TableState("transactions", 10, 100, 1, [], [], NOW, NOW)


def run(status: str, hours: float, *, first: str = "2026-11-21", last: str = "2026-11-21") -> Run:
    """A run that was created, started and ended so many hours ago."""
    moment = NOW - timedelta(hours=hours)
    return Run(f"run-{hours}", "load", status, (first, last), moment, moment, moment)


def ticked(kind: str, minutes: float, failures: int = 0, error: str | None = None) -> Instigator:
    """A sensor or schedule that last ticked so many minutes ago, and is late ten minutes after that."""
    last = NOW - timedelta(minutes=minutes)
    return Instigator("changes", kind, last, last + LATE, failures, error)


def fine() -> Status:
    """A deployment with nothing wrong."""
    return Status(
        NOW,
        "production",
        automated=True,
        late=LATE,
        heartbeats={"SENSOR": NOW - timedelta(seconds=30)},
        runs={"success": 3, "failure": 0},
        ended=[run("success", 1)],
        instigators=[ticked("sensor", 0)],
        checks=[Check("fct_transactions", "in_step", "2026-11-21", True, 4)],
        tables=[TABLE],
        edition=date(2026, 11, 22),
    )


def told(*kinds: Kind) -> Book:
    """The book with an open alert of each kind."""
    return Book(
        looked_at=NOW,
        alerts={
            kind: Alert(
                kind=kind, subject="s", title=kind, text="", since=NOW, told_at=NOW, members=[]
            )
            for kind in kinds
        },
    )


def test_an_alert_is_not_said_twice() -> None:
    status = replace(fine(), ended=[run("failure", 1)], alerts=told("run_failed", "run_slow"))
    assert [problem.kind for problem in status.problems] == ["failed run", "alert"]
    assert status.problems[1].what == "run_slow"


def test_nothing_wrong_is_said_in_one_line() -> None:
    status = fine()
    assert status.problems == []
    assert summary(status).splitlines()[0] == "## ✓ Everything is fine"


def test_the_model_in_production_and_its_age_are_said() -> None:
    assert "Model in production: none yet." in details(fine())
    since = NOW - timedelta(days=6)
    moved = Deployment(1, "dev.purchase", "deploy", 2, 3, 2, "run", "", "", "", {}, since, since)
    told = details(replace(fine(), champion=moved))
    assert "Model in production: dev.purchase version 3, for 6 days." in told


PROBLEMS: dict[str, dict[str, Any]] = {
    "unreadable": {"unknown": {"dagster": "connection refused"}},
    "daemon": {"heartbeats": {"SENSOR": NOW - timedelta(minutes=6)}},
    "queued": {"unfinished": [replace(run("queued", 0.3), started=None, ended=None)]},
    "stuck": {"slow": [Slow(run("started", 2.1), NOW, None, NOW)]},
    "failed run": {"ended": [run("failure", 1), run("success", 2)]},
    "tick": {"instigators": [ticked("sensor", 0, 2, "no such table")]},
    "held": {"tables": [replace(TABLE, held=["2026-11-20"])]},
    "behind": {"tables": [replace(TABLE, behind=["2026-11-19", "2026-11-20"])]},
    "alert": {"alerts": told("day_held")},  # of a table or a day that the status doesn't look at
    "check": {"checks": [Check("daily_sales", "equals_rebuild", None, False, 1)]},
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_each_thing_that_is_wrong_is_a_problem_with_a_remedy(kind: str) -> None:
    status = replace(fine(), **PROBLEMS[kind])
    (problem,) = status.problems
    assert problem.kind == kind
    assert problem.remedy
    assert headline(status.problems) == "✗ 1 thing needs attention"
    assert problem.remedy in summary(status)


@pytest.mark.parametrize(
    "changes",
    [
        {"ended": [run("success", 1), run("failure", 2)]},  # made good by a later run
        {"ended": [run("success", 1), run("failure", 2, first="2026-11-01")]},  # a longer range too
        {"ended": [run("canceled", 1), run("failure", 2)]},  # somebody looked at it
        {"unfinished": [run("queued", 0.1), run("started", 9)]},
        {"automated": False, "heartbeats": {}},  # a laptop where nothing is to start by itself
        {"instigators": [ticked("sensor", 9.9)]},
        {
            "checks": [Check("a", "c", "2026-11-21", True, 3)]
        },  # old partitions failed, the newest not
    ],
)
def test_what_is_as_it_should_be_is_none(changes: dict[str, Any]) -> None:
    assert replace(fine(), **changes).problems == []


def test_a_failure_of_another_partition_is_not_made_good() -> None:
    status = replace(
        fine(), ended=[run("success", 1), run("failure", 2, first="2026-11-20", last="2026-11-20")]
    )
    assert [problem.kind for problem in status.problems] == ["failed run"]
    assert "2026-11-20" in status.problems[0].what


@pytest.mark.parametrize("kind", ["sensor", "schedule"])
def test_what_is_no_longer_evaluated_is_late(kind: str) -> None:
    status = replace(fine(), instigators=[ticked(kind, 10)])
    (problem,) = status.problems
    assert problem.what == f"The {kind} changes is late; it last ticked 10 minutes ago."


def test_a_held_partition_is_told_once() -> None:
    table = replace(TABLE, held=["2026-11-20"], behind=["2026-11-20"])
    assert [each.kind for each in replace(fine(), tables=[table]).problems] == ["held"]


def test_a_held_partition_is_not_counted_as_behind_too() -> None:
    table = replace(TABLE, held=["2026-11-20"], behind=["2026-11-19", "2026-11-20"])
    values = {
        sample.name: sample.value
        for metric in _tables(replace(fine(), tables=[table]))
        for sample in metric.samples
    }
    assert values["pipeline_partitions_behind"] == values["pipeline_partitions_held"] == 1


def test_what_others_wrote_stays_text_on_the_page() -> None:
    broken = ticked("sensor", 0, 1, "<script>|*bold*")
    text = details(replace(fine(), instigators=[broken]))
    assert "<script>" not in text
    assert "&lt;script&gt;\\|\\*bold\\*" in text


def test_days_close_at_the_hour_of_their_windows_across_summer_time() -> None:
    zone = ZoneInfo("Europe/Berlin")
    eight = datetime(2026, 1, 7, 8, tzinfo=zone)
    first = date(2026, 3, 27)
    for now, last in (
        (datetime(2026, 3, 29, 7, 59, tzinfo=zone), "2026-03-27"),
        (datetime(2026, 3, 29, 8, 0, tzinfo=zone), "2026-03-28"),
    ):
        assert _closed(first, eight, zone, now)[-1] == last
    assert _closed(first, None, zone, datetime(2026, 3, 28, tzinfo=zone)) == ["2026-03-27"]


def test_weeks_close_seven_days_after_they_began() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first = date(2026, 3, 16)  # the clocks change in the second week
    for now, expected in (
        (datetime(2026, 3, 29, 23, 59, tzinfo=zone), ["2026-03-16"]),
        (datetime(2026, 3, 30, tzinfo=zone), ["2026-03-16", "2026-03-23"]),
    ):
        assert _closed(first, None, zone, now, timedelta(weeks=1)) == expected


def test_what_an_asset_of_its_own_loads_is_mended_by_that() -> None:
    table = replace(TABLE, name="purchase_predictions", held=["2026-11-09"], behind=["2026-11-16"])
    held, behind = replace(fine(), tables=[table]).problems
    assert "materialize the partition again" in held.remedy
    assert "quarantine replay" not in held.remedy
    assert "model_weeks" in behind.remedy


def test_the_ui_shows_the_answer_at_once_however_much_is_wrong() -> None:
    tables = [replace(TABLE, name=f"table_{number}", held=["2026-11-20"]) for number in range(9)]
    status = replace(fine(), tables=tables)
    shown = summary(status)
    assert len(shown) < INLINE
    assert shown.startswith("## ✗ 9 things need attention")
    told = sum(f"table\\_{number}" in shown for number in range(9))
    assert told >= 2
    assert shown.endswith(f"And {9 - told} more: see `details`.")
    assert all(f"table\\_{number}: 2026-11-20" in details(status) for number in range(9))
