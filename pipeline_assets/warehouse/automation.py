"""When a table's partitions are materialized: after a day ends, when it changes, and for repair.

The schedule requests the day that has just ended; the sensor requests every other day that is missing or
out of step. Both query the two databases first: neither starts a day that is in step or under way, nor any
day while the source is unreachable, and after a pause of any length the sensor finds every missed day.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg

from pipeline_assets.failures import PERMANENT
from pipeline_assets.partitions import partition_windows
from pipeline_assets.quality.contract import Contract
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import under_way, with_own_checks
from pipeline_assets.warehouse.checks import OUT_OF_STEP, reconciliation, source_key

DAY = timedelta(days=1)
SETTLED = timedelta(minutes=15)
"""Delay between a day's end and its load, for transactions that are still open when it ends."""
SENSOR_WAITS = timedelta(minutes=5)
"""The sensor's further delay, so that it and the schedule don't start a new day at the same moment."""
REQUESTS = 10
"""Runs that one tick requests at most; the queue stays short, and the next tick requests more."""


def table_automation(
    contract: Contract,
    assets: Sequence[dg.AssetsDefinition],
    partitions: dg.DailyPartitionsDefinition,
    *,
    lateness_days: int,
    running: bool,
    now: Callable[[], datetime],
) -> dg.Definitions:
    """A table's job, its daily schedule, its sensor of changes and its daily reconciliation."""
    job = dg.define_asset_job(
        f"load_{contract.name}",
        selection=with_own_checks(assets),
        description=f"From `{contract.source_relation}` to `{contract.target_relation}`.",
    )
    schedule_status = (
        dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
    )
    first = partitions.start.date()
    versions = "+".join(
        sorted({v for each in assets for v in each.code_versions_by_key.values() if v})
    )
    check = reconciliation(contract, partitions)
    reconcile = dg.define_asset_job(
        f"reconcile_{contract.name}",
        selection=dg.AssetSelection.checks(check),
        description=f"Compare every closed day of `{contract.target_relation}` with its source.",
    )
    reconcile_daily = dg.ScheduleDefinition(
        name=f"{reconcile.name}_daily",
        job_name=reconcile.name,
        cron_schedule="0 5 * * *",
        execution_timezone=partitions.timezone,
        default_status=schedule_status,
    )

    def requests(
        instance: dg.DagsterInstance,
        databases: tuple[Database, Database],
        at: datetime,
        days: Callable[[date, Collection[str]], Collection[str]],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        """Request runs for the days whose load is missing, outdated or out of step, oldest first.

        `days` chooses the days to compare, given the last one that had ended at `at` and the missing ones.
        """
        from pipeline_assets.warehouse.ledger import (
            batches,
            ensure_schema,
            half_done,
            never_loaded,
        )
        from pipeline_assets.warehouse.reconcile import compare

        # Computed from the date: Dagster takes 30 ms to list the days of ten years, at each table's tick.
        last = at.astimezone(ZoneInfo(partitions.timezone)).date() - DAY
        if last < first:
            return dg.SkipReason("No day has ended yet.")

        # What to load is derived from the two databases: there is no cursor that could be lost or wrong.
        source, warehouse = databases
        with (
            source.connect(autocommit=True) as at_source,
            warehouse.connect(autocommit=True) as at_warehouse,
        ):
            ensure_schema(at_warehouse, contract)
            missed = never_loaded(at_warehouse, contract, first, last)
            missed |= half_done(at_warehouse, contract, first, last)
            # The last reconciliation may name days that are no partitions any more, or haven't settled.
            chosen = [day for day in days(last, missed) if f"{first}" <= day <= f"{last}"]
            windows = partition_windows(partitions, sorted(chosen))
            known = batches(at_warehouse, contract, list(windows))
            found = compare(at_source, at_warehouse, contract, windows)
        # During a rollout the previous version still loads, and leaves the new version's columns empty.
        older = {day for day, batch in known.items() if batch.contract_version != contract.version}
        wanted = [
            day
            for day, comparison in found.items()
            if day in missed or day in older or not comparison.in_step
        ]
        busy = _days_under_way(instance, job.name, assets) if wanted else set()
        requested: list[dg.RunRequest] = []
        for day in wanted:
            if len(requested) == REQUESTS:
                break
            batch = known.get(day)
            held_by = batch.validated_by if batch and batch.verdict == "failed" else None
            version = f"{day}@{versions}@{found[day].source}"
            key = _unused_key(instance, job.name, day, version, now(), held_by=held_by)
            if key and day not in busy:
                requested.append(dg.RunRequest(run_key=key, partition_key=day))
        return requested or dg.SkipReason(
            f"{len(found)} days compared, {len(wanted)} to load; none that isn't held, failed for good, "
            "under way or tried within the hour."
        )

    @dg.schedule(
        name=f"{job.name}_daily",
        job_name=job.name,
        cron_schedule=f"{SETTLED.seconds // 60} 0 * * *",
        execution_timezone=partitions.timezone,
        description="Loads the day that has just ended.",
        default_status=schedule_status,
    )
    def daily(
        context: dg.ScheduleEvaluationContext,
        source: dg.ResourceParam[Database],
        warehouse: dg.ResourceParam[Database],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        at = context.scheduled_execution_time
        return requests(
            context.instance, (source, warehouse), at, lambda last, _: [last.isoformat()]
        )

    @dg.sensor(
        name=f"source_changes_sensor_{contract.name}",
        job_name=job.name,
        description=(
            f"Loads the days whose load is missing, and those on which `{contract.source_relation}` "
            f"and the warehouse differ: of the last {lateness_days}, and of those that the last "
            "reconciliation found. Oldest first."
        ),
        minimum_interval_seconds=60,
        default_status=(
            dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
        ),
    )
    def source_changes_sensor(
        context: dg.SensorEvaluationContext,
        source: dg.ResourceParam[Database],
        warehouse: dg.ResourceParam[Database],
    ) -> list[dg.RunRequest] | dg.SkipReason:
        found = _found_out_of_step(context.instance, contract)
        return requests(
            context.instance,
            (source, warehouse),
            now() - SETTLED - SENSOR_WAITS,
            lambda last, missed: {*found, *missed, *_newest(last, lateness_days)},
        )

    return dg.Definitions(
        asset_checks=[check],
        jobs=[job, reconcile],
        schedules=[daily, reconcile_daily],
        sensors=[source_changes_sensor],
    )


def _newest(last: date, count: int) -> list[str]:
    """The `count` days up to the last one."""
    return [(last - number * DAY).isoformat() for number in range(count)]


def _days_under_way(
    instance: dg.DagsterInstance, job_name: str, assets: Sequence[dg.AssetsDefinition]
) -> set[str]:
    """The days that this table's unfinished runs cover."""
    keys = {key for definition in assets for key in definition.keys}
    days = set()
    for run in under_way(instance, [job_name], keys):
        first = run.tags.get("dagster/asset_partition_range_start")
        if day := run.tags.get("dagster/partition"):
            days.add(day)
        elif first:
            last = run.tags["dagster/asset_partition_range_end"]
            span = (date.fromisoformat(last) - date.fromisoformat(first)).days
            days |= {
                (date.fromisoformat(first) + timedelta(days=n)).isoformat() for n in range(span + 1)
            }
    return days


def _unused_key(
    instance: dg.DagsterInstance,
    job_name: str,
    day: str,
    key: str,
    now: datetime,
    *,
    held_by: str | None,
) -> str | None:
    """A run key for the day, or None if no run is due. Dagster starts only one run per key, ever.

    `key` is the day, the source's digest of it, and the versions of code and contracts. If the last run
    had the same key and failed permanently, or held the day (`held_by`), no run is due until one of these
    changes; a day held by a run of several days, which has no key, is run once more. Any other day that is
    out of step although its key was used (the run failed or was lost, or the source is back to an earlier
    state) is retried once an hour.
    """
    if not _used(instance, key):
        return key
    of_day = dg.RunsFilter(job_name=job_name, tags={"dagster/partition": day})
    for last in instance.get_runs(of_day, limit=1):
        same = last.tags.get("dagster/run_key", "").startswith(key)
        if same and (PERMANENT in last.tags or last.run_id == held_by):
            return None
    again = f"{key}@{now:%Y-%m-%dT%H}"
    return None if _used(instance, again) else again


def _used(instance: dg.DagsterInstance, key: str) -> bool:
    return bool(instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": key}), limit=1))


def _found_out_of_step(instance: dg.DagsterInstance, contract: Contract) -> list[str]:
    """The days that the last reconciliation found out of step."""
    key = dg.AssetCheckKey(source_key(contract), "reconciled")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    if record is None or record.event is None or record.event.dagster_event is None:
        return []
    evaluation = record.event.dagster_event.event_specific_data
    if not isinstance(evaluation, dg.AssetCheckEvaluation):
        return []
    return str(evaluation.metadata[OUT_OF_STEP].value).split()
