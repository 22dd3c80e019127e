"""The schedule and the sensors of the model, tick by tick, on a real warehouse and a real registry."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline_assets.definitions import build_definitions
from pipeline_assets.models import promotion
from pipeline_assets_tests.model_world import (
    NEXT,
    WEEK,
    World,
    failures,
    metadata,
    tick,
    with_settings,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Specifying a partitions_def on an AssetCheckSpec"),
]


MONDAY = datetime(2026, 11, 16, 3, tzinfo=UTC)
"""When the week of `NEXT` is trained."""


@pytest.fixture
def scheduled_world(world: World, tmp_path: Path) -> Iterator[World]:
    """A world with a Dagster instance on disk: a schedule's context can't pass on an ephemeral one."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        yield replace(world, instance=instance)


def test_the_snapshots_are_there_when_the_schedule_trains_the_week_that_ended(
    scheduled_world: World,
) -> None:
    world = scheduled_world
    built: list[str] = []
    while isinstance(asked := tick(world, "model_weeks", MONDAY - timedelta(hours=2)), tuple):
        assert asked[0] == "build_snapshots"
        first = (
            "build_snapshots of 2026-08-17 comes first: model_weeks does it, and then 2026-11-09."
        )
        if not built:
            assert tick(world, "train_model_weekly", MONDAY) == first
        assert world.run(*asked).success
        built.append(asked[1])
    assert built == ["2026-08-17", "2026-09-14", "2026-10-12"]  # all that its training needs
    assert asked == "There is no champion yet."  # the schedule trains the newest week
    assert tick(world, "train_model_weekly", MONDAY) == ("train_model", NEXT)


@pytest.mark.reliability
def test_a_missed_week_is_made_up_for_before_the_newest(
    scheduled_world: World,
) -> None:
    """The schedule ticks first: training the newest week then would deploy it before the missed ones."""
    world = scheduled_world
    first, missed = "2026-10-26", WEEK
    for week in ("2026-08-03", "2026-08-31", "2026-09-28"):
        assert world.run("build_snapshots", week).success
    result = world.run("train_model", first)
    assert result.success, failures(result)

    assert tick(world, "train_model_weekly", MONDAY) == (
        f"score_customers of {first} comes first: model_weeks does it, and then {NEXT}."
    )
    history, told = [], ""
    while isinstance(asked := tick(world, "model_weeks", MONDAY + timedelta(hours=2)), tuple):
        history.append(asked)
        told += failures(world.run(*asked))
        assert len(history) < 30
    steps = [step for step in history if step[0] != "build_snapshots"]
    train, score = "train_model", "score_customers"
    assert steps == [
        (score, first),
        *((job, week) for week in (missed, NEXT) for job in (train, score)),
    ]
    assert asked == "No week was missed, and every week is scored."
    assert "older model" not in told
    judged = world.rows(
        "SELECT week::text, verdict FROM pipeline.gate_verdicts ORDER BY verdict_id"
    )
    assert [week for week, _ in judged] == [first, missed, NEXT]
    # Every version that passed was deployed, each after the one before it.
    versions = world.rows("SELECT champion_after FROM pipeline.champion_deployments ORDER BY 1")
    assert len(versions) == [verdict for _, verdict in judged].count("passed") > 1

    # The predictions have to be the champion's: after a rollback they are made again.
    with world.warehouse() as connection:
        promotion.rollback(world.client(), connection, world.name, actor="test", reason="a test")
    assert tick(world, "model_weeks", MONDAY) == (score, NEXT)


@pytest.mark.usefixtures("snapshots")
def test_drift_and_wrong_predictions_ask_for_a_model_before_its_time(world: World) -> None:
    assert world.run("train_model", WEEK).success
    lenient = with_settings(world, models_max_score_drift=100)
    assert world.run("score_customers", WEEK, settings=lenient).success
    now = datetime(2026, 11, 14, tzinfo=UTC)
    fine = "The scores haven't drifted, and the predictions came true."
    assert tick(world, "early_retraining", now) == fine

    strict = with_settings(world, models_max_score_drift=1e-9)
    assert world.run("score_customers", WEEK, settings=strict).success
    waiting = tick(world, "early_retraining", now)
    assert isinstance(waiting, str)
    assert waiting.startswith("score_drift failed; trained too lately")

    world.rows("UPDATE pipeline.gate_verdicts SET decided_at = '2026-11-09 12:00 UTC' RETURNING 1")
    assert tick(world, "early_retraining", now) == ("train_model", WEEK)
    # A week that wasn't trained at all is left to the schedule, or to `model_weeks`.
    waiting = tick(world, "early_retraining", MONDAY)
    assert waiting == f"score_drift failed; {NEXT} is still to be trained for the first time."


@pytest.mark.usefixtures("snapshots")
def test_early_retraining_learns_from_what_has_changed_in_the_warehouse(world: World) -> None:
    assert world.run("train_model", WEEK).success
    job = build_definitions(world.settings).resolve_job_def("train_model")

    def train(tags: dict[str, str]) -> dict[str, Any]:
        result = job.execute_in_process(
            instance=world.instance, partition_key=WEEK, tags=tags, raise_on_error=False
        )
        return metadata(result, "trained_model")

    early = {"retraining": "score_drift"}
    unchanged = train(early)
    assert (unchanged["model_version"], unchanged["replayed"]) == (1, True)

    with world.warehouse() as connection:  # before the oldest cutoff
        connection.execute(
            "UPDATE analytics.fct_transactions SET status = 'returned'"
            " WHERE customer_id % 10 = 0 AND ordered_at < '2026-07-01'"
        )
    assert train({})["model_version"] == 1
    changed = train(early)
    assert (changed["model_version"], changed["replayed"]) == (2, False)
    assert changed["content_hash"] != unchanged["content_hash"]
