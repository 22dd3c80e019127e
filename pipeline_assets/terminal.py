"""What the command shows: where tables, model and deployment stand, and errors as a line.

Nothing is read or decided here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pipeline_assets.failures import PermanentError
from pipeline_assets.settings import SettingsError

if TYPE_CHECKING:
    from pipeline_assets.models.status import ModelStatus
    from pipeline_assets.operations.status import Status
    from pipeline_assets.settings.effective import EffectiveSetting
    from pipeline_assets.warehouse.status import TableStatus

console = Console()


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show an error that a person has to fix as a line, not as a traceback."""
    import psycopg
    import sqlalchemy.exc

    from pipeline_assets.resources.embedded_postgres import EmbeddedPostgresError

    try:
        yield
    except (
        SettingsError,
        PermanentError,
        EmbeddedPostgresError,
        psycopg.OperationalError,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedObject,  # such as a role
    ) as error:
        print_error(str(error))
        raise typer.Exit(2) from error
    except sqlalchemy.exc.OperationalError as error:  # Dagster's storage, MLflow's
        print_error(str(error.orig))
        raise typer.Exit(2) from error
    except Exception as error:
        # What MLflow raises, for one if its server is away; importing it to know that takes a second.
        if type(error).__module__ != "mlflow.exceptions":
            raise
        print_error(str(error))
        raise typer.Exit(2) from error


def print_error(text: str) -> None:
    """Show a text as it is: what it has in brackets would be taken for markup."""
    console.print(text.strip(), style="red", highlight=False, markup=False)


def print_status(status: "TableStatus") -> None:
    """A table: days, rows, and what is held or quarantined."""
    grid = Grid(title=status.relation, title_justify="left", show_header=False)
    grid.add_column(style="dim")
    grid.add_column()
    newest = status.newest or "none yet"
    grid.add_row("days loaded", f"{status.loaded:,} of {status.closed:,} closed; newest {newest}")
    if status.behind:
        grid.add_row("behind", f"{status.behind:,} closed days")
    grid.add_row("rows extracted", f"{status.extracted:,}")
    grid.add_row("rows quarantined", f"{status.quarantined:,}")
    for rule, count in status.violations.items():
        grid.add_row("", f"{count:,} by {rule}")
    for day, rules in list(status.held.items())[:10]:
        grid.add_row("  [red]held[/red]", f"[red]{day}[/red] by {', '.join(rules)}")
    if len(status.held) > 10:
        grid.add_row("", f"and {len(status.held) - 10} more")
    grid.add_row("rows in the warehouse", f"{status.rows:,}")
    for name, total in status.totals.items():
        grid.add_row(f"sum of {name}", f"{total:,}")
    console.print(grid)


def print_deployment(status: "Status") -> None:
    """The deployment as a whole: whether everything is fine, and if not, what to do."""
    from pipeline_assets.operations.page import champion, headline

    grid = Grid(title="deployment", title_justify="left", show_header=False)
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_row("environment", status.environment)
    newest = max(status.heartbeats.values(), default=None)
    alive = f"last sign of life {newest:%Y-%m-%d %H:%M:%S} UTC" if newest else "never ran"
    grid.add_row("daemon", alive)
    counts = (f"{count:,} {name}" for name, count in status.runs.items() if count)
    grid.add_row("runs", ", ".join(counts) or "none yet")
    grid.add_row("switched on", f"{len(status.instigators)} schedules and sensors")
    book = status.alerts
    grid.add_row("alerts", f"{len(book.alerts)} open, {len(book.messages)} to be delivered")
    grid.add_row("last edition", str(status.edition or "none yet"))
    grid.add_row("model in production", champion(status))
    console.print(grid)
    problems = status.problems
    console.print(f"[{'red' if problems else 'green'}]{headline(problems)}[/]", highlight=False)
    for problem in problems:
        console.print(f"- {escape(problem.what)}", style="bold", highlight=False)
        console.print(f"  {escape(problem.remedy)}", highlight=False)


def print_model(status: "ModelStatus") -> None:
    """The model: what the gate found beside its thresholds, and which version is in production."""
    from pipeline_assets.models.status import figures_in_words

    if status.newest is None:
        console.print(f"{status.name}: no version has been judged yet.")
        return
    newest = status.newest
    title = f"{status.name} version {newest.model_version}, week of {newest.week}: {newest.verdict}"
    grid = Grid(title=title, title_justify="left", show_header=False)
    grid.add_column(style="dim")
    grid.add_column()
    grid.add_column()
    for finding in newest.findings:
        outcome = mark(finding["passed"], finding["severity"])
        grid.add_row(finding["name"], outcome, figures_in_words(finding["figures"]))
    if status.deployment:
        moved = status.deployment
        grid.add_row(
            "champion", "", f"version {moved.champion_after}, since {moved.started_at:%Y-%m-%d}"
        )
    if status.scored:
        week, version = status.scored
        grid.add_row("scored", "", f"the week of {week}, by version {version}")
    console.print(grid)


def print_settings(settings: "list[EffectiveSetting]", problems: list[str]) -> None:
    """Every setting with its source, and what is wrong with them."""
    grid = Grid("setting", "value", "source", title="settings", title_justify="left")
    for setting in settings:
        value = "[dim]unset[/dim]" if setting.value is None else escape(setting.value)
        grid.add_row(setting.name, value, setting.source)
    console.print(grid)
    for problem in problems:
        print_error(problem)


def mark(passed: bool, severity: str) -> str:
    """A finding's outcome in its colour."""
    if passed:
        return "[green]passed[/green]"
    return "[red]failed[/red]" if severity == "error" else "[yellow]warning[/yellow]"
