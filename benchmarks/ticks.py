"""How long the sensors' ticks take with a large history, and those of `alerts` with many failures.

One real run is copied inside Dagster's database with other ids, days and times. Figures are medians of
five; a sensor's first tick is shown apart, as it imports and connects. `python -m benchmarks.ticks --help`.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import psycopg
import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
COPIES = """
CREATE TEMP TABLE copies AS SELECT n, md5('copy ' || n)::uuid::text AS copy,
    to_char(date %(day)s + (n %% 300), 'YYYY-MM-DD') AS day FROM generate_series(1, %(runs)s) AS n;
INSERT INTO runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, create_timestamp,
        update_timestamp, start_time, end_time)
    SELECT copy, snapshot_id, pipeline_name, mode, status,
        replace(replace(run_body, %(run)s, copy), %(day)s, day),
        create_timestamp - interval '60 s' * n, update_timestamp - interval '60 s' * n,
        start_time - 60 * n, end_time - 60 * n
    FROM runs, copies WHERE run_id = %(run)s ORDER BY n DESC;
INSERT INTO run_tags (run_id, key, value)
    SELECT copy, key, replace(value, %(day)s, day) FROM run_tags, copies WHERE run_id = %(run)s;
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT copy, replace(replace(event, %(run)s, copy), %(day)s, day), dagster_event_type,
        timestamp - interval '60 s' * n, step_key, asset_key, replace(partition, %(day)s, day)
    FROM event_logs, copies WHERE run_id = %(run)s ORDER BY n DESC, event_logs.id;
INSERT INTO asset_check_executions (asset_key, check_name, partition, run_id, execution_status,
        evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id)
    SELECT asset_key, check_name, day, copy, execution_status, evaluation_event,
        evaluation_event_timestamp, evaluation_event_storage_id
    FROM asset_check_executions, copies WHERE run_id = %(run)s
    ORDER BY n DESC, asset_check_executions.id;
"""
FAILED = """
CREATE TEMP TABLE failed AS SELECT run_id FROM runs ORDER BY id DESC LIMIT %(failed)s;
UPDATE runs SET status = 'FAILURE',
    run_body = replace(run_body, 'PipelineRunStatus.SUCCESS', 'PipelineRunStatus.FAILURE')
    WHERE run_id IN (SELECT run_id FROM failed);
DELETE FROM event_logs WHERE run_id IN (SELECT run_id FROM failed)
    AND dagster_event_type = 'ASSET_MATERIALIZATION' AND step_key = 'fct_transactions';
"""


def main(
    runs: Annotated[int, typer.Option(help="Runs in the history.")] = 10_000,
    failed: Annotated[int, typer.Option(help="How many of the newest then fail at once.")] = 300,
) -> None:
    """Measure the ticks of all sensors, then those of `alerts` after a burst of failures."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"DAGSTER_HOME": str(ROOT), "PIPELINE_DATA_DIR": folder}
        _measure(runs, failed)


def _measure(runs: int, failed: int) -> None:
    import dagster as dg

    from pipeline_assets.definitions import build_definitions, build_resources
    from pipeline_assets.resources.postgres import Database
    from pipeline_assets.settings import load_settings

    settings = load_settings()
    definitions = build_definitions(settings)
    repository, resources = definitions.get_repository_def(), build_resources(settings)
    table = Table("tick of", "first", "median of five", title=f"{runs:,} runs on record")

    def tick(name: str) -> float:
        begun = time.perf_counter()
        repository.get_sensor_def(name).evaluate_tick(
            dg.build_sensor_context(
                instance=instance, repository_def=repository, resources=resources
            )
        )
        return time.perf_counter() - begun

    def measured(name: str, title: str) -> None:
        first, *others = (tick(name) for _ in range(6))
        table.add_row(title, f"{first:.2f} s", f"{median(others):.2f} s")

    with dg.DagsterInstance.get() as instance:
        day = settings.warehouse_start_date.isoformat()
        run = definitions.resolve_job_def("load_transactions").execute_in_process(
            instance=instance,
            partition_key=day,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        with Database("dagster", settings).connect(autocommit=True) as connection:
            _execute(connection, COPIES, {"runs": runs, "run": run.run_id, "day": day})
            for sensor in repository.sensor_defs:
                measured(sensor.name, sensor.name)
            _execute(connection, FAILED, {"failed": failed})
        measured("alerts", f"alerts, {failed} runs having failed")
    Console().print(table)


def _execute(connection: psycopg.Connection, statements: str, values: dict[str, str | int]) -> None:
    # Parameters are bound by the client: the server takes none in CREATE TABLE.
    with psycopg.ClientCursor(connection) as cursor:
        cursor.execute(statements, values)
        cursor.execute("ANALYZE")


if __name__ == "__main__":
    typer.run(main)
