"""Which week the model's sensor requests next, given what is stored; a failed run mustn't lose a week."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from pipeline_assets.failures import PERMANENT
from pipeline_assets.models import automation
from pipeline_assets.models.automation import BUILD, SCORE, TRAIN, Weeks, next_step
from pipeline_assets.settings import Settings

SETTINGS = Settings(models_training_snapshots=2)
CLOSED = [f"{date(2026, 9, 7) + timedelta(weeks=number):%Y-%m-%d}" for number in range(6)]
ALL = {f"{date(2026, 3, 2) + timedelta(weeks=number):%Y-%m-%d}" for number in range(40)}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def weeks(
    *,
    decided: int = 6,
    scored: int = 6,
    lacking: str = "",
    champion: int = 1,
    incomplete: int = 6,
) -> Weeks:
    """Six closed weeks: the first `decided` and `scored` of them are; those from `incomplete` on lack days.

    The first was deployed; the schedule's time to train the newest is later than any time in the tests.
    """
    return Weeks(
        closed=CLOSED,
        due=datetime.now(UTC) + timedelta(days=365),
        snapshots=ALL - {lacking},
        deployed=set(CLOSED[:1]),
        decided=set(CLOSED[:decided]),
        incomplete=set(CLOSED[incomplete:]),
        scored=dict.fromkeys(CLOSED[:scored], 1),
        champion=champion,
        last_decision=None,
    )


def asked(
    instance: dg.DagsterInstance, stored: Weeks, *, hours: float = 0
) -> tuple[str | None, str | None, str | None]:
    """Job, week and run key of the requested run; if there is none, the third is the reason."""
    found = next_step(instance, stored, SETTINGS, datetime.now(UTC) + timedelta(hours=hours))
    if isinstance(found, dg.SkipReason):
        return None, None, found.skip_message
    return found.job_name, found.partition_key, found.run_key


def fails(
    instance: dg.DagsterInstance,
    job: str | None,
    week: str | None,
    key: str | None = None,
    *,
    permanent: bool = False,
    held: bool = False,
    assets: frozenset[dg.AssetKey] | None = None,
) -> str:
    """Record a run, of all the job's assets or of some, that fails now; returns its ID."""
    tags = {"dagster/partition": str(week)}
    tags |= {"dagster/run_key": key} if key else {}
    tags |= {PERMANENT: "true"} if permanent else {}
    run = dg.DagsterRun(job_name=str(job), tags=tags, asset_selection=assets)
    instance.add_run(run)
    if held:
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("purchase_predictions"),
            check_name="probability_valid",
            passed=False,
            metadata={},
            severity=dg.AssetCheckSeverity.ERROR,
            blocking=True,
            partition=week,
        )
        instance.report_dagster_event(
            dg.DagsterEvent(
                dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
                str(job),
                event_specific_data=evaluation,
            ),
            run.run_id,
        )
    instance.report_run_failed(run)
    return run.run_id


def succeeds(
    instance: dg.DagsterInstance, job: str | None, week: str | None, key: str | None = None
) -> str:
    """Record a run that succeeds now; returns its ID."""
    tags = {"dagster/partition": str(week)} | ({"dagster/run_key": key} if key else {})
    run = dg.DagsterRun(job_name=str(job), tags=tags)
    instance.add_run(run)
    ended = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, str(job))
    instance.report_dagster_event(ended, run.run_id)
    return run.run_id


@pytest.mark.parametrize(
    ("stored", "job", "week"),
    [
        (weeks(scored=4), SCORE, CLOSED[4]),
        (weeks(decided=4, scored=6), TRAIN, CLOSED[4]),
        (weeks(lacking="2026-09-14"), BUILD, "2026-09-14"),
    ],
)
def test_what_failed_for_a_while_is_tried_again_each_hour_by_a_key_of_its_own(
    instance: dg.DagsterInstance, stored: Weeks, job: str, week: str
) -> None:
    keys: list[str | None] = []
    for hours in (0, 1.1, 2.2):
        found = asked(instance, stored, hours=hours)
        assert found[:2] == (job, week)
        assert found[2] not in keys
        keys.append(found[2])
        fails(instance, *found)
        assert asked(instance, stored, hours=0.5)[:2] != (job, week), "not within the hour"


def test_the_newest_week_whose_scheduled_training_failed_is_tried_again(
    instance: dg.DagsterInstance,
) -> None:
    """An outage at the moment of the schedule must not cost the week its model."""
    stored = weeks(decided=5)
    assert asked(instance, stored)[0] is None, "the first try is the schedule's"
    run_id = fails(instance, TRAIN, CLOSED[5])
    assert asked(instance, stored)[0] is None
    assert asked(instance, stored, hours=1.1) == (
        TRAIN,
        CLOSED[5],
        f"missed {CLOSED[5]} after {run_id}",
    )


