"""What Dagster's storage knows of its daemons, runs, schedules, sensors and checks, as plain data.

The queries are bounded, so that they take the same time with a million runs: a limited number of the newest
of a kind, what is under way now, an asset's partitions, counts that an index answers, one query for all
checks. `operations/status.py` judges what is right or wrong; removal from the storage is in
`dagster_instance.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorState
    from dagster._core.storage.dagster_run import RunRecord

Automation = dg.SensorDefinition | dg.ScheduleDefinition

RECENT_RUNS = 500
"""How many of the newest ended runs are looked at; a page of a hundred takes Dagster 30 ms."""
WAITING = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
)
USUAL_RUNS = 20
"""How many of a job's last successful runs determine its usual length."""
SHORTEST_SLOW = timedelta(minutes=5)
"""A shorter run never counts as slow: nobody minds if ten seconds become forty."""
SILENT = timedelta(minutes=30)
"""A run that has written nothing for this long is reported: the longest step takes minutes."""
RELAXED = 5
"""Intervals that a sensor's tick may be late, if that is longer than ALERT_LATE_MINUTES."""


@dataclass(frozen=True)
class Watched:
    """The current definitions that Dagster keeps a history of; removed ones are ignored."""

    checks: Collection[dg.AssetCheckKey]
    check_jobs: Collection[str]
    """Jobs that consist of checks only."""
    automation: Mapping[str, Automation]
    """Schedules and sensors by their names."""


@dataclass(frozen=True)
class Run:
    """A run; each time is null until the run gets there."""

    run_id: str
    job: str
    status: str
    span: tuple[str, str] | None
    """The first and the last of its partitions."""
    created: datetime
    started: datetime | None
    ended: datetime | None

    @property
    def is_waiting(self) -> bool:
        """Whether it hasn't started yet."""
        return self.status in {status.value.lower() for status in WAITING}

    @property
    def partition(self) -> str | None:
        """Its partition or range, in words."""
        return " to ".join(dict.fromkeys(self.span)) if self.span else None

    def overlaps(self, other: "Run") -> bool:
        """Whether both are of one job and have a partition in common, or none."""
        if self.job != other.job or self.span is None or other.span is None:
            return self.job == other.job and self.span == other.span
        return self.span[0] <= other.span[1] and other.span[0] <= self.span[1]


@dataclass(frozen=True)
class Slow:
    """A run that is slow or stuck."""

    run: Run
    begun: datetime
    usual: timedelta | None
    """The usual length, if it has taken much longer."""
    silent_since: datetime | None
    """When it last wrote something, if that is long ago."""


@dataclass(frozen=True)
class Instigator:
    """A schedule or sensor that is switched on, with its newest ticks."""

    name: str
    kind: str
    """`schedule` or `sensor`."""
    last_tick: datetime | None
    late_from: datetime | None
    """The time from which its next tick is late; null if it is unknown when it was switched on."""
    failures: int
    """Failed ticks in a row, the newest included; at most `TICKS`."""
    error: str | None
    """What the newest tick failed with, in one line."""


@dataclass(frozen=True)
class Check:
    """A check, judged by its newest partition: an older failure was dealt with then, or is held back."""

    asset: str
    name: str
    partition: str | None
    passed: bool
    failed_partitions: int


TICKS = 10


def watched(definitions: dg.Definitions) -> Watched:
    """What to look at: the checks, schedules and sensors of the definitions."""
    repository = definitions.get_repository_def()
    return Watched(
        sorted(repository.asset_graph.asset_check_keys),
        [
            job.name
            for job in definitions.jobs or []
            if not repository.get_job(job.name).asset_layer.selected_asset_keys
        ],
        automation(repository),
    )


def automation(repository: dg.RepositoryDefinition) -> dict[str, Automation]:
    """Its sensors and schedules by their names."""
    both: list[Automation] = [*repository.sensor_defs, *repository.schedule_defs]
    return {each.name: each for each in both}


def heartbeats(instance: dg.DagsterInstance) -> dict[str, datetime]:
    """The last heartbeat of each daemon that this deployment needs; absent if there was none."""
    needed = set(instance.get_required_daemon_types())
    found = instance.get_daemon_heartbeats()
    return {
        kind: datetime.fromtimestamp(beat.timestamp, UTC)
        for kind, beat in found.items()
        if kind in needed
    }


