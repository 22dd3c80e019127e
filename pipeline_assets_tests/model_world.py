"""Fixtures for tests of the model: a warehouse that holds the sample shop, and an MLflow of the test's own.

Both are copied from templates on the session's PostgreSQL: loading and MLflow's migrations happen once.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import psycopg
import pytest

from pipeline_assets.resources import embedded_postgres, sample_shop
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.tables import load_tables
from pipeline_assets_tests import databases

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient
    from sklearn.pipeline import Pipeline

    from pipeline_assets.models.registry import Registered

WEEK, NEXT = "2026-11-02", "2026-11-09"
SNAPSHOTS = ("2026-08-10", "2026-08-17", "2026-09-07", "2026-09-14", "2026-10-05", "2026-10-12")
"""What models of these weeks learn from, three snapshots each."""
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
LAST_DAY = date(2026, 11, 30)
_numbers = count()


@pytest.fixture(scope="session")
def templates(server: embedded_postgres.Server) -> dict[str, str]:
    """Role -> database to be copied."""
    warehouse = embedded_postgres.ensure_database(server, "template_warehouse")
    fill(warehouse)
    mlflow = embedded_postgres.ensure_database(server, "template_mlflow")
    uri = mlflow.replace("postgresql", "postgresql+psycopg2", 1)
    from mlflow import MlflowClient

    MlflowClient(uri, uri).search_registered_models()
    return {"warehouse": "template_warehouse", "mlflow": "template_mlflow"}


def fill(url: str) -> None:
    """Fill a warehouse as the loads of all days up to `LAST_DAY` leave it, ledger included."""
    from pipeline_assets.warehouse.load import prepare

    (table,) = load_tables()
    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as connection:
        prepare(connection, table)
        with (
            connection.transaction(),
            connection.cursor().copy("COPY analytics.fct_transactions FROM STDIN") as copy,
        ):
            for order in sample_shop.orders():
                amount, day = order[3], order[2].date()
                if amount > 0 and day <= LAST_DAY:
                    monday = day - timedelta(days=day.weekday())
                    copy.write_row((*order, amount, day, monday))
        connection.execute(
            """INSERT INTO pipeline.batches (table_name, partition_key, window_start, window_end, verdict,
                   rows_extracted, rows_valid, rows_quarantined, violations, broken_rules, content_hash,
                   loaded_hash, contract_version, code_version, validated_by)
               SELECT 'transactions', day::date::text, day, day + '1 day', 'passed', 0, 0, 0, '{}', '{}',
                   'same', 'same', '1.0.0', '0', 'fixture'
               FROM generate_series('2026-01-07'::timestamptz, %s, '1 day') AS day""",
            [LAST_DAY],
        )
        connection.execute("ANALYZE")


@dataclass
class World:
    """Settings with databases of a test's own, and what a test does with them."""

    settings: Settings
    instance: dg.DagsterInstance

    @property
    def name(self) -> str:
        return f"{self.settings.pipeline_env}.purchase_propensity"

    def run(
        self,
        job: str,
        key: str,
        *,
        settings: Settings | None = None,
        selection: list[str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run a job over a week."""
        from pipeline_assets.definitions import build_definitions

        return (
            build_definitions(settings or self.settings)
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                partition_key=key,
                raise_on_error=False,
                run_config=QUIET,
                asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
            )
        )

    def client(self) -> "MlflowClient":
        return Mlflow(self.settings).client()

    def warehouse(self) -> psycopg.Connection:
        assert self.settings.warehouse_database_url
        return psycopg.connect(
            self.settings.warehouse_database_url.get_secret_value(),
            autocommit=True,
            options="-c TimeZone=UTC",
        )

    def rows(self, query: str) -> list[Any]:
        with self.warehouse() as connection:
            return connection.execute(query).fetchall()

    def snapshot(self, week: str) -> "pa.Table":
        import pyarrow as pa

        return pa.concat_tables(
            PartitionFiles(self.settings.files_url).read("training_snapshots", week)
        )

    def production(self) -> tuple[int | None, int | None, int]:
        """The registry's champion and previous champion, and how many moves the audit has."""
        from pipeline_assets.models import records, registry

        client = self.client()
        found = [
            registry.by_alias(client, self.name, alias)
            for alias in (registry.CHAMPION, registry.PREVIOUS)
        ]
        with self.warehouse() as connection:
            records.ensure_schema(connection)
            moves = len(records.deployments(connection, self.name))
        champion, previous = (version.version if version else None for version in found)
        return champion, previous, moves

    def register(
        self, pipeline: "Pipeline", training: "pa.Table", week: str = NEXT
    ) -> "Registered":
        """Register a fitted pipeline as a version, as `trained_model` does."""
        import mlflow

        from pipeline_assets.models import registry, snapshots

        client = self.client()
        mlflow.set_experiment(Mlflow(self.settings).experiment)
        window = snapshots.describe(training)
        record = registry.TrainingRecord(window, {"by_hand": {"log_loss": 0.2}}, "test")
        with mlflow.start_run() as run:
            uri = registry.log_model(pipeline, training, record)
            return registry.register(
                client,
                self.name,
                uri,
                run.info.run_id,
                {
                    "week": week,
                    "candidate": "by_hand",
                    "fingerprint": f"by hand {next(_numbers)}",
                },
            )


def with_settings(world: World, **changes: Any) -> Settings:
    """The world's settings with changes."""
    return Settings.model_validate({**dict(world.settings), **changes})


def tick(world: World, name: str, now: datetime) -> tuple[str, str] | str:
    """The job and partition that a schedule or sensor requests at a moment, or why it requests none."""
    from pipeline_assets.definitions import build_definitions, build_resources

    repository = build_definitions(world.settings, now=lambda: now).get_repository_def()
    resources = {"warehouse": build_resources(world.settings)["warehouse"]}
    found: dg.ScheduleDefinition | dg.SensorDefinition
    if repository.has_schedule_def(name):
        found = repository.get_schedule_def(name)
        context = dg.build_schedule_context(
            world.instance,
            scheduled_execution_time=now,
            repository_def=repository,
            resources=resources,
        )
        data: Any = found.evaluate_tick(context)
    else:
        found = repository.get_sensor_def(name)
        data = found.evaluate_tick(
            dg.build_sensor_context(world.instance, repository_def=repository, resources=resources)
        )
    if not data.run_requests:
        return str(data.skip_message)
    (request,) = data.run_requests
    return str(request.job_name or found.job_name), str(request.partition_key)


def failures(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps said."""
    return "\n".join(
        told.description or ""
        if (told := event.step_failure_data.user_failure_data)
        else event.step_failure_data.error_display_string
        for event in result.all_events
        if event.is_step_failure
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Check name -> its evaluation."""
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (found,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in found.metadata.items()}


def _world(
    server: embedded_postgres.Server, templates: dict[str, str], folder: Path
) -> Iterator[World]:
    names = {role: f"{role}_of_world_{next(_numbers)}" for role in templates}
    urls = {role: databases.copy(server, templates[role], names[role]) for role in templates}
    settings = Settings.model_validate(
        {
            "pipeline_data_dir": folder,
            "source_database_url": server.url(),
            "warehouse_database_url": urls["warehouse"],
            "mlflow_tracking_uri": urls["mlflow"],
            "models_training_snapshots": 3,
            # Models of so few snapshots don't reach BG/NBD on these weeks; the others do.
            "models_min_precision_over_baseline": -0.03,
        }
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(settings, instance)
    databases.drop(server, *names.values())


@pytest.fixture(scope="session")
def built_snapshots(
    server: embedded_postgres.Server,
    templates: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of the snapshots that models of both weeks learn from, as their job writes them."""
    for found in _world(server, templates, tmp_path_factory.mktemp("snapshots")):
        for week in SNAPSHOTS:
            assert found.run("build_snapshots", week).success
        folder = found.settings.pipeline_data_dir
    return folder / "partitions" / "training_snapshots"


def _take(world: World, snapshots: Path) -> None:
    shutil.copytree(
        snapshots, world.settings.pipeline_data_dir / "partitions" / "training_snapshots"
    )
    for week in SNAPSHOTS:
        world.instance.report_runless_asset_event(
            dg.AssetMaterialization("training_snapshots", partition=week)
        )


@pytest.fixture
def world(
    server: embedded_postgres.Server,
    templates: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """A world without snapshots or models; its models have one candidate and no plots, to be quick."""
    from pipeline_assets.models import judgement, training

    name = "logistic_regression"
    monkeypatch.setattr(training, "CANDIDATES", {name: training.CANDIDATES[name]})
    monkeypatch.setattr(judgement, "images", lambda *_: {})
    yield from _world(server, templates, tmp_path)


@pytest.fixture
def snapshots(world: World, built_snapshots: Path) -> None:
    """Put the snapshots that models learn from into the test's world."""
    _take(world, built_snapshots)


@pytest.fixture(scope="module")
def trained_world(
    server: embedded_postgres.Server,
    templates: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    built_snapshots: Path,
) -> Iterator[World]:
    """Snapshots of all the weeks, and a champion of `WEEK`; for tests that don't replace the champion."""
    for found in _world(server, templates, tmp_path_factory.mktemp("world")):
        _take(found, built_snapshots)
        result = found.run("train_model", WEEK)
        assert result.success, failures(result)
        yield found
