"""The batch ledger and the quarantine: what became of every partition and of every rejected row.

`pipeline.batches` has one row per table and partition. A verdict commits together with the partition's
quarantined rows, a load's record together with the loaded rows: a crash leaves the warehouse as before
or as after, never in between. The ledger, not Dagster, decides whether a batch may be loaded, however the
load was started.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from math import isfinite
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pipeline_assets import __version__
from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.ddl import changing_tables, exist, wait_for_other_changes
from pipeline_assets.quality.validation import Verdict

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS pipeline;
CREATE SCHEMA IF NOT EXISTS quarantine;
CREATE TABLE IF NOT EXISTS pipeline.batches (
    table_name text NOT NULL,
    partition_key text NOT NULL,
    window_start timestamptz NOT NULL,
    window_end timestamptz NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('passed', 'failed')),
    rows_extracted bigint NOT NULL,
    rows_valid bigint NOT NULL,
    rows_quarantined bigint NOT NULL,
    violations jsonb NOT NULL,
    broken_rules text[] NOT NULL,
    source_watermark timestamptz,
    content_hash text NOT NULL,
    contract_version text NOT NULL,
    code_version text NOT NULL,
    validated_by text NOT NULL,
    validated_at timestamptz NOT NULL DEFAULT now(),
    rows_written bigint,
    rows_deleted bigint,
    loaded_hash text,
    loaded_by text,
    loaded_at timestamptz,
    PRIMARY KEY (table_name, partition_key)
);
COMMENT ON TABLE pipeline.batches IS 'What became of each partition of each table.';
COMMENT ON COLUMN pipeline.batches.loaded_hash IS
    'The content_hash of what was last loaded; another content_hash waits, or is held.';
"""

QUARANTINE = """
CREATE TABLE IF NOT EXISTS {} (
    partition_key text NOT NULL,
    broken_rules text[] NOT NULL,
    source_identity text NOT NULL,
    source_version timestamptz,
    source_row jsonb NOT NULL,
    run_id text NOT NULL,
    quarantined_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS {} ON {} (partition_key);
CREATE INDEX IF NOT EXISTS {} ON {} (source_version, source_identity)
"""


class GateError(PermanentError):
    """The gate doesn't let a batch through."""


@dataclass(frozen=True)
class Batch:
    """The ledger's record of one partition of one table."""

    table_name: str
    partition_key: str
    window_start: datetime
    window_end: datetime
    verdict: Literal["passed", "failed"]
    rows_extracted: int
    rows_valid: int
    rows_quarantined: int
    violations: dict[str, int]
    broken_rules: list[str]
    source_watermark: datetime | None
    content_hash: str
    contract_version: str
    validated_by: str
    """The run that reached the verdict."""
    rows_written: int | None
    rows_deleted: int | None
    loaded_hash: str | None


def quarantine_relation(contract: Contract) -> str:
    """The table that keeps the rows which broke the contract."""
    return f"quarantine.{contract.name}"


def ensure_schema(connection: psycopg.Connection, contract: Contract) -> None:
    """Create the ledger and the contract's quarantine table where they are missing."""
    relation = sql.Identifier("quarantine", contract.name)
    if exist(connection, ["pipeline.batches", quarantine_relation(contract)]):
        return
    with changing_tables(), connection.transaction():
        wait_for_other_changes(connection)
        connection.execute(SCHEMA)
        # The colon avoids clashes: no table name has one, and `orders_version` may be a table as well.
        indexes = [sql.Identifier(f"{contract.name}:{name}") for name in ("partition", "version")]
        connection.execute(
            sql.SQL(QUARANTINE).format(relation, indexes[0], relation, indexes[1], relation)
        )


