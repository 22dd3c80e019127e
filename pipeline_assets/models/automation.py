"""When models are trained and customers scored: weekly, later if a week was missed, earlier on drift.

Training and scoring are runs of their own: a refused model must not keep the champion from scoring.
What to do next is derived from what the warehouse and Dagster have stored; there is no cursor to lose.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from pipeline_assets.models.checks import (
    MEASURED,
    PREDICTIONS,
    REALISED,
    RETRAINING,
    SCORE_DRIFT,
    SNAPSHOTS,
)
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings

WEEK = timedelta(weeks=1)
HOUR = 3
"""When a week is trained on Monday, in the project's time zone: Sunday's orders are loaded by then."""
BUILD, TRAIN, SCORE = "build_snapshots", "train_model", "score_customers"


def _now() -> datetime:
    return datetime.now(UTC)


def model_automation(
    settings: Settings,
    assets: Iterable[dg.AssetsDefinition],
    evaluation: dg.AssetChecksDefinition,
    partitions: dg.WeeklyPartitionsDefinition,
    *,
    running: bool,
    now: Callable[[], datetime] = _now,
) -> dg.Definitions:
    """The jobs, the weekly schedule, and the sensors for missed weeks and for early retraining."""
    snapshots, trained, deployed, predictions = assets
    build = dg.define_asset_job(
        BUILD,
        selection=dg.AssetSelection.assets(snapshots),
        description="The snapshots that a model learns from.",
    )
    train = dg.define_asset_job(
        TRAIN,
        selection=dg.AssetSelection.assets(snapshots, trained, deployed)
        | dg.AssetSelection.checks(evaluation),
        description="From the warehouse to a new champion, if the gate lets it through.",
    )
    score = dg.define_asset_job(
        SCORE,
        selection=dg.AssetSelection.assets(predictions),
        description="Every customer's probability, by the champion.",
    )
    sensor_status = dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
    weekly = dg.build_schedule_from_partitioned_job(
        train,
        name=f"{TRAIN}_weekly",
        hour_of_day=HOUR,
        minute_of_hour=0,
        day_of_week=1,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if running
        else dg.DefaultScheduleStatus.STOPPED,
    )

    @dg.sensor(
        name="model_weeks",
        jobs=[build, train, score],
        minimum_interval_seconds=60,
        default_status=sensor_status,
        description=(
            "Requests what the weeks lack, oldest first and one at a time: snapshots that the next "
            "training needs, weeks whose training was missed, scores once a week was decided."
        ),
    )
    def model_weeks(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Database]
    ) -> dg.RunRequest | dg.SkipReason:
        return _next_step(context.instance, warehouse, settings, partitions, now())

    @dg.sensor(
        name="early_retraining",
        job=train,
        minimum_interval_seconds=300,
        default_status=sensor_status,
        description=(
            "Trains the newest week again when the scores have drifted or the last predictions didn't "
            "come true; then not for "
            f"{settings.models_retraining_cooldown_days} days. All its snapshots are computed anew, so "
            "that late and corrected orders count. From an unchanged warehouse comes the version that "
            "there is already: newer weeks than the newest closed one can't be learnt from."
        ),
    )
    def early_retraining(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Database]
    ) -> dg.RunRequest | dg.SkipReason:
        return _early(context.instance, warehouse, settings, partitions, now())

    return dg.Definitions(
        jobs=[build, train, score], schedules=[weekly], sensors=[model_weeks, early_retraining]
    )


@dataclass(frozen=True)
class Weeks:
    """What is stored of the model's weeks; every set holds partition keys."""

    closed: list[str]
    snapshots: set[str]
    decided: set[str]
    """The gate refused that week's newest version, or it was deployed."""
    scored: dict[str, int]
    """Week -> the version that scored it."""
    champion: int | None
    """The version that the audit says is in production."""
    last_decision: datetime | None


def stored_weeks(
    instance: dg.DagsterInstance,
    warehouse: Database,
    settings: Settings,
    partitions: dg.WeeklyPartitionsDefinition,
    now: datetime,
) -> Weeks:
    """Read what the warehouse and Dagster know of the weeks that have closed."""
    from pipeline_assets.models import records, registry

    name = registry.model_name(settings.pipeline_env)
    with warehouse.connect(autocommit=True) as connection:
        records.ensure_schema(connection)
        verdicts = records.verdicts(connection, name)
        moves = records.deployments(connection, name)
        scored = records.scored_weeks(connection)
    deployed = {move.champion_after for move in moves}
    newest = {verdict.week: verdict for verdict in verdicts}
    return Weeks(
        closed=list(partitions.get_partition_keys(current_time=now)),
        snapshots=set(instance.get_materialized_partitions(dg.AssetKey(SNAPSHOTS))),
        decided={
            str(week)
            for week, verdict in newest.items()
            if verdict.verdict == "refused" or verdict.model_version in deployed
        },
        scored=scored,
        champion=moves[-1].champion_after if moves else None,
        last_decision=max((verdict.decided_at for verdict in verdicts), default=None),
    )


