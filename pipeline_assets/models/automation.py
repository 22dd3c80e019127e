"""When models are trained and customers scored: weekly, later if a week was missed, earlier on drift.

Training and scoring are runs of their own: a refused model must not keep the champion from scoring.
What to do next is derived from what the warehouse and Dagster have stored; there is no cursor to lose.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import dagster as dg

from pipeline_assets.models.checks import (
    MEASURED,
    REALISED,
    RETRAINING,
    SCORE_DRIFT,
)
from pipeline_assets.models.names import DEPLOYED, ORDERS, PREDICTIONS, SNAPSHOTS, TRAINED
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import TRIED_AGAIN, may_do_better, under_way, with_own_checks
from pipeline_assets.settings import Settings

HOUR = 3
"""When a week is trained on Monday, in the project's time zone: Sunday's orders are loaded by then."""
JOBS = BUILD, TRAIN, SCORE = "build_snapshots", "train_model", "score_customers"
ASSETS = [dg.AssetKey(name) for name in (SNAPSHOTS, TRAINED, DEPLOYED, PREDICTIONS)]
TRIES = 24
"""How many times a week is tried, an hour apart, before later weeks stop waiting for it."""


def model_automation(
    settings: Settings,
    assets: Iterable[dg.AssetsDefinition],
    evaluation: dg.AssetChecksDefinition,
    partitions: dg.WeeklyPartitionsDefinition,
    *,
    running: bool,
    now: Callable[[], datetime],
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

    @dg.schedule(
        name=f"{TRAIN}_weekly",
        job=train,
        cron_schedule=f"0 {HOUR} * * 1",
        execution_timezone=settings.pipeline_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if running
        else dg.DefaultScheduleStatus.STOPPED,
        description=(
            "Trains the week that has ended. If weeks before it were missed, or snapshots are, it leaves "
            "them and the week to `model_weeks`, which goes in order: once a newer model is deployed, an "
            "older one can't be."
        ),
    )
    def train_model_weekly(
        context: dg.ScheduleEvaluationContext, warehouse: dg.ResourceParam[Database]
    ) -> dg.RunRequest | dg.SkipReason:
        at = context.scheduled_execution_time
        weeks = stored_weeks(context.instance, warehouse, settings, partitions, at)
        step = next_step(context.instance, weeks, settings, at, scheduled=True)
        if isinstance(step, dg.SkipReason):
            return step
        newest = weeks.closed[-1]
        if (step.job_name, step.partition_key) == (TRAIN, newest):
            return dg.RunRequest(partition_key=newest)
        return dg.SkipReason(
            f"{step.job_name} of {step.partition_key} comes first: model_weeks does it, and then {newest}."
        )

    @dg.sensor(
        name="model_weeks",
        jobs=[build, train, score],
        minimum_interval_seconds=60,
        default_status=sensor_status,
        description=(
            "Requests what the weeks lack, one at a time, and all of a week before the next: snapshots "
            "that its training needs, the training if it was missed, scores once it was decided."
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
        jobs=[build, train, score],
        schedules=[train_model_weekly],
        sensors=[model_weeks, early_retraining],
    )


@dataclass(frozen=True)
class Weeks:
    """The stored state of the model's weeks; every set holds partition keys."""

    closed: list[str]
    due: datetime
    """When the schedule trains the newest closed week. An hour later that week counts as missed."""
    snapshots: set[str]
    deployed: set[str]
    """Weeks of which a version was deployed, whatever came later."""
    decided: set[str]
    """Weeks whose newest verdict is a refusal, or is on a version deployed and not withdrawn since."""
    incomplete: set[str]
    """Weeks with more held or missing days before their end than allowed."""
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
    """Read the state of the closed weeks from the warehouse and Dagster."""
    from pipeline_assets.models import records, registry
    from pipeline_assets.models.completeness import incomplete_weeks
    from pipeline_assets.quality.odcs import load_contract

    name = registry.model_name(settings.pipeline_env)
    closed = list(partitions.get_partition_keys(current_time=now))
    with warehouse.connect(autocommit=True) as connection:
        records.ensure_schema(connection)
        verdicts = records.verdicts(connection, name)
        moves = records.deployments(connection, name)
        scored = records.scored_weeks(connection)
        incomplete = incomplete_weeks(connection, load_contract(ORDERS), settings, closed)
    standing: set[int | None] = set()
    for move in moves:
        # After a withdrawal no model is in production, and deployed weeks are undecided again.
        standing = {*standing, move.champion_after} if move.champion_after else set()
    ever = {move.champion_after for move in moves}
    newest = {verdict.week: verdict for verdict in verdicts}
    end = partitions.time_window_for_partition_key(closed[-1]).end if closed else now
    return Weeks(
        closed=closed,
        due=end + timedelta(hours=HOUR),
        snapshots=set(instance.get_materialized_partitions(dg.AssetKey(SNAPSHOTS))),
        deployed={str(verdict.week) for verdict in verdicts if verdict.model_version in ever},
        decided={
            str(week)
            for week, verdict in newest.items()
            if verdict.verdict == "refused" or verdict.model_version in standing
        },
        incomplete=incomplete,
        scored=scored,
        champion=moves[-1].champion_after if moves else None,
        last_decision=max((verdict.decided_at for verdict in verdicts), default=None),
    )