@pytest.mark.parametrize("how", ["permanent", "held"])
def test_a_week_that_failed_for_good_is_left_to_a_person_and_hides_no_later_one(
    instance: dg.DagsterInstance, how: str
) -> None:
    stored = weeks(scored=4)
    fails(instance, *asked(instance, stored), permanent=how == "permanent", held=how == "held")
    for hours in (0, 1.1, 24 * 40):
        assert asked(instance, stored, hours=hours)[:2] == (SCORE, CLOSED[5])
    fails(instance, *asked(instance, stored), permanent=how == "permanent", held=how == "held")
    assert asked(instance, stored, hours=24)[2] == (
        f"Not scored: {CLOSED[4]}, {CLOSED[5]}. Their runs failed for good, or lately, or wait for days."
    )
    # Scoring by another champion is a step of its own, not tried yet.
    assert asked(instance, weeks(scored=4, champion=2))[:2] == (SCORE, CLOSED[4])


def test_a_training_or_snapshot_that_failed_for_good_hides_no_later_week(
    instance: dg.DagsterInstance,
) -> None:
    stored = weeks(decided=3)
    fails(instance, *asked(instance, stored), permanent=True)
    for hours in (0, 24 * 40):
        assert asked(instance, stored, hours=hours)[:2] == (TRAIN, CLOSED[4])
    lacking = weeks(decided=3, lacking=CLOSED[0])
    assert asked(instance, lacking)[:2] == (BUILD, CLOSED[0])
    fails(instance, *asked(instance, lacking), permanent=True)
    assert asked(instance, lacking, hours=24)[0] is None, "the newest is the schedule's"
    newest_lacks = weeks(scored=5, lacking=CLOSED[1])
    assert asked(instance, newest_lacks)[:2] == (BUILD, CLOSED[1])
    fails(instance, *asked(instance, newest_lacks), permanent=True)
    assert asked(instance, newest_lacks)[:2] == (SCORE, CLOSED[5])


def test_a_training_that_failed_delays_no_scores(instance: dg.DagsterInstance) -> None:
    stored = weeks(decided=5, scored=5)
    fails(instance, TRAIN, CLOSED[5])
    assert asked(instance, stored)[:2] == (SCORE, CLOSED[5])


def test_a_week_is_trained_and_scored_before_the_next_is_trained(
    instance: dg.DagsterInstance,
) -> None:
    assert asked(instance, weeks(decided=3, scored=2))[:2] == (SCORE, CLOSED[2])
    assert asked(instance, weeks(decided=3, scored=3))[:2] == (TRAIN, CLOSED[3])
    assert asked(instance, weeks(decided=4, scored=3))[:2] == (SCORE, CLOSED[3])


