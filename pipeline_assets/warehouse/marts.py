"""Marts: tables aggregated from a loaded table, refreshed where a load touched it.

A load notes the groups that its rows belong to, before and after; then only these are recomputed,
in the load's own transaction. So a mart always equals a full rebuild, at the cost of what changed.
"""

from collections.abc import Sequence
from datetime import datetime

import psycopg
from psycopg import sql

from pipeline_assets.quality.contract import Contract, MartContract
from pipeline_assets.quality.ddl import ensure_index, ensure_table, relation
from pipeline_assets.warehouse.ledger import wait_for_other_loads


def ensure_marts(
    connection: psycopg.Connection, contract: Contract, marts: Sequence[MartContract]
) -> None:
    """Create the marts' tables and index the loaded table by their keys, to find a group's rows.

    A mart that is new, or was computed by another version of its contract, is built in full.
    """
    for mart in marts:
        is_ours = _is_ours(connection, mart)
        if not is_ours:
            # Before any lock on the mart: a load takes the two locks in this order too.
            wait_for_other_loads(connection, mart.source_relation)
        ensure_table(connection, mart)
        ensure_index(connection, contract.target_relation, mart.key)
        if not is_ours:
            _build(connection, mart)


def group_columns(marts: Sequence[MartContract]) -> list[str]:
    """The columns of the loaded table that say which groups a row belongs to."""
    return list(dict.fromkeys(name for mart in marts for name in mart.key))


def note_touched(
    connection: psycopg.Connection,
    contract: Contract,
    marts: Sequence[MartContract],
    appended: sql.Composable,
) -> None:
    """Create the temporary table `touched` with the groups of the load's rows, new and old.

    `appended` is the condition for the rows that are in the table already; the others are staged. The
    transaction must hold the table's load lock by now: it could not see what another load is about to
    change, neither the old groups of those rows nor the new ones.
    """
    names = group_columns(marts)
    connection.execute(
        sql.SQL(
            "CREATE TEMP TABLE touched ON COMMIT DROP AS SELECT {columns} FROM staged"
            " UNION SELECT {columns} FROM {target} WHERE {appended}"
            " UNION SELECT {old} FROM {target} AS t JOIN staged USING ({key})"
        ).format(
            columns=sql.SQL(", ").join(map(sql.Identifier, names)),
            old=sql.SQL(", ").join(sql.Identifier("t", name) for name in names),
            target=relation(contract.target_relation),
            key=sql.SQL(", ").join(map(sql.Identifier, contract.key)),
            appended=appended,
        )
    )
    # Without statistics the planner would assume a thousand groups, and join them by a full scan.
    connection.execute("ANALYZE touched")


def refresh(connection: psycopg.Connection, marts: Sequence[MartContract]) -> dict[str, int]:
    """Recompute the touched groups; returns mart name -> how many of them the mart now has.

    Recomputes all groups if another version of the contract has built the mart since: even while two
    versions load side by side, each mart was computed as a whole by one of them.
    """
    written = {}
    for mart in marts:
        if not _is_ours(connection, mart):
            written[mart.name] = _build(connection, mart)
            continue
        parts = _parts(mart)
        connection.execute(sql.SQL("DELETE FROM {mart} WHERE {touched}").format(**parts))
        computed = connection.execute(
            sql.SQL(
                "INSERT INTO {mart} ({columns})"
                " SELECT {values} FROM {source} WHERE {touched} GROUP BY {key}"
            ).format(**parts)
        )
        written[mart.name] = computed.rowcount
    return written


def differing_groups(
    connection: psycopg.Connection,
    contract: Contract,
    mart: MartContract,
    window: tuple[datetime, datetime],
) -> int:
    """How many rows of a mart differ from a rebuild, either way, in groups that have rows in a window."""
    # Literals: with parameters, psycopg would take a `%` in a mart's expression for a placeholder.
    parts = _parts(mart) | {
        "version": sql.Identifier(contract.change_column),
        "start": sql.Literal(window[0]),
        "end": sql.Literal(window[1]),
    }
    query = sql.SQL(
        "WITH touched AS (SELECT DISTINCT {key} FROM {source}"
        " WHERE {version} >= {start} AND {version} < {end}),"
        " rebuilt AS (SELECT {values} FROM {source} WHERE {touched} GROUP BY {key}),"
        " kept AS (SELECT {columns} FROM {mart} WHERE {touched})"
        " SELECT count(*) FROM ((TABLE rebuilt EXCEPT ALL TABLE kept)"
        " UNION ALL (TABLE kept EXCEPT ALL TABLE rebuilt)) AS differing"
    ).format(**parts)
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _is_ours(connection: psycopg.Connection, mart: MartContract) -> bool:
    """Whether this version of its contract has computed the mart."""
    name = relation(mart.target_relation).as_string(connection)
    query = "SELECT obj_description(to_regclass(%s), 'pg_class')"
    return connection.execute(query, [name]).fetchone() == (_built_by(mart),)


def _build(connection: psycopg.Connection, mart: MartContract) -> int:
    """Compute all groups, in a transaction that holds the table's load lock; returns their number."""
    parts = _parts(mart)
    connection.execute(sql.SQL("DELETE FROM {mart}").format(**parts))
    built = connection.execute(
        sql.SQL(
            "INSERT INTO {mart} ({columns}) SELECT {values} FROM {source} GROUP BY {key}"
        ).format(**parts)
    )
    connection.execute(
        sql.SQL("COMMENT ON TABLE {mart} IS {built_by}").format(
            built_by=sql.Literal(_built_by(mart)), **parts
        )
    )
    return built.rowcount


def _built_by(mart: MartContract) -> str:
    return f"{mart.description} Computed by contract {mart.name} {mart.version}."


def _parts(mart: MartContract) -> dict[str, sql.Composable]:
    key = sql.SQL(", ").join(map(sql.Identifier, mart.key))
    return {
        "mart": relation(mart.target_relation),
        "source": relation(mart.source_relation),
        "key": key,
        "columns": sql.SQL(", ").join(sql.Identifier(column.name) for column in mart.columns),
        # A contract's SQL is the project's own code, like the statements here.
        "values": sql.SQL(", ").join(
            sql.SQL("({})::{}").format(
                sql.SQL(column.logic) if column.logic else sql.Identifier(column.name),
                sql.SQL(column.physical_type),
            )
            for column in mart.columns
        ),
        "touched": sql.SQL("({key}) IN (SELECT {key} FROM touched)").format(key=key),
    }
