"""The results: kept as JSON, shown as a table in the terminal, and as a page of the documentation."""

import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import TypedDict

import psutil
from rich.table import Table

from benchmarks.data import FULL_ROWS, Wrong, cases

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "load.json"
SCALE_RESULTS = RESULTS.with_name("scale.json")
SYSTEM_RESULTS = RESULTS.with_name("orchestrators.json")
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks.svg"
COMMAND = "make bench ARGS=--full"
HEADINGS = (
    "tool",
    "runs",
    "seconds",
    "min to max",
    "of the floor",
    "CPU s",
    "server CPU s",
    "peak MB",
    "bad rows",
    "older versions",
    "deleted rows",
    "differing rows",
)


class Seconds(TypedDict):
    """Wall time of a case's runs."""

    median: float
    min: float
    max: float


class Result(TypedDict):
    """What the runs of one tool on one case came to; the CPU figures are medians."""

    case: str
    tool: str
    version: str
    runs: int
    seconds: Seconds
    cpu_seconds: float
    server_cpu_seconds: float
    peak_mb: float
    wrong_rows: int | None
    """All that is in `wrong`; none for what loads nothing."""
    wrong: Wrong | None


def load() -> list[Result]:
    """All results on file."""
    results: list[Result] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return results


def merge(results: list[Result]) -> None:
    """Put results into the file, in the place of earlier ones of the same case and tool."""
    entries = {(result["case"], result["tool"]): result for result in [*load(), *results]}
    _write(RESULTS, list(entries.values()))


class ScaleResult(TypedDict):
    """What one part of `benchmarks.scale` came to."""

    part: str
    rows: int
    days: int
    figures: dict[str, float]


def load_scale() -> list[ScaleResult]:
    """All results of `benchmarks.scale` on file."""
    found: list[ScaleResult] = (
        json.loads(SCALE_RESULTS.read_text()) if SCALE_RESULTS.exists() else []
    )
    return found


def merge_scale(result: ScaleResult) -> None:
    """Put a result into the file, in the place of an earlier one of the same part and size."""
    entries = {(each["part"], each["rows"], each["days"]): each for each in [*load_scale(), result]}
    _write(SCALE_RESULTS, list(entries.values()))


class SystemResult(TypedDict):
    """What the rounds of one system in `benchmarks.orchestrators` came to, each by the figure's name."""

    name: str
    version: str
    configuration: str
    rounds: list[dict[str, float]]


def load_systems() -> list[SystemResult]:
    """All results of `benchmarks.orchestrators` on file."""
    found: list[SystemResult] = (
        json.loads(SYSTEM_RESULTS.read_text()) if SYSTEM_RESULTS.exists() else []
    )
    return found


def merge_systems(results: list[SystemResult]) -> None:
    """Put results into the file, in the place of earlier ones of the same systems; ours stand first."""
    entries = {result["name"]: result for result in [*load_systems(), *results]}
    order = sorted(entries, key=lambda name: (not name.startswith("pipeline_assets"), name))
    _write(SYSTEM_RESULTS, [entries[name] for name in order])


def _write(file: Path, results: "list[Result] | list[ScaleResult] | list[SystemResult]") -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n")


def table(results: list[Result]) -> Table:
    """One case as a table."""
    shown = Table(title=results[0]["case"])
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == "tool" else "right")
    for row in _rows(results):
        shown.add_row(*row)
    return shown


def write_page() -> None:
    """Write the documentation's page and plot from the results of the full table's size."""
    order = [case.name for case in cases(FULL_ROWS).values()]
    results = [result for result in load() if result["case"] in order]
    results.sort(key=lambda result: order.index(result["case"]))
    PAGE.parent.mkdir(exist_ok=True)
    _plot(results)
    parts = [PREAMBLE.format(command=COMMAND, machine=_machine(), plot=PLOT.name)]
    for case in dict.fromkeys(result["case"] for result in results):
        of_case = [result for result in results if result["case"] == case]
        parts.append(
            f"\n## {case}\n\n" + _markdown(HEADINGS, ["---"] * len(HEADINGS), *_rows(of_case))
        )
    if scale := load_scale():
        parts.append(SCALE)
        parts.append(_markdown(("part", "rows", "days", "figures"), ["---"] * 4, *_sizes(scale)))
    if systems := load_systems():
        parts.append(_orchestration(systems))
    PAGE.write_text("".join(parts))


