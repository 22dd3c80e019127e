"""Load a partition that passed the gate: append, or stage and upsert by key, in one transaction.

An older version never overwrites a newer one, an unchanged row isn't touched, a row that is gone from
the source is deleted; so replays, overlaps and any order end in the same table. Speed depends most on
sorting the staged rows by key (a million rows into six million: 15 s, 29 s unsorted; MERGE 22 s, or 15 s if
made to look each key up), then on appending the rows that can't be in the table yet.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pipeline_assets.quality.contract import Contract, ContractError
from pipeline_assets.quality.ddl import changing_tables, ensure_index, ensure_table, relation
from pipeline_assets.quality.types import arrow_type, parts, travels_as_text
from pipeline_assets.quality.validation import apply
from pipeline_assets.resources.files import MissingPartitionError, PartitionFiles, ahead
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.lookup import chunks, key_arrays, key_lists, newest_in_source
from pipeline_assets.warehouse.marts import ensure_marts, group_columns, note_touched, refresh
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    import pyarrow as pa

SORT_MEMORY = "256MB"
"""`work_mem` of the load's transaction, for the sort: PostgreSQL's 4 MB would spill to disk."""
ROWS_PER_WRITE = 32_768
LOWEST_KEY = -(2**63)
"""PostgreSQL's smallest integer: every other key is above it."""


@dataclass(frozen=True)
class Loaded:
    """What a load did."""

    batch: ledger.Batch
    """The partition's record in the ledger, as it was before."""
    rows_written: int
    """Rows inserted or updated; unchanged rows don't count."""
    rows_deleted: int
    groups: dict[str, int]
    """Mart name -> number of groups recomputed."""


def prepare(warehouse: psycopg.Connection, table: Table) -> None:
    """Create or alter the ledger, the quarantine, the table and its marts to match the contracts.

    Not part of the load's transaction: its locks would block every other load until that ends.

    Raises:
        TableMismatchError: a warehouse table and its contract differ.
    """
    contract = table.contract
    ledger.ensure_schema(warehouse, contract)
    with changing_tables():
        # A transaction of its own, against deadlocks: a running load holds the lock that `ensure_marts`
        # may wait for, and waits for the table lock that this takes.
        with warehouse.transaction():
            ensure_table(warehouse, contract)
            # Comparing a partition and deleting from it use this index.
            ensure_index(warehouse, contract.target_relation, [contract.change_column])
        with warehouse.transaction():
            ensure_marts(warehouse, contract, table.marts)


def load(
    table: Table,
    key: str,
    files: PartitionFiles,
    source: psycopg.Connection | None,
    warehouse: psycopg.Connection,
    run_id: str,
) -> Loaded:
    """Apply the partition's validated file to the warehouse table; call `prepare` first.

    `source` is queried for rows that the warehouse has in this window and the file lacks. None means
    that there is no database to query: such rows are gone.

    Raises:
        ledger.GateError: the partition isn't validated, broke the contract, or its file isn't
            the one that was validated.
    """
    contract = table.contract
    validated = f"validated_{contract.name}"
    with ledger.partition_lock(warehouse, contract, key):
        batch = ledger.passed_batch(warehouse, contract, key)
        if _content_hash(files, validated, key) != batch.content_hash:
            raise ledger.GateError(
                f"{contract.name} {key}: {files.path(validated, key)} isn't the file that was "
                f"validated, or isn't there any more; materialize {validated} again"
            )
        warehouse.execute(f"SET LOCAL work_mem = '{SORT_MEMORY}'")
        # Not LIKE the table: that would copy the NOT NULL of columns added by hand, without their defaults.
        warehouse.execute(
            sql.SQL(
                "CREATE TEMP TABLE staged ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
            ).format(
                _list(column.name for column in contract.columns),
                relation(contract.target_relation),
            )
        )
        ledger.wait_for_other_loads(warehouse, contract.target_relation)
        highest = _highest_key(contract, warehouse)
        rows = (derived(table, rows) for rows in files.read(validated, key))
        written = _append_or_stage(contract, highest, rows, warehouse)
        appended = _appended(contract, highest)
        if table.marts:
            note_touched(warehouse, contract, table.marts, appended)
        deleted = _delete_gone(table, batch, appended, source, warehouse)
        written += _upsert(contract, batch, appended, warehouse)
        deleted += warehouse.execute(_delete_superseded(table), {"partition": key}).rowcount
        groups = refresh(warehouse, table.marts) if written or deleted else {}
        ledger.record_load(
            warehouse,
            contract,
            key,
            rows_written=written,
            rows_deleted=deleted,
            loaded_hash=batch.content_hash,
            run_id=run_id,
        )
    return Loaded(batch, written, deleted, groups)


