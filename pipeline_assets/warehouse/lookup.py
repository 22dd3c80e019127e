"""Look rows up by their keys, thousands in one statement, and find what the source holds of them.

For the load, which deletes what is gone from the source, and the reconciliation, which looks for rows that
have moved to a later day. Reading a whole window is in `extract.py`, digests of one are in `reconcile.py`.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.ddl import relation
from pipeline_assets.warehouse import ledger

KEYS_PER_QUESTION = 10_000

Key = tuple[Any, ...]
"""The values of a contract's key columns."""


def newest_in_source(
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
    contract: Contract,
    keys: Iterable[Key],
    since: datetime,
) -> dict[Key, datetime]:
    """Key -> its newest version in the source that isn't before `since`.

    Keys that the source lacks, or holds as a version that is in the quarantine or belongs to no day, are left
    out. `keys` are at most as many as one of `chunks`; the source may have a key twice.
    """
    query = sql.SQL(
        # Cast to the type loaded: the source's may lack a time zone, and Python can't compare the two.
        "SELECT {identity}, max({version})::{moment}, {key} FROM {source}"
        " WHERE ({key}) IN (SELECT * FROM unnest({arrays})) AND {version} >= %(since)s AND {dated}"
        " GROUP BY {key}"
    ).format(
        identity=ledger.identity_sql(contract),
        version=sql.Identifier(contract.change_column),
        moment=sql.SQL(contract.column(contract.change_column).physical_type),
        key=sql.SQL(", ").join(map(sql.Identifier, contract.key)),
        source=relation(contract.source_relation),
        arrays=key_arrays(contract),
        dated=has_a_day(contract),
    )
    rows = source.execute(query, {"since": since, **key_lists(contract, keys)}).fetchall()
    held = ledger.quarantined(warehouse, contract, {row[0]: row[1] for row in rows})
    return {tuple(key): version for identity, version, *key in rows if identity not in held}


def has_a_day(contract: Contract) -> sql.Composed:
    """The condition that a row's change time is in the years 1 to 9999.

    Python supports no others; one typo in a year was enough to keep a table from being compared.
    """
    return sql.SQL("({version} >= '0001-01-01' AND {version} < '10000-01-01')").format(
        version=sql.Identifier(contract.change_column)
    )


def chunks(cursor: psycopg.ServerCursor[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """A cursor's rows, in lists of at most as many as one query may name."""
    while keys := cursor.fetchmany(KEYS_PER_QUESTION):
        yield keys


def key_arrays(contract: Contract) -> sql.Composed:
    """The key's columns as array parameters of a statement, whose values `key_lists` provides."""
    arrays = [
        sql.SQL("{}::{}[]").format(
            sql.Placeholder(f"key{index}"),
            sql.SQL(contract.column(name).physical_type),
        )
        for index, name in enumerate(contract.key)
    ]
    return sql.SQL(", ").join(arrays)


def key_lists(contract: Contract, keys: Iterable[Key]) -> dict[str, list[Any]]:
    """The keys of rows as the parameters of `key_arrays`."""
    keys = list(keys)
    return {f"key{index}": [key[index] for key in keys] for index in range(len(contract.key))}