@contextmanager
def partition_lock(connection: psycopg.Connection, contract: Contract, key: str) -> Iterator[None]:
    """Open a transaction that holds the lock on this partition of this table until it ends.

    If its process is killed, the transaction ends within 10 s even if a statement is running or waiting; by
    default it would keep the lock until the statement is done. Not every server platform can check whether
    its client is still connected; Linux can.
    """
    with connection.transaction():
        connection.execute(
            "SELECT set_config('client_connection_check_interval', '10s', true)"
            " WHERE version() LIKE '%linux%'"
        )
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext(%s), hashtext(%s))", [contract.name, key]
        )
        yield


def wait_for_other_loads(connection: psycopg.Connection, relation: str) -> None:
    """Hold the load lock of a warehouse table until the transaction ends.

    Each load waits for the previous one to commit and then sees its changes, as every statement has a
    snapshot of its own. The lock is advisory: one on the table would cancel its autovacuum.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [relation])


@contextmanager
def quarantine(
    connection: psycopg.Connection, contract: Contract, key: str, run_id: str
) -> "Iterator[QuarantineWriter]":
    """Replace the partition's quarantined rows with those written inside the context."""
    relation = sql.Identifier("quarantine", contract.name)
    connection.execute(sql.SQL("DELETE FROM {} WHERE partition_key = %s").format(relation), [key])
    statement = sql.SQL(
        "COPY {} (partition_key, broken_rules, source_identity, source_version, source_row, run_id)"
        " FROM STDIN"
    )
    with connection.cursor().copy(statement.format(relation)) as copy:
        yield QuarantineWriter(copy, contract, key, run_id)


@dataclass(frozen=True)
class QuarantineWriter:
    """Writer of the rows that are rejected while a partition is validated."""

    copy: psycopg.Copy
    contract: Contract
    partition_key: str
    run_id: str

    def write(self, rejected: "pa.Table") -> None:
        """Keep rows as the source had them; `rejected` has a column `broken_rules`."""
        for row, identity in zip(
            rejected.to_pylist(), source_identity(rejected, self.contract), strict=True
        ):
            broken_rules = row.pop("broken_rules")
            self.copy.write_row(
                (
                    self.partition_key,
                    broken_rules,
                    identity,
                    row[self.contract.change_column],
                    json.dumps(
                        {name: _in_json(value) for name, value in row.items()},
                        default=str,
                        ensure_ascii=False,
                    ),
                    self.run_id,
                )
            )


def _in_json(value: object) -> object:
    """A value as JSON can hold it: NaN, infinities and bytes as PostgreSQL writes them."""
    if isinstance(value, float) and not isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value


def source_identity(rows: "pa.Table", contract: Contract) -> list[str]:
    """The key of each row as one text, as `identity_sql` writes it in a database."""
    import pyarrow as pa

    # Arrow's own join (25.0) yields nothing for a row whose parts are all null, not even an empty string:
    # the row would get the identity of the next one.
    parts = [rows[name].cast(pa.string()).to_pylist() for name in contract.key]
    return ["|".join(part for part in row if part is not None) for row in zip(*parts, strict=True)]


def identity_sql(contract: Contract) -> sql.Composed:
    """The key of a row as one text."""
    names = sql.SQL(", ").join(map(sql.Identifier, contract.key))
    return sql.SQL("concat_ws('|', {})").format(names)


def quarantined(
    connection: psycopg.Connection, contract: Contract, rows: Mapping[str, datetime]
) -> set[str]:
    """Which of these rows (identity -> version) are in the quarantine of any partition that passed the gate.

    Rows of a held partition don't count: it has changed nothing yet, and their earlier versions are still
    loaded.
    """
    query = sql.SQL(
        "SELECT source_identity FROM {} JOIN pipeline.batches USING (partition_key)"
        " WHERE table_name = %s AND verdict = 'passed' AND (source_identity, source_version)"
        " IN (SELECT * FROM unnest(%s::text[], %s::timestamptz[]))"
    ).format(sql.Identifier("quarantine", contract.name))
    found = connection.execute(query, [contract.name, list(rows), list(rows.values())])
    return {identity for (identity,) in found}