def derived(table: Table, rows: "pa.Table") -> "pa.Table":
    """Valid rows with the columns that the table's function adds, those of the contract in its order.

    Binary COPY doesn't say which types it sends: PostgreSQL would read a float's bytes as a bigint's.

    Raises:
        ContractError: a column is missing, or doesn't have its contract's type.
    """
    import pyarrow as pa

    contract = table.contract
    found = apply(table.derive, rows)
    for column in contract.columns:
        if column.name not in found.column_names:
            raise ContractError(
                f"{contract.name}: derive gives no column {column.name}, which the contract has"
            )
        kind, wanted = found[column.name].type, arrow_type(column.physical_type)
        if pa.types.is_null(kind):  # so pandas types a column without any value
            place = found.column_names.index(column.name)
            found = found.set_column(place, column.name, pa.nulls(found.num_rows, wanted))
        elif not _is_sent_alike(kind, wanted):
            raise ContractError(
                f"{contract.name}: derive gives {column.name} as {kind}, which must be {wanted} to be "
                f"loaded as {column.physical_type}; convert it there"
            )
    return found.select([column.name for column in contract.columns])


def _is_sent_alike(kind: "pa.DataType", wanted: "pa.DataType") -> bool:
    """Whether binary COPY sends a type as it sends the wanted one."""
    import pyarrow.types as kinds

    if kinds.is_decimal128(kind) and kinds.is_decimal128(wanted):
        # Of too many digits before the point PostgreSQL complains; those after it, it rounds.
        return bool(kind.scale == wanted.scale)
    if kinds.is_timestamp(kind) and kinds.is_timestamp(wanted):
        return bool(kind.unit == wanted.unit and (kind.tz is None) == (wanted.tz is None))
    is_text = kinds.is_large_string(kind) and kinds.is_string(wanted)
    return bool(kind == wanted or is_text)


def _content_hash(files: PartitionFiles, asset: str, key: str) -> str | None:
    try:
        return files.sha256(asset, key)
    except MissingPartitionError:
        return None


def _highest_key(contract: Contract, warehouse: psycopg.Connection) -> int | None:
    """The highest value of the key's first column in the table; None if rows can't be split by it.

    A row above it (order numbers, for example, rise) can't be in the table yet: appending it saves
    staging and lookup (500,000 rows: 2.1 s instead of 3.4). Other loads are locked out by now. Splitting
    needs a key that Arrow and PostgreSQL order alike, and columns that Arrow can carry.
    """
    first, *_ = contract.key
    integer = parts(contract.column(first).physical_type)[0] in ("smallint", "integer", "bigint")
    if not integer or any(travels_as_text(column.physical_type) for column in contract.columns):
        return None
    found = warehouse.execute(
        sql.SQL("SELECT max({}) FROM {}").format(
            sql.Identifier(first), relation(contract.target_relation)
        )
    ).fetchone()
    return LOWEST_KEY if found is None or found[0] is None else int(found[0])


def _appended(contract: Contract, highest: int | None) -> sql.Composable:
    """The condition that finds the rows which this load has appended."""
    if highest is None:
        return sql.SQL("false")
    return sql.SQL("{} > {}").format(sql.Identifier(contract.key[0]), sql.Literal(highest))


def _append_or_stage(
    contract: Contract,
    highest: int | None,
    tables: "Iterable[pa.Table]",
    warehouse: psycopg.Connection,
) -> int:
    """Append rows above the highest key to the table, stage the others; returns how many were appended."""
    names = [column.name for column in contract.columns]
    texts = [column for column in contract.columns if travels_as_text(column.physical_type)]
    staged, target = sql.Identifier("staged"), relation(contract.target_relation)
    appended = 0
    for column in texts:
        _alter_staged(warehouse, column.name, "text")
    encoded = (
        [(len(part), _encode(part)) for part in _split(table, contract, highest)]
        for table in tables
    )
    for (_, known), (above, new) in ahead(encoded):
        _copy(warehouse, staged, names, known)
        _copy(warehouse, target, names, new)
        appended += above
    for column in texts:
        _alter_staged(warehouse, column.name, column.physical_type)
    # Autovacuum skips temporary tables, and without statistics small days are joined by full scans. As
    # all keys differ, a sample of 3,000 says as much as one of 30,000 (4 ms instead of 40).
    warehouse.execute("SET LOCAL default_statistics_target = 10")
    warehouse.execute(sql.SQL("ANALYZE staged ({})").format(_list(contract.key)))
    return appended


