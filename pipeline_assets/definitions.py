"""The entry point: all definitions, built from the settings.

The app, the tests and the command line build the same definitions, each with its own overrides. Building
them connects to nothing, starts nothing and reads no data.
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets.models.assets import evaluated_asset, model_assets, weeks
from pipeline_assets.models.automation import model_automation
from pipeline_assets.models.checks import evaluation
from pipeline_assets.models.names import ORDERS, PREDICTIONS
from pipeline_assets.news.assets import ARTICLES, mornings, news_assets
from pipeline_assets.news.automation import news_automation
from pipeline_assets.operations.assets import operations_assets
from pipeline_assets.operations.automation import alerting, housekeeping, on_time
from pipeline_assets.operations.checks import ServiceLevel
from pipeline_assets.operations.logs import configure_logging
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.celery import celery_executor
from pipeline_assets.resources.dagster_history import watched
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.resources.postgres import Database
from pipeline_assets.resources.progress import no_progress
from pipeline_assets.settings import Settings, load_settings
from pipeline_assets.warehouse.assets import table_assets, target_name
from pipeline_assets.warehouse.automation import table_automation
from pipeline_assets.warehouse.tables import Table, load_tables

if TYPE_CHECKING:
    from pipeline_assets.resources.http import HttpClient


def build_resources(settings: Settings) -> dict[str, Any]:
    """What the assets work with, by name."""
    return {
        "source": Database("source", settings),
        "warehouse": Database("warehouse", settings),
        "files": PartitionFiles(settings.files_url),
        "http": _http_client,
        "mlflow": Mlflow(settings),
        "progress": no_progress,
    }


def _http_client() -> "HttpClient":
    """Make the client in the runs that need it: importing requests costs a sixth of importing Dagster."""
    from pipeline_assets.resources.http import USER_AGENT, HttpClient

    return HttpClient(USER_AGENT)


def build_definitions(
    settings: Settings,
    resources: Mapping[str, Any] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dg.Definitions:
    """All definitions; `resources` replaces some of `build_resources` by name, `now` the sensors' clock."""
    days = dg.DailyPartitionsDefinition(
        settings.warehouse_start_date.isoformat(), timezone=settings.pipeline_timezone
    )
    running = settings.pipeline_automation == "running"
    shared = dg.Definitions(
        resources={**build_resources(settings), **(resources or {})},
        # One process per run: an interpreter per step would cost 3 s of CPU each, and parallelism
        # comes from several runs. On several hosts Celery's workers, which are warm, take the steps.
        executor=celery_executor
        if settings.pipeline_executor == "celery"
        else dg.in_process_executor,
    )
    parts = [shared]
    levels = []
    tables = load_tables()
    with _known_previews():
        for table in tables:
            assets = table_assets(table, days)
            materializable = [asset for asset in assets if isinstance(asset, dg.AssetsDefinition)]
            key = dg.AssetKey(target_name(table.contract))
            levels.append(ServiceLevel(table.contract, key, days))
            automation = table_automation(
                table.contract,
                materializable,
                days,
                lateness_days=settings.warehouse_lateness_days,
                running=running,
                now=now,
            )
            own = (dg.Definitions(assets=assets), automation, on_time(levels[-1], running=running))
            parts.append(_with_own_jobs(shared, dg.Definitions.merge(*own)))
        partitions = mornings(settings)
        news = news_assets(settings, partitions)
        parts += [
            dg.Definitions(assets=news),
            news_automation(news, partitions, running=running, now=now),
        ]
        others = [ServiceLevel(load_contract(ARTICLES), dg.AssetKey(ARTICLES), partitions)]
        for orders in (table for table in tables if table.contract.name == ORDERS):
            key = dg.AssetKey(PREDICTIONS)
            others.append(ServiceLevel(load_contract(PREDICTIONS), key, weeks(settings)))
            parts.append(_models(settings, orders, running=running, now=now))
        parts += [
            *(on_time(level, running=running) for level in others),
            alerting(settings, [*levels, *others], running=running, now=now),
        ]
    parts.append(
        housekeeping(
            # The status is about all definitions: it looks them up when the report is made.
            operations_assets(settings, lambda: watched(definitions)),
            timezone=settings.pipeline_timezone,
            running=running,
        )
    )
    definitions = dg.Definitions.merge(*parts)
    return definitions


def _with_own_jobs(shared: dg.Definitions, table: dg.Definitions) -> dg.Definitions:
    """A table's definitions, each job resolved against the table's assets.

    Left to the end, Dagster resolves each job by walking the assets of all tables, which at a thousand
    tables is most of the loading time. These jobs contain no other table's assets.
    """
    alone = dg.Definitions.merge(shared, table)
    return dg.Definitions(
        assets=table.assets,
        asset_checks=table.asset_checks,
        jobs=[alone.resolve_job_def(job.name) for job in table.jobs or []],
        schedules=table.schedules,
        sensors=table.sensors,
    )


def _models(
    settings: Settings, orders: Table, *, running: bool, now: Callable[[], datetime]
) -> dg.Definitions:
    partitions = weeks(settings)
    assets, checks = model_assets(settings, orders, partitions), evaluation(settings, partitions)
    automation = model_automation(settings, assets, checks, partitions, running=running, now=now)
    evaluated = evaluated_asset(partitions)
    return dg.Definitions.merge(
        dg.Definitions(assets=[*assets, evaluated], asset_checks=[checks]), automation
    )


@contextmanager
def _known_previews() -> Iterator[None]:
    """Silence Dagster's warnings on the three unfinished features that the project relies on."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Specifying a partitions_def on an AssetCheckSpec", dg.PreviewWarning
        )
        warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)
        warnings.filterwarnings("ignore", "Parameter `allow_nonexistent_ups", dg.BetaWarning)
        yield


_settings = load_settings()
configure_logging(_settings)
defs = build_definitions(_settings)

# What Dagster has made by now lives as long as the process; walking it at each collection would cost a
# run 0.1 s of its CPU.
gc.freeze()
