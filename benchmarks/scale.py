"""How the load scales: a sensor's tick, ten years in one run, one huge day; seconds and megabytes.

    python -m benchmarks.scale --help

The source is made by SQL: orders spread evenly over days, one day with rows that break the contract.
Each part runs in a process of its own, through the project's own definitions on the embedded server.
"""

import json
import os
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.data import drop
from benchmarks.report import merge_scale
from benchmarks.tools import dagster_storage
from pipeline_assets.resources.embedded_postgres import connect_or_start, ensure_database
from pipeline_assets.settings import load_settings

TEN_YEARS = 3650
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
SOURCE = """
CREATE SCHEMA shop;
CREATE TABLE shop.transactions AS
SELECT 'order-' || n AS order_id, n / 20 AS customer_id, moment AS ordered_at,
    (1 + n % 10000)::numeric(14,2) / 100 AS amount, 'USD'::text AS currency, 1 AS quantity,
    'completed'::text AS status, moment AS updated_at
FROM (SELECT n, timestamptz '{first}' + n * (interval '{days} days' / {rows}) AS moment
    FROM generate_series(0, {rows}::bigint - 1) AS n) AS spread;
ALTER TABLE shop.transactions ALTER amount TYPE numeric(14,2);
CREATE INDEX ON shop.transactions (updated_at);
CREATE INDEX ON shop.transactions (order_id);
"""
SPOIL = """
UPDATE shop.transactions SET status = 'lost'
WHERE updated_at >= %(start)s AND updated_at < %(start)s::timestamptz + interval '1 day'
"""
app = typer.Typer(help=__doc__, no_args_is_help=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    part: Annotated[list[str] | None, typer.Option(help="Only: tick, ranged, day.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Databases; 12 GB.")] = None,
    divide: Annotated[int, typer.Option(help="Divide the rows by this.", min=1)] = 1,
) -> None:
    """Measure each part in a process of its own; about an hour."""
    if context.invoked_subcommand:
        return
    folder = (folder or load_settings().pipeline_data_dir / "benchmarks").resolve()
    sizes = {
        "tick": [(10_000_000, TEN_YEARS)],
        "ranged": [(36_500, 365), (365_000, TEN_YEARS)],
        "day": [(1_000_000, 1), (10_000_000, 1)],
    }
    shown = Table("part", "rows", "days", "figures")
    for name in part or sizes:
        for rows, days in sizes[name]:
            figures = _in_own_process(name, rows // divide, days, folder)
            merge_scale({"part": name, "rows": rows // divide, "days": days, "figures": figures})
            told = ", ".join(f"{what} {value:,}" for what, value in figures.items())
            shown.add_row(name, f"{rows // divide:,}", f"{days:,}", told)
    Console().print(shown)


def _in_own_process(part: str, rows: int, days: int, folder: Path) -> dict[str, float]:
    server = connect_or_start(folder / "postgres")
    with psycopg.connect(server.url(), autocommit=True) as admin:
        for name in ("scale_source", "scale_warehouse", "scale_dagster"):
            drop(admin, name)
    first = TODAY - timedelta(days=days)
    with psycopg.connect(ensure_database(server, "scale_source"), autocommit=True) as source:
        source.execute("SET TIME ZONE 'UTC'")
        source.execute(SOURCE.format(first=first, rows=rows, days=days))
        if part == "ranged":
            source.execute(SPOIL, {"start": first + timedelta(days=days // 2)})
        source.execute("VACUUM ANALYZE shop.transactions")
    root = Path(__file__).parents[1]
    settings = {
        "DAGSTER_HOME": str(root),
        "PIPELINE_DATA_DIR": str(folder / "scale"),
        "WAREHOUSE_START_DATE": f"{first:%Y-%m-%d}",
        "SOURCE_DATABASE_URL": server.url("scale_source"),
        "WAREHOUSE_DATABASE_URL": ensure_database(server, "scale_warehouse"),
        "DAGSTER_DATABASE_URL": dagster_storage(server, "scale_dagster"),
    }
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "measure", part],
        env={**os.environ, **settings},
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(told.stdout.strip().rpartition("\n")[2])
    return figures


@app.command(hidden=True)
def measure(part: str) -> None:
    """Run one part on the databases of the environment and print its figures as JSON."""
    import dagster as dg

    from pipeline_assets.definitions import build_definitions

    definitions = build_definitions(load_settings())
    job = definitions.resolve_job_def("load_transactions")
    days = list(job.partitions_def.get_partition_keys() if job.partitions_def else [])
    instance = dg.DagsterInstance.get()

    def load(first: str, last: str) -> dict[str, float]:
        begun = time.perf_counter()
        result = job.execute_in_process(
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last,
            },
            raise_on_error=False,
        )
        return {
            "succeeded": int(result.success),
            "seconds": round(time.perf_counter() - begun, 1),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }

    figures = load(days[0], days[-1])
    if part == "tick":
        figures |= _ticks(definitions, instance) | _reconciliation(days)
    figures |= _outcome()
    print(json.dumps(figures))  # noqa: T201 - the harness reads it


def _ticks(definitions: Any, instance: Any) -> dict[str, float]:
    """Milliseconds of a tick that finds nothing to do; the first one, which imports, is left out."""
    import dagster as dg

    from pipeline_assets.definitions import build_resources

    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def("source_changes_sensor_transactions")
    seconds = []
    for _ in range(6):
        context = dg.build_sensor_context(
            instance=instance,
            repository_def=repository,
            resources=build_resources(load_settings()),
        )
        begun = time.perf_counter()
        tick = sensor.evaluate_tick(context)
        seconds.append(time.perf_counter() - begun)
        if tick.run_requests:
            raise RuntimeError(f"out of step: {tick.run_requests}")
    return {"tick_ms": round(1000 * median(seconds[1:]), 1)}


def _reconciliation(days: list[str]) -> dict[str, float]:
    """Seconds to compare every day of the source."""
    from pipeline_assets.resources.postgres import Database
    from pipeline_assets.warehouse.reconcile import compare
    from pipeline_assets.warehouse.status import closed_days
    from pipeline_assets.warehouse.tables import load_tables

    settings = load_settings()
    begun = time.perf_counter()
    with (
        Database("source", settings).connect(autocommit=True) as source,
        Database("warehouse", settings).connect(autocommit=True) as warehouse,
    ):
        found = compare(source, warehouse, load_tables()[0].contract, closed_days(settings))
    return {
        "reconciliation_seconds": round(time.perf_counter() - begun, 2),
        "days_compared": len(set(found) & set(days)),
    }


def _outcome() -> dict[str, float]:
    """What is in the warehouse and what is held."""
    from pipeline_assets.warehouse.status import table_status
    from pipeline_assets.warehouse.tables import load_tables

    status = table_status(load_settings(), load_tables()[0])
    return {"days_loaded": status.loaded, "days_held": len(status.held), "rows": status.rows}


if __name__ == "__main__":
    app()