def _split(
    rows: "pa.Table", contract: Contract, highest: int | None
) -> "tuple[pa.Table, pa.Table]":
    """The rows that the table may have already, and those above its highest key."""
    import pyarrow.compute as pc

    if highest is None:
        return rows, rows.slice(0, 0)
    above = pc.greater(rows[contract.key[0]], highest)
    return rows.filter(pc.invert(above)), rows.filter(above)


def _encode(rows: "pa.Table") -> list[bytes]:
    """Rows in the format of PostgreSQL's binary COPY; nothing for no rows."""
    from pgpq import ArrowToPostgresBinaryEncoder

    if not rows.num_rows:
        return []
    encoder = ArrowToPostgresBinaryEncoder(rows.schema)
    header = encoder.write_header()
    batches = rows.to_batches(max_chunksize=ROWS_PER_WRITE)
    return [header, *map(encoder.write_batch, batches), encoder.finish()]


def _copy(
    warehouse: psycopg.Connection,
    target: sql.Composable,
    names: list[str],
    encoded: list[bytes],
) -> None:
    if encoded:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, _list(names))
        with warehouse.cursor().copy(statement) as copy:
            for part in encoded:
                copy.write(part)


def _alter_staged(warehouse: psycopg.Connection, column: str, physical_type: str) -> None:
    """Change a staged column's type: what Arrow can't carry is copied as text, then cast by PostgreSQL."""
    warehouse.execute(
        sql.SQL("ALTER TABLE staged ALTER {0} TYPE {1} USING {0}::{1}").format(
            sql.Identifier(column), sql.SQL(physical_type)
        )
    )


def _upsert(
    contract: Contract,
    batch: ledger.Batch,
    appended: sql.Composable,
    warehouse: psycopg.Connection,
) -> int:
    """Insert and update the staged rows; returns how many were written.

    Rows that the window already has unchanged are filtered out beforehand. A condition of the update
    could skip them too, but only after locking them, which writes each of their pages (replaying
    500,000 rows: 640 MB of WAL). The update's condition is there for older versions.
    """
    names = [column.name for column in contract.columns]
    others = [name for name in names if name not in contract.key]
    statement = sql.SQL(
        """INSERT INTO {target} AS t ({names}) SELECT {names} FROM staged
           WHERE NOT EXISTS (SELECT FROM (SELECT * FROM {target} WHERE NOT {appended}) AS t
               WHERE t.{version} >= %(start)s AND t.{version} < %(end)s
               AND {match} AND ({old}) IS NOT DISTINCT FROM ({new}))
           ORDER BY {key}
           ON CONFLICT ({key}) DO UPDATE SET {updates} WHERE t.{version} <= excluded.{version}"""
    ).format(
        target=relation(contract.target_relation),
        names=_list(names),
        appended=appended,
        key=_list(contract.key),
        match=_match(contract, "t", "staged"),
        version=sql.Identifier(contract.change_column),
        updates=sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others
        ),
        old=_comparable(contract, others, "t"),
        new=_comparable(contract, others, "staged"),
    )
    with _whole_joins(warehouse):
        return warehouse.execute(statement, _window(batch)).rowcount


@contextmanager
def _whole_joins(warehouse: psycopg.Connection) -> Iterator[None]:
    """Join the window with the staged rows by a hash or merge join, never by a nested loop.

    The planner estimates a day that came since the last ANALYZE at a single row; a nested loop would
    search a million staged rows for each of its million.
    """
    warehouse.execute("SET LOCAL enable_nestloop = off")
    yield
    warehouse.execute("SET LOCAL enable_nestloop = on")


def _window(batch: ledger.Batch) -> dict[str, Any]:
    return {"start": batch.window_start, "end": batch.window_end}


