"""When a table's partitions are materialized: daily, when their source changes, and in repair."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.partitions import partition_windows
from pipeline_assets.quality.contract import Contract
from pipeline_assets.resources.postgres import Database
from pipeline_assets.warehouse.checks import OUT_OF_STEP, reconciliation, source_key

if TYPE_CHECKING:
    from pipeline_assets.warehouse.reconcile import Comparison


def table_automation(
    contract: Contract,
    assets: Sequence[dg.AssetsDefinition],
    partitions: dg.DailyPartitionsDefinition,
    *,
    lateness_days: int,
    running: bool,
) -> dg.Definitions:
    """A table's job, its daily schedule, its sensor of changes and its daily reconciliation."""
    job = dg.define_asset_job(
        f"load_{contract.name}",
        selection=dg.AssetSelection.assets(*assets),
        description=f"From `{contract.source_relation}` to `{contract.target_relation}`.",
    )
    schedule_status = (
        dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
    )
    # A quarter of an hour for transactions that are still open when the day ends.
    daily = dg.build_schedule_from_partitioned_job(
        job,
        name=f"{job.name}_daily",
        hour_of_day=0,
        minute_of_hour=15,
        default_status=schedule_status,
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
            f"Loads the days on which `{contract.source_relation}` and the warehouse differ: of the "
            f"last {lateness_days}, and of those that the last reconciliation found."
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
        recent = partitions.get_partition_keys()[-lateness_days:]
        days = dict.fromkeys([*_found_out_of_step(context.instance, contract), *recent])
        with (
            source.connect(autocommit=True) as at_source,
            warehouse.connect(autocommit=True) as at_warehouse,
        ):
            ensure_schema(at_warehouse, contract)
            found = compare(at_source, at_warehouse, contract, partition_windows(partitions, days))
            known = batches(at_warehouse, contract, list(days))
        held = {day for day, batch in known.items() if batch.verdict == "failed"}
        requests = [
            dg.RunRequest(
                run_key=_run_key(context.instance, day, comparison, held), partition_key=day
            )
            for day, comparison in found.items()
            if not comparison.in_step
        ]
        return requests or dg.SkipReason(f"{len(found)} days compared: all in step.")

    return dg.Definitions(
        asset_checks=[check],
        jobs=[job, reconcile],
        schedules=[daily, reconcile_daily],
        sensors=[source_changes_sensor],
    )


def _run_key(
    instance: dg.DagsterInstance, day: str, comparison: "Comparison", held: Collection[str]
) -> str:
    """Dagster starts one run a key, ever: the day and what the source has of it.

    A held day is not tried again before its source has changed. Any other that is out of step although
    the key was used (the run was lost, or the source is back at what it once was) is tried each hour.
    """
    key = f"{day}@{comparison.source}"
    used = instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": key}), limit=1)
    return f"{key}@{datetime.now(UTC):%Y-%m-%dT%H}" if used and day not in held else key


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