def record_verdict(
    connection: psycopg.Connection,
    key: str,
    window: tuple[datetime, datetime],
    verdict: Verdict,
    *,
    watermark: datetime | None,
    content_hash: str,
    run_id: str,
) -> None:
    """Write the gate's verdict on a partition; the record of an earlier load stays.

    A load by another version of the contract is the exception: under this version the partition isn't
    loaded yet, and the sensor has to see that if the load fails.
    """
    contract = verdict.contract
    values = {
        "table_name": contract.name,
        "partition_key": key,
        "window_start": window[0],
        "window_end": window[1],
        "verdict": "passed" if verdict.passed else "failed",
        "rows_extracted": verdict.rows,
        "rows_valid": verdict.rows - verdict.rejected,
        "rows_quarantined": verdict.rejected,
        "violations": Jsonb(dict(verdict.violations)),
        "broken_rules": [rule.name for rule in verdict.broken],
        "source_watermark": watermark,
        "content_hash": content_hash,
        "contract_version": contract.version,
        "code_version": __version__,
        "validated_by": run_id,
    }
    updates = [name for name in values if name not in ("table_name", "partition_key")]
    connection.execute(
        sql.SQL(
            "INSERT INTO pipeline.batches ({}) VALUES ({}) ON CONFLICT (table_name, partition_key)"
            " DO UPDATE SET {}, validated_at = now(), loaded_hash = CASE"
            "  WHEN batches.contract_version = excluded.contract_version THEN batches.loaded_hash END"
        ).format(
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(map(sql.Placeholder, values)),
            sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in updates
            ),
        ),
        values,
    )


def batches(
    connection: psycopg.Connection, contract: Contract, keys: list[str] | None = None
) -> dict[str, Batch]:
    """Partition key -> its batch in the ledger; all partitions unless `keys` are given."""
    columns = sql.SQL(", ").join(map(sql.Identifier, Batch.__dataclass_fields__))
    query = sql.SQL(
        "SELECT {} FROM pipeline.batches WHERE table_name = %s"
        " AND (%s::text[] IS NULL OR partition_key = ANY(%s)) ORDER BY partition_key"
    ).format(columns)
    with connection.cursor(row_factory=class_row(Batch)) as cursor:
        cursor.execute(query, [contract.name, keys, keys])
        return {batch.partition_key: batch for batch in cursor}


def is_empty(connection: psycopg.Connection, contract: Contract) -> bool:
    """Whether no partition of the table was ever judged."""
    query = "SELECT FROM pipeline.batches WHERE table_name = %s LIMIT 1"
    return connection.execute(query, [contract.name]).fetchone() is None


def never_loaded(
    connection: psycopg.Connection, contract: Contract, first: date, last: date
) -> set[str]:
    """The days from `first` to `last` that no run has completed, including empty ones.

    Days before the first one in the ledger weren't missed: a person starts the first load of a history, in
    one run. A held day isn't loaded either, but it was judged. The database computes this, as reading ten
    years of the ledger takes 50 ms of CPU; each table's sensor runs this every minute, the alerts' sensor
    twice a minute.
    """
    rows = connection.execute(
        "WITH known AS (SELECT partition_key, verdict = 'failed' OR loaded_hash IS NOT NULL AS ended"
        "  FROM pipeline.batches WHERE table_name = %s),"
        " days AS (SELECT to_char(day, 'YYYY-MM-DD') AS day FROM generate_series("
        "  greatest((SELECT min(partition_key)::date FROM known), %s)::timestamp, %s, '1 day') AS day)"
        " SELECT day FROM days WHERE EXISTS (SELECT FROM known)"
        " EXCEPT SELECT partition_key FROM known WHERE ended",
        [contract.name, first, last],
    )
    return {day for (day,) in rows}


