"""The `pipeline-assets` command: run the pipelines from a terminal and see where they stand.

It drives the same definitions as Dagster's UI and records its runs in the same history. Nothing is
decided here that an asset, the gate or the ledger could decide.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
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
    import dagster as dg

    from pipeline_assets.models.status import ModelStatus
    from pipeline_assets.operations.status import Status
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
    """Load every closed day on which source and warehouse differ, then train and score the newest
    closed week, and make the morning's digest."""
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
    with _clear_errors():
        succeeded &= _train_and_score(settings)
        succeeded &= _publish_digest(settings)
    console.print(
        "\nOpen the UI with [bold]make dev[/bold]: http://127.0.0.1:3000/asset-groups shows the "
        "assets; each day's rows, checks and quarantine stand on their pages. [bold]make mlflow[/bold] "
        "shows the models' plots."
    )
    raise typer.Exit(0 if succeeded else 1)


@app.command()
def status() -> None:
    """Say whether everything is fine, and if not, what to do; then show the tables' figures.

    The exit code is 0 if everything is fine, else 1.
    """
    settings = _settings()
    from pipeline_assets.warehouse.status import table_status
    from pipeline_assets.warehouse.tables import load_tables

    with _clear_errors(), console.status("Reading Dagster's history and the ledger ..."):
        found = _read_status(settings)()
    if "warehouse" not in found.unknown:
        for table in load_tables():
            with _clear_errors():
                _print_status(table_status(settings, table))
        from pipeline_assets.models.status import model_status

        with _clear_errors():
            _print_model(model_status(settings))
    _print_deployment(found)
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def metrics(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 9464,
) -> None:
    """Serve the state as Prometheus metrics on /metrics until interrupted."""
    settings = _settings()
    from pipeline_assets.operations.metrics import serve

    server, thread = serve(_read_status(settings), host, port)
    console.print(f"http://{host}:{server.server_port}/metrics", highlight=False)
    thread.join()


@app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 30.0,
) -> None:
    """Look from outside whether Dagster itself lives, and alert: a process beside the daemon.

    Told are a daemon that is silent, a UI that doesn't answer and code that doesn't load: then no
    sensor runs that could tell. With --once the exit code is 1 if something is wrong.
    """
    settings = _settings()
    from time import sleep

    from pipeline_assets.definitions import build_definitions
    from pipeline_assets.operations.watching import watch_outside

    repository = build_definitions(settings).get_repository_def()
    for said, fine in watch_outside(settings, repository):
        console.print(said, highlight=False, soft_wrap=True)
        if once:
            raise typer.Exit(0 if fine else 1)
        sleep(interval)


@app.command()
def alert(
    text: Annotated[str, typer.Argument(help="What to say.")] = "This is a test; nothing is wrong.",
) -> None:
    """Send a message to every address of ALERT_URLS now, and show what came of each."""
    settings = _settings()
    from pipeline_assets.operations.alerts import DeliveryError, Message
    from pipeline_assets.operations.delivery import channels, send
    from pipeline_assets.operations.logs import secret_values

    addresses = channels(settings.alert_urls)
    failed = not addresses
    if failed:
        console.print("ALERT_URLS is empty: nobody would be told of anything.")
    title = f"[{settings.pipeline_env}] Test"
    message = Message(title=title, text=text, level="success", waiting=[])
    for name in addresses:
        try:
            send(addresses, name, message, secret_values(settings))
            console.print(f"{name}: delivered", highlight=False)
        except DeliveryError as error:
            failed = True
            console.print(f"{name}: [red]{escape(str(error))}[/red]", highlight=False)
    raise typer.Exit(1 if failed else 0)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "",
) -> None:
    """Put the previous champion back into production and score the newest week with it."""
    settings = _settings()
    from pipeline_assets.models import promotion, records, registry
    from pipeline_assets.resources.mlflow import Mlflow
    from pipeline_assets.resources.postgres import Database

    with _clear_errors():
        client = Mlflow(settings).client()
        with Database("warehouse", settings).connect(autocommit=True) as warehouse:
            records.ensure_schema(warehouse)
            name = registry.model_name(settings.pipeline_env)
            moved = promotion.rollback(
                client, warehouse, name, actor=promotion.person(), reason=reason or "not stated"
            )
        console.print(
            f"{name}: version {moved.champion_after} is the champion again, "
            f"{moved.champion_before} isn't."
        )
        succeeded = _score(settings)
    raise typer.Exit(0 if succeeded else 1)


