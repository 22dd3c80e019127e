"""A contract's table in PostgreSQL: created as the contract says, altered only where nothing is lost.

A new optional column is added, a type widened, NOT NULL set or dropped. Whatever would lose data, or
would have to invent it (a type narrowed, another key), is refused, for a person to decide. A column that
the contract doesn't know stays as it is: during a rollout the previous version still loads the same
table.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.contract import Column, TableContract
from pipeline_assets.quality.types import is_wider


class TableMismatchError(PermanentError):
    """The table in the database and its contract differ in a way that isn't reconciled here."""


@dataclass(frozen=True)
class _Present:
    """A column as the database has it."""

    physical_type: str
    required: bool
    has_default: bool


def relation(name: str) -> sql.Identifier:
    """A relation's quoted name; `schema.table` has two parts."""
    return sql.Identifier(*name.split(".", 1))


def exist(connection: psycopg.Connection, relations: Sequence[str]) -> bool:
    """Whether all these relations exist. Unlike CREATE IF NOT EXISTS, this needs no CREATE privilege."""
    names = [relation(name).as_string(connection) for name in relations]
    query = "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(%s::text[]) AS names (name)"
    return connection.execute(query, [names]).fetchone() == (True,)


@contextmanager
def changing_tables() -> Iterator[None]:
    """Tell the user what to do if the role may load tables but not change them.

    Raises:
        TableMismatchError: the role lacks a privilege that creating or altering a table needs.
    """
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as error:
        raise TableMismatchError(
            f"the warehouse's tables aren't as the contracts say, and this role may not change them "
            f"({error.diag.message_primary}); run `pipeline-assets migrate` as the role that owns them"
        ) from error


