"""How the project scales to many tables: definitions, sensors' ticks, daemon, the UI's page of an asset.

    python -m benchmarks.growth --help

Every table has a contract of 16 columns and 3,650 partitions (`benchmarks.growth_data`). Figures are medians
of rounds with their range; in a round each number of tables is measured once, in processes of its own. Where
the first call fills a cache, that call is left out.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import psycopg
import typer
from rich.console import Console

from benchmarks.deployment import ROOT, cpu_seconds, dagster_dev
from benchmarks.growth_data import LAST, SAMPLE, Tables, copy_run, grown, make, remove_databases
from benchmarks.report import Rounds, growth_table, merge_growth, spread
from pipeline_assets.resources.embedded_postgres import connect_or_start
from pipeline_assets.settings import load_settings

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

TICKS = """
SELECT count(*) FROM job_ticks
WHERE type = 'SENSOR' AND status IN ('SKIPPED', 'SUCCESS') AND timestamp >= %s
"""
app = typer.Typer(help=__doc__, no_args_is_help=False, pretty_exceptions_enable=False)


def set_up(tables: Tables, _: float) -> dict[str, float]:
    """Make the tables; nothing is measured."""
    make(tables)
    return {}


def history(tables: Tables, _: float) -> dict[str, float]:
    """Load a day of one table, and copy the run; nothing is measured."""
    (run_id,) = _own_process("run", tables)
    copy_run(tables, run_id)
    return {}


def definitions(tables: Tables, _: float) -> dict[str, float]:
    """Loading all definitions, and what a run's process loads of them."""
    names = (
        "definitions, s",
        "definitions, CPU s",
        "definitions, a run's CPU s",
        "definitions, peak MB",
    )
    return dict(zip(names, _own_process("load", tables), strict=True))


def ticks(tables: Tables, _: float) -> dict[str, float]:
    """A tick of a table's sensor with nothing to do, and of `alerts`, which looks at everything."""
    figures = {}
    for sensor, title in ((f"source_changes_sensor_{SAMPLE}", "a table's"), ("alerts", "alerts'")):
        wall, cpu = _own_process("tick", tables, sensor)
        figures[f"{title} tick, s"] = wall
        figures[f"{title} tick, CPU s"] = cpu
    return figures


def _own_process(command: str, tables: Tables, *arguments: str) -> list[Any]:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", command, str(tables.contracts), *arguments],
        cwd=ROOT,
        env=os.environ | tables.environment(),
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
    """Build all definitions as a code server does.

    Prints seconds, CPU seconds, the part of these that a run's process takes too, and the peak in MB.
    """
    import pipeline_assets.definitions  # noqa: F401 - what is imported once isn't the tables' cost

    begun, cpu_begun = time.perf_counter(), time.process_time()
    repository = grown(contracts).get_repository_def()
    repository.get_job(f"load_{SAMPLE}")
    of_a_run = time.process_time() - cpu_begun
    repository.load_all_definitions()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, cpu, of_a_run, peak]))  # noqa: T201 - likewise


@app.command(hidden=True)
def tick(contracts: Path, sensor: str) -> None:
    """Tick a sensor twice; prints seconds and CPU of the second, as the first imports and connects."""
    import dagster as dg

    from pipeline_assets.definitions import build_resources

    repository = grown(contracts).get_repository_def()
    with dg.DagsterInstance.get() as instance:
        for _ in range(2):
            context = dg.build_sensor_context(
                instance=instance,
                repository_def=repository,
                resources=build_resources(load_settings()),
            )
            begun, cpu_begun = time.perf_counter(), time.process_time()
            found = repository.get_sensor_def(sensor).evaluate_tick(context)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu_begun
            if found.run_requests:
                raise RuntimeError(f"{sensor} found what isn't: {found.run_requests}")
    print(json.dumps([seconds, cpu]))  # noqa: T201 - likewise


def page(tables: Tables, _: float) -> dict[str, float]:
    """The page of one asset in Chromium: first paint, last answer, what was asked."""
    from playwright.sync_api import sync_playwright

    with (
        _dagster(tables, "stopped") as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        ) as browser,
    ):
        for _ in range(2):  # the first visit makes Dagster summarise the partitions and cache that
            tab = browser.new_page()
            found = _look(tab, f"{address}/assets/validated_{SAMPLE}?view=partitions")
            tab.close()
    return found


