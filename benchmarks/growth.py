"""How the project bears many tables: definitions, sensors' ticks, daemon, the UI's page of an asset.

    python -m benchmarks.growth --help

Every table has a contract of 16 columns, a source, a warehouse table, and 3,650 days in the ledger. One
real run is copied inside Dagster's database with other tables, days and ids: `--histories` tables get a
run a day, the others one. Figures are medians with their range; where something is kept for later by the
first look, that look is left out. Each measure has a process of its own.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import psycopg
import typer
from psycopg import sql
from rich.console import Console

from benchmarks.data import CONTRACT, drop
from benchmarks.overhead import dagster_dev
from benchmarks.report import Spread, growth_table, merge_growth
from benchmarks.tools import dagster_storage
from pipeline_assets.resources.embedded_postgres import Server, connect_or_start, ensure_database
from pipeline_assets.settings import load_settings

if TYPE_CHECKING:
    import dagster as dg
    from playwright.sync_api import Page, Request

ROOT = Path(__file__).parents[1]
DAYS = 3650
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
FIRST, LAST = TODAY - timedelta(days=DAYS), TODAY - timedelta(days=1)
SAMPLE = "growth_0001"
"""The table that is looked at, and whose real run is copied."""
SOURCE = """
CREATE TABLE shop.{table} AS
SELECT n::bigint AS line_id, n / 4::bigint AS order_id, n / 20::bigint AS customer_id,
    n %% 100::bigint AS part_id, 1 AS quantity, 10::numeric(14,2) AS amount,
    0.05::numeric(5,2) AS discount, 'USD'::text AS currency, 'open'::text AS status,
    'low'::text AS priority, 'air'::text AS channel, moment AS ordered_at, moment AS updated_at,
    NULL::text AS note
FROM (SELECT n, %(first)s::timestamptz + n * interval '1 day' + interval '12 hours' AS moment
    FROM generate_series(0, %(days)s - 1) AS n) AS daily;
CREATE INDEX ON shop.{table} (updated_at);
CREATE INDEX ON shop.{table} (line_id);
"""
# As the load leaves it.
LEDGER = """
INSERT INTO pipeline.batches (table_name, partition_key, window_start, window_end, verdict,
    rows_extracted, rows_valid, rows_quarantined, violations, broken_rules, content_hash,
    contract_version, code_version, validated_by, rows_written, rows_deleted, loaded_hash)
SELECT %(table)s, to_char(day, 'YYYY-MM-DD'), day, day + interval '1 day', 'passed', 1, 1, 0, '{}', '{}',
    'copied', '1.0.0', '0.1.0', 'growth', 1, 0, 'copied'
FROM generate_series(%(first)s::timestamptz, %(last)s::timestamptz, interval '1 day') AS day
"""
# The page of an asset, and what looks at all of them, read materializations, what was planned, checks and
# runs; other events are read with their run.
COPIES = """
CREATE TEMP TABLE copies AS
    SELECT 'growth_' || to_char(number, 'FM0000') AS name, to_char(%(last)s::date - n, 'YYYY-MM-DD') AS day,
        n, md5(number || ' ' || n)::uuid::text AS copy
    FROM generate_series(1, %(tables)s) AS number, generate_series(0, %(days)s - 1) AS n
    WHERE (number <= %(histories)s OR n = 0) AND (number, n) <> (1, 0);
INSERT INTO runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, create_timestamp,
        update_timestamp, start_time, end_time)
    SELECT copy, snapshot_id, replace(pipeline_name, %(sample)s, name), mode, status,
        replace(replace(replace(run_body, %(run)s, copy), %(day)s, day), %(sample)s, name),
        create_timestamp - interval '1 min' * n, update_timestamp - interval '1 min' * n,
        start_time - 60 * n, end_time - 60 * n
    FROM runs, copies WHERE run_id = %(run)s ORDER BY n DESC, name;
INSERT INTO run_tags (run_id, key, value)
    SELECT copy, key, replace(replace(value, %(day)s, day), %(sample)s, name)
    FROM run_tags, copies WHERE run_id = %(run)s;
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT copy, replace(replace(replace(event, %(run)s, copy), %(day)s, day), %(sample)s, name),
        dagster_event_type, timestamp - interval '1 min' * n, replace(step_key, %(sample)s, name),
        replace(asset_key, %(sample)s, name), replace(partition, %(day)s, day)
    FROM event_logs, copies WHERE run_id = %(run)s
        AND dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_MATERIALIZATION_PLANNED')
    ORDER BY n DESC, name, event_logs.id;
