"""When a table's partitions are materialized."""

from collections.abc import Sequence

import dagster as dg

from pipeline_assets.quality.contract import Contract


def table_automation(
    contract: Contract, assets: Sequence[dg.AssetsDefinition], status: dg.DefaultScheduleStatus
) -> dg.Definitions:
    """The job that takes a table's partitions from source to warehouse, and its daily schedule.

    Each day is loaded once it has ended, with a quarter of an hour for transactions still open.
    """
    job = dg.define_asset_job(
        f"load_{contract.name}",
        selection=dg.AssetSelection.assets(*assets),
        description=f"From `{contract.source_relation}` to `{contract.target_relation}`.",
    )
    schedule = dg.build_schedule_from_partitioned_job(
        job, name=f"{job.name}_daily", hour_of_day=0, minute_of_hour=15, default_status=status
    )
    return dg.Definitions(jobs=[job], schedules=[schedule])
