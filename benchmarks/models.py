"""The model beside what it must beat, over nine months of real purchases: `python -m benchmarks.models`.

Nine holdouts, four weeks apart so that no two share a day, each with a model trained as the pipeline
trains it: eight snapshots whose labels had closed, the choice made inside of them. Then the scoring of
the cohort a hundred times over. `make bench` runs it and fails below the bounds.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import psycopg
import pyarrow as pa
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline_assets.models import snapshots
from pipeline_assets.models.baseline import baseline_scores
from pipeline_assets.models.evaluation import evaluate
from pipeline_assets.models.snapshots import HORIZON
from pipeline_assets.models.training import CANDIDATES, Candidate, TrainedModel, predict, train
from pipeline_assets.quality.ddl import ensure_table
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources import embedded_postgres, sample_shop

LAST_DAY = date(2027, 7, 6)
"""Of the last orders of the cohort: the newest holdout closes at most then."""
NEWEST = date(2027, 6, 7)
HOLDOUTS, SNAPSHOTS = 9, 8
METRICS = ("auc", "average_precision", "log_loss", "top_decile_capture", "calibration")
COPIES = 100
MEGABYTES = 600
"""What scoring 2.4 million customers may take, imports included."""

LOAD = """
INSERT INTO analytics.fct_transactions (order_id, customer_id, ordered_at, amount, currency, quantity,
    status, updated_at, net_amount, business_day, business_week)
SELECT order_id || '-' || copy, customer_id + copy * 100000, ordered_at, amount, currency, quantity,
    status, updated_at, amount, ordered_at::date, date_trunc('week', ordered_at)::date
FROM shop.orders CROSS JOIN generate_series(0, %s - 1) AS copy WHERE amount > 0
"""


def cohort(server: embedded_postgres.Server, copies: int) -> str:
    """The URL of a database with every valid order of the sample shop, so many times over."""
    url = embedded_postgres.ensure_database(server, f"cohort_{copies}")
    sample_shop.ensure(url)
    with psycopg.connect(url, options="-c TimeZone=UTC") as connection:
        ensure_table(connection, load_contract("transactions"))
        connection.execute("TRUNCATE analytics.fct_transactions")
        connection.execute(LOAD, [copies])
        connection.execute("ANALYZE analytics.fct_transactions")
    return url


def compare(url: str, newest: date, console: Console) -> TrainedModel:
    """Print the side-by-side over the holdouts and hold it against the bounds; the newest's model."""

    @cache
    def snapshot(cutoff: date) -> pa.Table:
        return snapshots.read(url, cutoff, as_of=LAST_DAY, timezone="UTC")

    found: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}

    def score(
        name: str, labels: NDArray[np.bool_], scores: Callable[[], NDArray[np.float64]]
    ) -> None:
        begun = time.perf_counter()
        values = scores()
        seconds.setdefault(name, []).append(time.perf_counter() - begun)
        evaluation = evaluate(labels, values, resamples=1)
        found.setdefault(name, []).append([evaluation[metric].value for metric in METRICS])

    for number in reversed(range(HOLDOUTS)):
        cutoff = newest - number * HORIZON
        holdout = snapshot(cutoff)
        labels = snapshots.labels(holdout)
        training = pa.concat_tables(
            [snapshot(cutoff - back * HORIZON) for back in range(SNAPSHOTS, 0, -1)]
        )
        # A rank isn't a probability: log loss and calibration of recency say nothing.
        score("recency", labels, partial(_recency, holdout))
        score("BG/NBD", labels, partial(baseline_scores, holdout))
        for name, candidate in CANDIDATES.items():
            score(name, labels, partial(_fitted, candidate, training, holdout))
        begun = time.perf_counter()
        model = train(training, cutoff)
        score("chosen", labels, partial(predict, model.pipeline, holdout))
        seconds["chosen"][-1] = time.perf_counter() - begun
        console.print(f"{cutoff}  {labels.mean():.2%} bought  chosen: {model.name}", style="dim")
    figures = {name: np.array(rows) for name, rows in found.items()}
    _print(figures, seconds, console)
    _hold(figures["chosen"], figures["BG/NBD"])
    return model


