"""The results: kept as JSON, shown as a table in the terminal, and as a page of the documentation.

`python -m benchmarks.report` writes the page anew.
"""

import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import psutil
from rich.table import Table

from benchmarks.data import FULL_ROWS, Wrong, cases

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "load.json"
SCALE_RESULTS = RESULTS.with_name("scale.json")
GROWTH_RESULTS = RESULTS.with_name("growth.json")
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "benchmarks.svg"
COMMAND = "make bench BENCH=load ARGS=--full"
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
    """The result of one tool's runs on one case; the CPU figures are medians."""

    case: str
    tool: str
    version: str
    runs: int
    seconds: Seconds
    cpu_seconds: float
    server_cpu_seconds: float
    peak_mb: float
    wrong_rows: int | None
    """The sum of `wrong`; None for a tool that loads nothing."""
    wrong: Wrong | None


def load() -> list[Result]:
    """All results on file."""
    results: list[Result] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return results


def merge(results: list[Result]) -> None:
    """Put results into the file, replacing earlier ones of the same case and tool."""
    entries = {(result["case"], result["tool"]): result for result in [*load(), *results]}
    _write(RESULTS, list(entries.values()))


class ScaleResult(TypedDict):
    """The result of one part of `benchmarks.scale`."""

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
    """Put a result into the file, replacing an earlier one of the same part and size."""
    entries = {(each["part"], each["rows"], each["days"]): each for each in [*load_scale(), result]}
    _write(SCALE_RESULTS, list(entries.values()))


Spread = Seconds
"""Median and range of the runs of any measure."""


class GrowthResult(TypedDict):
    """The figures of `benchmarks.growth` for a number of tables, by the measure's name and unit."""

    tables: int
    days: int
    """Partitions of each."""
    recent: int
    """Days of each in Dagster's history; of the first table all of them."""
    figures: dict[str, Spread]


def load_growth() -> list[GrowthResult]:
    """All results of `benchmarks.growth` on file, the fewest tables first."""
    found: list[GrowthResult] = (
        json.loads(GROWTH_RESULTS.read_text()) if GROWTH_RESULTS.exists() else []
    )
    return sorted(found, key=lambda result: result["tables"])


def merge_growth(result: GrowthResult) -> None:
    """Put a result into the file; earlier figures for as many tables stay unless it has new ones."""
    entries = {each["tables"]: each for each in load_growth()}
    earlier = entries.get(result["tables"], result)
    entries[result["tables"]] = {**result, "figures": earlier["figures"] | result["figures"]}
    _write(GROWTH_RESULTS, list(entries.values()))


def growth_table() -> Table:
    """The results of `benchmarks.growth`."""
    heading, *rows = _growth(load_growth())
    shown = Table(*heading)
    for row in rows:
        shown.add_row(*row)
    return shown


def _growth(results: list[GrowthResult]) -> Iterator[list[str]]:
    """The heading, then a row for each measure, with a column for each number of tables."""
    yield ["", *(f"{result['tables']:,} tables" for result in results)]
    for name in dict.fromkeys(name for result in results for name in result["figures"]):
        yield [name, *(_spread(result["figures"].get(name)) for result in results)]


def _spread(found: Spread | None) -> str:
    if found is None:
        return ""
    figures = [f"{found[key]:,.3g}" if found[key] < 100 else f"{found[key]:,.0f}" for key in found]  # type: ignore[literal-required]  # its own keys
    return (
        figures[0]
        if found["min"] == found["max"]
        else f"{figures[0]} ({figures[1]} to {figures[2]})"
    )


def _write(file: Path, results: "list[Result] | list[ScaleResult] | list[GrowthResult]") -> None:
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
    """Write the documentation's page and plot from the results for the full-size table."""
    from benchmarks.systems_report import section  # it imports this module

    order = [case.name for case in cases(FULL_ROWS).values()]
    results = [result for result in load() if result["case"] in order]
    results.sort(key=lambda result: order.index(result["case"]))
    PAGE.parent.mkdir(exist_ok=True)
    _plot(results)
    parts = [PREAMBLE.format(command=COMMAND, machine=_machine(), plot=PLOT.name), TARGETS]
    heading, *rows = _ratios(results)
    parts.append(markdown(heading, ["---"] * len(heading), *rows))
    for case in dict.fromkeys(result["case"] for result in results):
        of_case = [result for result in results if result["case"] == case]
        parts.append(
            f"\n## {case}\n\n" + markdown(HEADINGS, ["---"] * len(HEADINGS), *_rows(of_case))
        )
    if scale := load_scale():
        parts.append(SCALE)
        parts.append(markdown(("part", "rows", "days", "figures"), ["---"] * 4, *_sizes(scale)))
    if growth := load_growth():
        heading, *rows = _growth(growth)
        parts.append(GROWTH.format(**growth[-1]))
        parts.append(markdown(heading, ["---"] * len(heading), *rows))
    PAGE.write_text("".join([*parts, section()]))


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
run's own process. `ranged` is the newest, measured with other work beside it on a machine of half the
speed of the others'.

