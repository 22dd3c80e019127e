"""The status as Markdown, for its page in the UI: whether everything is fine, what to do, the figures."""

from collections.abc import Iterable
from datetime import datetime

from pipeline_assets.operations.status import Problem, Status, TableState

MARKUP = str.maketrans({character: f"\\{character}" for character in "\\|*_<>[]&"} | {"\n": " "})


def page(status: Status) -> str:
    """The report; what databases and people wrote stays text."""
    parts = [
        f"## {headline(status.problems)}",
        f"{_time(status.at)}, {status.environment}. `pipeline-assets status` says it for now.",
        *(_problem(problem) for problem in status.problems),
        "### Tables",
        _grid(
            ("table", "loaded", "behind", "held", "rows", "quarantined", "newest change"),
            map(_table, status.tables),
        ),
        f"Last edition of the digest: {status.edition or 'none yet'}.",
        "### Dagster",
        _grid(
            ("daemon", "last sign of life"), ((k, _time(v)) for k, v in status.heartbeats.items())
        )
        if status.heartbeats
        else "No daemon ran yet.",
        "Runs: "
        + (
            ", ".join(f"{count} {name}" for name, count in status.runs.items() if count)
            or "none yet"
        )
        + ".",
        "### Schedules and sensors",
        _grid(
            ("name", "kind", "last tick", "failed in a row"),
            (
                (each.name, each.kind, _time(each.last_tick), each.failures)
                for each in status.instigators
            ),
        )
        if status.instigators
        else "None is switched on.",
    ]
    return "\n\n".join(parts)


def headline(problems: list[Problem]) -> str:
    """The answer in a line."""
    if not problems:
        return "✓ Everything is fine"
    return f"✗ {len(problems)} {'thing needs' if len(problems) == 1 else 'things need'} attention"


def _problem(problem: Problem) -> str:
    # A remedy is ours and has code in it; what is wrong may quote anything.
    return f"- **{problem.what.translate(MARKUP)}**\n  {problem.remedy}"


def _table(table: TableState) -> Iterable[object]:
    return (
        table.name,
        f"{table.loaded:,}",
        f"{len(table.behind):,}",
        f"{len(table.held):,}",
        f"{table.rows_loaded:,}",
        f"{table.rows_quarantined:,}",
        _time(table.newest_change),
    )


def _grid(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header)]
    lines += [[str(cell).translate(MARKUP) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "never"