def _sizes(results: list[ScaleResult]) -> Iterator[list[str]]:
    for result in results:
        told = (f"{name.replace('_', ' ')} {value:,}" for name, value in result["figures"].items())
        yield [result["part"], f"{result['rows']:,}", f"{result['days']:,}", ", ".join(told)]


SCALE = """
## Size

```
python -m benchmarks.scale
```

measures, through the assets and on transactions spread evenly over days: `tick`, the change sensor's
tick when all is in step, and comparing every day with the source; `ranged`, a range of days in one run,
one of which breaks its contract and is held alone; `day`, one day of many rows. Peak memory is the
run's own process.

"""


def system_tables() -> Iterator[Table]:
    """The figures of the orchestrators on file, and the ratios of ours to the others."""
    results = load_systems()
    names = [result["name"] for result in results]
    for headings, rows in (
        (["figure", *names], _system_rows(results)),
        (["of ours to", *names[1:]], _ratio_rows(results)),
    ):
        shown = Table(*headings)
        for row in rows:
            shown.add_row(*row)
        yield shown


def _orchestration(results: list[SystemResult]) -> str:
    names = [f"{result['name']} {result['version']}" for result in results]
    line = ["---"] * (len(results) + 1)
    described = "".join(f"- **{each['name']}**: {each['configuration']}.\n" for each in results)
    return (
        ORCHESTRATION.format(rounds=min(len(result["rounds"]) for result in results))
        + _markdown(["figure", *names], line, *_system_rows(results))
        + RATIOS
        + _markdown(["of ours to", *names[1:]], line[1:], *_ratio_rows(results))
        + CONFIGURATION
        + described
    )


def _system_rows(results: list[SystemResult]) -> Iterator[list[str]]:
    for figure, words in FIGURES.items():
        yield [words, *(_spread([each[figure] for each in result["rounds"]]) for result in results)]


def _ratio_rows(results: list[SystemResult]) -> Iterator[list[str]]:
    """Ours to each other's, round by round, with the bound where there is one."""
    ours, *others = results
    for figure, bounds in BOUNDS.items():
        row = [FIGURES[figure].removesuffix(", s")]
        for result in others:
            pairs = zip(ours["rounds"], result["rounds"], strict=False)
            found = [mine[figure] / theirs[figure] for mine, theirs in pairs if theirs[figure]]
            bound = bounds.get(result["name"])
            row.append(_spread(found) + (_verdict(median(found), bound) if bound else ""))
        yield row


def _verdict(ratio: float, bound: float) -> str:
    return f", {'keeps' if ratio <= bound else 'misses'} {bound:g}"


def _spread(values: list[float]) -> str:
    """The median, and the range in brackets."""
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 20 else 2
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


FIGURES = {
    "start": "start until the UI's page is there, s",
    "scheduled": "scheduled run, from its moment to its end, s",
    "scheduled_cpu": "CPU of a scheduled run, s",
    "queued": "requested run, to its end, s",
    "queued_cpu": "CPU of a requested run, s",
    "ten": "ten requested at once, to the last end, s",
    "ten_cpu": "CPU of each of the ten, s",
    "backfill": "backfill of 30 days, s",
    "backfill_cpu": "CPU of each day of the backfill, s",
    "rest_cpu": "CPU at rest, s a minute",
    "pss_mb": "memory at rest (PSS), MB",
    "rss_mb": "sum of the processes' RSS, MB",
    "processes": "processes",
}
BOUNDS: dict[str, dict[str, float]] = {
    "scheduled": {"Airflow": 0.7, "Prefect": 0.5},
    "scheduled_cpu": {"Airflow": 0.7, "Prefect": 0.5},
    "queued": {"Airflow": 0.7, "Prefect": 0.5},
    "queued_cpu": {"Airflow": 0.7, "Prefect": 0.5},
    "ten": {"Airflow": 1.0},
    "ten_cpu": {},
    "backfill": {},
    "backfill_cpu": {},
    "start": {},
    "rest_cpu": {},
    "pss_mb": {},
}
"""What ours may cost of another's, in the order of the table of ratios."""

