"""When a table's partitions are materialized: when a day is over, when it changes, and in repair.

One sensor requests them all. A schedule beside it would start the newest day a second time, start it
in vain while the source is away, and after a pause of the daemon know of no day but the newest.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.partitions import partition_windows
from pipeline_assets.quality.contract import Contract
from pipeline_assets.resources.postgres import Database
from pipeline_assets.warehouse.checks import ON_TIME, OUT_OF_STEP, reconciliation, source_key

if TYPE_CHECKING:
    from pipeline_assets.warehouse.ledger import Batch
    from pipeline_assets.warehouse.reconcile import Comparison


SETTLED = timedelta(minutes=15)
"""A day is loaded so long after its end, for transactions that are still open when it ends."""
NOT_FINISHED = [
    status
    for status in dg.DagsterRunStatus
    if status.value not in ("SUCCESS", "FAILURE", "CANCELED")
]
REQUESTS = 10
"""Runs that one tick requests at most; the queue stays short, and the next tick requests more."""


def _now() -> datetime:
    return datetime.now(UTC)


def table_automation(
    contract: Contract,
    assets: Sequence[dg.AssetsDefinition],
    partitions: dg.DailyPartitionsDefinition,
    *,
    lateness_days: int,
    running: bool,
    now: Callable[[], datetime] = _now,
) -> dg.Definitions:
    """A table's job, the sensor that requests its days, and its daily reconciliation."""
    target = dg.AssetKey(contract.target_relation.rpartition(".")[2])
    job = dg.define_asset_job(
        f"load_{contract.name}",
        selection=dg.AssetSelection.assets(*assets)
        - dg.AssetSelection.checks(dg.AssetCheckKey(target, ON_TIME)),
        description=f"From `{contract.source_relation}` to `{contract.target_relation}`.",
    )
    schedule_status = (
        dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
    )
    check = reconciliation(contract, partitions)
    reconcile = dg.define_asset_job(
        f"reconcile_{contract.name}",
        selection=dg.AssetSelection.checks(check),
        description=f"Compare every closed day of `{contract.target_relation}` with its source.",
    )
    reconcile_daily = dg.ScheduleDefinition(
        name=f"{reconcile.name}_daily",
        job=reconcile,
        cron_schedule="0 5 * * *",
        execution_timezone=partitions.timezone,
        default_status=schedule_status,
    )

    @dg.sensor(
        name=f"source_changes_sensor_{contract.name}",
        job=job,
        description=(
            f"Loads the days that were never loaded, and those on which `{contract.source_relation}` "
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
        from pipeline_assets.warehouse.ledger import batches, ensure_schema
        from pipeline_assets.warehouse.reconcile import compare

        # What to load is derived from the two databases: no cursor can be lost or lead astray.
        closed = partitions.get_partition_keys(current_time=now() - SETTLED)
        with (
            source.connect(autocommit=True) as at_source,
            warehouse.connect(autocommit=True) as at_warehouse,
        ):
            ensure_schema(at_warehouse, contract)
            known = batches(at_warehouse, contract)
            unloaded = _never_loaded(closed, known)
            asked = {*_found_out_of_step(context.instance, contract), *unloaded}
            days = sorted({*asked, *closed[-lateness_days:]})
            found = compare(at_source, at_warehouse, contract, partition_windows(partitions, days))
        wanted = [
            day for day, comparison in found.items() if day in unloaded or not comparison.in_step
        ]
        under_way = _under_way(context.instance, job.name, assets) if wanted else set()
        requests: list[dg.RunRequest] = []
        for day in wanted:
            if len(requests) == REQUESTS:
                break
            held = day in known and known[day].verdict == "failed"
            key = _unused_key(context.instance, day, found[day], now(), held=held)
            if key and day not in under_way:
                requests.append(dg.RunRequest(run_key=key, partition_key=day))
        return requests or dg.SkipReason(
            f"{len(found)} days compared, {len(wanted)} to load; none that isn't held, under way or "
            "tried within the hour."
        )

    return dg.Definitions(
        asset_checks=[check],
        jobs=[job, reconcile],
        schedules=[reconcile_daily],
        sensors=[source_changes_sensor],
    )


def _never_loaded(closed: Sequence[str], known: "Mapping[str, Batch]") -> set[str]:
    """The days since the first in the ledger that no run brought to an end, empty ones too.

    What was before the first wasn't missed: the first load of a history is a person's, in one run.
    """
    return {
        day
        for day in closed
        if known
        and day > min(known)
        # A held day isn't loaded either, but it was judged.
        and (day not in known or (known[day].verdict == "passed" and not known[day].loaded_hash))
    }


def _under_way(
    instance: dg.DagsterInstance, job_name: str, assets: Sequence[dg.AssetsDefinition]
) -> set[str]:
    """The days that unfinished runs of this table are about."""
    keys = {key for definition in assets for key in definition.keys}
    days = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED)):
        if run.job_name != job_name and not keys & (run.asset_selection or set()):
            continue
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
    instance: dg.DagsterInstance, day: str, comparison: "Comparison", now: datetime, *, held: bool
) -> str | None:
    """A run key for the day, or None if it isn't its turn. Dagster starts one run a key, ever.

    The key is the day and what the source has of it: a held day is not tried again before its source
    has changed. Any other that is out of step although the key was used (the run was lost, or the
    source is back at what it once was) is tried each hour.
    """
    key = f"{day}@{comparison.source}"
    if not _used(instance, key):
        return key
    again = f"{key}@{now:%Y-%m-%dT%H}"
    return None if held or _used(instance, again) else again


def _used(instance: dg.DagsterInstance, key: str) -> bool:
    return bool(instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": key}), limit=1))


def _found_out_of_step(instance: dg.DagsterInstance, contract: Contract) -> list[str]:
    """The days that the last reconciliation found."""
    key = dg.AssetCheckKey(source_key(contract), "reconciled")
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    if record is None or record.event is None or record.event.dagster_event is None:
        return []
    evaluation = record.event.dagster_event.event_specific_data
    if not isinstance(evaluation, dg.AssetCheckEvaluation):
        return []
    return str(evaluation.metadata[OUT_OF_STEP].value).split()
