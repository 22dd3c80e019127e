"""The status as Markdown, for its page in the UI: whether everything is fine, what to do, the figures."""

from collections.abc import Iterable
from datetime import datetime

from pipeline_assets import markdown
from pipeline_assets.operations.status import Problem, Status, TableState

INLINE = 1000
"""Dagster's UI shows Markdown shorter than this on the asset's page, and any other behind a link."""


def summary(status: Status) -> str:
    """The headline, and as many problems as the UI shows without a click."""
    problems = status.problems
    parts = [
        f"## {headline(problems)}",
        f"{status.at:%Y-%m-%d %H:%M} UTC, {status.environment}. "
        "For now: Materialize, or `pipeline-assets status`.",
    ]
    for number, problem in enumerate(problems):
        more = f"And {len(problems) - number} more: see `details`."
        if len("\n\n".join([*parts, _problem(problem), more])) >= INLINE:
            return "\n\n".join([*parts, more])
        parts.append(_problem(problem))
    return "\n\n".join(parts)


def details(status: Status) -> str:
    """Every problem and every figure; times are UTC."""
    parts = [
        *(_problem(problem) for problem in status.problems),
        "### Tables",
        _grid(
            ("table", "loaded", "behind", "held", "rows", "quarantined", "newest change"),
            map(_table, status.tables),
        ),
        f"Last edition of the digest: {status.edition or 'none yet'}.",
        f"Model in production: {champion(status)}.",
        "### Dagster",
        f"Daemon's last sign of life: {_time(min(status.heartbeats.values(), default=None))}.",
        "Runs: "
        + (
            ", ".join(f"{count:,} {name}" for name, count in status.runs.items() if count)
            or "none yet"
        )
        + ".",
        f"Alerts: {len(status.alerts.alerts)} open, {len(status.alerts.messages)} to be delivered.",
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


def champion(status: Status) -> str:
    """The model in production and its age, in words."""
    found = status.champion
    if found is None:
        return "none yet"
    days = (status.at - found.started_at).days
    return f"{found.model_name} version {found.champion_after}, for {days} days"


def headline(problems: list[Problem]) -> str:
    """Whether everything is fine, in one line."""
    if not problems:
        return "✓ Everything is fine"
    return f"✗ {len(problems)} {'thing needs' if len(problems) == 1 else 'things need'} attention"


def _problem(problem: Problem) -> str:
    # A remedy is our own Markdown; what is wrong may quote anything, so it is escaped.
    return f"- **{markdown.escape(problem.what)}**\n  {problem.remedy}"


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
    lines += [[markdown.escape(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(moment: datetime | None) -> str:
    # Non-breaking spaces: a column of the UI is narrow.
    return f"{moment:%d %b %H:%M}".replace(" ", "\N{NO-BREAK SPACE}") if moment else "never"