def _recency(holdout: pa.Table) -> NDArray[np.float64]:
    days: NDArray[np.float64] = holdout["days_since_last"].to_numpy()
    return 1 / (1 + days)


def _fitted(candidate: Candidate, training: pa.Table, holdout: pa.Table) -> NDArray[np.float64]:
    pipeline = candidate.build(**candidate.parameters)
    pipeline.fit(snapshots.feature_frame(training), snapshots.labels(training))
    return predict(pipeline, holdout)


def _print(
    figures: dict[str, NDArray[np.float64]], seconds: dict[str, list[float]], console: Console
) -> None:
    table = Table(title=f"Means of {HOLDOUTS} holdouts, four weeks apart", title_justify="left")
    table.add_column("model")
    for title in (
        "AUC", "average precision", "log loss", "top 10% hold", "predicted/actual",
        "log loss below BG/NBD", "seconds",
    ):  # fmt: skip
        table.add_column(title, justify="right")
    below = figures["BG/NBD"][:, 2]
    for name, values in figures.items():
        auc, precision, loss, captured, _ = values.mean(axis=0)
        ratio, ranks = values[:, 4], name == "recency"
        table.add_row(
            name,
            f"{auc:.4f}",
            f"{precision:.4f}",
            "-" if ranks else f"{loss:.4f}",
            f"{captured:.1%}",
            "-" if ranks else f"{ratio.min():.2f} to {ratio.max():.2f}",
            "-" if ranks else f"{(values[:, 2] <= below).sum()} of {len(values)}",
            f"{np.mean(seconds[name]):.1f}",
        )
    console.print(table)


def _hold(chosen: NDArray[np.float64], baseline: NDArray[np.float64]) -> None:
    auc, precision = chosen[:, :2].mean(axis=0)
    below = int((chosen[:, 2] <= baseline[:, 2]).sum())
    calibrated = int(((chosen[:, 4] >= 0.8) & (chosen[:, 4] <= 1.25)).sum())
    missed = [
        text
        for kept, text in (
            (auc >= 0.818, f"mean AUC {auc:.4f} is below 0.818"),
            (precision >= 0.339, f"mean average precision {precision:.4f} is below 0.339"),
            (below >= 8, f"log loss is no worse than BG/NBD's in {below} weeks, not in 8"),
            (calibrated >= 7, f"calibration is within 0.8 to 1.25 in {calibrated} weeks, not in 7"),
        )
        if not kept
    ]
    if missed:
        raise SystemExit("; ".join(missed))


def score_many(url: str, model: TrainedModel) -> tuple[int, float, float]:
    """Customers scored in batches, seconds, and megabytes at most: to be run in a process of its own."""
    begun, customers = time.perf_counter(), 0
    for batch in snapshots.read_batches(url, LAST_DAY, as_of=LAST_DAY, timezone="UTC"):
        if len(batch):
            customers += len(predict(model.pipeline, batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return customers, time.perf_counter() - begun, peak


def main(
    newest: Annotated[
        str, typer.Option(help="The newest holdout's cutoff; the others lie 4 to 32 weeks before.")
    ] = str(NEWEST),
    scale: Annotated[bool, typer.Option(help="Score the cohort a hundred times over, too.")] = True,
) -> None:
    """Compare the models, then score 2.4 million customers."""
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        server = embedded_postgres.connect_or_start(Path(folder))
        try:
            url = cohort(server, 1)
            model = compare(url, date.fromisoformat(newest), console)
            if scale:
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    many = cohort(server, COPIES)
                    customers, seconds, peak = process.submit(score_many, many, model).result()
                console.print(
                    f"{customers:,} customers, features and scores: {seconds:.0f} s, {peak:.0f} MB at most"
                )
                if peak > MEGABYTES:
                    raise SystemExit(f"more than {MEGABYTES} MB")
        finally:
            embedded_postgres.release(Path(folder))
            embedded_postgres.stop(Path(folder))


if __name__ == "__main__":
    typer.run(main)
