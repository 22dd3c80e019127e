"""When editions are made: every morning at 08:00, and later if that morning was missed."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

import dagster as dg

from pipeline_assets.news.assets import ARTICLES, DIGEST
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import may_do_better, under_way, with_own_checks

CATCH_UP = timedelta(days=7)
"""How far back missed mornings are caught up on; feeds reach back no further."""


def news_automation(
    assets: Sequence[dg.AssetsDefinition],
    partitions: dg.DailyPartitionsDefinition,
    *,
    running: bool,
    now: Callable[[], datetime],
) -> dg.Definitions:
    """The job that makes an edition, its schedule, and the sensor for mornings that were missed."""
    job = dg.define_asset_job(
        "publish_digest",
        selection=with_own_checks(assets),
        description="From the outlets' feeds to the morning's edition.",
    )
    schedule = dg.build_schedule_from_partitioned_job(
        job,
        name=f"{job.name}_daily",
        # No time is given: the schedule ticks when the window closes, at 08:00, across DST changes too.
        default_status=dg.DefaultScheduleStatus.RUNNING
        if running
        else dg.DefaultScheduleStatus.STOPPED,
    )

    @dg.sensor(
        name="missed_mornings",
        job=job,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING
        if running
        else dg.DefaultSensorStatus.STOPPED,
        description=(
            "Dagster's schedule runs the newest partition only when it comes back from a pause. This "
            "requests the mornings before it, oldest first, one at a time, each hour those that failed "
            "for a while only, and those whose articles the warehouse has lost."
        ),
    )
    def missed_mornings(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Database]
    ) -> dg.RunRequest | dg.SkipReason:
        return _next_missed(context.instance, job.name, partitions, warehouse, now())

    return dg.Definitions(jobs=[job], schedules=[schedule], sensors=[missed_mornings])


def _next_missed(
    instance: dg.DagsterInstance,
    job_name: str,
    partitions: dg.DailyPartitionsDefinition,
    warehouse: Database,
    now: datetime,
) -> dg.RunRequest | dg.SkipReason:
    """The oldest morning without an edition that had no run yet or that another run may make now.

    Only mornings after the first edition count: before the digest existed, none was missed. The newest is
    left to the schedule, which catches up on it by itself: after a pause both would start it. A failure
    that a retry can't fix is left to a person. A morning that Dagster has on record as made may be missing
    in a warehouse that was restored, or failed over to a replica without its last transactions.
    """
    made = instance.get_materialized_partitions(dg.AssetKey(DIGEST))
    if not made:
        return dg.SkipReason(
            "No edition has been made yet: the schedule or a person makes the first."
        )
    first = max(min(made), (now - CATCH_UP).date().isoformat())
    every = partitions.get_partition_keys(current_time=now)
    closed = [key for key in every if key >= first]
    records = instance.get_run_records(
        dg.RunsFilter(job_name=job_name, created_after=now - CATCH_UP - timedelta(days=1))
    )
    last: dict[str | None, dg.RunRecord] = {}
    # Those that were read above too: one that fails between the two reads is neither failed nor under way.
    read = [record.dagster_run for record in records]
    of_graph = under_way(instance, [job_name], [dg.AssetKey(ARTICLES), dg.AssetKey(DIGEST)])
    for run in [run for run in read if not run.is_finished] + of_graph:
        return dg.SkipReason(f"An edition is being made (run {run.run_id}).")
    for record in records:  # the newest first
        last.setdefault(record.dagster_run.tags.get("dagster/partition"), record)
    kept = made & _judged(warehouse, closed)
    for key in closed:
        if key in kept:
            continue
        if key not in last:
            if key != closed[-1]:
                return dg.RunRequest(run_key=f"missed {key}", partition_key=key)
        elif last[key].dagster_run.is_success or may_do_better(instance, last[key], now):
            run_id = last[key].dagster_run.run_id
            return dg.RunRequest(run_key=f"missed {key} after {run_id}", partition_key=key)
    return dg.SkipReason("No morning was missed.")


def _judged(warehouse: Database, days: Collection[str]) -> set[str]:
    """Those of the days that have a batch in the warehouse's ledger."""
    from pipeline_assets.warehouse import ledger

    contract = load_contract(ARTICLES)
    with warehouse.connect(autocommit=True) as connection:
        ledger.ensure_schema(connection, contract)
        return set(ledger.batches(connection, contract, list(days)))