def wait_for_other_changes(connection: psycopg.Connection) -> None:
    """Hold the lock on creating and changing tables until the open transaction ends.

    CREATE ... IF NOT EXISTS fails when two sessions create at the same moment. A session that has once
    looked up a missing schema caches that, until it opens a table: without the second statement it would
    create what the session before it has just created (in 19 of 25 new warehouses that six sessions
    opened at once, it failed).
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('pipeline_assets.ddl'))")
    connection.execute("SELECT FROM pg_catalog.pg_namespace LIMIT 0")


def column_definition(column: Column) -> sql.Composed:
    """One column as CREATE TABLE and ALTER TABLE write it."""
    # The type was matched against a list of known types when the contract was read.
    return sql.SQL("{} {}{}").format(
        sql.Identifier(column.name),
        sql.SQL(column.physical_type),
        sql.SQL(" NOT NULL" if column.required else ""),
    )


def ensure_table(connection: psycopg.Connection, contract: TableContract) -> None:
    """Create or alter the contract's table to match the contract, in the open transaction.

    Raises:
        TableMismatchError: a column's new type isn't wider; a required column has no value in some rows,
            or is unknown to the contract; the key differs; or the relation is no table. The message names
            both sides and says what to do.
    """
    name = relation(contract.target_relation).as_string(connection)
    wait_for_other_changes(connection)
    found = connection.execute(
        "SELECT relkind::text FROM pg_class WHERE oid = to_regclass(%s)", [name]
    ).fetchone()
    if found is None:
        _create(connection, contract)
    elif found[0] not in ("r", "p"):
        raise TableMismatchError(f"{contract.target_relation} exists and is no table; rename it")
    else:
        _change(connection, contract)


def ensure_index(connection: psycopg.Connection, target: str, columns: Sequence[str]) -> None:
    """Index a table by these columns, if no index begins with them."""
    found = connection.execute(
        """SELECT FROM pg_index WHERE indrelid = to_regclass(%s) AND indisvalid AND indpred IS NULL AND (
               SELECT array_agg(attname::text ORDER BY place) -- of an expression null
               FROM unnest(indkey::int2[]) WITH ORDINALITY AS part (number, place)
               LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = number
           )[:%s] = %s""",
        [relation(target).as_string(connection), len(columns), list(columns)],
    ).fetchone()
    if found is None:
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        connection.execute(sql.SQL("CREATE INDEX ON {} ({})").format(relation(target), names))


def _create(connection: psycopg.Connection, contract: TableContract) -> None:
    target = relation(contract.target_relation)
    schema = contract.target_relation.partition(".")[0]
    statements = [
        sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)),
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
            target,
            sql.SQL(", ").join(column_definition(column) for column in contract.columns),
            sql.SQL(", ").join(sql.Identifier(name) for name in contract.key),
        ),
        sql.SQL("COMMENT ON TABLE {} IS {}").format(target, sql.Literal(contract.description)),
    ]
    for statement in statements:
        connection.execute(statement)


def _change(connection: psycopg.Connection, contract: TableContract) -> None:
    target, version = contract.target_relation, f"contract {contract.name} {contract.version}"
    key, present = _read_table(connection, contract)
    if key != contract.key:
        raise TableMismatchError(
            f"the primary key of {target} is ({', '.join(key)}), but {version} says "
            f"({', '.join(contract.key)}); change it by hand, or load into a new table"
        )
    for name in sorted(set(present) - {column.name for column in contract.columns}):
        if present[name].required and not present[name].has_default:
            raise TableMismatchError(
                f"{target} has a column {name} that {version} lacks, and no row goes in without a value "
                "for it; make it optional by hand (DROP NOT NULL), or drop it if its data may go"
            )
    for column in contract.columns:
        if column.name not in present:
            _add_column(connection, contract, column)
            continue
        before = present[column.name]
        if before.physical_type != column.physical_type:
            if not is_wider(column.physical_type, before.physical_type):
                raise TableMismatchError(
                    f"{target}.{column.name} is {before.physical_type}, but {version} says "
                    f"{column.physical_type}, which can't hold all of it; change the table by hand, or "
                    "load into a new one"
                )
            _alter(connection, contract, column, f"TYPE {column.physical_type}")
        if before.required and not column.required:
            _alter(connection, contract, column, "DROP NOT NULL")
        if column.required and not before.required:
            if _exists(
                connection, contract, sql.SQL("{} IS NULL").format(sql.Identifier(column.name))
            ):
                raise TableMismatchError(
                    f"{version} makes {column.name} required, for which some rows of {target} have no "
                    "value; fill them, or leave it optional"
                )
            _alter(connection, contract, column, "SET NOT NULL")


def _read_table(
    connection: psycopg.Connection, contract: TableContract
) -> tuple[tuple[str, ...], dict[str, _Present]]:
    """The table's primary key, and its columns by name."""
    rows = connection.execute(
        """SELECT attname, format_type(atttypid, atttypmod), attnotnull,
                  atthasdef OR attidentity <> '', array_position(indkey::int2[], attnum)
           FROM pg_attribute LEFT JOIN pg_index ON indrelid = attrelid AND indisprimary
           WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped""",
        [relation(contract.target_relation).as_string(connection)],
    ).fetchall()
    key = sorted((place, name) for name, *_, place in rows if place is not None)
    present = {name: _Present(*facts) for name, *facts, _ in rows}
    return tuple(name for _, name in key), present


def _exists(
    connection: psycopg.Connection, contract: TableContract, condition: sql.Composable
) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})")
    target = relation(contract.target_relation)
    return connection.execute(query.format(target, condition)).fetchone() == (True,)


def _add_column(connection: psycopg.Connection, contract: TableContract, column: Column) -> None:
    if column.required and _exists(connection, contract, sql.SQL("true")):
        raise TableMismatchError(
            f"contract {contract.name} {contract.version} adds the required column {column.name}, "
            f"for which the rows of {contract.target_relation} have no value; make it optional first"
        )
    connection.execute(
        sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(
            relation(contract.target_relation), column_definition(column)
        )
    )


def _alter(
    connection: psycopg.Connection, contract: TableContract, column: Column, what: str
) -> None:
    connection.execute(
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} {}").format(
            relation(contract.target_relation), sql.Identifier(column.name), sql.SQL(what)
        )
    )
