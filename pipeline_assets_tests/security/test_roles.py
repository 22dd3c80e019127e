"""Least-privilege roles: what each may do on a real server, and that the pipelines need no more."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from pipeline_assets.definitions import build_definitions
from pipeline_assets.operations.migration import migrate
from pipeline_assets.quality.ddl import TableMismatchError
from pipeline_assets.quality.odcs import CONTRACTS
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.load import prepare
from pipeline_assets.warehouse.tables import every_table, load_tables
from pipeline_assets_tests import databases
from pipeline_assets_tests.conftest import SOURCE_SCHEMA

pytestmark = pytest.mark.security
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DAY = "2026-01-07"
_numbers = count()


class Roles:
    """Three logins of a warehouse, one that reads the source, and one without rights."""

    def __init__(self, server: embedded_postgres.Server) -> None:
        number = next(_numbers)
        self.server = server
        self.names = {
            role: f"{role}_{number}" for role in ("migrate", "load", "read", "extract", "nobody")
        }
        self.source, self.warehouse = f"roles_source_{number}", f"roles_warehouse_{number}"
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for name in self.names.values():
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(name))
                )
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(
                    sql.Identifier(self.warehouse), sql.Identifier(self.names["migrate"])
                )
            )
        with psycopg.connect(embedded_postgres.ensure_database(server, self.source)) as connection:
            connection.execute(SOURCE_SCHEMA)
            reader = sql.Identifier(self.names["extract"])
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA shop TO {}").format(reader))
            connection.execute(sql.SQL("GRANT SELECT ON shop.transactions TO {}").format(reader))

    def url(self, role: str, database: str) -> str:
        server = self.server
        return f"postgresql://{self.names[role]}:secret@{server.host}:{server.port}/{database}"

    def connect(self, role: str) -> psycopg.Connection:
        return psycopg.connect(self.url(role, self.warehouse), autocommit=True)

    def remove(self) -> None:
        databases.drop(self.server, self.source, self.warehouse)
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            for name in self.names.values():
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def roles(server: embedded_postgres.Server) -> Iterator[Roles]:
    found = Roles(server)
    with found.connect("migrate") as connection:
        tables = every_table()
        list(migrate(connection, tables, load=found.names["load"], read=found.names["read"]))
    yield found
    found.remove()


FACT = "analytics.fct_transactions"
# statement -> the roles that may do it
MATRIX = {
    f"SELECT count(*) FROM {FACT}": "migrate load read",
    "SELECT count(*) FROM analytics.daily_sales": "migrate load read",
    "SELECT count(*) FROM analytics.purchase_predictions": "migrate load read",
    "SELECT count(*) FROM pipeline.batches": "migrate load read",
    "SELECT count(*) FROM pipeline.gate_verdicts": "migrate load read",
    "SELECT count(*) FROM quarantine.transactions": "migrate load",
    "SELECT count(*) FROM quarantine.news_articles": "migrate load",
    f"DELETE FROM {FACT} WHERE false": "migrate load",
    f"UPDATE {FACT} SET amount = 0 WHERE false": "migrate load",
    f"INSERT INTO {FACT} SELECT * FROM {FACT} WHERE false": "migrate load",
    "DELETE FROM quarantine.transactions WHERE false": "migrate load",
    "UPDATE pipeline.batches SET verdict = 'passed' WHERE false": "migrate load",
    "DELETE FROM pipeline.batches WHERE false": "migrate",
    "DELETE FROM pipeline.gate_verdicts WHERE false": "migrate",
    "UPDATE pipeline.gate_verdicts SET verdict = 'passed' WHERE false": "migrate",
    "UPDATE pipeline.champion_deployments SET finished_at = now() WHERE false": "migrate load",
    "UPDATE pipeline.champion_deployments SET actor = 'me' WHERE false": "migrate",
    "DELETE FROM pipeline.champion_deployments WHERE false": "migrate",
    "CREATE TEMP TABLE staged (a int)": "migrate load",
    "CREATE TABLE analytics.mine (a int)": "migrate",
    "CREATE TABLE public.mine (a int)": "migrate",
    "CREATE TABLE pipeline.mine (a int)": "migrate",
    "CREATE SCHEMA mine": "migrate",
    "CREATE FUNCTION analytics.f() RETURNS int LANGUAGE sql AS 'SELECT 1'": "migrate",
    f"CREATE INDEX ON {FACT} (amount)": "migrate",
    f"CREATE TRIGGER t AFTER INSERT ON {FACT} EXECUTE FUNCTION suppress_redundant_updates_trigger()": (
        "migrate"
    ),
    f"CREATE RULE r AS ON INSERT TO {FACT} DO INSTEAD NOTHING": "migrate",
    f"ALTER TABLE {FACT} ADD COLUMN mine int": "migrate",
    f"ALTER TABLE {FACT} DISABLE TRIGGER ALL": "migrate",
    f"DROP TABLE {FACT} CASCADE": "migrate",
    f"TRUNCATE {FACT}": "migrate",
    f"COMMENT ON TABLE {FACT} IS 'mine'": "migrate",
    "CREATE ROLE mine": "",
    "ALTER ROLE postgres PASSWORD 'mine'": "",
    "SET ROLE postgres": "",
    "SET SESSION AUTHORIZATION postgres": "",
    "CREATE DATABASE mine": "",
    "CREATE EXTENSION plpython3u": "",
    "COPY (SELECT 1) TO PROGRAM 'id'": "",
    "COPY (SELECT 1) TO '/tmp/mine'": "",
    f"COPY {FACT} FROM '/etc/passwd'": "",
    "SELECT pg_read_file('/etc/passwd')": "",
    "SELECT pg_ls_dir('/')": "",
    "SELECT rolpassword FROM pg_authid": "",
    "SELECT lo_import('/etc/passwd')": "",
    "SELECT pg_reload_conf()": "",
    "ALTER SYSTEM SET log_statement = 'all'": "",
}


@pytest.mark.parametrize("role", ["migrate", "load", "read", "nobody"])
@pytest.mark.parametrize("statement", MATRIX)
def test_the_matrix(roles: Roles, role: str, statement: str) -> None:
    if role == "nobody":
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            roles.connect(role)
        return
    with roles.connect(role) as connection:
        # CREATE DATABASE and ALTER SYSTEM can't run in a transaction; no role here may execute them.
        alone = statement.startswith(("CREATE DATABASE", "ALTER SYSTEM"))
        if role in MATRIX[statement].split():
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
        elif alone:
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement)
        else:
            with (
                pytest.raises((InsufficientPrivilege, psycopg.errors.FeatureNotSupported)),
                connection.transaction(force_rollback=True),
            ):
                connection.execute(statement)


def test_every_contract_is_migrated(roles: Roles) -> None:
    with roles.connect("read") as connection:
        found = {
            name
            for (name,) in connection.execute(
                "SELECT table_name FROM information_schema.role_table_grants"
                " WHERE grantee = %s AND table_schema = 'analytics'",
                [roles.names["read"]],
            )
        }
    assert len(found) == len(list(CONTRACTS.glob("*.odcs.yaml")))


def settings_of(roles: Roles, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "pipeline_data_dir": folder,
            "source_database_url": roles.url("extract", roles.source),
            "warehouse_database_url": roles.url("load", roles.warehouse),
        }
    )


def run(settings: Settings, job: str, key: str) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return (
            build_definitions(settings)
            .resolve_job_def(job)
            .execute_in_process(
                instance=instance, partition_key=key, run_config=QUIET, raise_on_error=False
            )
        )


def test_the_pipelines_need_no_more_than_the_roles_that_load_and_extract(
    roles: Roles, tmp_path: Path
) -> None:
    with psycopg.connect(roles.server.url(roles.source)) as shop:
        shop.execute(  # the first breaks the contract
            "INSERT INTO shop.transactions SELECT n::text, n, %(day)s, n, 'USD', 1, 'completed', %(day)s"
            " FROM generate_series(0, 999) AS n",
            {"day": f"{DAY} 12:00+00"},
        )
    settings = settings_of(roles, tmp_path)

    for job, key in (("load_transactions", DAY), ("publish_digest", "2026-11-02")):
        result = run(settings, job, key)
        failures = [str(event) for event in result.all_events if event.is_failure]
        assert result.success, failures

    with roles.connect("read") as connection:
        assert connection.execute(f"SELECT count(*) FROM {FACT}").fetchone() == (999,)
        orders = connection.execute("SELECT sum(orders) FROM analytics.daily_sales").fetchone()
        assert orders == (999,)
    with psycopg.connect(roles.url("extract", roles.source)) as source:
        for statement in ("DELETE FROM shop.transactions", "CREATE TABLE shop.mine (a int)"):
            with pytest.raises(InsufficientPrivilege), source.transaction():
                source.execute(statement)


def test_a_new_contract_waits_for_the_migration_and_says_so(roles: Roles) -> None:
    from dataclasses import replace

    from pipeline_assets.quality.contract import Column

    (table,) = load_tables()
    wider = replace(
        table.contract, columns=(*table.contract.columns, Column("gift", "boolean", False, ""))
    )
    with (
        roles.connect("load") as connection,
        pytest.raises(TableMismatchError, match="pipeline-assets migrate"),
    ):
        prepare(connection, replace(table, contract=wider))
    fresh = replace(table.contract, name="fresh", target_relation="analytics.fresh")
    with (
        roles.connect("load") as connection,
        pytest.raises(TableMismatchError, match="permission denied"),
    ):
        prepare(connection, replace(table, contract=fresh, marts=()))


def test_migrating_again_changes_nothing(roles: Roles) -> None:
    rights = "SELECT nspname, relname, relacl::text FROM pg_class JOIN pg_namespace AS n"
    rights += " ON relnamespace = n.oid WHERE relacl IS NOT NULL AND nspname !~ '^pg_|^info' ORDER BY 1, 2"
    with roles.connect("migrate") as connection:
        before = connection.execute(rights).fetchall()
        tables = every_table()
        names = roles.names
        list(migrate(connection, tables, load=names["load"], read=names["read"]))
        assert connection.execute(rights).fetchall() == before