@app.command()
def promote() -> None:
    """Bring staging's champion into this environment: the tested version, judged here, not retrained."""
    settings = _settings()
    from pipeline_assets.models import promotion
    from pipeline_assets.models.status import figures_in_words
    from pipeline_assets.resources.files import PartitionFiles
    from pipeline_assets.resources.mlflow import Mlflow
    from pipeline_assets.resources.postgres import Database

    with _clear_errors(), Database("warehouse", settings).connect(autocommit=True) as warehouse:
        judged, deployment = promotion.promote(
            Mlflow(settings).client(),
            warehouse,
            PartitionFiles(settings.files_url),
            settings,
            actor=promotion.person(),
        )
    grid = Grid("rule", "", "figures", title=str(judged.version), title_justify="left")
    for finding in judged.findings:
        grid.add_row(
            finding.name, _mark(finding.passed, finding.severity), figures_in_words(finding.figures)
        )
    console.print(grid)
    if deployment is None:
        console.print("[red]Refused: production stays as it was.[/red]")
        raise typer.Exit(1)
    console.print(f"Version {deployment.champion_after} is the champion.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def mlflow(context: typer.Context) -> None:
    """Run an `mlflow` command on the project's MLflow, such as `ui`, or `models serve -m ...`."""
    settings = _settings()
    from pipeline_assets.resources.mlflow import Mlflow

    with _clear_errors():
        code = Mlflow(settings).command(context.args)
    raise typer.Exit(code)


def _read_status(settings: "Settings") -> "Callable[[], Status]":
    """A function that reads the deployment's state; what can't be reached is a part of that state."""
    import dagster as dg

    from pipeline_assets.definitions import build_definitions
    from pipeline_assets.operations.status import deployment_status
    from pipeline_assets.resources.dagster_history import watched

    known = watched(build_definitions(settings))
    # Kept while it answers, as its storage has a pool of connections; opened anew once it doesn't, as
    # the embedded server comes back at another address.
    instance = cache(dg.DagsterInstance.get)

    def read() -> "Status":
        status = deployment_status(instance, settings, known)
        if "dagster" in status.unknown:
            instance.cache_clear()
        return status

    return read


quarantine = typer.Typer(help="Rows that broke their contract.", no_args_is_help=True)
app.add_typer(quarantine, name="quarantine")
TableName = Annotated[str, typer.Argument(help="A table's contract, such as transactions.")]
RuleName = Annotated[str, typer.Option("--rule", help="Only rows that broke this rule.")]


@quarantine.command()
def show(
    name: TableName,
    day: Annotated[str, typer.Option("--day", help="Only this partition.")] = "",
    rule: RuleName = "",
    limit: Annotated[int, typer.Option(help="How many rows at most.")] = 20,
) -> None:
    """Show quarantined rows as the source had them, with the rules they broke, newest first."""
    settings = _settings()
    from pipeline_assets.warehouse.status import quarantined_rows

    with _clear_errors():
        rows, total = quarantined_rows(settings, _table(name), day=day, rule=rule, limit=limit)
    grid = Grid("day", "broken rules", "row", title=f"quarantine.{name}", title_justify="left")
    for partition, broken_rules, row in rows:
        grid.add_row(partition, ", ".join(broken_rules), escape(json.dumps(row)))
    console.print(grid)
    console.print(f"{len(rows):,} of {total:,} rows.")


@quarantine.command()
def replay(name: TableName, rule: RuleName = "") -> None:
    """Run again exactly the days that have quarantined rows, after a fix in source or contract."""
    settings = _settings()
    from pipeline_assets.warehouse.status import quarantined_days, table_status

    with _clear_errors():
        table = _table(name)
        days = quarantined_days(settings, table, rule=rule)
        if not days:
            console.print(f"{name}: nothing is quarantined{f' by {rule}' if rule else ''}.")
            return
        succeeded = _materialize(settings, table, days)
        _print_status(table_status(settings, table))
    raise typer.Exit(0 if succeeded else 1)


def _table(name: str) -> "Table":
    from pipeline_assets.warehouse.tables import load_tables

    tables = {table.contract.name: table for table in load_tables()}
    if name not in tables:
        raise PermanentError(f"{name} is not a table; there are: {', '.join(tables)}")
    return tables[name]


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
    """Run the table's job over days in this process; whether nothing failed."""
    import dagster as dg

    from pipeline_assets.definitions import build_definitions

    succeeded = True
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bars:
        job = build_definitions(settings, {"progress": _bar(bars)}).resolve_job_def(
            f"load_{table.contract.name}"
        )
        bars.add_task("recorded by Dagster", total=None)
        for first, last in _spans(days):
            result = job.execute_in_process(
                instance=dg.DagsterInstance.get(),
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags={
                    "dagster/asset_partition_range_start": first,
                    "dagster/asset_partition_range_end": last,
                },
                raise_on_error=False,
            )
            succeeded &= result.success
            _print_failures(result)
    return succeeded


def _train_and_score(settings: "Settings") -> bool:
    """Train, judge, deploy and score the newest closed week, if that wasn't done; whether it worked."""
    import dagster as dg

    from pipeline_assets.definitions import build_definitions
    from pipeline_assets.models.assets import weeks
    from pipeline_assets.models.automation import (
        BUILD,
        TRAIN,
        missing_snapshots,
        stored_weeks,
        trainable,
    )
    from pipeline_assets.resources.postgres import Database

    definitions = build_definitions(settings)
    warehouse = Database("warehouse", settings)
    stored = stored_weeks(
        dg.DagsterInstance.get(), warehouse, settings, weeks(settings), datetime.now(UTC)
    )
    if not stored.closed or not trainable(stored.closed[-1], settings):
        console.print("model: there aren't orders of enough weeks yet to train on.")
        return True
    newest, succeeded = stored.closed[-1], True
    if newest not in stored.decided:
        with console.status("Reading the snapshots that the model learns from ..."):
            job = definitions.resolve_job_def(BUILD)
            for week in missing_snapshots(newest, settings, stored):
                succeeded = succeeded and _run_job(job, week)
        with console.status(f"Training and judging the model of the week of {newest} ..."):
            succeeded = succeeded and _run_job(definitions.resolve_job_def(TRAIN), newest)
    return _score(settings) and succeeded


def _score(settings: "Settings") -> bool:
    """Score the newest closed week, if the champion hasn't, and show where the model stands."""
    from pipeline_assets.definitions import build_definitions
    from pipeline_assets.models.assets import weeks
    from pipeline_assets.models.automation import SCORE
    from pipeline_assets.models.status import model_status

    status, succeeded = model_status(settings), True
    newest = weeks(settings).get_last_partition_key()
    if newest and status.deployment and status.scored != (newest, status.deployment.champion_after):
        with console.status("Scoring all customers ..."):
            job = build_definitions(settings).resolve_job_def(SCORE)
            succeeded = _run_job(job, newest)
        status = model_status(settings)
    _print_model(status)
    return succeeded


def _run_job(job: "dg.JobDefinition", key: str) -> bool:
    """Run a job over a partition in this process; whether nothing failed."""
    import dagster as dg

    result = job.execute_in_process(
        instance=dg.DagsterInstance.get(),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        partition_key=key,
        raise_on_error=False,
    )
    _print_failures(result)
    return result.success


def _print_model(status: "ModelStatus") -> None:
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
        mark = _mark(finding["passed"], finding["severity"])
        grid.add_row(finding["name"], mark, figures_in_words(finding["figures"]))
    if status.deployment:
        moved = status.deployment
        grid.add_row(
            "champion", "", f"version {moved.champion_after}, since {moved.started_at:%Y-%m-%d}"
        )
    if status.scored:
        week, version = status.scored
        grid.add_row("scored", "", f"the week of {week}, by version {version}")
    console.print(grid)


def _mark(passed: bool, severity: str) -> str:
    if passed:
        return "[green]passed[/green]"
    return "[red]failed[/red]" if severity == "error" else "[yellow]warning[/yellow]"


def _publish_digest(settings: "Settings") -> bool:
    """Make the newest morning's edition and say where it is; whether nothing failed."""
    import dagster as dg

    from pipeline_assets.definitions import build_definitions
    from pipeline_assets.news.assets import DIGEST, mornings

    key = mornings(settings).get_last_partition_key()
    if key is None:
        console.print(f"digest: the first morning is after {settings.news_start_date}.")
        return True
    with console.status("Making the morning's edition ..."):
        job = build_definitions(settings).resolve_job_def("publish_digest")
        result = job.execute_in_process(
            instance=dg.DagsterInstance.get(),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            partition_key=key,
            raise_on_error=False,
        )
    _print_failures(result)
    for edition in result.asset_materializations_for_node(DIGEST) if result.success else []:
        count, page = (edition.metadata[name].value for name in ("dagster/row_count", "page"))
        console.print(f"digest: {count} stories from {settings.news_provider}")
        console.print(str(page), soft_wrap=True)
    return result.success


def _print_failures(result: "dg.ExecuteInProcessResult") -> None:
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            told = failure.user_failure_data
            reason = (told and told.description) or failure.error_display_string
            console.print(f"[red]{event.step_key}: {reason}[/red]", highlight=False)


def _spans(days: list[str]) -> Iterator[tuple[str, str]]:
    """Days in order as first and last of each unbroken span: a span is one run."""
    first = previous = days[0]
    for day in days[1:]:
        if date.fromisoformat(day) - date.fromisoformat(previous) > timedelta(days=1):
            yield first, previous
            first = day
        previous = day
    yield first, previous


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


def _print_deployment(status: "Status") -> None:
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


if __name__ == "__main__":
    sys.exit(app())