"""


GROWTH = """
## Growth

```
python -m benchmarks.growth
```

measures what many tables cost, each with a contract of 16 columns, {days:,} daily partitions and as many
rows in the ledger; Dagster's history has all runs of the first table, and of the others those of
{recent} days. "A run's CPU" is the part of loading that each run pays which isn't started warm. A table's
tick is that of its change sensor when all is in step. Memory, cores and ticks are of `dagster dev` with every
sensor switched on, where each table's wants one tick a minute and `alerts` two; it is started once and
watched for a minute, five times in turn. All are medians of five, with the range. Nothing else ran on the
2 cores.

"""


PREAMBLE = """# Benchmarks

```
{command}
```

measures the load, and writes this page and `benchmarks/results/load.json`. Measured on {machine},
PostgreSQL with fsync on and nothing beside it; the sections after the load say how they were measured.

A day of changes goes from one PostgreSQL database into a table of another. The data are TPC-H's order
lines; a mixed day is half changed rows from all over the table and half new ones. One row in a
thousand breaks the contract, a few are older than what the warehouse has, and a few that the warehouse
has are gone from the source. Every run starts from a fresh copy of the warehouse; the tools take
turns; figures are medians of as many runs as stand beside them. The last four columns count, by SQL
after the run, the rows of the target that are not as they should be. The warehouse's table has an
index on the change time beside its key's; all tools maintain both.

Compare tools within a case, not cases with each other: they were measured at different times.

The floor is psql alone: binary COPY out, COPY into a temporary table, and an upsert sorted by key. It
validates nothing. This project's own runs go through the Dagster assets, with gate, quarantine, ledger
and the files between assets in the time, as a whole process and in one that is warm; "without Dagster"
calls the same functions, and three empty assets with as many checks are Dagster's own part.

CPU is the process and its children; server CPU is all of PostgreSQL meanwhile; peak memory is that of
the largest process. Each tool has an environment of its own with the version in the table.

![Seconds of each tool, case by case]({plot})
"""


TARGETS = """
## Targets

Our seconds divided by the other tool's, from the medians below, and whether that is within the bound that
the project has set itself. *Whole process* includes starting Python and importing; *warm* doesn't; *less
Dagster's own part* subtracts three empty assets; *functions alone* runs the same code without Dagster.

"""
FLOOR = "psql: COPY, sorted upsert"
BOUNDS = (
    ("mixed600", FLOOR, 1.1),
    ("mixed600", "ingestr", 1 / 1.2),
    ("mixed60", FLOOR, 1.1),
    ("mixed60", "ingestr", 1 / 1.2),
    ("mixed6", FLOOR, 1.15),
    ("mixed6", "ingestr", 1 / 1.4),
    ("mixed6", "Sling", 1 / 2),
    ("mixed6", "dlt, best found", 1 / 2),
    ("mixed6", "dlt, default", 1 / 3),
    ("new", "psql: COPY alone", 1.4),
    ("first", "psql: COPY alone", 1.4),
)
"""Case, tool, and the highest ratio of our seconds to the tool's that is allowed."""


def _ratios(results: list[Result]) -> Iterator[list[str]]:
    """The heading, then each bound with our ways of running a load; empty where one wasn't measured."""
    yield [
        *("case", "of ours to", "at most", "whole process", "warm"),
        *("warm, less Dagster's own part", "functions alone"),
    ]
    seconds = {(each["case"], each["tool"]): each["seconds"]["median"] for each in results}
    for key, tool, bound in BOUNDS:
        case = cases(FULL_ROWS)[key].name
        theirs = seconds.get((case, tool))
        warm = seconds.get((case, "pipeline_assets, warm process"))
        dagster = seconds.get((case, "three empty Dagster assets, warm"))
        ours = [
            seconds.get((case, "pipeline_assets")),
            warm,
            warm - dagster if warm and dagster else None,
            seconds.get((case, "pipeline_assets, warm, without Dagster")),
        ]
        ratios = [each / theirs if each and theirs else None for each in ours]
        verdicts = (f"{each:.2f}, {verdict(each, bound)}" if each else "" for each in ratios)
        yield [case, tool, f"{bound:.2f}", *verdicts]


def verdict(ratio: float, bound: float) -> str:
    """Whether a ratio keeps its upper bound, in a word."""
    return "keeps" if ratio <= bound else "misses"


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


def markdown(*rows: Iterable[str]) -> str:
    """Rows of a table."""
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
    # Text stays text, for a tenth of the size. The same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": PLOT.stem}):
        figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    write_page()
