"""The daily pipeline in Airflow, with its TaskFlow decorators: one process per task."""

from datetime import UTC, datetime, timedelta

import daily_steps
from airflow.sdk import DAG, task

DAY = daily_steps.SCHEDULED_DAY
RETRIES = {"retries": 4, "retry_delay": timedelta(seconds=2), "retry_exponential_backoff": True}
extract, validate, upsert = map(
    task, (daily_steps.extract, daily_steps.validate, daily_steps.upsert)
)

# Runs come by request and backfill; with an end date in the past the DAG schedules none itself.
with DAG(
    "daily",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    end_date=datetime(2026, 3, 1, tzinfo=UTC),
    default_args=RETRIES,
):
    extract("{{ ds }}") >> validate("{{ ds }}") >> upsert("{{ ds }}")

with DAG(
    "each_minute",
    schedule="* * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    default_args=RETRIES,
):
    extract(DAY) >> validate(DAY) >> upsert(DAY)