def runs_by_status(instance: dg.DagsterInstance) -> dict[str, int]:
    """The number of runs by status, in lower case; includes each of Dagster's statuses."""
    return {
        status.value.lower(): instance.get_runs_count(dg.RunsFilter(statuses=[status]))
        for status in dg.DagsterRunStatus
    }


def unfinished_runs(instance: dg.DagsterInstance) -> list[Run]:
    """Runs that wait or run, oldest first, at most `RECENT_RUNS`."""
    statuses = [status for status in dg.DagsterRunStatus if status not in _ENDED]
    records = instance.get_run_records(
        dg.RunsFilter(statuses=statuses), limit=RECENT_RUNS, ascending=True
    )
    return [_run(record) for record in records]


def ended_runs(instance: dg.DagsterInstance, since: datetime, known: Watched) -> list[Run]:
    """Runs that ended, created since a moment, newest first, at most `RECENT_RUNS`.

    Runs of checks only get no partition: each asks for the newest, and materializes none.
    """
    records = instance.get_run_records(
        dg.RunsFilter(statuses=list(_ENDED), created_after=since), limit=RECENT_RUNS
    )
    runs = [_run(record) for record in records]
    return [replace(run, span=None) if run.job in known.check_jobs else run for run in runs]


def slow_runs(instance: dg.DagsterInstance, now: datetime, factor: float) -> list[Slow]:
    """Runs under way for `factor` times as long as usual, and those that have written nothing for long.

    The usual length is the median of the job's last successes. Runs over a range of partitions, and of jobs
    that hardly ever ran, have none: there, silence reveals a run whose process is gone.
    """
    from pipeline_assets.resources.dagster_instance import last_events

    started = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    )
    long = [
        (record, begun)
        for record in started
        if (begun := _moment(record.start_time)) and now - begun >= SHORTEST_SLOW
    ]
    if not long:
        return []
    wrote = last_events(instance, [record.dagster_run.run_id for record, _ in long])
    usual = {
        job: _usual(instance, job) for job in {record.dagster_run.job_name for record, _ in long}
    }
    found = []
    for record, begun in long:
        run = record.dagster_run
        length = None if _is_ranged(run) else usual[run.job_name]
        is_long = length and now - begun > max(length * factor, SHORTEST_SLOW)
        last = wrote.get(run.run_id, begun)
        is_silent = now - last >= SILENT
        if is_long or is_silent:
            usual_length, silent_since = length if is_long else None, last if is_silent else None
            found.append(Slow(_run(record), begun, usual_length, silent_since))
    return found


def _is_ranged(run: dg.DagsterRun) -> bool:
    return "dagster/asset_partition_range_start" in run.tags


def _usual(instance: dg.DagsterInstance, job: str) -> timedelta | None:
    """The median length of the job's last successful runs of one partition; None for fewer than three."""
    records = instance.get_run_records(
        dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS]), limit=USUAL_RUNS
    )
    lengths = [
        record.end_time - record.start_time
        for record in records
        if record.start_time and record.end_time and not _is_ranged(record.dagster_run)
    ]
    return timedelta(seconds=median(lengths)) if len(lengths) >= 3 else None


def last_sign(state: "InstigatorState", last_tick: datetime | None) -> datetime | None:
    """When a schedule or sensor last ticked or was switched on: from then on its next tick is awaited."""
    data: Any = state.instigator_data
    began = "last_sensor_start_timestamp", "start_timestamp"
    on = [_moment(getattr(data, name, None)) for name in began]
    return max(filter(None, [last_tick, *on]), default=None)


def next_tick(
    automation: Automation, since: datetime, late: timedelta
) -> tuple[datetime, timedelta]:
    """When the first tick after a moment is due, and how late it may be.

    The latter is `late`, or for a sensor `RELAXED` intervals if that is longer.
    """
    from dagster._utils.schedules import schedule_execution_time_iterator

    if isinstance(automation, dg.SensorDefinition):
        interval = timedelta(seconds=automation.minimum_interval_seconds or 30)
        return since + interval, max(interval * RELAXED, late)
    times = schedule_execution_time_iterator(
        since.timestamp(), automation.cron_schedule, automation.execution_timezone
    )
    return next(time for time in times if time > since).astimezone(UTC), late