def half_done(
    connection: psycopg.Connection, contract: Contract, first: date, last: date
) -> set[str]:
    """The days from `first` to `last` that passed and weren't loaded, or were held under another contract.

    The run ended between the two steps, or only the validation was run; or the contract has changed since.
    Source and warehouse may be in step nevertheless: the digests cover only keys and versions, an empty
    day has none, and a held day's rows may all be in the quarantine.
    """
    rows = connection.execute(
        "SELECT partition_key FROM pipeline.batches WHERE table_name = %s AND CASE verdict"
        " WHEN 'passed' THEN loaded_hash IS DISTINCT FROM content_hash ELSE contract_version <> %s END"
        " AND partition_key BETWEEN %s AND %s",
        [contract.name, contract.version, first.isoformat(), last.isoformat()],
    )
    return {key for (key,) in rows}


def rows_by_day(
    connection: psycopg.Connection, contract: Contract, until: str
) -> dict[str, dict[str, int]]:
    """Rows and violations of the newest 60 partitions up to `until`: what is counted -> day -> count."""
    found = connection.execute(
        "SELECT partition_key, rows_extracted,"
        " (SELECT coalesce(sum(count::bigint), 0)::bigint"
        "  FROM jsonb_each_text(violations) AS rules (rule, count))"
        " FROM pipeline.batches WHERE table_name = %s AND partition_key <= %s"
        " ORDER BY partition_key DESC LIMIT 60",
        [contract.name, until],
    ).fetchall()[::-1]
    return {
        "rows": {key: rows for key, rows, _ in found},
        "violations": {key: violations for key, _, violations in found},
    }


def passed_batch(connection: psycopg.Connection, contract: Contract, key: str) -> Batch:
    """The partition's batch, if the gate lets it through.

    Raises:
        GateError: it was never validated, or broke the contract; the message says how to go on.
    """
    batch = batches(connection, contract, [key]).get(key)
    if batch is None:
        raise GateError(
            f"{contract.name} {key}: not validated yet; materialize the partition from its source on"
        )
    if batch.verdict != "passed":
        raise GateError(
            f"{contract.name} {key}: held by {', '.join(batch.broken_rules)}; nothing was loaded. "
            f"{quarantine_query(contract, key)} shows the rows; fix the source or the contract and "
            "materialize the partition again"
        )
    return batch


@dataclass(frozen=True)
class Held:
    """A partition that the gate holds back."""

    table_name: str
    partition_key: str
    broken_rules: list[str]
    rows_quarantined: int
    validated_by: str
    validated_at: datetime


def held_batches(connection: psycopg.Connection) -> list[Held]:
    """The partitions of all tables that are held back, oldest first."""
    if not exist(connection, ["pipeline.batches"]):
        return []
    columns = sql.SQL(", ").join(map(sql.Identifier, Held.__dataclass_fields__))
    query = sql.SQL(
        "SELECT {} FROM pipeline.batches WHERE verdict = 'failed' ORDER BY partition_key, table_name"
    ).format(columns)
    with connection.cursor(row_factory=class_row(Held)) as cursor:
        return cursor.execute(query).fetchall()


def quarantine_query(contract: Contract, key: str, rule: str | None = None) -> str:
    """The statement that shows a partition's quarantined rows, all or those that break a rule."""
    query = sql.SQL("SELECT * FROM {} WHERE partition_key = {}").format(
        sql.Identifier("quarantine", contract.name), sql.Literal(key)
    )
    if rule is not None:
        query += sql.SQL(" AND {} = ANY(broken_rules)").format(sql.Literal(rule))
    return query.as_string()


def record_load(
    connection: psycopg.Connection,
    contract: Contract,
    key: str,
    *,
    rows_written: int,
    rows_deleted: int,
    loaded_hash: str,
    run_id: str,
) -> None:
    """Write what a load did, in the load's own transaction."""
    connection.execute(
        "UPDATE pipeline.batches SET rows_written = %s, rows_deleted = %s, loaded_hash = %s,"
        " loaded_by = %s, loaded_at = now() WHERE table_name = %s AND partition_key = %s",
        [rows_written, rows_deleted, loaded_hash, run_id, contract.name, key],
    )
