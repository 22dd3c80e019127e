"""The model beside what it must beat, over nine months of real purchases: `python -m benchmarks.models`.

Nine holdouts, four weeks apart so that no two share a day, each with a model trained as the pipeline
trains it: on eight snapshots whose labels had closed, and chosen on these alone. The distance between
snapshots is checked on earlier weeks, whose labels had closed at the first holdout's cutoff. Then come a
weekly run, and the cohort a hundred times over. `make bench` runs it and fails below the bounds.
"""

import os
import sys
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

from benchmarks import many, measure
from pipeline_assets.models import snapshots
from pipeline_assets.models.baseline import baseline_scores
from pipeline_assets.models.evaluation import evaluate
from pipeline_assets.models.snapshots import HORIZON
from pipeline_assets.models.training import CANDIDATES, Candidate, TrainedModel, predict, train
from pipeline_assets.quality.ddl import ensure_table
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources import embedded_postgres, sample_shop
from pipeline_assets.warehouse.load import prepare
from pipeline_assets.warehouse.tables import load_tables

LAST_DAY = date(2027, 7, 6)
"""The day of the cohort's last orders: the newest holdout closes no later."""
NEWEST = date(2027, 6, 7)
HOLDOUTS, SNAPSHOTS = 9, 8
METRICS = ("auc", "average_precision", "log_loss", "top_decile_capture", "calibration")
FIRST_DAY = date(2026, 1, 7)
MONDAY = date(2026, 11, 2)
"""The week of the timed run: a closed one, with all eight snapshots before it."""
COPIES = 100
MEGABYTES = 1500
"""What each part may take with 2.4 million customers, imports included."""

LEDGER = """
INSERT INTO pipeline.batches (table_name, partition_key, window_start, window_end, verdict, rows_extracted,
    rows_valid, rows_quarantined, violations, broken_rules, content_hash, loaded_hash, contract_version,
    code_version, validated_by)
SELECT 'transactions', day::date::text, day, day + '1 day', 'passed', 0, 0, 0, '{}', '{}', 'same', 'same',
    '1.0.0', '0', 'benchmark'
FROM generate_series(%s::timestamptz, %s, '1 day') AS day
"""

LOAD = """
INSERT INTO analytics.fct_transactions (order_id, customer_id, ordered_at, amount, currency, quantity,
    status, updated_at, net_amount, business_day, business_week)
SELECT order_id || '-' || copy, customer_id + copy * 100000, ordered_at, amount, currency, quantity,
    status, updated_at, amount, ordered_at::date, date_trunc('week', ordered_at)::date
FROM shop.orders CROSS JOIN generate_series(0, %s - 1) AS copy WHERE amount > 0
"""


def cohort(server: embedded_postgres.Server, copies: int) -> str:
    """The URL of a database with every valid order of the sample shop, `copies` times over."""
    url = embedded_postgres.ensure_database(server, f"cohort_{copies}")
    sample_shop.ensure(url)
    with psycopg.connect(url, options="-c TimeZone=UTC") as connection:
        ensure_table(connection, load_contract("transactions"))
        connection.execute("TRUNCATE analytics.fct_transactions")
        connection.execute(LOAD, [copies])
        connection.execute("ANALYZE analytics.fct_transactions")
    return url


def compare(url: str, newest: date, console: Console) -> None:
    """Compare the models over the holdouts, print the figures and check them against the bounds."""

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


def _trained(url: str, cutoff: date) -> TrainedModel:
    parts = [
        snapshots.read(url, cutoff - back * HORIZON, as_of=LAST_DAY, timezone="UTC")
        for back in range(SNAPSHOTS, 0, -1)
    ]
    return train(pa.concat_tables(parts), cutoff)


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


def spacing(url: str, first: date, console: Console) -> None:
    """Check that training snapshots four weeks apart give the lowest log loss before the first holdout.

    The six newest weeks whose labels had closed at its cutoff are compared. By then there are seven or eight
    snapshots four weeks apart; in the shop's first half year there are too few to compare anything.
    """
    losses: dict[int, list[float]] = {weeks: [] for weeks in (1, 2, 4)}
    opened = FIRST_DAY + HORIZON

    @cache
    def snapshot(cutoff: date) -> pa.Table:
        return snapshots.read(url, cutoff, as_of=first, timezone="UTC")

    for back in range(6):
        cutoff = first - HORIZON - back * snapshots.WEEK
        holdout = snapshot(cutoff)
        for weeks, found in losses.items():
            cutoffs = [
                cutoff - HORIZON - number * weeks * snapshots.WEEK for number in range(SNAPSHOTS)
            ]
            training = pa.concat_tables([snapshot(each) for each in cutoffs if each >= opened])
            scores = predict(train(training, cutoff).pipeline, holdout)
            labels = snapshots.labels(holdout)
            found.append(evaluate(labels, scores, resamples=1)["log_loss"].value)
    means = {weeks: float(np.mean(found)) for weeks, found in losses.items()}
    told = ", ".join(f"{weeks} apart {mean:.4f}" for weeks, mean in means.items())
    console.print(f"Mean log loss of six weeks before, by the snapshots' distance in weeks: {told}")
    if min(means, key=lambda weeks: means[weeks]) != 4:
        raise SystemExit("snapshots four weeks apart aren't the choice of the weeks before")