def missing_snapshots(week: str, settings: Settings, weeks: Weeks) -> list[str]:
    """The snapshots, oldest first, that a week's training needs and that nobody has built."""
    from pipeline_assets.models.snapshots import training_weeks

    needed = training_weeks(
        date.fromisoformat(week), settings.models_training_snapshots, settings.models_start_date
    )
    return [str(monday) for monday in needed if str(monday) not in weeks.snapshots]


def trainable(week: str, settings: Settings) -> bool:
    """Whether there are two training snapshots, the fewest to compare candidates out of time, each
    after four weeks of orders."""
    from pipeline_assets.models.snapshots import holdout_cutoff, training_weeks

    first = settings.warehouse_start_date + 4 * WEEK
    needed = training_weeks(
        date.fromisoformat(week), settings.models_training_snapshots, settings.models_start_date
    )
    return len(needed) > 1 and holdout_cutoff(needed[0]) >= first


def _next_step(
    instance: dg.DagsterInstance,
    warehouse: Database,
    settings: Settings,
    partitions: dg.WeeklyPartitionsDefinition,
    now: datetime,
) -> dg.RunRequest | dg.SkipReason:
    weeks = stored_weeks(instance, warehouse, settings, partitions, now)
    if not weeks.closed:
        return dg.SkipReason("No week has closed yet.")
    *before, newest = weeks.closed
    runs = instance.get_runs(dg.RunsFilter(created_after=now - 4 * WEEK))
    ours = [run for run in runs if run.job_name in (BUILD, TRAIN, SCORE)]
    if under_way := [run for run in ours if not run.is_finished]:
        return dg.SkipReason(f"{under_way[0].job_name} is under way (run {under_way[0].run_id}).")
    tried = {run.tags.get("dagster/partition") for run in ours if run.job_name == TRAIN}
    # What was before the first decision wasn't missed; the newest week is the schedule's.
    missed = [
        key
        for key in before
        if weeks.decided and key > min(weeks.decided) and key not in weeks.decided | tried
    ]
    for key in (*missed, newest):
        if not trainable(key, settings):
            continue
        if lacking := missing_snapshots(key, settings, weeks):
            return dg.RunRequest(
                # Tried again, if it failed, each time that another has been built.
                run_key=f"snapshot {lacking[0]} {len(weeks.snapshots)}",
                job_name=BUILD,
                partition_key=lacking[0],
            )
        if key != newest:
            return dg.RunRequest(run_key=f"missed {key}", job_name=TRAIN, partition_key=key)
    return _score_request(weeks, tried)


def _score_request(weeks: Weeks, tried: set[str | None]) -> dg.RunRequest | dg.SkipReason:
    """The oldest decided week without scores, or the newest one if another champion scored it."""
    if weeks.champion is None:
        return dg.SkipReason("There is no champion yet.")
    newest = weeks.closed[-1]
    over = [key for key in weeks.closed if key in weeks.decided or key in tried]
    for key in over:
        if key not in weeks.scored or (key == newest and weeks.scored[key] != weeks.champion):
            return dg.RunRequest(
                run_key=f"score {key} {weeks.champion}", job_name=SCORE, partition_key=key
            )
    return dg.SkipReason("No week was missed, and every week is scored.")


def _early(
    instance: dg.DagsterInstance,
    warehouse: Database,
    settings: Settings,
    partitions: dg.WeeklyPartitionsDefinition,
    now: datetime,
) -> dg.RunRequest | dg.SkipReason:
    weeks = stored_weeks(instance, warehouse, settings, partitions, now)
    failed = _failed_checks(instance)
    if not failed or weeks.last_decision is None:
        return dg.SkipReason("The scores haven't drifted, and the predictions came true.")
    cooled = weeks.last_decision + timedelta(days=settings.models_retraining_cooldown_days)
    if now < cooled:
        return dg.SkipReason(f"{', '.join(failed)} failed; trained too lately, until {cooled}.")
    return dg.RunRequest(
        run_key=f"early {weeks.closed[-1]} {weeks.last_decision.isoformat()}",
        partition_key=weeks.closed[-1],
        tags={RETRAINING: " ".join(failed)},
    )


def _failed_checks(instance: dg.DagsterInstance) -> list[str]:
    """Which of the checks that ask for a new model failed when they last ran."""
    keys = [dg.AssetCheckKey(dg.AssetKey(PREDICTIONS), name) for name in (SCORE_DRIFT, REALISED)]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    failed = []
    for key, record in found.items():
        event = record.event and record.event.dagster_event
        evaluation = event and event.event_specific_data
        if not isinstance(evaluation, dg.AssetCheckEvaluation) or evaluation.passed:
            continue
        # Where nothing could be compared there is no sign that another model would do better.
        measured = evaluation.metadata.get(MEASURED)
        if measured is None or measured.value:
            failed.append(key.name)
    return sorted(failed)
