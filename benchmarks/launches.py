"""What a run costs from its request to its end: Dagster's own launcher beside this project's.

Three empty assets, launched through the queue as the UI does, in two deployments that differ in the
launcher only and take turns. `--leaks N` instead starts N runs and shows what they leave behind.
`python -m benchmarks.launches --help`.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.deployment import ROOT, cpu_seconds, dagster_dev, launch, wait

THREE = """
import dagster as dg

days = dg.DailyPartitionsDefinition("2026-01-07")

@dg.asset(partitions_def=days)
def one() -> None: ...

@dg.asset(partitions_def=days, deps=[one])
def two() -> None: ...

@dg.asset(partitions_def=days, deps=[two])
def three() -> None: ...

defs = dg.Definitions(
    assets=[one, two, three],
    jobs=[dg.define_asset_job("all_three", [one, two, three])],
    executor=dg.in_process_executor,
)
"""
AT_ONCE = 10


def deploy(folder: Path, *, warm: bool) -> tuple[Path, Path]:
    """A home folder with the project's dagster.yaml, with or without its launcher, and a data folder."""
    home, data = folder / "home", folder / "data"
    home.mkdir(parents=True)
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    if not warm:
        del settings["run_launcher"]
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    (home / "three.py").write_text(THREE)
    (home / "workspace.yaml").write_text("load_from:\n  - python_file: three.py\n")
    return home, data


def run(address: str, number: int = 1) -> float:
    """Seconds from requesting `number` runs at once to the end of the last one."""
    begun = time.perf_counter()
    days = [f"2026-02-{day + 1:02}" for day in range(number)]
    for run_id in [launch(address, "three.py", "all_three", day) for day in days]:
        wait(address, run_id)
    return time.perf_counter() - begun


def settled_cpu(server: psutil.Process, action: Callable[[], float]) -> tuple[float, float]:
    """Seconds that an action takes, and CPU seconds until the processes that it started are gone."""
    before = len(server.children(recursive=True))
    cpu = cpu_seconds(server)
    seconds = action()
    while len(server.children(recursive=True)) > before:
        time.sleep(0.02)
    return seconds, cpu_seconds(server) - cpu


def compare(runs: int, folder: Path, console: Console) -> None:
    """Print medians and ranges of both launchers, and of their ratios."""
    names = ("Dagster's launcher", "this project's")
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        deployments = []
        for name in names:
            home, data = deploy(folder / name.split()[0].strip("'"), warm=name == names[1])
            os.environ["DAGSTER_HOME"] = str(home)
            known = set(psutil.Process().children())
            address, _ = stack.enter_context(dagster_dev(home, data))
            (server,) = set(psutil.Process().children()) - known
            run(address)  # the first creates tables, and the warm process
            deployments.append((name, address, server))
        for _ in range(runs):
            for name, address, server in deployments:
                seconds, cpu = settled_cpu(server, partial(run, address))
                found.setdefault(("a run, s", name), []).append(seconds)
                found.setdefault(("CPU of a run, s", name), []).append(cpu)
            for name, address, _ in deployments:
                at_once = run(address, AT_ONCE)
                found.setdefault((f"{AT_ONCE} queued at once, s", name), []).append(at_once)
    table = Table("measure", *names, "ratio", "lowest", "highest")
    for measure in dict.fromkeys(measure for measure, _ in found):
        dagsters, ours = (found[measure, name] for name in names)
        ratios = sorted(a / b for a, b in zip(ours, dagsters, strict=True))
        cells = [
            f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in (dagsters, ours)
        ]
        figures = (median(ratios), ratios[0], ratios[-1])
        table.add_row(measure, *cells, *(f"{figure:.2f}" for figure in figures))
    console.print(table)


def leaks(runs: int, folder: Path, console: Console) -> None:
    """Print what the warm process and the data folder hold before and after `runs` runs."""
    home, data = deploy(folder, warm=True)
    os.environ["DAGSTER_HOME"] = str(home)
    with dagster_dev(home, data) as (address, _):

        def held() -> list[int]:
            (warm,) = (
                process
                for process in psutil.Process().children(recursive=True)
                if "pipeline_assets.resources.warm_process" in process.cmdline()
                and "pipeline_assets.resources.warm_process"
                not in (parent.cmdline() if (parent := process.parent()) else [])
            )
            while warm.children():
                time.sleep(0.05)
            files = len(list((data / "run_processes").glob("*")))
            memory = warm.memory_full_info().uss >> 10
            return [warm.pid, memory, warm.num_fds(), warm.num_threads(), files]

        for _ in range(2):
            run(address, AT_ONCE)
        before = held()
        for _ in range(runs // AT_ONCE):
            run(address, AT_ONCE)
        after = held()
    table = Table(
        "after", "pid", "memory of its own, KB", "descriptors", "threads", "files of runs"
    )
    table.add_row("20 runs", *map(str, before))
    table.add_row(f"{runs} more", *map(str, after))
    console.print(table)


def main(
    runs: Annotated[int, typer.Option(help="Pairs of each measure.")] = 5,
    leaks_of: Annotated[
        int, typer.Option("--leaks", help="Start so many runs and show what is left of them.")
    ] = 0,
) -> None:
    """Compare the launchers, or look for what runs leave behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    console = Console()
    with tempfile.TemporaryDirectory() as folder, console.status("Measuring ..."):
        if leaks_of:
            leaks(leaks_of, Path(folder), console)
        else:
            compare(runs, Path(folder), console)


if __name__ == "__main__":
    typer.run(main)