def missing_snapshots(week: str, settings: Settings, weeks: Weeks) -> list[str]:
    """The snapshots, oldest first, that a week's training needs and that aren't built yet."""
    from pipeline_assets.models.registration import training_weeks

    needed = training_weeks(settings, date.fromisoformat(week))
    return [monday for monday in needed if monday not in weeks.snapshots]


def trainable(week: str, settings: Settings) -> bool:
    """Whether two training snapshots can exist, the minimum to compare candidates out of time."""
    from pipeline_assets.models.registration import training_weeks

    return len(training_weeks(settings, date.fromisoformat(week))) > 1


def next_step(
    instance: dg.DagsterInstance,
    weeks: Weeks,
    settings: Settings,
    now: datetime,
    *,
    scheduled: bool = False,
) -> dg.RunRequest | dg.SkipReason:
    """The first step that the weeks need; `scheduled`: at the moment of the newest week's own training.

    A step that failed transiently is tried again each hour. Later trainings wait for it, as an older model
    isn't deployed after a newer one; but for a day only, so that no week blocks the others for ever. They
    wait neither for a permanent failure nor for a week whose days aren't in the warehouse, which is tried
    again once they are. Scores wait for nothing.
    """
    if not weeks.closed:
        return dg.SkipReason("No week has closed yet.")
    runs = _runs(instance)
    # Those that were read above too: one that fails between the two reads is neither failed nor under way.
    read = [record.dagster_run for record, *_ in runs.values()]
    for run in [run for run in read if not run.is_finished] + under_way(instance, JOBS, ASSETS):
        return dg.SkipReason(f"{run.job_name} is under way (run {run.run_id}).")
    left, waiting = [], False
    for about, job, week in _wanted(
        weeks, runs, settings, scheduled=scheduled or now >= weeks.due + TRIED_AGAIN
    ):
        if waiting and job != SCORE:
            continue
        if about not in runs or week not in weeks.incomplete:
            if key := _run_key(instance, runs, about, now):
                return dg.RunRequest(run_key=key, job_name=job, partition_key=week)
            waiting = waiting or _is_tried_again(instance, runs[about], now)
        if job == SCORE:
            left.append(week)
    if left:
        return dg.SkipReason(
            f"Not scored: {', '.join(left)}. Their runs failed for good, or lately, or wait for days."
        )
    if weeks.champion is None:
        return dg.SkipReason("There is no champion yet.")
    return dg.SkipReason("No week was missed, and every week is scored.")


def _wanted(
    weeks: Weeks, runs: "Runs", settings: Settings, *, scheduled: bool
) -> Iterator[tuple[str, str, str]]:
    """The steps that the weeks need, oldest week first: base of the run key, job and partition."""
    undecided, newest = _undecided(weeks), weeks.closed[-1]
    for week in weeks.closed:
        tried = f"missed {week}" in runs
        if week in undecided and trainable(week, settings):
            if lacking := missing_snapshots(week, settings, weeks):
                # The count in the key retries a failed snapshot each time another one has been built.
                yield f"snapshot {lacking[0]} {len(weeks.snapshots)}", BUILD, lacking[0]
            elif week not in weeks.decided and (week != newest or scheduled or tried):
                yield f"missed {week}", TRAIN, week
        # A failed training may be tried again, but scoring doesn't wait for it.
        if weeks.champion is None or not (tried or week in weeks.decided):
            continue
        if week not in weeks.scored or (
            week == newest and weeks.scored[week] != weeks.champion  # after a rollback
        ):
            yield f"score {week} {weeks.champion}", SCORE, week


