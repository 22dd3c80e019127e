"""The results of `benchmarks.orchestrators`: kept as JSON, shown as tables, and a part of `report`'s page."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TypedDict

from rich.table import Table

from benchmarks.plots import Bar, draw
from benchmarks.report import RESULTS, markdown, spread, verdict

SYSTEM_RESULTS = RESULTS.with_name("orchestrators.json")
FIGURES = {
    "start": "start until the UI's page is there, s",
    "scheduled": "scheduled run, from its moment to its end, s",
    "scheduled_cpu": "CPU of a scheduled run, s",
    "queued": "requested run, to its end, s",
    "queued_cpu": "CPU of a requested run, s",
    "ten": "ten requested at once, to the last end, s",
    "ten_cpu": "CPU of each of the ten, s",
    "backfill": "backfill of 30 days, s",
    "backfill_begins": "until its first run begins, s",
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
"""The highest ratio of ours to another's that is allowed, in the order of the table of ratios."""

PLOTTED = (
    *("scheduled", "scheduled_cpu", "queued", "queued_cpu"),
    *("ten", "backfill", "start", "pss_mb"),
)
"""The figures that have a panel."""

ORCHESTRATION = """
## Orchestration

```
python -m benchmarks.orchestrators
```

The same daily pipeline in each system: extract a day's 10,000 rows from one PostgreSQL database, validate
them, and upsert them into another. The three steps are the same plain Python functions
(`benchmarks/peers/daily_steps.py`). Each system has an environment of its own, and its metadata in a
database of its own on the same PostgreSQL server, with fsync. They take turns, one at a time, from the same
state each round; after each round the target is compared with the source by SQL. Figures are medians of
{rounds} rounds, with minimum and maximum. In each, a requested run's time is the median of three one after
another, CPU the mean of a kind's runs, and all else is measured once.

CPU is that of all processes of the system and of PostgreSQL, less what the system takes at rest in the
same time, which has a line of its own. It includes the steps' own work, which is the same everywhere. The
first run after a start isn't counted, nor is the first by a schedule. Dagster looks for new backfills every
30 s: how long one waits for that depends on the moment, and has a line of its own.

![Bars for each system: runs by schedule and on request with their CPU, ten at once, backfill, start, \
memory at rest; the table below has the figures]({plot})

"""
RATIOS = """
Ratios of the first column's figures to the others', round by round, and whether they keep the bounds that
the project has set itself: a run costs at most 0.7 of Airflow's and half of Prefect's, and ten end before
Airflow's.

"""
CONFIGURATION = """
*Unclear* is a bound with rounds on both of its sides, or with a ratio that isn't above zero. Prefect starts a
scheduled run up to 10 s ahead of its moment, so the time from there is chance: the requested run carries the
comparison.

How they are set up; what isn't said is left as it comes:

"""


class SystemResult(TypedDict):
    """The figures of each round of one system in `benchmarks.orchestrators`, by name."""

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
    """Put results into the file, replacing earlier ones of the same systems; ours come first."""
    entries = {result["name"]: result for result in [*load_systems(), *results]}
    order = sorted(entries, key=lambda name: (not name.startswith("pipeline_assets"), name))
    SYSTEM_RESULTS.write_text(json.dumps([entries[name] for name in order], indent=1) + "\n")


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


def section(plot: Path) -> str:
    """The page's section on the orchestrators, and its plot in a file; empty if nothing is on file."""
    results = load_systems()
    if not results:
        return ""
    names = [f"{result['name']} {result['version']}" for result in results]
    line = ["---"] * (len(results) + 1)
    described = "".join(f"- **{each['name']}**: {each['configuration']}.\n" for each in results)
    draw(plot, _panels(results), "median, minimum and maximum", columns=2)
    rounds = min(len(result["rounds"]) for result in results)
    return (
        ORCHESTRATION.format(rounds=rounds, plot=plot.name)
        + markdown(["figure", *names], line, *_system_rows(results))
        + RATIOS
        + markdown(["of ours to", *names[1:]], line[1:], *_ratio_rows(results))
        + CONFIGURATION
        + described
    )


def _panels(results: list[SystemResult]) -> dict[str, list[Bar]]:
    return {
        FIGURES[figure]: [
            Bar(
                result["name"],
                spread([each[figure] for each in result["rounds"]]),
                ours=result is results[0],
            )
            for result in results
        ]
        for figure in PLOTTED
    }


def _system_rows(results: list[SystemResult]) -> Iterator[list[str]]:
    """The figures that all rounds have: a new one appears once all systems are measured again."""
    rounds = [each for result in results for each in result["rounds"]]
    for figure, words in FIGURES.items():
        if all(figure in each for each in rounds):
            values = ([each[figure] for each in result["rounds"]] for result in results)
            yield [words, *map(_spread, values)]


def _ratio_rows(results: list[SystemResult]) -> Iterator[list[str]]:
    """Ours to each other's, round by round, with the bound where there is one."""
    ours, *others = results
    for figure, bounds in BOUNDS.items():
        row = [FIGURES[figure].removesuffix(", s")]
        for result in others:
            pairs = zip(ours["rounds"], result["rounds"], strict=False)
            found = [mine[figure] / theirs[figure] for mine, theirs in pairs if theirs[figure]]
            bound = bounds.get(result["name"])
            judged = f", {verdict(found, bound)} {bound:g}" if bound else ""
            row.append(_spread(found) + judged)
        yield row


def _spread(values: list[float]) -> str:
    """The median, and the range in brackets."""
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 20 else 2
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
