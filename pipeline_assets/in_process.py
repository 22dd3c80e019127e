"""Run the pipelines in the command's own process, with progress in the terminal.

These are the jobs of the definitions, recorded in the same history as the daemon's runs; the databases say
what is to be run.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from pipeline_assets.terminal import console, print_error, print_model

if TYPE_CHECKING:
    import dagster as dg

    from pipeline_assets.settings import Settings
    from pipeline_assets.warehouse.tables import Table


def materialize(table: "Table", days: list[str]) -> bool:
    """Run the table's job over days in this process; returns whether nothing failed."""
    import dagster as dg

    from pipeline_assets.definitions import defs

    job, succeeded = defs.resolve_job_def(f"load_{table.contract.name}"), True
    with (
        dg.DagsterInstance.get() as instance,
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as bars,
    ):
        bars.add_task("recorded by Dagster", total=None)
        for first, last in _spans(days):
            result = job.execute_in_process(
                instance=instance,
                resources={"progress": _bar(bars)},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags={
                    "dagster/asset_partition_range_start": first,
                    "dagster/asset_partition_range_end": last,
                },
                raise_on_error=False,
            )
            succeeded &= result.success
            _print_failures(result)
    return succeeded


def train_and_score(settings: "Settings") -> bool:
    """Train, judge, deploy and score the newest closed week, if not yet done; returns whether it worked."""
    import dagster as dg

    from pipeline_assets.definitions import defs
    from pipeline_assets.models.assets import weeks
    from pipeline_assets.models.automation import (
        BUILD,
        TRAIN,
        missing_snapshots,
        stored_weeks,
        trainable,
    )
    from pipeline_assets.models.names import ORDERS
    from pipeline_assets.resources.postgres import Database
    from pipeline_assets.warehouse.tables import load_tables

    if ORDERS not in {table.contract.name for table in load_tables()}:
        console.print(f"model: there is no table {ORDERS} to learn from.")
        return True
    warehouse = Database("warehouse", settings)
    with dg.DagsterInstance.get() as instance:
        stored = stored_weeks(instance, warehouse, settings, weeks(settings), datetime.now(UTC))
    if not stored.closed or not trainable(stored.closed[-1], settings):
        console.print("model: there aren't orders of enough weeks yet to train on.")
        return True
    newest, succeeded = stored.closed[-1], True
    if newest not in stored.decided:
        with console.status("Reading the snapshots that the model learns from ..."):
            job = defs.resolve_job_def(BUILD)
            for week in missing_snapshots(newest, settings, stored):
                succeeded = succeeded and _run_job(job, week).success
        with console.status(f"Training and judging the model of the week of {newest} ..."):
            succeeded = succeeded and _run_job(defs.resolve_job_def(TRAIN), newest).success
    return score(settings) and succeeded


def score(settings: "Settings") -> bool:
    """Score the newest closed week, if the champion hasn't yet, and show the model's state."""
    from pipeline_assets.definitions import defs
    from pipeline_assets.models.assets import weeks
    from pipeline_assets.models.automation import SCORE
    from pipeline_assets.models.status import model_status

    status, succeeded = model_status(settings), True
    newest = weeks(settings).get_last_partition_key()
    if newest and status.deployment and status.scored != (newest, status.deployment.champion_after):
        with console.status("Scoring all customers ..."):
            succeeded = _run_job(defs.resolve_job_def(SCORE), newest).success
        status = model_status(settings)
    print_model(status)
    return succeeded


def _run_job(job: "dg.JobDefinition", key: str) -> "dg.ExecuteInProcessResult":
    """Run a job over a partition in this process, and show what failed."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            partition_key=key,
            raise_on_error=False,
        )
    _print_failures(result)
    return result


def publish_digest(settings: "Settings") -> bool:
    """Make the newest morning's edition and print where it is; returns whether nothing failed."""
    from pipeline_assets.definitions import defs
    from pipeline_assets.news.assets import DIGEST, mornings

    key = mornings(settings).get_last_partition_key()
    if key is None:
        console.print(f"digest: the first morning is after {settings.news_start_date}.")
        return True
    with console.status("Making the morning's edition ..."):
        result = _run_job(defs.resolve_job_def("publish_digest"), key)
    for edition in result.asset_materializations_for_node(DIGEST) if result.success else []:
        count, page = (edition.metadata[name].value for name in ("dagster/row_count", "page"))
        console.print(f"digest: {count} stories from {settings.news_provider}")
        console.print(str(page), soft_wrap=True)
    return result.success


def _print_failures(result: "dg.ExecuteInProcessResult") -> None:
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            told = failure.user_failure_data
            reason = (told and told.description) or failure.error_display_string
            print_error(f"{event.step_key}: {reason}")


def _spans(days: list[str]) -> Iterator[tuple[str, str]]:
    """Days in order as first and last of each unbroken span: a span is one run."""
    first = previous = days[0]
    for day in days[1:]:
        if date.fromisoformat(day) - date.fromisoformat(previous) > timedelta(days=1):
            yield first, previous
            first = day
        previous = day
    yield first, previous


def _bar(bars: Progress) -> Callable[[Iterable[str], str], Iterator[str]]:
    def progress(partitions: Iterable[str], asset: str) -> Iterator[str]:
        keys = list(partitions)
        yield from bars.track(keys, total=len(keys), description=asset)

    return progress
