"""How the project scales to many tables: definitions, sensors' ticks, daemon, the UI's page of an asset.

    python -m benchmarks.growth --help

Every table has a contract of 16 columns and 3,650 partitions (`benchmarks.growth_data`). Figures are medians
with their range; where the first call fills a cache, that call is left out. Each measure runs in a process
of its own.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from benchmarks.report import Spread, growth_table, merge_growth
from pipeline_assets.resources.embedded_postgres import connect_or_start
from pipeline_assets.settings import load_settings

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

TICKS = """
SELECT count(*) FROM job_ticks
WHERE type = 'SENSOR' AND status IN ('SKIPPED', 'SUCCESS') AND timestamp >= %s
"""
app = typer.Typer(help=__doc__, no_args_is_help=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Effort:
    """How often and how long to measure."""

    runs: int
    minutes: float


def spread(values: list[float]) -> Spread:
    """Median, minimum and maximum."""
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def set_up(tables: Tables, effort: Effort) -> dict[str, Spread]:
    """Make the tables; nothing is measured."""
    del effort
    make(tables)
    return {}


def history(tables: Tables, effort: Effort) -> dict[str, Spread]:
    """Load a day of one table, and copy the run; nothing is measured."""
    del effort
    (run_id,) = _own_process("run", tables)
    copy_run(tables, run_id)
    return {}


def definitions(tables: Tables, effort: Effort) -> dict[str, Spread]:
    """Loading all definitions, and what a run's process loads of them."""
    loads = [_own_process("load", tables) for _ in range(effort.runs)]
    names = (
        "definitions, s",
        "definitions, CPU s",
        "definitions, a run's CPU s",
        "definitions, peak MB",
    )
    return {
        name: spread(list(values))
        for name, values in zip(names, zip(*loads, strict=True), strict=True)
    }


def ticks(tables: Tables, effort: Effort) -> dict[str, Spread]:
    """Ticks of a table's sensor with nothing to do, and of `alerts`, which looks at everything."""
    figures = {}
    for sensor, title in ((f"source_changes_sensor_{SAMPLE}", "a table's"), ("alerts", "alerts'")):
        found = _own_process("tick", tables, sensor, str(effort.runs))
        figures[f"{title} tick, s"] = spread([wall for wall, _ in found])
        figures[f"{title} tick, CPU s"] = spread([cpu for _, cpu in found])
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


def page(tables: Tables, effort: Effort) -> dict[str, Spread]:
    """The page of one asset in Chromium: first paint, last answer, what was asked."""
    from playwright.sync_api import sync_playwright

    measured: dict[str, list[float]] = {}
    with (
        _dagster(tables, "stopped") as address,
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        ) as browser,
    ):
        for number in range(effort.runs + 1):
            tab = browser.new_page()
            found = _look(tab, f"{address}/assets/validated_{SAMPLE}?view=partitions")
            tab.close()
            if number:  # the first visit makes Dagster summarise the partitions and cache that
                for name, value in found.items():
                    measured.setdefault(name, []).append(value)
    return {name: spread(values) for name, values in measured.items()}


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


def daemon(tables: Tables, effort: Effort) -> dict[str, Spread]:
    """Memory and CPU of Dagster's processes, and the ticks that they manage, all sensors switched on.

    They are started once and watched as often as `effort` says, one stretch after the other.
    """
    memory: dict[str, list[float]] = {"dagster._daemon run": [], "dagster api grpc": []}
    cores: list[float] = []
    a_minute: list[float] = []
    with (
        _dagster(tables, "running"),
        psycopg.connect(tables.server.url(tables.database("dagster")), autocommit=True) as dagster,
    ):
        started = datetime.now(UTC).replace(tzinfo=None)
        while not _ticks(dagster, started):
            time.sleep(1)
        time.sleep(30)  # the first ticks import and connect
        for _ in range(effort.runs):
            begun, before = time.time(), cpu_seconds(*psutil.Process().children())
            since = datetime.fromtimestamp(begun, UTC).replace(tzinfo=None)
            while time.time() < begun + 60 * effort.minutes or not _ticks(dagster, since):
                time.sleep(5)
                for each in psutil.Process().children(recursive=True):
                    words = " ".join(each.cmdline())
                    for name, values in memory.items():
                        if name in words:
                            values.append(each.memory_full_info().uss / (1 << 20))
            elapsed = time.time() - begun
            cores.append((cpu_seconds(*psutil.Process().children()) - before) / elapsed)
            a_minute.append(60 * _ticks(dagster, since) / elapsed)
    return {
        "daemon, MB": spread(memory["dagster._daemon run"]),
        "code server, MB": spread(memory["dagster api grpc"]),
        "Dagster's cores in use": spread(cores),
        "sensor ticks a minute": spread(a_minute),
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


PARTS: dict[str, Callable[[Tables, Effort], dict[str, Spread]]] = {
    part.__name__: part for part in (set_up, history, definitions, ticks, page, daemon)
}


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
    runs: Annotated[int, typer.Option(help="Runs of each measure.", min=1)] = 5,
    minutes: Annotated[float, typer.Option(help="How long the daemon is watched each time.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Databases; 6 GB.")] = None,
) -> None:
    """Measure each number of tables; an hour, most of it for a thousand."""
    if context.invoked_subcommand:
        return
    if unknown := set(part or ()) - set(PARTS):
        raise typer.BadParameter(f"There is no part {', '.join(sorted(unknown))}.")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    folder = (folder or load_settings().pipeline_data_dir / "benchmarks").resolve()
    server = connect_or_start(folder / "postgres")
    console = Console()
    for count in tables or (10, 100, 1000):
        grown_to = Tables(server, folder / f"growth-{count}", count, days, recent)
        for name in part or PARTS:
            with console.status(f"{count:,} tables: {name}"):
                figures = PARTS[name](grown_to, Effort(runs, minutes))
            if figures:
                merge_growth({"tables": count, "days": days, "recent": recent, "figures": figures})
        if not part:
            remove_databases(grown_to)
    console.print(growth_table())


if __name__ == "__main__":
    app()
