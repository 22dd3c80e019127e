"""The gate of one partition: raw file in, valid file, quarantine and verdict out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import psycopg

from pipeline_assets.failures import TransientError
from pipeline_assets.quality.rules import find_duplicates
from pipeline_assets.quality.validation import Verdict, empty, validate
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_ROWS = 10
"""Rows that break a rule which its check shows; the quarantine has them all."""
SAMPLE_LENGTH = 100
"""Characters of a value that are kept to be shown."""


@dataclass
class Judgement:
    """The verdict on a partition, with a few rows of either kind to look at."""

    verdict: Verdict
    preview: "pa.Table"
    samples: "dict[str, pa.Table]" = field(default_factory=dict)
    """Rule -> the first rows that break it, as the source has them."""

    def sample(self, rejected: "pa.Table") -> None:
        """Keep the first rows of each rule."""
        import pyarrow as pa

        rules = rejected["broken_rules"].to_pylist()
        for rule in {rule for broken in rules for rule in broken}:
            kept = [self.samples[rule]] if rule in self.samples else []
            wanted = SAMPLE_ROWS - sum(sample.num_rows for sample in kept)
            places = [place for place, broken in enumerate(rules) if rule in broken][:wanted]
            if places:
                self.samples[rule] = pa.concat_tables([*kept, shown(rejected.take(places))])


def judge(
    table: Table,
    key: str,
    window: tuple[datetime, datetime],
    files: PartitionFiles,
    warehouse: psycopg.Connection,
    run_id: str,
) -> Judgement:
    """Validate the raw file of a partition, batch by batch, and record the outcome.

    Writes the valid rows to `validated_<name>`, the others to the quarantine and the verdict to the
    ledger; the last two in one transaction. Running it again gives the same result.

    Raises:
        TransientError: another run replaced the raw file meanwhile; nothing was written.
    """
    contract = table.contract
    raw, validated = f"raw_{contract.name}", f"validated_{contract.name}"
    judgement = Judgement(Verdict(contract), empty(contract))
    watermark: datetime | None = None
    judged = files.version(raw, key)
    duplicates = find_duplicates(lambda columns: files.read(raw, key, columns), contract)

    def valid_batches(quarantine: ledger.QuarantineWriter) -> "Iterator[pa.Table]":
        import pyarrow.compute as pc

        nonlocal watermark
        yield empty(contract)
        for rows in files.read(raw, key):
            batch = validate(
                rows,
                contract,
                judgement.verdict,
                duplicates=duplicates,
                normalise=table.normalise,
            )
            if batch.rejected.num_rows:
                quarantine.write(batch.rejected)
                judgement.sample(batch.rejected)
            if batch.valid.num_rows:
                if not judgement.preview.num_rows:
                    judgement.preview = shown(batch.valid.slice(0, SAMPLE_ROWS))
                yield batch.valid
            newest = pc.max(rows[contract.change_column]).as_py()
            watermark = max(filter(None, (watermark, newest)), default=None)
        # The file is read twice: duplicate keys of the one version needn't be duplicates in the other.
        if files.version(raw, key) != judged:
            raise TransientError(
                f"{files.path(raw, key)} was replaced by another run while it was judged"
            )

    with ledger.partition_lock(warehouse, contract, key):
        with ledger.quarantine(warehouse, contract, key, run_id) as quarantine:
            written = files.write(validated, key, valid_batches(quarantine))
        ledger.record_verdict(
            warehouse,
            key,
            window,
            judgement.verdict,
            watermark=watermark,
            content_hash=written.sha256,
            run_id=run_id,
        )
    return judgement


def shown(rows: "pa.Table") -> "pa.Table":
    """Rows as short texts: a range keeps some for each of its days, and a value can have a megabyte."""
    import pyarrow as pa

    def text(value: object) -> str | None:
        return None if value is None else str(value)[:SAMPLE_LENGTH]

    columns = {name: map(text, rows[name].to_pylist()) for name in rows.column_names}
    return pa.table({name: pa.array(list(texts), pa.string()) for name, texts in columns.items()})
