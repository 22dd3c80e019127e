"""The schedules of status page, retention and on-time checks, and the sensor that looks and alerts."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import cast

import dagster as dg

from pipeline_assets.operations.alerts import BOOK
from pipeline_assets.operations.assets import RETENTION, STATUS
from pipeline_assets.operations.checks import ServiceLevel, on_time_check
from pipeline_assets.settings import Settings

SCHEDULES = (
    # The page in the UI may be an hour old; the command and the metrics show the present state.
    ("report_status", "hourly", STATUS, "0 * * * *", "Whether everything is fine, as a page."),
    # After the night's loads and before anybody works.
    ("apply_retention", "daily", RETENTION, "30 4 * * *", "Remove what is past its settings."),
)


def housekeeping(
    assets: Sequence[dg.AssetsDefinition], *, timezone: str, running: bool
) -> dg.Definitions:
    """A job and its schedule for each of the operations' assets."""
    schedules = []
    for name, often, asset, cron, description in SCHEDULES:
        job = dg.define_asset_job(
            name, selection=dg.AssetSelection.assets(asset), description=description
        )
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{name}_{often}",
                job=job,
                cron_schedule=cron,
                execution_timezone=timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING
                if running
                else dg.DefaultScheduleStatus.STOPPED,
            )
        )
    return dg.Definitions(assets=assets, schedules=schedules)


def alerting(
    settings: Settings,
    levels: Sequence[ServiceLevel],
    *,
    running: bool,
    now: Callable[[], datetime],
) -> dg.Definitions:
    """The sensor `alerts`."""

    @dg.sensor(
        name="alerts",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING
        if running
        else dg.DefaultSensorStatus.STOPPED,
        description=(
            "Finds what is wrong now and tells ALERT_URLS what is new or resolved; then asks for "
            "HEARTBEAT_URL. It starts nothing."
        ),
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        from pipeline_assets.operations.runs import View
        from pipeline_assets.operations.watching import look_inside, tell

        repository = cast("dg.RepositoryDefinition", context.repository_def)
        view = View(context.instance, settings, now(), repository)
        return dg.SkipReason(tell(view, BOOK, partial(look_inside, view, levels), now))

    return dg.Definitions(sensors=[alerts])


def on_time(level: ServiceLevel, *, running: bool) -> dg.Definitions:
    """The check of a service level, and the schedule that runs it when the newest partition is due.

    Empty for a contract that promises no latency.
    """
    if not level.latency:
        return dg.Definitions()
    check = on_time_check(level)
    job = dg.define_asset_job(
        f"check_{level.contract.name}_on_time",
        selection=dg.AssetSelection.checks(check),
        description=f"Whether the newest partition of `{level.contract.target_relation}` is there.",
    )
    # The due time of any partition will do, as all are alike. A Monday, as weeks have their Monday as key;
    # in June, as the clocks change in other months.
    monday = "2026-06-01"
    due = level.due(monday)
    window = level.partitions.time_window_for_partition_key(monday)
    weekly = window.end - window.start == timedelta(weeks=1)

    @dg.schedule(
        name=f"{job.name}_{'weekly' if weekly else 'daily'}",
        job_name=job.name,
        cron_schedule=f"{due:%M} {due:%H} * * {f'{due:%w}' if weekly else '*'}",
        execution_timezone=level.partitions.timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING
        if running
        else dg.DefaultScheduleStatus.STOPPED,
    )
    def when_due(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        key = level.newest_expected(context.scheduled_execution_time)
        if key is None:
            return dg.SkipReason("Nothing is due yet.")
        # To Dagster, a job of checks alone has no partitions; its checks read the tag.
        return dg.RunRequest(tags={"dagster/partition": key})

    return dg.Definitions(asset_checks=[check], jobs=[job], schedules=[when_due])
