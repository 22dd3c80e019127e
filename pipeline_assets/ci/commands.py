"""`pipeline-assets ci`: checks besides linters and tests, for the workflows and for people before a push.

The commands are here; the checks themselves are in `changes` and `smoke`.
"""

from typing import Annotated

import typer

from pipeline_assets.terminal import clear_errors, console

ci = typer.Typer(help="Checks of a change and of a deployment.", no_args_is_help=True)
Since = Annotated[str, typer.Option(help="The commit or branch to compare with.")]


@ci.command()
def contracts(since: Since = "origin/main") -> None:
    """Check that every contract can be read, and list what breaks compared with another commit.

    The exit code is 1 if a contract breaks something without a new major version.
    """
    from pipeline_assets.ci.changes import broken_contracts

    with clear_errors():
        untold, told = broken_contracts(since)
    for change in told:
        console.print(f"told by its version: {change}", highlight=False, markup=False)
    for change in untold:
        console.print(change, style="red", highlight=False, markup=False)
    if untold:
        console.print(
            "Undo it, or give the contract a new major version and tell those who read it."
        )
    raise typer.Exit(1 if untold else 0)


@ci.command()
def graph(since: Since = "origin/main") -> None:
    """Print how the asset graph differs from that of another commit, as Markdown."""
    from pipeline_assets.ci.changes import graph_difference

    with clear_errors():
        typer.echo(graph_difference(since), nl=False)


@ci.command()
def smoke(
    url: Annotated[
        str, typer.Option(help="Where Dagster's webserver is.")
    ] = "http://127.0.0.1:3000",
    timeout: Annotated[float, typer.Option(help="Seconds that a run may take.")] = 900,
) -> None:
    """Materialize one partition of each pipeline through the API of a deployment."""
    from pipeline_assets.ci.smoke import pipelines, smoke_test

    with clear_errors():
        for done in smoke_test(url.rstrip("/"), timeout, pipelines()):
            assets = ", ".join(done.assets)
            console.print(f"{done.job} {done.partition}: {assets}", highlight=False)