def _comparable(contract: Contract, names: list[str], prefix: str) -> sql.Composed:
    """Columns as they can be compared: PostgreSQL has no `=` for `json`, only for its text."""
    return sql.SQL(", ").join(
        sql.SQL("{}::text" if contract.column(name).physical_type == "json" else "{}").format(
            sql.Identifier(prefix, name)
        )
        for name in names
    )


def _delete_gone(
    table: Table,
    batch: ledger.Batch,
    appended: sql.Composable,
    source: psycopg.Connection | None,
    warehouse: psycopg.Connection,
) -> int:
    """Delete the window's rows that the file lacks or has older, unless the source has them as new.

    In that case the row moved to another window, whose load overwrites it, or the file is older than
    the source. A quarantined version won't be loaded, so it protects no row from deletion.
    """
    contract = table.contract
    window = _window(batch)
    names = {
        "target": relation(contract.target_relation),
        "version": sql.Identifier(contract.change_column),
        "key": _list(contract.key),
        "appended": appended,
    }
    missing = sql.SQL(
        "SELECT t.{version}, {key} FROM {target} AS t LEFT JOIN staged USING ({key})"
        " WHERE t.{version} >= %(start)s AND t.{version} < %(end)s AND NOT {appended}"
        # Or the file has an older version: the source was restored from a backup, or the file is outdated.
        " AND (staged.{version} IS NULL OR t.{version} > staged.{version})"
    ).format(**names)
    delete = _noting(
        table,
        sql.SQL(
            "DELETE FROM {target} AS t WHERE ({key}) IN (SELECT * FROM unnest({arrays}))"
            # A newer version that another load put there meanwhile stays.
            " AND {version} >= %(start)s AND {version} < %(end)s"
        ).format(arrays=key_arrays(contract), **names),
    )
    deleted = 0
    # A cursor on the server, as all rows of a day may be gone; planned for all of its rows.
    warehouse.execute("SET LOCAL cursor_tuple_fraction = 1")
    with warehouse.cursor("missing") as absent:
        with _whole_joins(warehouse):
            absent.execute(missing, window)
        for rows in chunks(absent):
            here = {tuple(key): version for version, *key in rows}
            there = (
                newest_in_source(source, warehouse, contract, here, batch.window_start)
                if source
                else {}
            )
            gone = [k for k, version in here.items() if k not in there or there[k] < version]
            deleted += warehouse.execute(delete, {**window, **key_lists(contract, gone)}).rowcount
    return deleted


def _delete_superseded(table: Table) -> sql.Composed:
    """The statement that deletes versions which a newer, quarantined one has replaced in the source.

    The source's row is now the quarantined one: keeping the older version would show outdated data.
    """
    contract = table.contract
    quarantined_key = sql.SQL(" AND ").join(
        # The cast can't fail: a key that doesn't fit its type holds its partition, which then isn't loaded.
        sql.SQL("t.{} = (q.source_row ->> {})::{}").format(
            sql.Identifier(name),
            sql.Literal(name),
            sql.SQL(contract.column(name).physical_type),
        )
        for name in contract.key
    )
    return _noting(
        table,
        sql.SQL(
            "DELETE FROM {target} AS t USING {quarantine} AS q WHERE {match}"
            " AND q.partition_key = %(partition)s AND t.{version} <= q.source_version"
        ).format(
            target=relation(contract.target_relation),
            quarantine=relation(ledger.quarantine_relation(contract)),
            match=quarantined_key,
            version=sql.Identifier(contract.change_column),
        ),
    )


def _noting(table: Table, delete: sql.Composed) -> sql.Composed:
    """The deletion of rows `t`, with their groups noted for the marts."""
    if not table.marts:
        return delete
    return sql.SQL("WITH gone AS ({} RETURNING {}) INSERT INTO touched SELECT * FROM gone").format(
        delete, _list(group_columns(table.marts), "t")
    )


def _match(contract: Contract, left: str, right: str) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(left, name), sql.Identifier(right, name))
        for name in contract.key
    )


def _list(names: Iterable[str], prefix: str | None = None) -> sql.Composed:
    parts = [sql.Identifier(prefix, name) if prefix else sql.Identifier(name) for name in names]
    return sql.SQL(", ").join(parts)
