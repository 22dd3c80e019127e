"""When the status page is made anew and when retention runs."""

from collections.abc import Sequence

import dagster as dg

from pipeline_assets.operations.assets import RETENTION, STATUS

SCHEDULES = (
    # An hour is what a page in the UI may be old; the command and the metrics say it for now.
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
