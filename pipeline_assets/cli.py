"""The `pipeline-assets` command: run the pipelines from a terminal and see where they stand.

It drives the same definitions as Dagster's UI and records its runs in the same history. Nothing is
decided here that an asset, the gate or the ledger could decide.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as Grid

from pipeline_assets.failures import PermanentError
from pipeline_assets.settings import SettingsError, load_settings, project_root

if TYPE_CHECKING:
    from pipeline_assets.settings import Settings
    from pipeline_assets.warehouse.status import TableStatus
    from pipeline_assets.warehouse.tables import Table

app = typer.Typer(
    help="News, a warehouse load and a model as Dagster assets.", no_args_is_help=True
)
console = Console()


@app.callback()
def main() -> None:
    """Find the Dagster instance: the one of `dagster.yaml` unless DAGSTER_HOME names another."""
    os.environ.setdefault("DAGSTER_HOME", str(project_root()))


@app.command()
def run(
    everything: Annotated[
        bool, typer.Option("--all", help="Load all days again, also those in step.")
    ] = False,
) -> None:
    """Load every closed day that source and warehouse don't agree on, then say where things stand."""
    settings = _settings()
    from pipeline_assets.warehouse.status import days_to_load, table_status
    from pipeline_assets.warehouse.tables import load_tables

    succeeded = True
    for table in load_tables():
        with _clear_errors():
            with console.status("Starting PostgreSQL and comparing source and warehouse ..."):
                days = days_to_load(settings, table, everything=everything)
            if days:
                succeeded &= _materialize(settings, table, days)
            else:
                console.print(
                    f"{table.contract.name}: every closed day is in step with the source."
                )
            _print_status(table_status(settings, table))
    console.print(
        "\nOpen the UI with [bold]make dev[/bold]: http://127.0.0.1:3000/asset-groups shows the "
        "assets; each day's rows, checks and quarantine stand on their pages."
    )
    raise typer.Exit(0 if succeeded else 1)


@app.command()
def status() -> None:
    """Show for each table what is loaded, how far it is behind, what is held and by which rule."""
    settings = _settings()
    from pipeline_assets.warehouse.status import table_status
    from pipeline_assets.warehouse.tables import load_tables

    for table in load_tables():
        with _clear_errors():
            _print_status(table_status(settings, table))


def _settings() -> "Settings":
    with _clear_errors():
        return load_settings()


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Show what a person has to mend as a line, not as a traceback."""
    from psycopg import OperationalError

    try:
        yield
    except (SettingsError, PermanentError, OperationalError) as error:
        console.print(f"[red]{str(error).strip()}[/red]", highlight=False)
        raise typer.Exit(2) from error


def _materialize(settings: "Settings", table: "Table", days: list[str]) -> bool:
    """Run the table's job over a range of days in this process; whether nothing failed."""
    import dagster as dg

    from pipeline_assets.definitions import build_definitions

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bars:
        definitions = build_definitions(settings, {"progress": _bar(bars)})
        result = definitions.resolve_job_def(f"load_{table.contract.name}").execute_in_process(
            instance=dg.DagsterInstance.get(),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={
                "dagster/asset_partition_range_start": days[0],
                "dagster/asset_partition_range_end": days[-1],
            },
            raise_on_error=False,
        )
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            reason = failure.user_failure_data.description if failure.user_failure_data else None
            console.print(f"[red]{event.step_key}: {reason or failure.error_display_string}[/red]")
    return result.success


def _bar(bars: Progress) -> Callable[[Iterable[str], str], Iterator[str]]:
    def progress(partitions: Iterable[str], asset: str) -> Iterator[str]:
        keys = list(partitions)
        yield from bars.track(keys, total=len(keys), description=asset)

    return progress


def _print_status(status: "TableStatus") -> None:
    grid = Grid(title=status.relation, title_justify="left", show_header=False)
    grid.add_column(style="dim")
    grid.add_column()
    newest = status.newest or "none yet"
    behind = (datetime.now(UTC) - status.watermark).days if status.watermark else None
    grid.add_row("days loaded", f"{status.loaded:,} of {status.closed:,} closed; newest {newest}")
    if behind:
        grid.add_row("behind", f"{behind} days since the newest change that was loaded")
    grid.add_row("rows extracted", f"{status.extracted:,}")
    for rule, count in status.quarantined.items():
        grid.add_row("  quarantined", f"{count:,} by {rule}")
    for day, rules in list(status.held.items())[:10]:
        grid.add_row("  [red]held[/red]", f"[red]{day}[/red] by {', '.join(rules)}")
    if len(status.held) > 10:
        grid.add_row("", f"and {len(status.held) - 10} more")
    grid.add_row("rows in the warehouse", f"{status.rows:,}")
    for name, total in status.totals.items():
        grid.add_row(f"sum of {name}", f"{total:,}")
    console.print(grid)


if __name__ == "__main__":
    sys.exit(app())
