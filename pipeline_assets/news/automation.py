"""When editions are made: every morning at 08:00, and later if that morning was missed."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from pipeline_assets.news.assets import DIGEST

CATCH_UP = timedelta(days=7)
"""How far back missed mornings are made up for; feeds have nothing older."""


def _now() -> datetime:
    return datetime.now(UTC)


def news_automation(
    assets: Sequence[dg.AssetsDefinition],
    partitions: dg.DailyPartitionsDefinition,
    *,
    running: bool,
    now: Callable[[], datetime] = _now,
) -> dg.Definitions:
    """The job that makes an edition, its schedule, and the sensor for mornings that were missed."""
    job = dg.define_asset_job(
        "publish_digest",
        selection=dg.AssetSelection.assets(*assets),
        description="From the outlets' feeds to the morning's edition.",
    )
    schedule = dg.build_schedule_from_partitioned_job(
        job,
        name=f"{job.name}_daily",
        # No time of its own: the window closes at 08:00, and that is the tick, across DST changes.
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
            "requests the mornings before it, oldest first, one at a time, each once."
        ),
    )
    def missed_mornings(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return _next_missed(context.instance, job.name, partitions, now())

    return dg.Definitions(jobs=[job], schedules=[schedule], sensors=[missed_mornings])


def _next_missed(
    instance: dg.DagsterInstance,
    job_name: str,
    partitions: dg.DailyPartitionsDefinition,
    now: datetime,
) -> dg.RunRequest | dg.SkipReason:
    """The oldest morning without an edition for which nothing was ever started.

    Only after the first edition: what was before the digest existed wasn't missed. The newest is the
    schedule's, which makes up for that one itself: both would start it when they come back together.
    """
    made = instance.get_materialized_partitions(dg.AssetKey(DIGEST))
    if not made:
        return dg.SkipReason(
            "No edition has been made yet: the schedule or a person makes the first."
        )
    first = max(min(made), (now - CATCH_UP).date().isoformat())
    *closed, _newest = partitions.get_partition_keys(current_time=now)
    runs = instance.get_runs(
        dg.RunsFilter(job_name=job_name, created_after=now - CATCH_UP - timedelta(days=1))
    )
    if under_way := [run.run_id for run in runs if not run.is_finished]:
        return dg.SkipReason(f"An edition is being made (run {under_way[0]}).")
    started = {run.tags.get("dagster/partition") for run in runs}
    for key in closed:
        if key >= first and key not in made and key not in started:
            return dg.RunRequest(run_key=f"missed {key}", partition_key=key)
    return dg.SkipReason("No morning was missed.")
