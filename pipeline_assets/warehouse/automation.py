"""When a table's partitions are materialized."""

import dagster as dg

from pipeline_assets.quality.contract import Contract


def table_job(contract: Contract, assets: list[dg.AssetsDefinition]) -> dg.UnresolvedAssetJobDefinition:
    """The job that takes partitions of one table from source to warehouse."""
    return dg.define_asset_job(
        f"load_{contract.name}",
        selection=dg.AssetSelection.assets(*assets),
        description=f"From `{contract.source_relation}` to `{contract.target_relation}`.",
    )


def daily_schedule(
    job: dg.UnresolvedAssetJobDefinition, status: dg.DefaultScheduleStatus
) -> dg.UnresolvedPartitionedAssetScheduleDefinition:
    """Load each day once it has ended, with a quarter of an hour for transactions still open."""
    schedule = dg.build_schedule_from_partitioned_job(
        job,
        name=f"{job.name}_daily",
        hour_of_day=0,
        minute_of_hour=15,
        default_status=status,
    )
    assert isinstance(schedule, dg.UnresolvedPartitionedAssetScheduleDefinition)  # noqa: S101 - for the type checker
    return schedule