def test_later_trainings_wait_some_tries_for_a_week_that_failed_for_a_while(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the newer model were deployed first, the older one couldn't be any more."""
    monkeypatch.setattr(automation, "TRIES", 3)
    stored = weeks(decided=3, scored=3)
    for hours in range(2):
        found = asked(instance, stored, hours=1.1 * hours)
        assert found[:2] == (TRAIN, CLOSED[3])
        fails(instance, *found)
        # Its customers are scored meanwhile; once they are, there is nothing to do but wait.
        assert asked(instance, stored)[:2] == (SCORE, CLOSED[3])
        assert asked(instance, replace(stored, scored=dict.fromkeys(CLOSED, 1)))[0] is None
    fails(instance, *asked(instance, stored, hours=1.1))
    assert asked(instance, replace(stored, scored=dict.fromkeys(CLOSED, 1)))[:2] == (
        TRAIN,
        CLOSED[4],
    )


def test_a_week_whose_days_are_missing_is_trained_once_they_have_come(
    instance: dg.DagsterInstance,
) -> None:
    without = weeks(decided=5, scored=5, incomplete=5)
    fails(instance, TRAIN, CLOSED[5])  # the schedule's run named the days
    fails(instance, *asked(instance, without))  # and so did that for its scores
    for hours in (0, 1.1, 24 * 40):
        assert asked(instance, without, hours=hours)[0] is None
    assert asked(instance, weeks(decided=5), hours=1.1)[:2] == (TRAIN, CLOSED[5])


def test_the_newest_week_is_the_sensors_when_the_schedule_did_not_start_it(
    instance: dg.DagsterInstance,
) -> None:
    stored = replace(weeks(decided=5), due=datetime.now(UTC))
    assert asked(instance, stored)[0] is None
    assert asked(instance, stored, hours=1.1) == (TRAIN, CLOSED[5], f"missed {CLOSED[5]}")


def test_a_week_before_one_that_was_deployed_was_not_missed(instance: dg.DagsterInstance) -> None:
    stored = replace(weeks(decided=2, scored=6), deployed={CLOSED[0], CLOSED[4]})
    assert asked(instance, stored)[0] is None


def test_after_a_rollback_the_newest_scores_are_made_again_whoever_made_them_before(
    instance: dg.DagsterInstance,
) -> None:
    """A scoring under way during the rollback may end after the one that the rollback requested."""
    before = asked(instance, weeks(scored=5))
    succeeds(instance, *before)
    assert before == (SCORE, CLOSED[5], f"score {CLOSED[5]} 1")
    assert asked(instance, weeks())[0] is None

    by_the_rolled_back = replace(weeks(), scored=dict.fromkeys(CLOSED, 2))
    keys: set[str | None] = {before[2]}
    for _ in range(2):
        job, week, key = asked(instance, by_the_rolled_back)
        assert (job, week) == (SCORE, CLOSED[5])
        assert key not in keys
        keys.add(key)
        succeeds(instance, job, week, key)
    assert asked(instance, weeks())[0] is None


def test_what_a_restored_warehouse_has_lost_is_made_again(instance: dg.DagsterInstance) -> None:
    for week in CLOSED[3:]:
        succeeds(instance, TRAIN, week)
        succeeds(instance, SCORE, week, f"score {week} 1")
    assert asked(instance, weeks())[0] is None
    assert asked(instance, weeks(scored=4))[:2] == (SCORE, CLOSED[4])
    assert asked(instance, weeks(decided=4))[:2] == (TRAIN, CLOSED[4])
    assert asked(instance, weeks(decided=5))[:2] == (TRAIN, CLOSED[5])
    lacking = weeks(decided=4, lacking=CLOSED[0])
    build = asked(instance, lacking)
    assert build[:2] == (BUILD, CLOSED[0])
    succeeds(instance, *build)
    assert asked(instance, lacking)[:2] == build[:2]


def test_what_ended_since_the_weeks_were_read_is_not_made_twice(
    instance: dg.DagsterInstance,
) -> None:
    """The weeks, read before it ended, don't show its result yet."""
    read_at = datetime.now(UTC)
    stored = weeks(scored=5)
    succeeds(instance, *asked(instance, stored))
    assert isinstance(next_step(instance, stored, SETTINGS, read_at), dg.SkipReason)
    assert asked(instance, stored)[:2] == (SCORE, CLOSED[5])


def test_a_run_of_some_of_the_trainings_assets_is_no_training(instance: dg.DagsterInstance) -> None:
    """Snapshots alone decide nothing; a deployment alone is refused for good before the training."""
    stored = weeks(decided=5, scored=5)
    for name in ("training_snapshots", "deployed_model"):
        only = frozenset({dg.AssetKey(name)})
        fails(instance, TRAIN, CLOSED[5], permanent=True, assets=only)
    assert asked(instance, stored)[0] is None, (
        "neither scores before nor a training before its time"
    )
    late = replace(stored, due=datetime.now(UTC))
    assert asked(instance, late, hours=1.1) == (TRAIN, CLOSED[5], f"missed {CLOSED[5]}")


def test_another_model_is_due_by_the_newest_weeks_checks_whichever_ran_last(
    instance: dg.DagsterInstance,
) -> None:
    """An older week that a person scores again says nothing of today's model."""

    def checked(week: str, name: str, passed: bool) -> None:
        run = dg.DagsterRun(job_name=SCORE, tags={"dagster/partition": week})
        instance.add_run(run)
        evaluation = dg.AssetCheckEvaluation(
            dg.AssetKey("purchase_predictions"), name, passed, {}, partition=week
        )
        kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION.value
        instance.report_dagster_event(
            dg.DagsterEvent(kind, SCORE, event_specific_data=evaluation), run.run_id
        )

    older, newest = CLOSED[4:]
    checked(newest, "score_drift", True)
    checked(newest, "realised_performance", False)
    checked(older, "score_drift", False)
    checked(older, "realised_performance", True)
    assert automation._failed_checks(instance, newest) == ["realised_performance"]
    checked(newest, "realised_performance", True)
    assert automation._failed_checks(instance, newest) == []
    assert automation._failed_checks(instance, "") == [], "nothing was scored"


def test_a_run_of_the_models_assets_from_the_graph_is_waited_for(
    instance: dg.DagsterInstance,
) -> None:
    run = dg.DagsterRun(
        job_name="__ASSET_JOB", asset_selection=frozenset({dg.AssetKey("purchase_predictions")})
    )
    instance.add_run(run)
    reason = f"__ASSET_JOB is under way (run {run.run_id})."
    assert asked(instance, weeks(scored=4)) == (None, None, reason)
    instance.report_run_failed(run)
    assert asked(instance, weeks(scored=4))[:2] == (SCORE, CLOSED[4])