Runs = Mapping[str, list[dg.RunRecord]]
"""Base of the run key, without what later tries add -> its runs, the newest first."""


def _runs(instance: dg.DagsterInstance) -> Runs:
    """All runs by the base of their key, without what later tries add.

    A week's trainings, also those that the schedule or a person started, are under `missed <week>` too.
    """
    found: dict[str, list[dg.RunRecord]] = defaultdict(list)
    for job in JOBS:
        for record in instance.get_run_records(dg.RunsFilter(job_name=job)):  # the newest first
            run = record.dagster_run
            about = {run.tags.get("dagster/run_key", run.run_id).partition(" after ")[0]}
            chosen = run.asset_selection  # if by hand; a run without the model decides nothing
            if job == TRAIN and (chosen is None or dg.AssetKey(TRAINED) in chosen):
                about.add(f"missed {run.tags.get('dagster/partition')}")
            for each in about:
                found[each].append(record)
    return dict(found)


def _run_key(instance: dg.DagsterInstance, runs: Runs, about: str, now: datetime) -> str | None:
    """The key to run a step with, or None if it isn't to be run now. Dagster starts one run per key, ever.

    A step is run if it hasn't been tried, may do better now, or succeeded and is needed again: after a
    rollback, or in a restored warehouse. A run that ended after `now`, when the weeks were read, doesn't
    count as a success yet: the weeks don't show its result.
    """
    if about not in runs:
        return about
    last = runs[about][0]
    was_made = last.dagster_run.is_success and (last.end_time or 0) < now.timestamp()
    again = f"{about} after {last.dagster_run.run_id}"
    return again if was_made or may_do_better(instance, last, now) else None


def _is_tried_again(instance: dg.DagsterInstance, tries: list[dg.RunRecord], now: datetime) -> bool:
    """Whether the next try is due within the hour and `TRIES` isn't reached."""
    return len(tries) < TRIES and may_do_better(instance, tries[0], now + TRIED_AGAIN)


def _undecided(weeks: Weeks) -> list[str]:
    """The weeks that were missed, oldest first, and the newest.

    Weeks before the newest one ever deployed weren't missed, as their models couldn't be deployed any more;
    without a deployment, nor were those before the first decision.
    """
    *before, newest = weeks.closed
    first = max(weeks.deployed, default=min(weeks.decided, default=newest))
    undecided = [key for key in before if key > first and key not in weeks.decided]
    return [*undecided, newest]


def _early(
    instance: dg.DagsterInstance,
    warehouse: Database,
    settings: Settings,
    partitions: dg.WeeklyPartitionsDefinition,
    now: datetime,
) -> dg.RunRequest | dg.SkipReason:
    weeks = stored_weeks(instance, warehouse, settings, partitions, now)
    failed = _failed_checks(instance, max(weeks.scored, default=""))
    if not failed or weeks.last_decision is None:
        return dg.SkipReason("The scores haven't drifted, and the predictions came true.")
    cooled = weeks.last_decision + timedelta(days=settings.models_retraining_cooldown_days)
    if now < cooled:
        return dg.SkipReason(f"{', '.join(failed)} failed; trained too lately, until {cooled}.")
    if weeks.closed[-1] not in weeks.decided:
        return dg.SkipReason(
            f"{', '.join(failed)} failed; {weeks.closed[-1]} is still to be trained for the first time."
        )
    about = f"early {weeks.closed[-1]} {weeks.last_decision.isoformat()}"
    key = _run_key(instance, _runs(instance), about, now)
    if key is None:
        return dg.SkipReason(
            f"{', '.join(failed)} failed; so did the training, or it is under way."
        )
    return dg.RunRequest(
        run_key=key,
        partition_key=weeks.closed[-1],
        tags={RETRAINING: " ".join(failed)},
    )


def _failed_checks(instance: dg.DagsterInstance, week: str) -> list[str]:
    """Which of the checks that trigger retraining failed when they last ran for a week's scores."""
    from dagster._core.event_api import PartitionKeyFilter

    keys = [dg.AssetCheckKey(dg.AssetKey(PREDICTIONS), name) for name in (SCORE_DRIFT, REALISED)]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        keys, PartitionKeyFilter(key=week)
    )
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