INSERT INTO asset_check_executions (asset_key, check_name, partition, run_id, execution_status,
        evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id)
    SELECT replace(asset_key, %(sample)s, name), check_name, day, copy, execution_status,
        evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id
    FROM asset_check_executions, copies WHERE run_id = %(run)s
    ORDER BY n DESC, name, asset_check_executions.id;
INSERT INTO asset_keys (asset_key, last_materialization, last_run_id, asset_details,
        last_materialization_timestamp, tags)
    SELECT replace(asset_key, %(sample)s, name), replace(last_materialization, %(sample)s, name),
        last_run_id, asset_details, last_materialization_timestamp, tags
    FROM asset_keys, copies WHERE asset_key LIKE '%%' || %(sample)s || '%%' AND n = 0;
"""
TICKS = """
SELECT count(*) FROM job_ticks
WHERE type = 'SENSOR' AND status IN ('SKIPPED', 'SUCCESS') AND timestamp >= %s
"""
app = typer.Typer(help=__doc__, no_args_is_help=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    tables: Annotated[list[int] | None, typer.Option(help="So many; 10, 100, 1000.")] = None,
    histories: Annotated[int, typer.Option(help="Tables with a run a day on record.")] = 10,
    runs: Annotated[int, typer.Option(help="Runs of each measure.", min=1)] = 5,
    minutes: Annotated[float, typer.Option(help="How long the daemon is watched.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Databases; 6 GB.")] = None,
) -> None:
    """Measure each number of tables; half an hour, most of it for a thousand."""
    if context.invoked_subcommand:
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    folder = (folder or load_settings().pipeline_data_dir / "benchmarks").resolve()
    console = Console()
    for count in tables or (10, 100, 1000):
        with console.status(f"{count:,} tables") as status:
            figures = _measure(count, min(histories, count), runs, minutes, folder, status.update)
        merge_growth({"tables": count, "histories": min(histories, count), "figures": figures})
        console.print(growth_table())


def _measure(
    count: int,
    histories: int,
    runs: int,
    minutes: float,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Spread]:
    server = connect_or_start(folder / "postgres")
    home = folder / f"growth-{count}"
    home.mkdir(exist_ok=True)
    contracts = _contracts(home, count)
    environment = _databases(server, home)
    os.environ |= environment
    say(f"{count:,} tables: making them")
    _fill(environment, contracts)
    run = _own_process("run", contracts)[0]
    with psycopg.connect(server.url("growth_dagster"), autocommit=True) as dagster:
        say(f"{count:,} tables: copying a run")
        asked = {
            "tables": count,
            "histories": histories,
            "days": DAYS,
            "last": LAST,
            "sample": SAMPLE,
            "run": run,
            "day": f"{LAST:%Y-%m-%d}",
        }
        with psycopg.ClientCursor(dagster) as cursor:  # CREATE TABLE takes no server's parameters
            cursor.execute(COPIES, asked)
        dagster.execute("VACUUM ANALYZE")
    say(f"{count:,} tables: loading the definitions")
    loads = [_own_process("load", contracts) for _ in range(runs)]
    names = ("definitions, s", "definitions, CPU s", "definitions, peak MB")
    figures = {
        name: spread(list(values))
        for name, values in zip(names, zip(*loads, strict=True), strict=True)
    }
    for sensor, title in ((f"source_changes_sensor_{SAMPLE}", "a table's"), ("alerts", "alerts'")):
        say(f"{count:,} tables: ticks of {sensor}")
        ticks = _own_process("tick", contracts, sensor, str(runs))
        figures[f"{title} tick, s"] = spread([wall for wall, _ in ticks])
        figures[f"{title} tick, CPU s"] = spread([cpu for _, cpu in ticks])
    say(f"{count:,} tables: the UI")
    figures |= _page(home, runs)
    say(f"{count:,} tables: the daemon, for {minutes:g} minutes")
    figures |= _daemon(home, server, minutes)
    return figures


def spread(values: list[float]) -> Spread:
    """Median, minimum and maximum."""
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def _contracts(home: Path, count: int) -> Path:
    """The order lines' contract again and again, and a folder that Dagster loads them from."""
    contracts = home / "contracts"
    contracts.mkdir(exist_ok=True)
    text = CONTRACT.read_text()
    level = "\nslaProperties:\n  - {property: latency, value: 48, unit: h}\n"
    for number in range(1, count + 1):
        name = f"growth_{number:04}"
        file = contracts / f"{name}.odcs.yaml"
        file.write_text(text.replace("line_items", name) + level)
    (home / "workspace.yaml").write_text("load_from:\n  - python_file: grown.py\n")
    (home / "grown.py").write_text(
        "from pathlib import Path\n\nfrom benchmarks.growth import grown\n\n"
        f"defs = grown(Path({str(contracts)!r}))\n"
    )
    return contracts


