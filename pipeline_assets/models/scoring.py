"""Scoring all customers with the champion.

Scores are rows of a contract like any other, with the warehouse's table, gate, quarantine and ledger.
Customers are scored in batches, so that memory doesn't depend on their number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING

import psycopg

from pipeline_assets.models import registry, snapshots
from pipeline_assets.models.registry import Registered
from pipeline_assets.models.training import predict
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.warehouse.gate import Judgement, judge
from pipeline_assets.warehouse.load import load, prepare
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa
    from sklearn.pipeline import Pipeline

SAMPLE_ROWS = 50_000
"""How many customers distributions are compared on: a PSI of ten bins is then stable to 0.001."""


class Sample:
    """An even sample of a stream of unknown length: every n-th row, n doubling as rows add up."""

    def __init__(self, rows: int = SAMPLE_ROWS) -> None:
        self.rows = rows
        self.step, self.seen = 1, 0
        self.kept: list[pa.Table] = []

    def add(self, table: "pa.Table") -> None:
        """Add the batch's rows that belong to the sample."""
        import numpy as np

        # The batch's first row whose number in the whole stream is a multiple of the step.
        first = -self.seen % self.step
        self.kept.append(table.take(np.arange(first, len(table), self.step)))
        self.seen += len(table)
        while sum(map(len, self.kept)) > self.rows:
            whole = self.table()
            self.kept = [whole.take(np.arange(0, len(whole), 2))]
            self.step *= 2

    def table(self) -> "pa.Table":
        """The sampled rows."""
        import pyarrow as pa

        return pa.concat_tables(self.kept).combine_chunks()


def scored(
    batches: "Iterable[pa.Table]",
    pipeline: "Pipeline",
    model_version: int,
    cutoff: date,
    week: datetime,
    sample: Sample,
) -> "Iterator[pa.Table]":
    """Snapshot batches -> rows of contract `purchase_predictions`; `sample` keeps rows with scores.

    Yields at least one table, possibly empty.
    """
    import pyarrow as pa

    for batch in batches:
        rows = len(batch)
        # scikit-learn refuses an empty table.
        probability = pa.array(predict(pipeline, batch) if rows else [], pa.float64())
        sample.add(batch.append_column("probability", probability))
        yield pa.table(
            {
                "customer_id": batch["customer_id"],
                "cutoff": pa.array([cutoff] * rows, pa.date32()),
                "week": pa.array([week] * rows, pa.timestamp("us", "UTC")),
                "probability": probability,
                "model_version": pa.array([model_version] * rows, pa.int64()),
            }
        )


@dataclass(frozen=True)
class Scored:
    """What came of scoring a week: the gate's judgement of the rows, and a sample of them."""

    judgement: Judgement
    pipeline: "Pipeline"
    sample: "pa.Table"
    """Snapshot rows with their `probability`."""


def score_week(
    table: Table,
    champion: Registered,
    partition: tuple[str, tuple[datetime, datetime]],
    files: PartitionFiles,
    url: str,
    warehouse: psycopg.Connection,
    run_id: str,
    *,
    timezone: str,
) -> Scored:
    """Score all customers at the end of a week and load the rows, if they keep their contract.

    `table` is that of the predictions, `partition` the week's key and window, `url` the warehouse's.

    Raises:
        registry.RegistryError: the champion's files aren't those that were registered.
    """
    key, window = partition
    end = date.fromisoformat(key) + snapshots.WEEK
    pipeline, sample = registry.load(champion), Sample()
    batches = snapshots.read_batches(url, end, as_of=end, timezone=timezone)
    rows = scored(batches, pipeline, champion.version, end, window[0], sample)
    files.write(f"raw_{table.contract.name}", key, rows)
    prepare(warehouse, table)
    judgement = judge(table, key, window, files, warehouse, run_id)
    if judgement.verdict.passed:
        load(table, key, files, None, warehouse, run_id)
    return Scored(judgement, pipeline, sample.table())