def instigators(instance: dg.DagsterInstance, known: Watched, late: timedelta) -> list[Instigator]:
    """The schedules and sensors that are switched on, by name; `late` as in `next_tick`."""
    from pipeline_assets.resources.dagster_instance import newest_ticks

    found = []
    states = [
        state
        for state in instance.all_instigator_state()
        if state.is_running and state.name in known.automation
    ]
    newest = newest_ticks(instance, [state.selector_id for state in states], TICKS)
    for state in states:
        ticks = newest.get(state.selector_id, [])
        ended = [tick for tick in ticks if tick.status.value != "STARTED"]
        failures = next(
            (i for i, tick in enumerate(ended) if tick.status.value != "FAILURE"), len(ended)
        )
        error = ended[0].error if failures else None
        last = _moment(ticks[0].timestamp) if ticks else None
        late_from = None
        if since := last_sign(state, last):
            due, patience = next_tick(known.automation[state.name], since, late)
            late_from = due + patience
        found.append(
            Instigator(
                name=state.name,
                kind=state.instigator_type.value.lower(),
                last_tick=last,
                late_from=late_from,
                failures=failures,
                error=_root(error).splitlines()[0] if error else None,
            )
        )
    return sorted(found, key=lambda each: each.name)


def checks(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetCheckKey], since: datetime
) -> list[Check]:
    """The checks, of `keys`, that had a result since a moment."""
    from pipeline_assets.resources.dagster_instance import check_results

    outcomes: dict[dg.AssetCheckKey, dict[str | None, bool]] = {}
    for result in check_results(instance, since):
        if result.check in keys:
            outcomes.setdefault(result.check, {})[result.partition] = result.passed
    results = []
    for key, by_partition in outcomes.items():
        # A ranged run has a result for the range as a whole beside each partition's own.
        days = {day: passed for day, passed in by_partition.items() if day is not None}
        newest = max(days, default=None)
        results.append(
            Check(
                asset=key.asset_key.to_user_string(),
                name=key.name,
                partition=newest,
                passed=days[newest] if newest is not None else by_partition[None],
                failed_partitions=sum(not passed for passed in (days or by_partition).values()),
            )
        )
    return sorted(results, key=lambda check: (check.asset, check.name))


def newest_partition(instance: dg.DagsterInstance, asset: str) -> str | None:
    """The last partition of an asset that was ever materialized."""
    return max(instance.get_materialized_partitions(dg.AssetKey(asset)), default=None)


def stored_value(instance: dg.DagsterInstance, key: str) -> str | None:
    """A value that the project stores among the daemon's cursors."""
    return instance.daemon_cursor_storage.get_cursor_values({key}).get(key)


def partitions_on_record(instance: dg.DagsterInstance) -> set[str]:
    """Every partition that was ever materialized, as `asset/partition`."""
    return {
        f"{asset.to_user_string()}/{partition}"
        for asset in instance.all_asset_keys()
        for partition in instance.get_materialized_partitions(asset)
    }


_ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def _run(record: "RunRecord") -> Run:
    run = record.dagster_run
    one = run.tags.get("dagster/partition")
    first = run.tags.get("dagster/asset_partition_range_start", one)
    last = run.tags.get("dagster/asset_partition_range_end", one)
    return Run(
        run_id=run.run_id,
        # Runs of single assets, started from their page, share a job of Dagster's own.
        job=run.job_name,
        status=run.status.value.lower(),
        span=(first, last) if first and last else None,
        created=record.create_timestamp.replace(tzinfo=UTC)
        if record.create_timestamp.tzinfo is None
        else record.create_timestamp,
        started=_moment(record.start_time),
        ended=_moment(record.end_time),
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _root(error: "object") -> str:
    """The message of the first cause."""
    while getattr(error, "cause", None):
        error = error.cause  # type: ignore[attr-defined]  # as the loop asked
    return str(getattr(error, "message", error)).strip()
