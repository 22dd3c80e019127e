"""The daily pipeline in Prefect; run as a program it registers the flow's deployments with the server."""

from pathlib import Path

import daily_steps
from prefect import flow, task
from prefect.tasks import exponential_backoff

RETRIES = {"retries": 4, "retry_delay_seconds": exponential_backoff(backoff_factor=2)}
extract = task(**RETRIES)(daily_steps.extract)
validate = task(**RETRIES)(daily_steps.validate)
upsert = task(**RETRIES)(daily_steps.upsert)


@flow
def daily(day: str = daily_steps.SCHEDULED_DAY) -> int:
    """Load one day."""
    extract(day)
    validate(day)
    return upsert(day)


if __name__ == "__main__":
    file = Path(__file__)
    stored = flow.from_source(source=str(file.parent), entrypoint=f"{file.name}:daily")
    stored.deploy("daily", work_pool_name="processes")
    stored.deploy("each_minute", work_pool_name="processes", cron="* * * * *", paused=True)
