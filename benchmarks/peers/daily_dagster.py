"""The daily pipeline in Dagster, as this project defines its assets: partitioned, retried, in pools.

A run is one process, and a range of days is one run.
"""

import dagster as dg
import daily_steps

from pipeline_assets.running import RETRY

COMMON = {
    "partitions_def": dg.DailyPartitionsDefinition("2026-01-01"),
    "backfill_policy": dg.BackfillPolicy.single_run(),
    "retry_policy": RETRY,
}


@dg.asset(pool="source", **COMMON)
def raw_orders(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The source's rows of the days, one file per day."""
    rows = [daily_steps.extract(day) for day in context.partition_keys]
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(rows)})


@dg.asset(deps=[raw_orders], pool="warehouse", **COMMON)
def validated_orders(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The valid rows, one file per day."""
    rows = [daily_steps.validate(day) for day in context.partition_keys]
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(rows)})


@dg.asset(deps=[validated_orders], pool="warehouse", **COMMON)
def orders(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The target's table."""
    rows = [daily_steps.upsert(day) for day in context.partition_keys]
    return dg.MaterializeResult(metadata={"dagster/row_count": sum(rows)})


ASSETS = [raw_orders, validated_orders, orders]
daily = dg.define_asset_job("daily", ASSETS)


@dg.schedule(job=daily, cron_schedule="* * * * *")
def each_minute() -> dg.RunRequest:
    """Stopped until the benchmark starts it."""
    return dg.RunRequest(partition_key=daily_steps.SCHEDULED_DAY)


defs = dg.Definitions(
    assets=ASSETS, jobs=[daily], schedules=[each_minute], executor=dg.in_process_executor
)