def _look(page: "Page", address: str) -> dict[str, float]:
    """Open a page; returns the seconds until it is painted and until its partitions are there.

    The page polls every few seconds; only answers up to that of the partitions are counted.
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


def daemon(tables: Tables, minutes: float) -> dict[str, float]:
    """Memory and CPU of Dagster's processes, and the ticks that they manage, all sensors switched on.

    Memory is the median of samples, one every five seconds.
    """
    memory: dict[str, list[float]] = {"dagster._daemon run": [], "dagster api grpc": []}
    with (
        _dagster(tables, "running"),
        psycopg.connect(tables.server.url(tables.database("dagster")), autocommit=True) as dagster,
    ):
        started = datetime.now(UTC).replace(tzinfo=None)
        while not _ticks(dagster, started):
            time.sleep(1)
        time.sleep(30)  # the first ticks import and connect
        begun, before = time.time(), cpu_seconds(*psutil.Process().children())
        since = datetime.fromtimestamp(begun, UTC).replace(tzinfo=None)
        while time.time() < begun + 60 * minutes or not _ticks(dagster, since):
            time.sleep(5)
            for each in psutil.Process().children(recursive=True):
                words = " ".join(each.cmdline())
                for name, values in memory.items():
                    if name in words:
                        values.append(each.memory_full_info().uss / (1 << 20))
        elapsed = time.time() - begun
        cores = (cpu_seconds(*psutil.Process().children()) - before) / elapsed
        a_minute = 60 * _ticks(dagster, since) / elapsed
    return {
        "daemon, MB": median(memory["dagster._daemon run"]),
        "code server, MB": median(memory["dagster api grpc"]),
        "Dagster's cores in use": cores,
        "sensor ticks a minute": a_minute,
    }


def _ticks(dagster: psycopg.Connection, since: datetime) -> int:
    """The number of sensors' ticks since a moment that didn't fail."""
    ((count,),) = dagster.execute(TICKS, [since]).fetchall()
    return int(count)


@contextmanager
def _dagster(tables: Tables, automation: str) -> Iterator[str]:
    """`dagster dev` on the tables, their sensors on or off: its address."""
    settings = {**tables.environment(), "PIPELINE_AUTOMATION": automation}
    with dagster_dev(tables.home, tables.home / "data", **settings) as (address, _):
        yield address


PREPARATIONS = (set_up, history)
PARTS: dict[str, Callable[[Tables, float], dict[str, float]]] = {
    part.__name__: part for part in (*PREPARATIONS, definitions, ticks, page, daemon)
}
"""What is done for a number of tables; of a measure, its figures in one round."""


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    tables: Annotated[list[int] | None, typer.Option(help="So many; 10, 100, 1000.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(PARTS)}, on what those before it have left; all."),
    ] = None,
    days: Annotated[int, typer.Option(help="Partitions of each table.", min=2)] = 3650,
    recent: Annotated[
        int, typer.Option(help="Days of each in Dagster's history; of the first all are.", min=1)
    ] = 7,
    runs: Annotated[int, typer.Option(help="Rounds of each measure.", min=1)] = 5,
    minutes: Annotated[float, typer.Option(help="How long the daemon is watched each time.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Databases; 7 GB.")] = None,
) -> None:
    """Measure each number of tables, in turn; hours, most of them for a thousand."""
    if context.invoked_subcommand:
        return
    if unknown := set(part or ()) - set(PARTS):
        raise typer.BadParameter(f"There is no part {', '.join(sorted(unknown))}.")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    folder = (folder or load_settings().pipeline_data_dir / "benchmarks").resolve()
    server = connect_or_start(folder / "postgres")
    console = Console()
    sizes = [
        Tables(server, folder / f"growth-{count}", count, days, recent)
        for count in tables or (10, 100, 1000)
    ]
    for name in part or PARTS:
        rounds = 1 if PARTS[name] in PREPARATIONS else runs
        measured: dict[int, dict[str, list[float]]] = {}
        for number in range(rounds):
            for each in sizes:  # in turn, so that a busy while of the machine meets all of them
                with console.status(f"{name}, {number + 1} of {rounds}: {each.count:,} tables"):
                    for figure, value in PARTS[name](each, minutes).items():
                        of_size = measured.setdefault(each.count, {})
                        of_size.setdefault(figure, []).append(value)
        for count, found in measured.items():
            figures: dict[str, Rounds] = {
                figure: {**spread(values), "rounds": rounds} for figure, values in found.items()
            }
            merge_growth({"tables": count, "days": days, "recent": recent, "figures": figures})
    if not part:
        for each in sizes:
            remove_databases(each)
    console.print(growth_table())


if __name__ == "__main__":
    app()