def grown(contracts: Path) -> "dg.Definitions":
    """The project's definitions with a table more for each contract in the folder."""
    from unittest.mock import patch

    from benchmarks.ours import derive
    from pipeline_assets import definitions
    from pipeline_assets.quality.odcs import load_contract
    from pipeline_assets.warehouse.tables import Table, load_tables

    def more() -> list[Table]:
        files = sorted(contracts.glob("*.odcs.yaml"))
        return [*load_tables(), *(Table(load_contract(file), derive=derive) for file in files)]

    with patch.object(definitions, "load_tables", more):
        return definitions.build_definitions(load_settings())


def _databases(server: Server, home: Path) -> dict[str, str]:
    """New databases, as the settings of the processes that are measured."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        for name in ("growth_source", "growth_warehouse", "growth_dagster"):
            drop(admin, name)
    return {
        "DAGSTER_HOME": str(ROOT),
        "PIPELINE_DATA_DIR": str(home / "data"),
        "WAREHOUSE_START_DATE": f"{FIRST:%Y-%m-%d}",
        # No week of the model has closed: nothing of it is missing, so no sensor starts runs.
        "MODELS_START_DATE": f"{TODAY - timedelta(days=TODAY.weekday()):%Y-%m-%d}",
        "SOURCE_DATABASE_URL": ensure_database(server, "growth_source"),
        "WAREHOUSE_DATABASE_URL": ensure_database(server, "growth_warehouse"),
        "DAGSTER_DATABASE_URL": dagster_storage(server, "growth_dagster"),
        "PYTHONPATH": str(ROOT),
    }


def _fill(environment: dict[str, str], contracts: Path) -> None:
    """Source, warehouse and ledger as after ten years of loads, a row a day and table."""
    from pipeline_assets.quality.odcs import load_contract
    from pipeline_assets.warehouse.load import prepare
    from pipeline_assets.warehouse.tables import Table

    span = {"first": FIRST, "last": LAST, "days": DAYS}
    with (
        psycopg.connect(
            environment["SOURCE_DATABASE_URL"], cursor_factory=psycopg.ClientCursor
        ) as source,
        psycopg.connect(environment["WAREHOUSE_DATABASE_URL"], autocommit=True) as warehouse,
    ):
        source.execute("CREATE SCHEMA shop")
        source.execute("CREATE VIEW shop.transactions AS SELECT now() AS updated_at WHERE false")
        for file in sorted(contracts.glob("*.odcs.yaml")):
            contract = load_contract(file)
            name = sql.Identifier(contract.name)
            source.execute(sql.SQL(SOURCE).format(table=name), span)
            source.commit()  # all in one would need more locks than a server has
            prepare(warehouse, Table(contract))
            with (
                source.cursor().copy(
                    sql.SQL(
                        "COPY (SELECT *, round(amount * (1 - discount), 2), ordered_at::date FROM shop.{})"
                        " TO STDOUT"
                    ).format(name)
                ) as read,
                warehouse.cursor().copy(
                    sql.SQL("COPY analytics.{} ({}) FROM STDIN").format(
                        name, sql.SQL(", ").join(sql.Identifier(c.name) for c in contract.columns)
                    )
                ) as write,
            ):
                for line in read:
                    write.write(line)
            warehouse.execute(LEDGER, {"table": contract.name, **span})
        source.commit()
        for connection in (source, warehouse):
            connection.autocommit = True
            connection.execute("VACUUM ANALYZE")


def _own_process(command: str, contracts: Path, *arguments: str) -> list[Any]:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", command, str(contracts), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(told.stdout.strip().rpartition("\n")[2])
    return found


@app.command("run", hidden=True)
def run_one(contracts: Path) -> None:
    """Load the sample's newest day; prints the run's id."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        result = (
            grown(contracts)
            .resolve_job_def(f"load_{SAMPLE}")
            .execute_in_process(
                instance=instance,
                partition_key=f"{LAST:%Y-%m-%d}",
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        )
    print(json.dumps([result.run_id]))  # noqa: T201 - the harness reads it


