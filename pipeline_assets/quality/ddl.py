"""A contract's table in PostgreSQL: created as the contract says, widened when it grows.

Whatever would lose data (a column dropped, a type changed) is refused, for a person to decide.
"""

import psycopg
from psycopg import sql

from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.contract import Column, Contract


class TableMismatchError(PermanentError):
    """The table in the database and its contract differ in a way that isn't mended here."""


def relation(name: str) -> sql.Identifier:
    """A relation's quoted name; `schema.table` has two parts."""
    return sql.Identifier(*name.split(".", 1))


def column_definition(column: Column) -> sql.Composed:
    """One column as CREATE TABLE and ALTER TABLE write it."""
    # The type was matched against a list of known types when the contract was read.
    return sql.SQL("{} {}{}").format(
        sql.Identifier(column.name),
        sql.SQL(column.physical_type),
        sql.SQL(" NOT NULL" if column.required else ""),
    )


def ensure_table(connection: psycopg.Connection, contract: Contract) -> None:
    """Create the contract's table, or add the nullable columns it lacks, in the open transaction.

    The change column is indexed: partitions are compared and deleted from by it.

    Raises:
        TableMismatchError: a column was dropped from the contract, has another type, or is new and
            required in a table that has rows.
    """
    target = relation(contract.target_relation)
    schema = contract.target_relation.partition(".")[0]
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('pipeline_assets.ddl'))")
    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    present: dict[str, str] = dict(
        connection.execute(
            """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped""",
            [target.as_string(connection)],
        ).fetchall()
    )
    if not present:
        connection.execute(
            sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
                target,
                sql.SQL(", ").join(column_definition(column) for column in contract.columns),
                sql.SQL(", ").join(sql.Identifier(name) for name in contract.key),
            )
        )
        connection.execute(
            sql.SQL("CREATE INDEX ON {} ({})").format(
                target, sql.Identifier(contract.change_column)
            )
        )
        connection.execute(
            sql.SQL("COMMENT ON TABLE {} IS {}").format(target, sql.Literal(contract.description))
        )
        return
    if extra := sorted(set(present) - {column.name for column in contract.columns}):
        raise TableMismatchError(
            f"{contract.target_relation} has a column {extra[0]} that contract {contract.name} "
            f"{contract.version} lacks; drop or rename it by hand if its data may go"
        )
    for column in contract.columns:
        if column.name not in present:
            _add_column(connection, contract, column)
        elif present[column.name] != column.physical_type:
            raise TableMismatchError(
                f"{contract.target_relation}.{column.name} is {present[column.name]}, but contract "
                f"{contract.name} {contract.version} says {column.physical_type}; change the table "
                "by hand, or load into a new one"
            )


def _add_column(connection: psycopg.Connection, contract: Contract, column: Column) -> None:
    target = relation(contract.target_relation)
    has_rows = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(target))
    if column.required and has_rows.fetchone() == (True,):
        raise TableMismatchError(
            f"contract {contract.name} {contract.version} adds the required column {column.name}, "
            f"for which the rows of {contract.target_relation} have no value; make it optional first"
        )
    connection.execute(
        sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(target, column_definition(column))
    )
