"""Many tables for `benchmarks.growth`: contracts, databases as after years of loads, Dagster's history.

Every table has a contract of 16 columns, a source, a warehouse table, and each of its days in the ledger.
One real run is copied inside Dagster's database with other tables, days and ids.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from benchmarks.data import CONTRACT, drop
from benchmarks.deployment import ROOT
from benchmarks.tools import dagster_storage
from pipeline_assets.resources.embedded_postgres import Server, ensure_database
from pipeline_assets.settings import load_settings

if TYPE_CHECKING:
    import dagster as dg

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
LAST = TODAY - timedelta(days=1)
SAMPLE = "growth_0001"
"""The table that is measured, and whose real run is copied."""
SOURCE = """
CREATE TABLE shop.{table} AS
SELECT n::bigint AS line_id, n / 4::bigint AS order_id, n / 20::bigint AS customer_id,
    n %% 100::bigint AS part_id, 1 AS quantity, 10::numeric(14,2) AS amount,
    0.05::numeric(5,2) AS discount, 'USD'::text AS currency, 'open'::text AS status,
    'low'::text AS priority, 'air'::text AS channel, moment AS ordered_at, moment AS updated_at,
    NULL::text AS note
FROM (SELECT n, %(first)s::timestamptz + n * interval '1 day' + interval '12 hours' AS moment
    FROM generate_series(0, %(days)s - 1) AS n) AS daily;
CREATE INDEX ON shop.{table} (updated_at);
CREATE INDEX ON shop.{table} (line_id);
"""
# The batches as the load leaves them.
LEDGER = """
INSERT INTO pipeline.batches (table_name, partition_key, window_start, window_end, verdict,
    rows_extracted, rows_valid, rows_quarantined, violations, broken_rules, content_hash,
    contract_version, code_version, validated_by, rows_written, rows_deleted, loaded_hash)
SELECT %(table)s, to_char(day, 'YYYY-MM-DD'), day, day + interval '1 day', 'passed', 1, 1, 0, '{}', '{}',
    'copied', '1.0.0', '0.1.0', 'growth', 1, 0, 'copied'
FROM generate_series(%(first)s::timestamptz, %(last)s::timestamptz, interval '1 day') AS day
"""
# An asset's page and the sensors over all assets read materializations, planned ones, checks and runs.
# Other events are read only with their run, and aren't copied.
COPIES = """
CREATE TEMP TABLE copies AS
    SELECT 'growth_' || to_char(number, 'FM0000') AS name, to_char(%(last)s::date - n, 'YYYY-MM-DD') AS day,
        n, md5(number || ' ' || n)::uuid::text AS copy
    FROM generate_series(1, %(tables)s) AS number, generate_series(0, %(days)s - 1) AS n
    WHERE (number = 1 OR n < %(recent)s) AND (number, n) <> (1, 0);
INSERT INTO runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, create_timestamp,
        update_timestamp, start_time, end_time)
    SELECT copy, snapshot_id, replace(pipeline_name, %(sample)s, name), mode, status,
        replace(replace(replace(run_body, %(run)s, copy), %(day)s, day), %(sample)s, name),
        create_timestamp - interval '1 day' * n, update_timestamp - interval '1 day' * n,
        start_time - 86400 * n, end_time - 86400 * n
    FROM runs, copies WHERE run_id = %(run)s ORDER BY n DESC, name;
INSERT INTO run_tags (run_id, key, value)
    SELECT copy, key, replace(replace(value, %(day)s, day), %(sample)s, name)
    FROM run_tags, copies WHERE run_id = %(run)s;
INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT copy, replace(replace(replace(event, %(run)s, copy), %(day)s, day), %(sample)s, name),
        dagster_event_type, timestamp - interval '1 day' * n, replace(step_key, %(sample)s, name),
        replace(asset_key, %(sample)s, name), replace(partition, %(day)s, day)
    FROM event_logs, copies WHERE run_id = %(run)s
        AND dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_MATERIALIZATION_PLANNED')
    ORDER BY n DESC, name, event_logs.id;
INSERT INTO asset_check_executions (asset_key, check_name, partition, run_id, execution_status,
        evaluation_event, evaluation_event_timestamp, evaluation_event_storage_id)
    SELECT replace(asset_key, %(sample)s, name), check_name, day, copy, execution_status,
        evaluation_event, evaluation_event_timestamp - interval '1 day' * n, evaluation_event_storage_id
    FROM asset_check_executions, copies WHERE run_id = %(run)s
    ORDER BY n DESC, name, asset_check_executions.id;
INSERT INTO asset_keys (asset_key, last_materialization, last_run_id, asset_details,
        last_materialization_timestamp, tags)
    SELECT replace(asset_key, %(sample)s, name), replace(last_materialization, %(sample)s, name),
        last_run_id, asset_details, last_materialization_timestamp, tags
    FROM asset_keys, copies WHERE asset_key LIKE '%%' || %(sample)s || '%%' AND n = 0;
