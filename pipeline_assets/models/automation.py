"""When models are trained and customers scored: weekly, later if a week was missed, earlier on drift.

Training and scoring are runs of their own: a refused model must not keep the champion from scoring.
What to do next is derived from what the warehouse and Dagster have stored; there is no cursor to lose.
"""

from collections.abc import Callable, Iterable, Mapping
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
from pipeline_assets.running import may_do_better, with_own_checks
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
        selection=with_own_checks([predictions]),
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
        at = now()
        weeks = stored_weeks(context.instance, warehouse, settings, partitions, at)
        return next_step(context.instance, weeks, settings, at)

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


def next_step(
    instance: dg.DagsterInstance, weeks: Weeks, settings: Settings, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """What the weeks lack first. What failed for a while only is tried again each hour; neither that
    nor what failed for good keeps later weeks waiting.
    """
    if not weeks.closed:
        return dg.SkipReason("No week has closed yet.")
    last = _last_runs(instance)
    for record in last.values():
        run = record.dagster_run
        if not run.is_finished:
            return dg.SkipReason(f"{run.job_name} is under way (run {run.run_id}).")
    for week in _undecided(weeks):
        if not trainable(week, settings):
            continue
        if lacking := missing_snapshots(week, settings, weeks):
            # Tried again, if it failed, each time that another has been built.
            about, job, of = f"snapshot {lacking[0]} {len(weeks.snapshots)}", BUILD, lacking[0]
        elif week in weeks.decided or (week == weeks.closed[-1] and f"missed {week}" not in last):
            continue  # the newest is the schedule's
        else:
            about, job, of = f"missed {week}", TRAIN, week
        if key := _run_key(instance, last, about, now):
            return dg.RunRequest(run_key=key, job_name=job, partition_key=of)
    return _score_request(instance, weeks, last, now)


Runs = Mapping[str, dg.RunRecord]
"""What runs were about -> the last of them."""


def _last_runs(instance: dg.DagsterInstance) -> Runs:
    """The last run of everything that a sensor requested, by its key without what later tries add;
    of a week's training also that of the schedule or a person, as `missed <week>`.
    """
    last: dict[str, dg.RunRecord] = {}
    for job in (BUILD, TRAIN, SCORE):
        for record in instance.get_run_records(dg.RunsFilter(job_name=job)):  # the newest first
            run = record.dagster_run
            key = run.tags.get("dagster/run_key", run.run_id)
            last.setdefault(key.partition(" after ")[0], record)
            if job == TRAIN:
                last.setdefault(f"missed {run.tags.get('dagster/partition')}", record)
    return last


def _run_key(instance: dg.DagsterInstance, last: Runs, about: str, now: datetime) -> str | None:
    """A run key for what hasn't been tried, or may do better now; Dagster starts one run a key, ever."""
    if about not in last:
        return about
    record = last[about]
    again = f"{about} after {record.dagster_run.run_id}"
    return again if may_do_better(instance, record, now) else None


def _undecided(weeks: Weeks) -> list[str]:
    """The weeks that were missed, oldest first, and the newest.

    What was before the first decision wasn't missed.
    """
    *before, newest = weeks.closed
    first = min(weeks.decided, default=newest)
    undecided = [key for key in before if key > first and key not in weeks.decided]
    return [*undecided, newest]


def _score_request(
    instance: dg.DagsterInstance, weeks: Weeks, last: Runs, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """The oldest week without scores whose training ended, or the newest if another champion scored it.

    A training that failed may be tried again, but its customers needn't wait for that.
    """
    if weeks.champion is None:
        return dg.SkipReason("There is no champion yet.")
    newest = weeks.closed[-1]
    left = []
    for week in weeks.closed:
        if week not in weeks.decided and f"missed {week}" not in last:
            continue
        if week in weeks.scored and (week != newest or weeks.scored[week] == weeks.champion):
            continue
        if key := _run_key(instance, last, f"score {week} {weeks.champion}", now):
            return dg.RunRequest(run_key=key, job_name=SCORE, partition_key=week)
        left.append(week)
    if left:
        return dg.SkipReason(
            f"Not scored: {', '.join(left)}. Their runs failed for good, or lately."
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
    about = f"early {weeks.closed[-1]} {weeks.last_decision.isoformat()}"
    key = _run_key(instance, _last_runs(instance), about, now)
    if key is None:
        return dg.SkipReason(
            f"{', '.join(failed)} failed; so did the training, or it is under way."
        )
    return dg.RunRequest(
        run_key=key,
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
