"""The load benchmark: this project's load beside PostgreSQL's own limit and other tools.

    python -m benchmarks.load --help

Every run starts from a fresh copy of the warehouse, on which the tool has loaded an empty day if it creates
something only once. The tools take turns, round after round, so that other load on the machine
affects all of them. Results of earlier invocations stay in the results file until that case is run again
with that tool.
"""

import shutil
import statistics
import sys
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks import data, report
from benchmarks.measure import Measured, ToolError, run
from benchmarks.report import Result
from benchmarks.tools import SERVERS, TOOLS, Job, Tool, dagster_storage, install
from pipeline_assets.resources.embedded_postgres import Server, connect_or_start
from pipeline_assets.settings import load_settings

WAREHOUSE = "bench_warehouse"


def main(
    full: Annotated[
        bool, typer.Option("--full", help="All cases and tools on 6M rows: some hours.")
    ] = False,
    rows: Annotated[int, typer.Option(help="Rows of the warehouse table.")] = 600_000,
    runs: Annotated[int, typer.Option(help="Runs of each tool and case.", min=1)] = 5,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Only this case: " + ", ".join(data.cases(data.FULL_ROWS)) + "."),
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(help="Only this tool: " + ", ".join(tool.key for tool in TOOLS) + "."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Databases and environments; 8 GB for --full.")
    ] = None,
) -> None:
    """Compare the load with PostgreSQL's own limit and other tools; about ten minutes by default."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    rows = data.FULL_ROWS if full else rows
    folder = (folder or load_settings().pipeline_data_dir / "benchmarks").resolve()
    chosen = [each for each in TOOLS if not tool or each.key in tool]
    server = connect_or_start(folder / "postgres")
    with console.status("Installing the tools"):
        homes = {each.key: install(each.packages, folder / "environments") for each in chosen}
    with console.status(f"Making databases for {data.words(rows)} rows"):
        data.prepare(server, rows)
    cases = data.cases(rows)
    for name in case or (cases if full else ("mixed60", "mixed6")):
        results = _measure_case(server, rows, cases[name], name, chosen, homes, runs, folder)
        console.print(report.table(results))
    if full:
        report.write_page()


def _measure_case(
    server: Server,
    rows: int,
    case: data.Case,
    name: str,
    tools: list[Tool],
    homes: dict[str, Path],
    runs: int,
    folder: Path,
) -> list[Result]:
    """Run every tool in turn, `runs` times, and sum up; results are saved after each round."""
    tools = [tool for tool in tools if name in tool.cases]
    measured: dict[str, list[Measured]] = {tool.key: [] for tool in tools}
    wrong: dict[str, data.Wrong] = {}
    results: list[Result] = []
    with data.connect(server, "bench_lines") as connection:
        versions = {SERVERS: f"PostgreSQL {connection.info.parameter_status('server_version')}"}
    with Progress(transient=True) as progress:
        task = progress.add_task(case.name, total=runs * len(tools))
        for _ in range(runs):
            for tool in list(tools):
                progress.update(task, description=f"{case.name}: {tool.name}")
                try:
                    measured[tool.key].append(_measure(server, case, tool, homes[tool.key], folder))
                except ToolError as error:
                    progress.console.print(f"[red]{tool.name} is left out:[/red] {error}")
                    tools.remove(tool)
                    continue
                if tool.judged and tool.key not in wrong:
                    wrong[tool.key] = data.wrong_rows(server, WAREHOUSE, case, rows)
                progress.advance(task)
            results = [
                _sum_up(case, tool, versions, measured[tool.key], wrong.get(tool.key))
                for tool in tools
            ]
            report.merge(results)
    return results


def _measure(server: Server, case: data.Case, tool: Tool, home: Path, folder: Path) -> Measured:
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    job = Job(
        source=server.url(case.source),
        target=data.fresh_copy(server, case.template, WAREHOUSE),
        dagster=dagster_storage(server, "bench_dagster"),
        psql=Path(psutil.Process(server.pid).exe()).with_name("psql"),
        start=data.EMPTY_DAY,
        folder=scratch,
    )
    if tool.prepare:
        with data.connect(server, WAREHOUSE) as warehouse:
            warehouse.execute(tool.prepare)
    if tool.warm_up:
        run(tool.command(job, home), job.environment(), server.pid)
    job = job.on(data.DAY)
    return run(tool.command(job, home), job.environment(), server.pid)


def _sum_up(
    case: data.Case,
    tool: Tool,
    versions: dict[str, str],
    runs: list[Measured],
    wrong: data.Wrong | None,
) -> Result:
    return {
        "case": case.name,
        "tool": tool.name,
        "version": versions.get(tool.version, tool.version),
        "runs": len(runs),
        "seconds": report.spread([run.seconds for run in runs]),
        "cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 2),
        "server_cpu_seconds": round(statistics.median(run.server_cpu_seconds for run in runs), 2),
        "peak_mb": round(max(run.peak_mb for run in runs)),
        "wrong_rows": None if wrong is None else sum(wrong.values()),
        "wrong": wrong,
    }


if __name__ == "__main__":
    typer.run(main)
