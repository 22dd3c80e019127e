"""What the project adds to bare Dagster: importing the definitions, starting the UI, running a partition.

Each figure is a ratio of pairs measured in turn, ours and an empty project's, as this and most
machines are noisy. `python -m benchmarks.overhead --help`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.deployment import ROOT, dagster_dev, launch, wait

EMPTY = """
import dagster as dg

@dg.asset(partitions_def=dg.DailyPartitionsDefinition("2026-01-07"))
def nothing() -> None: ...

defs = dg.Definitions(
    assets=[nothing], jobs=[dg.define_asset_job("empty", [nothing])], executor=dg.in_process_executor
)
"""
app = typer.Typer(help=__doc__)


def import_seconds(module: str) -> float:
    """Wall seconds that importing a module takes in a new interpreter."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(found.stdout)


def start_seconds(folder: Path, data: Path) -> float:
    """Seconds until the UI of `dagster dev` answers."""
    with dagster_dev(folder, data) as (_, seconds):
        return seconds


def run_cpu_seconds(address: str, location: str, job: str, day: str) -> float:
    """CPU seconds of a run's process; the run is launched as the UI does it."""
    before = ended_children_cpu_seconds()
    wait(address, launch(address, location, job, day))
    time.sleep(3)  # until its process has ended and been reaped
    return ended_children_cpu_seconds() - before


def ended_children_cpu_seconds() -> float:
    """CPU seconds of the ended children of Dagster's processes: a code server starts the runs."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.children_user + times.children_system
    return total


def pairs(
    ours: Callable[[int], float], bare: Callable[[int], float], runs: int
) -> list[tuple[float, float]]:
    """Both measured in turn, `runs` times."""
    return [(ours(number), bare(number)) for number in range(runs)]


@app.command()
def main(
    runs: Annotated[int, typer.Option(help="Pairs of each measure.")] = 5,
) -> None:
    """Print the ratios of ours to bare Dagster's: medians, and the range over the pairs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    console = Console()
    table = Table("measure", "ours, s", "bare, s", "ratio", "lowest", "highest")

    def add(name: str, found: list[tuple[float, float]]) -> None:
        ratios = sorted(ours / bare for ours, bare in found)
        figures = (median(a for a, _ in found), median(b for _, b in found), median(ratios))
        row = (*figures, ratios[0], ratios[-1])
        table.add_row(name, *(f"{figure:.2f}" for figure in row))

    with tempfile.TemporaryDirectory() as folder, console.status("Measuring ..."):
        bare, data = Path(folder) / "bare", Path(folder) / "data"
        bare.mkdir()
        (bare / "empty.py").write_text(EMPTY)
        (bare / "workspace.yaml").write_text("load_from:\n  - python_file: empty.py\n")
        both = Path(folder) / "both"
        both.mkdir()
        (both / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        (both / "workspace.yaml").write_text(
            "load_from:\n  - python_module: pipeline_assets.definitions\n"
            f"  - python_file: {bare / 'empty.py'}\n"
        )
        add(
            "import of the definitions",
            pairs(
                lambda _: import_seconds("pipeline_assets.definitions"),
                lambda _: import_seconds("dagster"),
                runs,
            ),
        )
        start_seconds(ROOT, data)  # the first start creates the databases
        add(
            "start of the UI",
            pairs(lambda _: start_seconds(ROOT, data), lambda _: start_seconds(bare, data), runs),
        )
        with dagster_dev(both, data) as (address, _):

            def ours(number: int) -> float:
                location = "pipeline_assets.definitions"
                day = f"2026-02-{number + 1:02}"
                return run_cpu_seconds(address, location, "load_transactions", day)

            def empty(number: int) -> float:
                return run_cpu_seconds(address, "empty.py", "empty", f"2026-02-{number + 1:02}")

            pairs(ours, empty, 1)  # the first run creates the tables
            add("CPU of a partition's run", pairs(ours, empty, runs))
    console.print(table)


if __name__ == "__main__":
    app()
