"""The results: kept as JSON, shown as a table in the terminal, and as a page of the documentation.

`python -m benchmarks.report` writes the page anew.
"""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NotRequired, TypedDict

import psutil
from rich.table import Table

from benchmarks.data import FULL_ROWS, Wrong, cases
from benchmarks.plots import Bar, draw, figure

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


class Spread(TypedDict):
    """Median and range of the runs of any measure."""

    median: float
    min: float
    max: float


def spread(values: list[float]) -> Spread:
    """Their median and range."""
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


class Result(TypedDict):
    """The result of one tool's runs on one case; CPU is the median, peak memory the highest."""

    case: str
    tool: str
    version: str
    runs: int
    seconds: Spread
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


class Rounds(Spread):
    """The figures of rounds."""

    rounds: NotRequired[int]
    """How many, each of them with all numbers of tables; absent where these weren't taken in turn."""


class GrowthResult(TypedDict):
    """The figures of `benchmarks.growth` for a number of tables, by the measure's name and unit."""

    tables: int
    days: int
    """Partitions of each."""
    recent: int
    """Days of each in Dagster's history; of the first table all of them."""
    figures: dict[str, Rounds]


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
    middle, low, high = map(figure, (found["median"], found["min"], found["max"]))
    return middle if found["min"] == found["max"] else f"{middle} ({low} to {high})"


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
    parts.append(growth_section(PLOT.with_stem(f"{PLOT.stem}-growth")))
    parts.append(section(PLOT.with_stem(f"{PLOT.stem}-orchestrators")))
    PAGE.write_text("".join([*parts, OTHERS]))


def growth_section(plot: Path) -> str:
    """The page's section on growth, and its plot in a file; empty if nothing is on file."""
    results = load_growth()
    if not results:
        return ""
    _plot_growth(plot, results)
    in_rounds = all("rounds" in each for result in results for each in result["figures"].values())
    heading, *rows = _growth(results)
    return (
        GROWTH.format(**results[-1])
        + ("" if in_rounds else SIZE_BY_SIZE)
        + GROWTH_PLOT.format(plot=plot.name)
        + markdown(heading, ["---"] * len(heading), *rows)
        + _ticks_wanted(results[-1])
    )


def _ticks_wanted(result: GrowthResult) -> str:
    """A sentence on the ticks that a number of tables lacks; empty if they have all."""
    wanted = result["tables"] + 2
    got = result["figures"].get("sensor ticks a minute")
    return (
        TICKS.format(**result, wanted=wanted, got=got["median"], minutes=wanted / got["median"])
        if got and got["median"] < wanted
        else ""
    )


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
speed of the others'. Each line is a single run; only the tick is a median, of five in a row.

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
sensor switched on, where each table's wants one tick a minute and `alerts` two, watched for a minute.

It takes the numbers of tables in turn. In each of five rounds a measure is taken once of each, in processes
that are started for it; memory is the median of a minute's samples. Figures are medians of the rounds, with
the range.
"""
SIZE_BY_SIZE = """
The figures on record are older than these rounds: they were measured one number of tables after the other,
five repetitions back to back, with nothing else on the 2 cores. Those of definitions are medians of five
processes, those of ticks of five in a row in one process, those of the page of five visits to one
`dagster dev`. Cores and ticks a minute are medians of five minutes in a row of one `dagster dev`, and memory
of all samples in these minutes, one every five seconds.
"""
GROWTH_PLOT = """
![Bars for each number of tables: loading the definitions, the ticks of a table's sensor and of alerts, the \
asset page, the daemon's memory, the ticks it manages; the table below has the figures]({plot})

"""
TICKS = """
The sensors of {tables:,} tables want {wanted:,} ticks a minute and get {got:.0f}: each table is looked at
every {minutes:.0f} minutes or so, later but without loss; see [scaling.md](scaling.md#tables).
"""
PLOTTED = {
    "definitions, s": "loading all definitions, s",
    "a table's tick, s": "a table's tick, s",
    "alerts' tick, s": "alerts' tick, s",
    "asset page: partitions there, s": "asset page, until its partitions are there, s",
    "daemon, MB": "memory of the daemon, MB",
    "sensor ticks a minute": "sensor ticks a minute",
}
"""The measures of growth that have a panel, and its title."""


OTHERS = """
## Digest

```
make bench BENCH=news
```

takes ten thousand articles of fifty feeds on a local server once from the first request to the published
[digest](news.md), prints the seconds of each step and the peak memory, and fails above the bounds in
`benchmarks/news.py`. It keeps no results: this page shows none.

## Model

```
make bench BENCH=models
```

compares the model with what it must beat on nine holdouts, measures a weekly run and 2.4 million customers,
and fails below its bounds. These, with the time and memory on record, are in
[models.md](models.md#how-good-is-it).

## Beside bare Dagster

```
make bench BENCH=overhead
```

measures this project and an empty one in turn, in five pairs: import of the definitions, start of the UI,
CPU of a partition's run. It prints medians, and the ratios with their range, and keeps no results: this page
shows none. `make bench` alone runs the load, the digest, the model and this.

## Launches

```
make bench BENCH=launches
```

measures a run of three empty assets from its request to its end, with Dagster's launcher and with this
project's in turn, five times, and ten runs at once. It prints medians with their range and keeps no results:
this page shows none.
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
turns. Seconds and CPU are medians of as many runs as stand beside them, peak memory is their highest. The
last four columns count, by SQL after the first run, the rows of the target that are not as they should be.
The warehouse's table has an index on the change time beside its key's; all tools maintain both.

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
        verdicts = (f"{each:.2f}, {verdict([each], bound)}" if each else "" for each in ratios)
        yield [case, tool, f"{bound:.2f}", *verdicts]


def verdict(ratios: Sequence[float], bound: float) -> str:
    """Whether ratios keep their upper bound, in a word: unclear unless all agree and are above zero."""
    if min(ratios) <= 0 or min(ratios) <= bound < max(ratios):
        return "unclear"
    return "keeps" if max(ratios) <= bound else "misses"


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
    panels: dict[str, list[Bar]] = {}
    for result in results:
        bar = Bar(result["tool"], result["seconds"], "pipeline" in result["tool"])
        panels.setdefault(result["case"], []).append(bar)
    draw(PLOT, panels, "seconds (median, minimum and maximum)", columns=1)


def _plot_growth(file: Path, results: list[GrowthResult]) -> None:
    panels: dict[str, list[Bar]] = {}
    for name, title in PLOTTED.items():
        for result in results:
            if measured := result["figures"].get(name):
                bar = Bar(f"{result['tables']:,} tables", measured, ours=True)
                panels.setdefault(title, []).append(bar)
    draw(file, panels, "median, minimum and maximum", columns=2)


if __name__ == "__main__":
    write_page()
