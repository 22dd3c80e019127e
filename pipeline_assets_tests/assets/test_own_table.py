"""Bring your own table: a contract and a line of code give a complete pipeline, shown on TPC-H's orders."""

import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from pipeline_assets.ci.smoke import pipelines
from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.in_process import train_and_score
from pipeline_assets.models.names import PREDICTIONS, SNAPSHOTS, TRAINED
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.tables import Table, load_tables

CONTRACT = Path(__file__).parents[1] / "orders.odcs.yaml"
FIRST, LAST = "1995-03-01", "1995-03-31"
BAD_DAY = "1995-03-15"


@pytest.fixture
def definitions(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dg.Definitions:
    """The project with one more table registered, and 15,000 orders in its source."""
    assert settings.source_database_url
    subprocess.run(
        [
            Path(sys.executable).parent / "tpchgen-cli",
            *("csv", "--scale-factor", "0.01", "--tables", "orders", "--output-dir", tmp_path),
        ],
        check=True,
        capture_output=True,
    )
    with psycopg.connect(settings.source_database_url.get_secret_value()) as connection:
        connection.execute(
            """CREATE SCHEMA erp;
               CREATE TEMP TABLE generated (
                   o_orderkey bigint, o_custkey bigint, o_orderstatus char(1), o_totalprice numeric,
                   o_orderdate date, o_orderpriority text, o_clerk text, o_shippriority integer,
                   o_comment text)"""
        )
        with (
            (tmp_path / "orders.csv").open() as file,
            connection.cursor().copy("COPY generated FROM STDIN (FORMAT csv, HEADER)") as copy,
        ):
            copy.write(file.read())
        connection.execute(
            """CREATE TABLE erp.orders AS
               SELECT o_orderkey, o_custkey, o_orderstatus, o_totalprice, o_orderdate, o_comment,
                      o_orderdate::timestamp AT TIME ZONE 'UTC' AS changed_at FROM generated;
               CREATE INDEX ON erp.orders (changed_at);
               CREATE INDEX ON erp.orders (o_orderkey)"""
        )
        connection.execute(
            "UPDATE erp.orders SET o_totalprice = -1 WHERE o_orderdate = %s", [BAD_DAY]
        )
    tables = [*load_tables(), Table(load_contract(CONTRACT))]
    monkeypatch.setattr("pipeline_assets.definitions.load_tables", lambda: tables)
    return build_definitions(settings.model_copy(update={"warehouse_start_date": date(1992, 1, 1)}))


def test_a_contract_and_a_line_give_a_complete_pipeline(
    definitions: dg.Definitions, settings: Settings, warehouse: psycopg.Connection
) -> None:
    repository = definitions.get_repository_def()
    names = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert {"source/erp/orders", "raw_orders", "validated_orders", "fct_orders"} <= names
    checks = {str(key.name) for key in repository.asset_graph.asset_check_keys}
    assert {"o_orderkey_unique", "status_known", "o_totalprice_exclusive_minimum"} <= checks
    node = repository.asset_graph.get(dg.AssetKey("fct_orders"))
    assert (node.owners, node.code_version) == (["team:sales"], "0.1.0/2.3.0")

    with dg.DagsterInstance.ephemeral() as instance:
        result = definitions.resolve_job_def("load_orders").execute_in_process(
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": FIRST,
                "dagster/asset_partition_range_end": LAST,
            },
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        loaded = instance.get_materialized_partitions(dg.AssetKey("fct_orders"))

    assert not result.success
    assert len(loaded) == 30
    assert BAD_DAY not in loaded
    assert settings.source_database_url
    with psycopg.connect(settings.source_database_url.get_secret_value()) as source:
        wanted = source.execute(
            """SELECT count(*), sum(o_totalprice), sum(o_custkey) FROM erp.orders
               WHERE o_orderdate BETWEEN %s AND %s AND o_totalprice > 0""",
            [FIRST, LAST],
        ).fetchone()
    found = warehouse.execute(
        "SELECT count(*), sum(o_totalprice), sum(o_custkey) FROM reporting.fct_orders"
    ).fetchone()
    assert found == wanted
    held = "SELECT partition_key, broken_rules FROM pipeline.batches WHERE verdict = 'failed'"
    assert warehouse.execute(held).fetchall() == [(BAD_DAY, ["o_totalprice_exclusive_minimum"])]


def test_without_the_sample_table_there_is_no_model_and_all_else_works(
    definitions: dg.Definitions,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A source of one's own has no shop: its table takes the place of the sample's."""
    tables = [Table(load_contract(CONTRACT))]
    for module in ("definitions", "warehouse.tables", "ci.smoke"):
        monkeypatch.setattr(f"pipeline_assets.{module}.load_tables", lambda: tables)
    repository = build_definitions(settings).get_repository_def()
    repository.load_all_definitions()
    names = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert {"fct_orders", "news_digest", "status_report"} <= names
    assert not names & {SNAPSHOTS, TRAINED, PREDICTIONS, "fct_transactions"}
    assert pipelines() == ["load_orders", "publish_digest"]
    assert train_and_score(settings)
    assert "there is no table transactions to learn from" in capsys.readouterr().out


def test_its_schedule_and_sensor_start_its_own_job(
    definitions: dg.Definitions, settings: Settings
) -> None:
    repository = definitions.get_repository_def()
    with dg.instance_for_test() as instance:
        with dg.build_schedule_context(
            instance=instance,
            repository_def=repository,
            resources=build_resources(settings),
            scheduled_execution_time=datetime(1995, 3, 2, 0, 15, tzinfo=UTC),
        ) as ended:
            tick = repository.get_schedule_def("load_orders_daily").evaluate_tick(ended)
        assert [request.partition_key for request in tick.run_requests or []] == [FIRST]
        sensor = repository.get_sensor_def("source_changes_sensor_orders")
        assert sensor.job_name == "load_orders"
        context = dg.build_sensor_context(
            instance=instance, repository_def=repository, resources=build_resources(settings)
        )
        assert str(sensor.evaluate_tick(context).skip_message).startswith(
            "3 days compared, 0 to load"
        )
