"""The `pipeline-assets` command: run the pipelines from a terminal and see where they stand.

The commands are here; how they run the pipelines is in `in_process`, what they show in `terminal`.
Nothing is decided here that an asset, the gate or the ledger could decide.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Table as Grid

from pipeline_assets.ci.commands import ci
from pipeline_assets.failures import PermanentError
from pipeline_assets.in_process import materialize, publish_digest, score, train_and_score
from pipeline_assets.settings import load_settings, project_root
from pipeline_assets.terminal import (
    clear_errors,
    console,
    mark,
    print_deployment,
    print_error,
    print_model,
    print_settings,
    print_status,
)

if TYPE_CHECKING:
    from pipeline_assets.operations.status import Status
    from pipeline_assets.settings import Settings
    from pipeline_assets.warehouse.tables import Table

app = typer.Typer(
    help="News, a warehouse load and a model as Dagster assets.", no_args_is_help=True
)
app.add_typer(ci, name="ci")


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
    """Load every day that has ended and differs from the source, then train and score the newest
    closed week, and make the morning's digest."""
    settings = _settings()
    from pipeline_assets.warehouse.status import days_to_load, table_status
    from pipeline_assets.warehouse.tables import load_tables

    succeeded = True
    for table in load_tables():
        with clear_errors():
            with console.status("Starting PostgreSQL and comparing source and warehouse ..."):
                days = days_to_load(settings, table, everything=everything)
            if days:
                succeeded &= materialize(table, days)
            else:
                console.print(
                    f"{table.contract.name}: every closed day is in step with the source."
                )
            print_status(table_status(settings, table))
    with clear_errors():
        succeeded &= train_and_score(settings)
        succeeded &= publish_digest(settings)
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

    with clear_errors(), console.status("Reading Dagster's history and the ledger ..."):
        found = _read_status(settings)()
    if "warehouse" not in found.unknown:
        for table in load_tables():
            with clear_errors():
                print_status(table_status(settings, table))
        from pipeline_assets.models.status import model_status

        with clear_errors():
            print_model(model_status(settings))
    print_deployment(found)
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def config(
    env: Annotated[
        str, typer.Option(help="dev, staging or production; default: PIPELINE_ENV.")
    ] = "",
) -> None:
    """Show every setting, its value and where that comes from; secrets are masked.

    The exit code is 1 if the pipelines wouldn't start with them.
    """
    from pipeline_assets.settings.effective import effective_settings

    with clear_errors():
        settings, problems = effective_settings(env or None)
    print_settings(settings, problems)
    raise typer.Exit(1 if problems else 0)


@app.command()
def migrate(
    load: Annotated[str, typer.Option(help="The role that the pipelines connect as.")] = "",
    read: Annotated[str, typer.Option(help="A role for people and reports.")] = "",
) -> None:
    """Bring the warehouse's tables in line with the contracts, and grant roles the rights they need on them.

    Run it once, not in parallel, before a new version starts. Where the pipelines' own role may not create
    tables, run it with the WAREHOUSE_DATABASE_URL of the role that owns the database, and with --load and
    --read.
    """
    settings = _settings()
    from pipeline_assets.operations.migration import migrate
    from pipeline_assets.resources.postgres import Database
    from pipeline_assets.warehouse.tables import every_table

    with clear_errors(), Database("warehouse", settings).connect(autocommit=True) as warehouse:
        for done in migrate(warehouse, every_table(), load=load, read=read):
            console.print(escape(done), highlight=False)


@app.command()
def metrics(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = 9464,
) -> None:
    """Serve the state as Prometheus metrics on /metrics until interrupted."""
    settings = _settings()
    from pipeline_assets.operations.metrics import serve

    with clear_errors():
        try:
            server, thread = serve(_read_status(settings), host, port)
        except OSError as error:
            raise PermanentError(
                f"{host}:{port} can't be listened on: {error.strerror}. Name another by --host and --port."
            ) from error
    console.print(f"http://{host}:{server.server_port}/metrics", highlight=False)
    thread.join()


@app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 30.0,
    workspace: Annotated[
        Path | None,
        typer.Option(help="The daemon's workspace.yaml; default: the one in DAGSTER_HOME."),
    ] = None,
) -> None:
    """Watch from outside whether Dagster itself works, and alert: a process beside the daemon.

    It reports a daemon that is silent, Dagster's storage that can't be reached, code that doesn't load, a
    sensor `alerts` that doesn't look and a UI that doesn't answer: nothing else could report these. With
    --once the exit code is 1 if something is wrong.
    """
    settings = _settings()
    from time import sleep

    from pipeline_assets.operations.watching import watch_outside

    file = workspace or Path(os.environ["DAGSTER_HOME"], "workspace.yaml")
    with clear_errors():
        if not file.is_file():
            raise PermanentError(f"There is no file {file}: name the daemon's with --workspace.")
    for said, fine in watch_outside(settings, file.resolve()):
        console.print(said, highlight=False, markup=False, soft_wrap=True)
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
def upgrade() -> None:
    """Create or upgrade the tables that Dagster and MLflow need; `migrate` does the warehouse's.

    Run it once, not in parallel, before a new version starts: the old version works with them meanwhile.
    """
    settings = _settings()
    import dagster as dg

    from pipeline_assets.resources import dagster_instance
    from pipeline_assets.resources.mlflow import Mlflow

    with clear_errors():
        dagster_instance.upgrade(dg.DagsterInstance.get())
        Mlflow(settings).upgrade()
    console.print("The tables of Dagster and MLflow are up to date.")


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the audit.")] = "",
) -> None:
    """Put the previous champion back into production and score the newest week with it.

    Champions deleted or changed in MLflow are skipped; if none is left, the current one is withdrawn.
    """
    settings = _settings()
    from pipeline_assets.models import promotion, records, registry
    from pipeline_assets.resources.mlflow import Mlflow
    from pipeline_assets.resources.postgres import Database

    with clear_errors():
        client = Mlflow(settings).client()
        with Database("warehouse", settings).connect(autocommit=True) as warehouse:
            records.ensure_schema(warehouse)
            name = registry.model_name(settings.pipeline_env)
            moved = promotion.rollback(
                client, warehouse, name, actor=promotion.person(), reason=reason or "not stated"
            )
        if moved.champion_after is None:
            console.print(
                f"{name}: version {moved.champion_before} was withdrawn, and none before it can be used. "
                "Train a new one: `pipeline-assets run`, or the job train_model for the newest week.",
                soft_wrap=True,
            )
            raise typer.Exit(0)
        console.print(
            f"{name}: version {moved.champion_after} is the champion again, "
            f"{moved.champion_before} isn't."
        )
        succeeded = score(settings)
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

    with clear_errors(), Database("warehouse", settings).connect(autocommit=True) as warehouse:
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
            finding.name, mark(finding.passed, finding.severity), figures_in_words(finding.figures)
        )
    console.print(grid)
    if deployment is None:
        print_error(f"Refused: {settings.pipeline_env} stays as it was.")
        raise typer.Exit(1)
    console.print(f"Version {deployment.champion_after} is the champion.")


