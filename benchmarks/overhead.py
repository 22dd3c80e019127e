"""What the project adds to bare Dagster: importing the definitions, starting the UI, running a partition.

Each figure is a ratio of pairs measured in turn, ours and an empty project's, as this and most
machines are noisy. `python -m benchmarks.overhead --help`.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import requests
import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EMPTY = """
import dagster as dg

@dg.asset(partitions_def=dg.DailyPartitionsDefinition("2026-01-07"))
def nothing() -> None: ...

defs = dg.Definitions(
    assets=[nothing], jobs=[dg.define_asset_job("empty", [nothing])], executor=dg.in_process_executor
)
"""
LAUNCH = """
mutation ($location: String!, $job: String!, $day: String!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: [{key: "dagster/partition", value: $day}]}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
app = typer.Typer(help=__doc__)


def import_seconds(module: str) -> float:
    """Wall seconds that importing a module takes in a new interpreter."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(found.stdout)


@contextmanager
def dagster_dev(folder: Path, data: Path) -> Iterator[tuple[str, float]]:
    """`dagster dev` in a folder: its address, and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    begun = time.perf_counter()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [str(BIN / "dagster"), "dev", "--port", str(port)],
        cwd=folder,
        env=os.environ | {"PIPELINE_DATA_DIR": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while True:
            try:
                requests.get(f"{address}/server_info", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                if process.poll() is not None:
                    raise SystemExit(f"dagster dev in {folder} ended by itself") from None
                time.sleep(0.02)
        try:
            yield address, time.perf_counter() - begun
        finally:
            process.send_signal(signal.SIGINT)


def start_seconds(folder: Path, data: Path) -> float:
    """Seconds until the UI of `dagster dev` answers."""
    with dagster_dev(folder, data) as (_, seconds):
        return seconds


def run_cpu_seconds(address: str, location: str, job: str, day: str) -> float:
    """CPU seconds of the process of a run that is launched as the UI does."""
    before = ended_children_cpu_seconds()
    answer = graphql(address, LAUNCH, location=location, job=job, day=day)["launchRun"]
    if "run" not in answer:
        raise SystemExit(f"{job} {day} could not be launched: {answer}")
    status = "QUEUED"
    while status not in ("SUCCESS", "FAILURE", "CANCELED"):
        time.sleep(0.2)
        status = graphql(address, STATUS, id=answer["run"]["runId"])["runOrError"]["status"]
    if status != "SUCCESS":
        raise SystemExit(f"{job} {day} ended as {status}")
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


def graphql(address: str, query: str, **variables: str) -> dict[str, Any]:
    """The data that the UI's own interface answers with."""
    body = {"query": query, "variables": variables}
    found: dict[str, Any] = requests.post(f"{address}/graphql", json=body, timeout=60).json()
    return dict(found["data"])


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