ORCHESTRATION = """
## Orchestration

```
python -m benchmarks.orchestrators
```

The same daily pipeline in this project, in Airflow and in Prefect: extract a day's 10,000 rows from one
PostgreSQL database, validate them, and upsert them into another. The three steps are the same plain
Python functions (`benchmarks/peers/daily_steps.py`). Each system has an environment of its own, and its
metadata in a database of its own on the same PostgreSQL server, with fsync. They take turns, one at a
time, from the same state each round; after each round the target is compared with the source by SQL.
Figures are medians of {rounds} rounds, with minimum and maximum.

CPU is that of all processes of the system and of PostgreSQL, less what the system takes at rest in the
same time, which has a line of its own. It includes the steps' own work, which is the same everywhere. The
first run after a start isn't counted.

"""
RATIOS = """
Ratios of the first column's figures to the others', round by round, and whether they keep the bounds that
the project has set itself: a run costs at most 0.7 of Airflow's and half of Prefect's, and ten end before
Airflow's.

"""
CONFIGURATION = """
How they are set up; what isn't said is left as it comes:

"""


PREAMBLE = """# Benchmarks of the load

```
{command}
```

writes this page and `benchmarks/results/load.json`. Measured on {machine}, PostgreSQL with fsync on.

A day of changes goes from one PostgreSQL database into a table of another. The data are TPC-H's order
lines; a mixed day is half changed rows from all over the table and half new ones. One row in a
thousand breaks the contract, a few are older than what the warehouse has, and a few that the warehouse
has are gone from the source. Every run starts from a fresh copy of the warehouse; the tools take
turns; figures are medians of as many runs as stand beside them. The last four columns count, by SQL
after the run, the rows of the target that are not as they should be. The warehouse's table has an
index on the change time beside its key's; all tools maintain both.

The floor is psql alone: binary COPY out, COPY into a temporary table, and an upsert sorted by key. It
validates nothing. This project's own runs go through the Dagster assets, with gate, quarantine, ledger
and the files between assets in the time, as a whole process and in one that is warm; "without Dagster"
calls the same functions, and three empty assets with as many checks are Dagster's own part.

CPU is the process and its children; server CPU is all of PostgreSQL meanwhile; peak memory is that of
the largest process. Each tool has an environment of its own with the version in the table.

![Seconds of each tool, case by case]({plot})
"""


def _rows(results: list[Result]) -> Iterator[list[str]]:
    floor = next((each["seconds"]["median"] for each in results if "upsert" in each["tool"]), None)
    for result in results:
        seconds, wrong = result["seconds"], result["wrong"]
        yield [
            f"{result['tool']} {result['version']}",
            str(result["runs"]),
            f"{seconds['median']:.2f}",
            f"{seconds['min']:.2f} to {seconds['max']:.2f}",
            f"{seconds['median'] / floor:.2f}" if floor else "",
            f"{result['cpu_seconds']:.1f}",
            f"{result['server_cpu_seconds']:.1f}",
            f"{result['peak_mb']:.0f}",
            *([str(count) for count in wrong.values()] if wrong else [""] * 4),
        ]


def _markdown(*rows: Iterable[str]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _machine() -> str:
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{os.cpu_count()} cores and {memory:.0f} GB of memory ({platform.system()}, {platform.machine()})"


def _plot(results: list[Result]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result["case"] for result in results))
    figure = Figure(figsize=(8, 1.1 + 0.32 * len(results)), layout="constrained")
    axes = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axis, case in zip(axes, names, strict=True):
        shown = [result for result in results if result["case"] == case][::-1]
        seconds = [result["seconds"] for result in shown]
        axis.barh(
            [result["tool"] for result in shown],
            [each["median"] for each in seconds],
            xerr=[
                [each["median"] - each["min"] for each in seconds],
                [each["max"] - each["median"] for each in seconds],
            ],
            color=["tab:blue" if "pipeline" in result["tool"] else "lightgrey" for result in shown],
        )
        axis.set_title(case, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds (median, minimum and maximum)")
    # Letters stay letters: a tenth of the size. The same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": PLOT.stem}):
        figure.savefig(PLOT, metadata={"Date": None})