"""


@dataclass(frozen=True)
class Tables:
    """A number of tables, in databases and a folder of their own."""

    server: Server
    home: Path
    """`dagster dev` starts here."""
    count: int
    days: int
    """Partitions of each table, up to yesterday."""
    recent: int
    """Days of each table in Dagster's history, which has all days of the sample."""

    @property
    def contracts(self) -> Path:
        """The folder of their contracts."""
        return self.home / "contracts"

    @property
    def first(self) -> datetime:
        """The first partition's day."""
        return TODAY - timedelta(days=self.days)

    def database(self, kind: str) -> str:
        """The name of their source, warehouse or Dagster's database."""
        return f"growth_{self.count}_{kind}"

    def environment(self) -> dict[str, str]:
        """The settings of the processes that are measured."""
        return {
            "DAGSTER_HOME": str(ROOT),
            "PIPELINE_DATA_DIR": str(self.home / "data"),
            "WAREHOUSE_START_DATE": f"{self.first:%Y-%m-%d}",
            # No week of the model has closed, so none is missing and no sensor starts runs.
            "MODELS_START_DATE": f"{TODAY - timedelta(days=TODAY.weekday()):%Y-%m-%d}",
            "SOURCE_DATABASE_URL": ensure_database(self.server, self.database("source")),
            "WAREHOUSE_DATABASE_URL": ensure_database(self.server, self.database("warehouse")),
            "DAGSTER_DATABASE_URL": dagster_storage(self.server, self.database("dagster")),
            "PYTHONPATH": str(ROOT),
        }


def grown(contracts: Path) -> "dg.Definitions":
    """The project's definitions with one more table for each contract in the folder."""
    from unittest.mock import patch

    from benchmarks.ours import derive
    from pipeline_assets import definitions
    from pipeline_assets.quality.odcs import load_contract
    from pipeline_assets.warehouse.tables import Table, load_tables

    def more() -> list[Table]:
        files = sorted(contracts.glob("*.odcs.yaml"))
        return [*load_tables(), *(Table(load_contract(file), derive=derive) for file in files)]

    with patch.object(definitions, "load_tables", more):
        return definitions.build_definitions(load_settings())


def make(tables: Tables) -> None:
    """Write contracts; fill source, warehouse and ledger as after loads of one row per day and table."""
    from benchmarks.ours import derive
    from pipeline_assets.quality.odcs import load_contract
    from pipeline_assets.warehouse.load import prepare
    from pipeline_assets.warehouse.tables import Table

    _write_contracts(tables)
    remove_databases(tables)
    environment = tables.environment()
    span = {"first": tables.first, "last": LAST, "days": tables.days}
    with (
        psycopg.connect(
            environment["SOURCE_DATABASE_URL"], cursor_factory=psycopg.ClientCursor
        ) as source,
        psycopg.connect(environment["WAREHOUSE_DATABASE_URL"], autocommit=True) as warehouse,
    ):
        source.execute("CREATE SCHEMA shop")
        source.execute("CREATE VIEW shop.transactions AS SELECT now() AS updated_at WHERE false")
        for file in sorted(tables.contracts.glob("*.odcs.yaml")):
            contract = load_contract(file)
            name = sql.Identifier(contract.name)
            source.execute(sql.SQL(SOURCE).format(table=name), span)
            source.commit()  # a single transaction would need more locks than a server has
            prepare(warehouse, Table(contract, derive=derive))
            with (
                source.cursor().copy(
                    sql.SQL(
                        "COPY (SELECT *, round(amount * (1 - discount), 2), ordered_at::date FROM shop.{})"
                        " TO STDOUT"
                    ).format(name)
                ) as read,
                warehouse.cursor().copy(
                    sql.SQL("COPY analytics.{} ({}) FROM STDIN").format(
                        name, sql.SQL(", ").join(sql.Identifier(c.name) for c in contract.columns)
                    )
                ) as write,
            ):
                for line in read:
                    write.write(line)
            warehouse.execute(LEDGER, {"table": contract.name, **span})
        source.commit()
        for connection in (source, warehouse):
            connection.autocommit = True
            connection.execute("VACUUM ANALYZE")


def remove_databases(tables: Tables) -> None:
    """Drop the tables' databases."""
    with psycopg.connect(tables.server.url(), autocommit=True) as admin:
        for kind in ("source", "warehouse", "dagster"):
            drop(admin, tables.database(kind))


def _write_contracts(tables: Tables) -> None:
    """Copies of the order lines' contract, and a workspace that loads them into Dagster."""
    tables.contracts.mkdir(parents=True, exist_ok=True)
    text = CONTRACT.read_text()
    level = "\nslaProperties:\n  - {property: latency, value: 48, unit: h}\n"
    for number in range(1, tables.count + 1):
        name = f"growth_{number:04}"
        file = tables.contracts / f"{name}.odcs.yaml"
        file.write_text(text.replace("line_items", name) + level)
    (tables.home / "workspace.yaml").write_text("load_from:\n  - python_file: grown.py\n")
    (tables.home / "grown.py").write_text(
        "from pathlib import Path\n\nfrom benchmarks.growth_data import grown\n\n"
        f"defs = grown(Path({str(tables.contracts)!r}))\n"
    )


def copy_run(tables: Tables, run_id: str) -> None:
    """Fill Dagster's history with copies of a real run, that of the sample's newest day."""
    asked = {
        "tables": tables.count,
        "days": tables.days,
        "recent": tables.recent,
        "last": LAST,
        "sample": SAMPLE,
        "run": run_id,
        "day": f"{LAST:%Y-%m-%d}",
    }
    url = tables.server.url(tables.database("dagster"))
    with psycopg.connect(url, autocommit=True) as dagster:
        with psycopg.ClientCursor(dagster) as cursor:  # no bound parameters in CREATE TABLE
            cursor.execute(COPIES, asked)
        dagster.execute("VACUUM ANALYZE")