def week(server: embedded_postgres.Server, folder: Path, console: Console) -> None:
    """Measure a weekly run, all jobs of `MONDAY`'s week, in a process of its own with its imports."""
    url = cohort(server, 1)
    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as connection:
        (orders,) = load_tables()
        prepare(connection, orders)
        connection.execute(LEDGER, [FIRST_DAY, LAST_DAY])
    env = {
        **os.environ,
        "DAGSTER_HOME": str(folder),
        "PIPELINE_DATA_DIR": str(folder),
        "WAREHOUSE_DATABASE_URL": url,
        "SOURCE_DATABASE_URL": url,
        "MLFLOW_TRACKING_URI": embedded_postgres.ensure_database(server, "mlflow"),
        # The model of that week doesn't reach BG/NBD's average precision, and a refused one isn't deployed.
        "MODELS_MIN_PRECISION_OVER_BASELINE": "-0.03",
    }
    older = [
        f"build_snapshots={each}"
        for each in snapshots.every_fourth_week(MONDAY, SNAPSHOTS, date(2026, 3, 2))
    ]
    command = [sys.executable, "-m", "benchmarks.week"]
    measure.run([*command, *older], env, os.getpid())
    taken = measure.run(
        [*command, f"train_model={MONDAY}", f"score_customers={MONDAY}"], env, os.getpid()
    )
    console.print(
        f"A weekly run (snapshot, training, gate, deployment, scores): {taken.seconds:.0f} s, "
        f"{taken.cpu_seconds:.0f} s of CPU, {taken.peak_mb:.0f} MB at most"
    )
    if taken.seconds > 60 or taken.peak_mb > 1500:
        raise SystemExit("a weekly run takes more than 60 s or 1.5 GB")


def whole_path(
    server: embedded_postgres.Server, folder: Path, model: TrainedModel, console: Console
) -> None:
    """2.4 million customers: scored, looked back on and resampled, each bounded in its memory."""
    small, url = cohort(server, 1), cohort(server, COPIES)
    fields = {
        "pipeline_data_dir": str(folder),
        "mlflow_tracking_uri": embedded_postgres.ensure_database(server, "mlflow_many"),
    }
    training = snapshots.read(small, NEWEST - HORIZON, as_of=LAST_DAY, timezone="UTC")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as process:
        champion = process.submit(many.register, fields, model.pipeline, training).result()
        scored = process.submit(many.score, fields, url, champion).result()
        parts = {"scored and loaded (score_week)": scored}
        came_true, resampled = process.submit(many.look_back, fields, url, champion).result()
    parts |= {
        "looked back on (realised)": came_true,
        "1,000 resamples, model and champion": resampled,
    }
    for name, part in parts.items():
        console.print(
            f"{part.customers:,} customers {name}: {part.seconds:.0f} s, {part.megabytes:.0f} MB at most"
        )
    if max(part.megabytes for part in parts.values()) > MEGABYTES:
        raise SystemExit(f"more than {MEGABYTES} MB")


def main(
    newest: Annotated[
        str, typer.Option(help="The newest holdout's cutoff; the others lie 4 to 32 weeks before.")
    ] = str(NEWEST),
    part: Annotated[
        list[str] | None, typer.Option(help="Only this: models, spacing, week or many.")
    ] = None,
) -> None:
    """Compare the models, then measure a week and 2.4 million customers."""
    console, parts = Console(width=120), part or ["models", "spacing", "week", "many"]
    with tempfile.TemporaryDirectory() as name:
        folder, last = Path(name), date.fromisoformat(newest)
        server = embedded_postgres.connect_or_start(folder)
        try:
            url = cohort(server, 1)
            if "models" in parts:
                compare(url, last, console)
            if "spacing" in parts:
                spacing(url, last - (HOLDOUTS - 1) * HORIZON, console)
            if "week" in parts:
                week(server, folder, console)
            if "many" in parts:
                whole_path(server, folder, _trained(url, last), console)
        finally:
            embedded_postgres.release(folder)
            embedded_postgres.stop(folder)


if __name__ == "__main__":
    typer.run(main)