@app.command(hidden=True)
def load(contracts: Path) -> None:
    """Build all definitions as a code server does; prints seconds, CPU seconds, the process's peak in MB."""
    import pipeline_assets.definitions  # noqa: F401 - what is imported once isn't the tables' cost

    begun, cpu_begun = time.perf_counter(), time.process_time()
    repository = grown(contracts).get_repository_def()
    repository.load_all_definitions()
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, cpu_seconds, peak]))  # noqa: T201 - likewise


@app.command(hidden=True)
def tick(contracts: Path, sensor: str, runs: int) -> None:
    """Tick a sensor; prints seconds and CPU of each tick but the first, which imports and connects."""
    import dagster as dg

    from pipeline_assets.definitions import build_resources

    repository = grown(contracts).get_repository_def()
    seconds = []
    with dg.DagsterInstance.get() as instance:
        for _ in range(runs + 1):
            context = dg.build_sensor_context(
                instance=instance,
                repository_def=repository,
                resources=build_resources(load_settings()),
            )
            begun, cpu_begun = time.perf_counter(), time.process_time()
            found = repository.get_sensor_def(sensor).evaluate_tick(context)
            seconds.append((time.perf_counter() - begun, time.process_time() - cpu_begun))
            if found.run_requests:
                raise RuntimeError(f"{sensor} found what isn't: {found.run_requests}")
    print(json.dumps(seconds[1:]))  # noqa: T201 - likewise


def _page(home: Path, runs: int) -> dict[str, Spread]:
    """The page of one asset in Chromium: first paint, last answer, what was asked."""
    from playwright.sync_api import sync_playwright

    measured: dict[str, list[float]] = {}
    with (
        _dagster(home, "stopped") as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        ) as browser,
    ):
        for number in range(runs + 1):
            page = browser.new_page()
            found = _look(page, f"{address}/assets/validated_{SAMPLE}?view=partitions")
            page.close()
            if number:  # the first one makes Dagster sum up the partitions, and keep that
                for name, value in found.items():
                    measured.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in measured.items()}


def _look(page: "Page", address: str) -> dict[str, float]:
    """Open a page; seconds until it is painted and until its partitions are there.

    It goes on asking for news every few seconds; what is counted is asked before the partitions came.
    """
    asked: list[Request] = []
    page.on("requestfinished", lambda each: asked.append(each) if "/graphql" in each.url else None)
    begun = time.perf_counter()
    with page.expect_request_finished(
        lambda each: "query PartitionHealthQuery" in (each.post_data or ""), timeout=600_000
    ):
        page.goto(address, timeout=600_000)
    shown = time.perf_counter() - begun
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return {
        "asset page: first paint, s": painted / 1000,
        "asset page: partitions there, s": shown,
        "asset page: GraphQL answers": len(asked),
        "asset page: GraphQL, MB": sum(each.sizes()["responseBodySize"] for each in asked) / 1e6,
    }


def _daemon(home: Path, server: Server, minutes: float) -> dict[str, Spread]:
    """Memory and CPU of Dagster's processes, and the ticks that they manage, all sensors switched on."""
    memory: dict[str, list[float]] = {"dagster._daemon run": [], "dagster api grpc": []}
    with (
        _dagster(home, "running"),
        psycopg.connect(server.url("growth_dagster"), autocommit=True) as dagster,
    ):
        time.sleep(30)  # the first ticks import and connect
        begun, before = time.time(), _cpu_seconds()
        while time.time() < begun + 60 * minutes:
            time.sleep(5)
            for each in psutil.Process().children(recursive=True):
                words = " ".join(each.cmdline())
                for name, values in memory.items():
                    if name in words:
                        values.append(each.memory_full_info().uss / (1 << 20))
        elapsed, cpu = time.time() - begun, _cpu_seconds() - before
        since = datetime.fromtimestamp(begun, UTC).replace(tzinfo=None)
        ((ticks,),) = dagster.execute(TICKS, [since]).fetchall()
    return {
        "daemon, MB": spread(memory["dagster._daemon run"]),
        "code server, MB": spread(memory["dagster api grpc"]),
        "Dagster's cores in use": spread([cpu / elapsed]),
        "sensor ticks a minute": spread([60 * ticks / elapsed]),
    }


@contextmanager
def _dagster(home: Path, automation: str) -> Iterator[str]:
    """`dagster dev` on the tables, their sensors on or off: its address."""
    os.environ["PIPELINE_AUTOMATION"] = automation
    with dagster_dev(home, home / "data") as (address, _):
        yield address


def _cpu_seconds() -> float:
    """CPU seconds of all processes that were started from here."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    app()
