"""Bring the warehouse's tables up to date, and grant each role its rights on them.

On a laptop one role owns everything and the runs create their tables themselves. Where that is too much
power for a process that reads strangers' data, three roles share it: one owns the tables and runs `migrate`,
the pipelines' own role may only change rows, and readers see neither quarantine nor anything that isn't a
table. Logins and passwords are the database administrator's business.
"""

from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from pipeline_assets.models import records
from pipeline_assets.quality.ddl import changing_tables, relation
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.load import prepare
from pipeline_assets.warehouse.tables import Table

ROWS = "SELECT, INSERT, UPDATE, DELETE"
RECORDS = {
    "pipeline.batches": "SELECT, INSERT, UPDATE",
    # Gate verdicts and deployments are an audit trail: rows are added, not rewritten but for `finished_at`.
    "pipeline.gate_verdicts": "SELECT, INSERT",
    "pipeline.champion_deployments": "SELECT, INSERT, UPDATE (finished_at)",
}
"""The pipelines' own tables, and the privileges that loading needs on them."""


def migrate(
    warehouse: psycopg.Connection, tables: Sequence[Table], *, load: str, read: str
) -> Iterator[str]:
    """Create and change the tables, then grant the two roles, where named, what they need and no more.

    Yields what was done. The roles must exist, and the connection's role must own the database.

    Raises:
        TableMismatchError: a table and its contract differ, or this role may not change tables.
    """
    with changing_tables():
        for table in tables:
            prepare(warehouse, table)
            yield f"{table.contract.target_relation} is as contract {table.contract.version} says"
        records.ensure_schema(warehouse)
        loaded = [contract.target_relation for t in tables for contract in (t.contract, *t.marts)]
        quarantined = [ledger.quarantine_relation(table.contract) for table in tables]
        if load:
            rights = dict.fromkeys([*loaded, *quarantined], ROWS) | RECORDS
            _grant(warehouse, load, "CONNECT, TEMPORARY", rights)
            yield f"{load} may load: change rows, create nothing"
        if read:
            rights = dict.fromkeys([*loaded, *RECORDS], "SELECT")
            _grant(warehouse, read, "CONNECT", rights)
            yield f"{read} may read what is loaded, and the pipelines' records"


def _grant(
    warehouse: psycopg.Connection, role: str, on_database: str, rights: dict[str, str]
) -> None:
    """Make these the only rights of a role, in one transaction: it never has fewer in between."""
    who, database = sql.Identifier(role), sql.Identifier(warehouse.info.dbname)
    schemas = sorted({name.partition(".")[0] for name in rights})
    every = sorted({*schemas, "pipeline", "quarantine"})
    statements = [
        sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(database, who),
        sql.SQL("GRANT {} ON DATABASE {} TO {}").format(sql.SQL(on_database), database, who),
    ]
    for schema in map(sql.Identifier, every):
        statements += [
            sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA {} FROM PUBLIC, {}").format(schema, who),
            sql.SQL("REVOKE ALL ON SCHEMA {} FROM PUBLIC, {}").format(schema, who),
        ]
    for schema in map(sql.Identifier, schemas):
        statements.append(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, who))
    for name, granted in rights.items():
        statements.append(
            sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(granted), relation(name), who)
        )
    with warehouse.transaction():
        for statement in statements:
            warehouse.execute(statement)