@app.command()
def worker(
    concurrency: Annotated[int, typer.Option(help="Steps at once; 0: one a core.")] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether a worker of this host answers.")
    ] = False,
) -> None:
    """Execute steps that runs hand out through Celery (PIPELINE_EXECUTOR=celery), until stopped.

    On SIGTERM it takes no new step and finishes those under way; a step killed then goes to another worker.
    """
    settings = _settings()
    from pipeline_assets.resources.celery import clean_results, worker_answers, worker_app

    with clear_errors():
        if check:
            raise typer.Exit(0 if worker_answers(settings) else 1)
        celery = worker_app(settings)
        clean_results(celery)
        # Steps run in processes that are forked from this one: none pays the import's 3 s of CPU again.
        import_module("pipeline_assets.definitions")
    # Everybody can read a process's arguments: the addresses are passed in the app. Two workers of the same
    # name would take each other's orders.
    arguments = ["worker", "--hostname", f"{uuid4().hex[:8]}@%h", "--loglevel", "INFO"]
    arguments += ["--without-gossip", "--without-mingle"]
    celery.worker_main([*arguments, *(["--concurrency", str(concurrency)] if concurrency else [])])


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def mlflow(context: typer.Context) -> None:
    """Run an `mlflow` command on the project's MLflow, such as `ui`.

    `serve` is ours: it verifies the champion as scoring does, then runs `mlflow models serve` on the files
    that it has verified, with the options given.
    """
    settings = _settings()
    from pipeline_assets.resources.mlflow import Mlflow

    with clear_errors():
        if context.args[:1] == ["serve"]:
            code = _serve(settings, context.args[1:])
        else:
            code = Mlflow(settings).command(context.args)
    raise typer.Exit(code)


def _serve(settings: "Settings", options: list[str]) -> int:
    from pipeline_assets.models import promotion, records, registry
    from pipeline_assets.resources.mlflow import Mlflow
    from pipeline_assets.resources.postgres import Database

    mlflow = Mlflow(settings)
    client, name = mlflow.client(), registry.model_name(settings.pipeline_env)
    with ExitStack() as files:
        with Database("warehouse", settings).connect(autocommit=True) as warehouse:
            records.ensure_schema(warehouse)
            version, folder = files.enter_context(promotion.champion_files(client, warehouse, name))
        console.print(f"Serving {version}: its files and its verdict are verified.")
        # Ours last, so that no option of the same name serves something else.
        model = ["-m", str(folder), "--env-manager", "local"]
        return mlflow.command(["models", "serve", *options, *model])


def _read_status(settings: "Settings") -> "Callable[[], Status]":
    """A function that reads the deployment's state; what can't be reached is a part of that state."""
    import dagster as dg

    from pipeline_assets.definitions import defs
    from pipeline_assets.operations.status import deployment_status
    from pipeline_assets.resources.dagster_history import watched

    known = watched(defs)
    # The instance is kept while it answers, as its storage has a pool of connections, and reopened once it
    # doesn't, as the embedded server comes back at another address.
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
    from pipeline_assets.quality.odcs import load_contract
    from pipeline_assets.warehouse.status import quarantined_rows
    from pipeline_assets.warehouse.tables import OWN_ASSETS

    with clear_errors():
        contract = load_contract(name) if name in OWN_ASSETS else _table(name).contract
        rows, total = quarantined_rows(settings, contract, day=day, rule=rule, limit=limit)
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

    with clear_errors():
        table = _table(name)
        days = quarantined_days(settings, table, rule=rule)
        if not days:
            console.print(f"{name}: nothing is quarantined{f' by {rule}' if rule else ''}.")
            return
        succeeded = materialize(table, days)
        print_status(table_status(settings, table))
    raise typer.Exit(0 if succeeded else 1)


def _table(name: str) -> "Table":
    from pipeline_assets.warehouse.tables import OWN_ASSETS, load_tables

    tables = {table.contract.name: table for table in load_tables()}
    if name in OWN_ASSETS:
        raise PermanentError(
            f"{name} is loaded by an asset of its own: materialize its partition again in the UI"
        )
    if name not in tables:
        raise PermanentError(f"{name} is not a table; there are: {', '.join(tables)}")
    return tables[name]


def _settings() -> "Settings":
    with clear_errors():
        return load_settings()


if __name__ == "__main__":
    sys.exit(app())
