"""SQL in partition keys, names and data: on a real server it stays text, and a canary table stays."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from pipeline_assets.definitions import build_definitions
from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.odcs import parse_contract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.extract import check_source, extract, source_reader
from pipeline_assets.warehouse.gate import judge
from pipeline_assets.warehouse.load import load, prepare
from pipeline_assets.warehouse.reconcile import source_digests, warehouse_digests
from pipeline_assets.warehouse.status import quarantined_rows
from pipeline_assets.warehouse.tables import Table, load_tables
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.contracts import document

pytestmark = pytest.mark.security
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DAY = "2026-01-07"
WINDOW = (datetime(2026, 1, 7, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC))
INJECTIONS = [
    "2026-01-07'; DROP TABLE canary; --",
    "2026-01-07'); DELETE FROM canary; --",
    '2026-01-07"; DROP TABLE canary; --',
    "2026-01-07' OR '1'='1",
    "$$; DROP TABLE canary; $$",
    "\\'; DROP TABLE canary; --",
    "%s %(key)s {} {0}",
    "../../../etc/passwd",
]


@pytest.fixture(autouse=True)
def canary(warehouse: psycopg.Connection, shop: Shop) -> Iterator[None]:
    for connection in (warehouse, shop.connection):
        connection.execute("CREATE TABLE canary AS SELECT 1 AS a")
    yield
    for connection in (warehouse, shop.connection):
        assert connection.execute("SELECT count(*) FROM canary").fetchone() == (1,)


@pytest.mark.parametrize("key", INJECTIONS)
def test_no_run_starts_with_a_partition_that_is_none(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection, tmp_path: Path, key: str
) -> None:
    """Given as the run's key, or in tags that anybody who can launch a run may set."""
    shop.put("a")
    job = build_definitions(settings).resolve_job_def("load_transactions")
    span = {"dagster/asset_partition_range_start": key, "dagster/asset_partition_range_end": key}
    with dg.DagsterInstance.ephemeral() as instance:
        for tags in ({"dagster/partition": key}, span):
            succeeded = False
            try:
                succeeded = job.execute_in_process(
                    instance=instance, tags=tags, run_config=QUIET, raise_on_error=False
                ).success
            except (dg.DagsterError, ValueError):
                continue
            assert not succeeded
        with pytest.raises(dg.DagsterError):
            job.execute_in_process(instance=instance, partition_key=key, run_config=QUIET)
    assert not list(tmp_path.rglob("*.parquet"))
    found = warehouse.execute("SELECT to_regclass('analytics.fct_transactions')").fetchone()
    if found != (None,):
        assert warehouse.execute("SELECT count(*) FROM analytics.fct_transactions").fetchone() == (
            0,
        )


@pytest.mark.parametrize("key", INJECTIONS)
def test_a_hostile_key_stays_a_value_in_every_statement(
    settings: Settings, warehouse: psycopg.Connection, key: str
) -> None:
    """Should it get past Dagster's own check of keys."""
    (table,) = load_tables()
    contract = table.contract
    prepare(warehouse, table)
    assert ledger.batches(warehouse, contract, [key]) == {}
    with pytest.raises(ledger.GateError, match="not validated yet"):
        ledger.passed_batch(warehouse, contract, key)
    with (
        ledger.partition_lock(warehouse, contract, key),
        ledger.quarantine(warehouse, contract, key, key),
    ):
        pass
    assert ledger.rows_by_day(warehouse, contract, key)["rows"] == {}
    shown = warehouse.execute(ledger.quarantine_query(contract, key).encode()).fetchall()
    assert shown == []
    assert quarantined_rows(settings, contract, day=key, rule=key, limit=5) == ([], 0)


HOSTILE = '"; DROP TABLE canary; --'


def hostile_contract() -> Contract:
    found = parse_contract(
        document(
            [
                {"name": "id", "physicalType": "bigint", "primaryKey": True},
                {"name": "changed_at", "physicalType": "timestamptz", "partitioned": True},
                {"name": HOSTILE, "physicalType": "text", "required": True},
                {"name": "a {0} $1 :x ? \\", "physicalType": "text"},
                {
                    "name": "SELECT",
                    "physicalType": "numeric(10,2)",
                    "logicalTypeOptions": {"minimum": 0},
                },
            ],
            physicalName=f"public.{HOSTILE}",
            customProperties=[{"property": "sourceRelation", "value": f"public.s{HOSTILE}"}],
        )
    )
    return replace(found, version="1'; DROP TABLE canary; --")


def test_hostile_names_and_data_arrive_as_they_are(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection, tmp_path: Path
) -> None:
    """Relations, columns and a version that end statements, texts that end COPY: through the whole load."""
    contract = hostile_contract()
    texts = [
        *INJECTIONS,
        "\\.",
        "\\N",
        "a\tb\nc\rd",
        "\\x00",
        "NULL",
        "",
        "\ufeff\u202e",
        "'" * 1000,
    ]
    names = [column.name for column in contract.source_columns]
    source = sql.Identifier("public", f"s{HOSTILE}")
    shop.connection.execute(
        sql.SQL("CREATE TABLE {} ({})").format(
            source,
            sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.physical_type))
                for column in contract.source_columns
            ),
        )
    )
    for number, text in enumerate(texts):
        # The first of each two rows breaks the contract, and goes to the quarantine with its text.
        for broken in (True, False):
            shop.connection.execute(
                sql.SQL("INSERT INTO {} ({}) VALUES (%s, %s, %s, %s, %s)").format(
                    source, sql.SQL(", ").join(map(sql.Identifier, names))
                ),
                [number * 2 + broken, WINDOW[0], text, text, -1 if broken else 1],
            )
    contract = replace(
        contract, rules=tuple(replace(rule, blocking=False) for rule in contract.rules)
    )
    table, files = Table(contract), PartitionFiles(str(tmp_path / "partitions"))
    assert settings.source_database_url
    url = settings.source_database_url.get_secret_value()

    check_source(shop.connection, contract)
    with source_reader(url) as reader:
        files.write("raw_things", DAY, extract(reader, contract, WINDOW))
    prepare(warehouse, table)
    judgement = judge(table, DAY, WINDOW, files, warehouse, "run'; DROP TABLE canary; --")
    load(table, DAY, files, shop.connection, warehouse, "run'; DROP TABLE canary; --")

    assert judgement.verdict.rejected == len(texts)
    loaded = warehouse.execute(
        sql.SQL("SELECT {} FROM {} ORDER BY id").format(
            sql.Identifier(HOSTILE), sql.Identifier("public", HOSTILE)
        )
    ).fetchall()
    assert [text for (text,) in loaded] == texts
    kept = warehouse.execute(
        "SELECT source_row ->> %s FROM quarantine.things ORDER BY (source_row ->> 'id')::int",
        [HOSTILE],
    ).fetchall()
    assert [text for (text,) in kept] == texts
    windows = {DAY: WINDOW}
    assert source_digests(shop.connection, contract, windows) == warehouse_digests(
        warehouse, contract, windows
    )
