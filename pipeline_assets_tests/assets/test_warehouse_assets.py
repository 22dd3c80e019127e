"""The warehouse's assets, materialized by Dagster on real databases."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.running import RETRY
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.extract import SourceSchemaError
from pipeline_assets.warehouse.status import days_to_load, quarantined_days, table_status
from pipeline_assets.warehouse.tables import load_tables
from pipeline_assets_tests.conftest import FIRST_DAY, Shop

WAREHOUSE = ["fct_transactions", "dim_customers", "daily_sales"]
DAY = ("2026-01-07", "2026-01-08", "2026-01-09")
TODAY = 20
"""The sensor's today, in days after the first."""


def load(
    settings: Settings,
    first: str,
    last: str | None = None,
    instance: dg.DagsterInstance | None = None,
    selection: list[str] | None = None,
    tags: dict[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """Run the load's job for a day, or for a range of days in one run."""
    job = build_definitions(settings).resolve_job_def("load_transactions")
    span = {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last or first,
    }
    return job.execute_in_process(
        instance=instance,
        partition_key=None if last else first,
        tags={**(span if last else {}), **(tags or {})},
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
    )


def table(warehouse: psycopg.Connection, columns: str = "order_id, net_amount") -> list[Any]:
    """The warehouse table, or nothing if it was never made."""
    if warehouse.execute("SELECT to_regclass('analytics.fct_transactions')").fetchone() == (None,):
        return []
    return warehouse.execute(
        f"SELECT {columns} FROM analytics.fct_transactions ORDER BY 1"
    ).fetchall()


def failures(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps said."""
    return "\n".join(
        event.step_failure_data.user_failure_data.description or ""
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Check name -> its evaluation."""
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def verdicts(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> dict[str | None, bool]:
    """Partition -> whether it passed the check, as Dagster has it on record."""
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=9)
    return {
        record.partition: record.status.value == "SUCCEEDED"
        for record in history
        if record.status.value != "PLANNED"
    }


def test_a_good_day_is_loaded_with_its_derived_columns(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("a", currency=" usd ", status="Completed")
    shop.put("b", status="refunded", amount="7.50")
    shop.put("other day", day=1)

    result = load(settings, DAY[0])

    assert result.success
    assert all(found.passed for found in checks(result).values())
    assert [
        tuple(map(str, row))
        for row in table(
            warehouse, "order_id, amount, net_amount, currency, status, business_day, business_week"
        )
    ] == [
        ("a", "10.00", "10.00", "USD", "completed", "2026-01-07", "2026-01-05"),
        ("b", "7.50", "0.00", "USD", "refunded", "2026-01-07", "2026-01-05"),
    ]


def test_a_failed_rule_halts_the_partition_and_shows_the_evidence(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("a", amount="1.00")
    assert load(settings, DAY[0]).success
    before = table(warehouse, "*")
    shop.put("a", second=1, amount="2.00")
    shop.put("b", second=2)
    shop.put("bad", second=3, currency="DOGE")

    result = load(settings, DAY[0])

    assert not result.success
    assert table(warehouse, "*") == before
    found = checks(result)["currency_known"]
    assert (found.passed, found.blocking, found.severity.value) == (False, True, "ERROR")
    evidence = {name: value.value for name, value in found.metadata.items()}
    assert (evidence["violations"], evidence["rows"], evidence["percent"]) == (1, 3, 33.333)
    assert "DOGE" in evidence["sample"]
    rows = warehouse.execute(evidence["quarantine"]).fetchall()
    assert [(row[0], row[1], row[4]["order_id"]) for row in rows] == [
        (DAY[0], ["currency_known"], "bad")
    ]
    assert checks(result)["amount_positive"].passed


def test_each_rule_shows_rows_that_break_it(settings: Settings, shop: Shop) -> None:
    """It showed the first rows that broke any rule: these could be ten others, within their bound."""
    for number in range(400):
        shop.put(f"{number:03}", second=number, amount=int(number >= 12))
    shop.put("last", second=500, currency="DOGE")

    found = checks(load(settings, DAY[0]))

    assert "DOGE" in str(found["currency_known"].metadata["sample"].value)
    assert "000" not in str(found["currency_known"].metadata["sample"].value)
    free = str(found["amount_positive"].metadata["sample"].value)
    assert [f"{number:03}" in free for number in range(12)] == [True] * 10 + [False] * 2
    assert "sample" not in found["status_known"].metadata


def test_the_loader_refuses_a_held_batch_whoever_starts_it(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("bad", quantity=0)
    load(settings, DAY[0])

    alone = load(settings, DAY[0], selection=WAREHOUSE)

    assert not alone.success
    assert "held by quantity_minimum" in failures(alone)
    assert table(warehouse) == []


def test_the_loader_refuses_a_file_that_was_not_validated(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("a")
    load(settings, DAY[0], selection=["raw_transactions", "validated_transactions"])
    files = settings.pipeline_data_dir / "partitions"
    (files / "validated_transactions" / f"{DAY[0]}.parquet").write_bytes(
        (files / "raw_transactions" / f"{DAY[0]}.parquet").read_bytes()
    )

    alone = load(settings, DAY[0], selection=WAREHOUSE)

    assert "isn't the file that was validated" in failures(alone)
    assert table(warehouse) == []


def test_rows_within_the_bound_are_set_aside_and_the_rest_is_loaded(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    for number in range(39):
        shop.put(f"{number:02}", second=number)
    shop.put("free", amount=0)

    result = load(settings, DAY[0])

    assert result.success
    assert checks(result)["amount_positive"].metadata["percent"].value == 2.5
    assert len(table(warehouse)) == 39
    assert warehouse.execute(
        "SELECT source_row ->> 'order_id', broken_rules FROM quarantine.transactions"
    ).fetchall() == [("free", ["amount_positive"])]


def test_in_a_range_a_bad_day_is_held_alone_and_the_run_names_it(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("a", day=0)
    shop.put("bad", day=1, status="lost")
    shop.put("c", day=2)
    with dg.DagsterInstance.ephemeral() as instance:
        result = load(settings, DAY[0], DAY[2], instance=instance)

        assert not result.success
        assert f"1 of 3 partitions held back: {DAY[1]}" in failures(result)
        assert "status_known" in failures(result)
        assert [row[0] for row in table(warehouse)] == ["a", "c"]
        loaded = instance.get_materialized_partitions(dg.AssetKey("fct_transactions"))
        assert loaded == {DAY[0], DAY[2]}
        for asset, check in (
            ("fct_transactions", "in_step_with_source"),
            ("daily_sales", "equals_rebuild"),
        ):
            key = dg.AssetCheckKey(dg.AssetKey(asset), check)
            assert verdicts(instance, key) == {DAY[0]: True, DAY[2]: True}

        shop.put("bad", day=1, status="completed")
        assert load(settings, DAY[1], instance=instance).success
    assert [row[0] for row in table(warehouse)] == ["a", "bad", "c"]


def test_in_a_range_a_day_whose_file_is_gone_is_held_alone(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """As after retention: such a day used to end the run, and the days after it weren't loaded."""
    for day in range(3):
        shop.put(f"{day}", day=day)
        assert load(settings, DAY[day], selection=["raw_transactions"]).success
        assert load(settings, DAY[day], selection=["validated_transactions"]).success
    files: PartitionFiles = build_resources(settings)["files"]
    Path(files.path("validated_transactions", DAY[1])).unlink()

    result = load(settings, DAY[0], DAY[2], selection=["fct_transactions", *WAREHOUSE[1:]])

    assert "isn't there any more; materialize validated_transactions again" in failures(result)
    assert [row[0] for row in table(warehouse)] == ["0", "2"]


def test_the_newest_days_materialization_shows_rows_and_a_plot(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    for number in range(40):
        shop.put(f"{number}", second=number)
    shop.put("free", second=50, amount=0)
    for day in range(2):
        shop.put(f"order {day}", day=day, second=60, status="refunded")
    shop.put("held", day=2, status="lost")

    with dg.DagsterInstance.ephemeral() as instance:
        load(settings, DAY[0], DAY[2], instance=instance)
        raw, first, newest = (
            instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[day]), limit=1
            )
            .records[0]
            .asset_materialization
            for asset, day in (
                ("raw_transactions", DAY[2]),
                ("fct_transactions", DAY[0]),
                ("fct_transactions", DAY[1]),  # the newest that is loaded
            )
        )
    assert raw
    assert first
    assert newest

    assert "held" in str(raw.metadata["preview"].value)
    counted = ("rows_extracted", "rows_quarantined", "rows_written", "rows_deleted")
    assert [first.metadata[name].value for name in counted] == [42, 1, 41, 0]
    assert "preview" not in first.metadata
    shown = str(newest.metadata["preview"].value)
    assert "order 1" in shown
    assert "order 0" not in shown
    assert "net\\_amount" in shown  # derived
    assert "data:image/svg" in str(newest.metadata["recent_days"].value)


def test_column_lineage_reaches_the_source(settings: Settings) -> None:
    graph = build_definitions(settings).resolve_asset_graph()
    upstream = {
        "raw_transactions": "source.shop.transactions",
        "validated_transactions": "raw_transactions",
    }
    for name, before in upstream.items():
        lineage = graph.get(dg.AssetKey(name)).metadata["dagster/column_lineage"]
        amount = lineage.deps_by_column["amount"]
        assert [(".".join(dep.asset_key.path), dep.column_name) for dep in amount] == [
            (before, "amount")
        ]


def test_a_replay_writes_nothing(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("a")
    assert load(settings, DAY[0]).success
    version = "SELECT xmin::text, order_id FROM analytics.fct_transactions"
    before = warehouse.execute(version).fetchall()

    again = load(settings, DAY[0])

    event = again.asset_materializations_for_node("fct_transactions")[0]
    assert event.metadata["rows_written"].value == 0
    assert warehouse.execute(version).fetchall() == before


def test_a_day_without_rows_is_loaded_as_empty(
    settings: Settings, warehouse: psycopg.Connection
) -> None:
    assert load(settings, DAY[0]).success
    assert table(warehouse) == []
    assert warehouse.execute("SELECT verdict, rows_extracted FROM pipeline.batches").fetchall() == [
        ("passed", 0)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE shop.transactions DROP COLUMN status", "has lost status"),
        ("ALTER TABLE shop.transactions ADD COLUMN coupon text", "has gained coupon"),
        (
            "ALTER TABLE shop.transactions ALTER order_id TYPE char(9)",
            "order_id is character(9), a part of the key and text to contract",
        ),
        ("DROP TABLE {}", "doesn't exist"),
    ],
)
def test_a_source_with_other_columns_is_named_and_nothing_is_written(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection, change: str, message: str
) -> None:
    shop.connection.execute(change.format("shop.transactions"))

    result = load(settings, DAY[0])

    assert message in failures(result)
    assert "contract transactions" in failures(result)
    assert not list((settings.pipeline_data_dir).rglob("*.parquet"))
    # A permanent failure: no attempt but the first.
    assert not [
        event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"
    ]


def test_a_gone_row_is_deleted_and_a_moved_one_is_not(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("gone")
    shop.put("moved")
    shop.put("stays")
    assert load(settings, DAY[0]).success
    shop.remove("gone")
    shop.put("moved", day=1, amount="11.00")

    assert load(settings, DAY[0]).success

    assert [row[0] for row in table(warehouse)] == ["moved", "stays"]
    assert load(settings, DAY[1]).success
    assert {row[0]: str(row[1]) for row in table(warehouse)} == {"moved": "11.00", "stays": "10.00"}


def test_marts_follow_every_change_of_the_table(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("a", customer_id=1, amount="10.00", quantity=2)
    shop.put("b", customer_id=1, amount="5.00", status="pending")
    shop.put("c", customer_id=2, amount="7.00")
    assert load(settings, DAY[0]).success
    customers = "SELECT customer_id, orders, items, spend FROM analytics.dim_customers ORDER BY 1"
    sales = """SELECT business_day::text, orders, customers, amount, net_amount
               FROM analytics.daily_sales ORDER BY 1"""
    assert [tuple(map(str, row)) for row in warehouse.execute(customers)] == [
        ("1", "1", "2", "10.00"),
        ("2", "1", "1", "7.00"),
    ]
    assert [tuple(map(str, row)) for row in warehouse.execute(sales)] == [
        (DAY[0], "3", "2", "22.00", "17.00")
    ]

    shop.remove("c")  # a customer's only order
    # completed a day later, and counted on that day
    shop.put("b", day=1, customer_id=1, amount="5.00")
    for day in (DAY[1], DAY[0]):
        result = load(settings, day)
        assert result.success
        assert all(found.passed for found in checks(result).values())

    assert [tuple(map(str, row)) for row in warehouse.execute(customers)] == [
        ("1", "2", "3", "15.00")
    ]
    assert [tuple(map(str, row)) for row in warehouse.execute(sales)] == [
        (DAY[0], "1", "1", "10.00", "10.00"),
        (DAY[1], "1", "1", "5.00", "5.00"),
    ]


def schedule_tick(settings: Settings, instance: dg.DagsterInstance) -> dict[str, str]:
    """Partition -> run key of what the schedule requests after the first day has ended."""
    repository = build_definitions(settings).get_repository_def()
    # The context reopens the instance, and closes it only at the end of the block.
    with dg.build_schedule_context(
        instance=instance,
        repository_def=repository,
        resources=build_resources(settings),
        scheduled_execution_time=FIRST_DAY + timedelta(days=1, minutes=15),
    ) as context:
        tick = repository.get_schedule_def("load_transactions_daily").evaluate_tick(context)
    return {str(request.partition_key): str(request.run_key) for request in tick.run_requests or []}


def test_the_daily_schedule_asks_for_the_day_that_ended(settings: Settings, shop: Shop) -> None:
    shop.put("a", day=0)
    shop.put("b", day=1)
    with dg.instance_for_test() as instance:
        ((day, key),) = schedule_tick(settings, instance).items()
        assert day == DAY[0]
        assert load(settings, day, instance=instance, tags={"dagster/run_key": key}).success
        # The day is loaded already: there is nothing to request.
        assert schedule_tick(settings, instance) == {}


def test_while_the_source_is_away_the_schedule_starts_no_run(settings: Settings) -> None:
    away = SecretStr("postgresql://nobody:x@127.0.0.1:1/shop")
    with (
        dg.instance_for_test() as instance,
        pytest.raises(dg.DagsterUserCodeExecutionError, match="daily") as raised,
    ):
        schedule_tick(settings.model_copy(update={"source_database_url": away}), instance)
    assert isinstance(raised.value.__cause__, psycopg.OperationalError)


def sensor_tick(settings: Settings, instance: dg.DagsterInstance) -> dict[str, str]:
    """Partition -> run key of what the sensor requests at noon of `TODAY`."""
    definitions = build_definitions(
        settings, now=lambda: FIRST_DAY + timedelta(days=TODAY, hours=12)
    )
    sensor = definitions.get_repository_def().get_sensor_def("source_changes_sensor_transactions")
    tick = sensor.evaluate_tick(
        dg.build_sensor_context(
            instance=instance,
            repository_def=definitions.get_repository_def(),
            resources=build_resources(settings),
        )
    )
    return {str(request.partition_key): str(request.run_key) for request in tick.run_requests or []}


def test_the_sensor_asks_for_exactly_the_days_that_are_out_of_step(
    settings: Settings, shop: Shop
) -> None:
    recent = [f"{FIRST_DAY + timedelta(days=TODAY - back):%Y-%m-%d}" for back in (3, 2, 1)]
    shop.put("old", day=0)
    shop.put("a", day=TODAY - 2)
    with dg.DagsterInstance.ephemeral() as instance:
        first = sensor_tick(settings, instance)
        assert list(first) == [recent[1]]
        assert sensor_tick(settings, instance) == first  # the same run key: Dagster starts it once

        assert load(settings, recent[1], instance=instance).success
        # The day after it has no rows, but has to be loaded all the same.
        assert list(sensor_tick(settings, instance)) == [recent[2]]
        assert load(settings, recent[2], instance=instance).success
        assert sensor_tick(settings, instance) == {}

        shop.put("held", day=TODAY - 1, status="lost")
        asked = sensor_tick(settings, instance)
        assert list(asked) == [recent[2]]
        assert not load(settings, recent[2], instance=instance).success
        # The day is held: its rows are all in the quarantine, and what is loaded agrees with the source.
        shop.put("good", day=TODAY - 1, second=1)
        again = sensor_tick(settings, instance)
        assert list(again) == [recent[2]]
        assert again[recent[2]] != asked[recent[2]]

        shop.remove("a")  # a hard delete leaves no other trace
        assert recent[1] in sensor_tick(settings, instance)


def test_the_sensor_asks_once_more_for_what_another_contract_has_loaded_or_held(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    loaded, held = (f"{FIRST_DAY + timedelta(days=TODAY - back):%Y-%m-%d}" for back in (2, 1))
    shop.put("a", day=TODAY - 2)
    shop.put("b", day=TODAY - 1, status="lost")
    with dg.DagsterInstance.ephemeral() as instance:

        def load_what_is_asked_for() -> list[str]:
            asked = sensor_tick(settings, instance)
            for day, key in asked.items():
                load(settings, day, instance=instance, tags={"dagster/run_key": key})
            return list(asked)

        assert load_what_is_asked_for() == [loaded, held]
        assert load_what_is_asked_for() == []
        # As if the contract's previous version had done it: with other columns, rules and run keys.
        warehouse.execute("UPDATE pipeline.batches SET contract_version = '0.9.0'")
        for run in instance.get_runs():
            key = run.tags["dagster/run_key"].replace("1.0.0", "0.9.0")
            instance.add_run_tags(run.run_id, {"dagster/run_key": key})
        assert load_what_is_asked_for() == [loaded, held]
        assert load_what_is_asked_for() == []


@pytest.mark.parametrize("amount", ["11.00", None], ids=["a changed value", "an empty day"])
def test_a_day_that_was_judged_and_not_loaded_is_asked_for(
    settings: Settings, shop: Shop, amount: str | None
) -> None:
    """Its digest of keys and versions is in step."""
    day = f"{FIRST_DAY + timedelta(days=TODAY - 9):%Y-%m-%d}"  # older than what is always compared
    if amount:
        shop.put("a", day=TODAY - 9)
    with dg.DagsterInstance.ephemeral() as instance:
        if amount:
            assert load(settings, day, instance=instance).success
            shop.put("a", day=TODAY - 9, amount=amount)  # the same change time
        judged = ["raw_transactions", "validated_transactions"]
        assert load(settings, day, instance=instance, selection=judged).success
        (table,) = load_tables()
        assert day in sensor_tick(settings, instance)
        assert day in days_to_load(settings, table)

        assert load(settings, day, instance=instance).success
        assert day not in sensor_tick(settings, instance)
        assert day not in days_to_load(settings, table)


def test_reconciliation_finds_what_the_sensor_does_not_watch_and_the_sensor_repairs_it(
    settings: Settings, shop: Shop
) -> None:
    shop.put("old", day=1)
    with dg.DagsterInstance.ephemeral() as instance:
        assert sensor_tick(settings, instance) == {}

        def reconcile() -> dg.AssetCheckEvaluation:
            job = build_definitions(settings).resolve_job_def("reconcile_transactions")
            result = job.execute_in_process(instance=instance)
            (evaluation,) = result.get_asset_check_evaluations()
            return evaluation

        found = reconcile()
        assert (found.passed, found.metadata["out_of_step"].value) == (False, DAY[1])
        assert list(sensor_tick(settings, instance)) == [DAY[1]]

        assert load(settings, DAY[1], instance=instance).success
        assert reconcile().passed
        assert DAY[1] not in sensor_tick(settings, instance)


def test_the_sensor_leaves_out_days_of_a_reconciliation_before_a_later_start(
    settings: Settings, shop: Shop
) -> None:
    """Each tick failed until the next reconciliation: Dagster refuses a partition that isn't one."""
    shop.put("old", day=0)
    shop.put("a", day=TODAY - 1)
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_definitions(settings).resolve_job_def("reconcile_transactions")
        job.execute_in_process(instance=instance)
        assert DAY[0] in sensor_tick(settings, instance)
        later = settings.model_copy(
            update={"warehouse_start_date": (FIRST_DAY + timedelta(days=1)).date()}
        )
        assert list(sensor_tick(later, instance)) == [
            f"{FIRST_DAY + timedelta(days=TODAY - 1):%Y-%m-%d}"
        ]


def test_an_old_day_that_was_held_whole_is_asked_for_under_another_contract(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """All of its rows are in quarantine, so no comparison finds it; it was never tried again."""
    shop.put("bad", status="lost")
    with dg.DagsterInstance.ephemeral() as instance:
        assert not load(settings, DAY[0], instance=instance).success
        assert DAY[0] not in sensor_tick(settings, instance)
        warehouse.execute("UPDATE pipeline.batches SET contract_version = '0.9.0'")
        assert DAY[0] in sensor_tick(settings, instance)


def test_days_before_a_later_start_are_not_replayed(settings: Settings, shop: Shop) -> None:
    for day in range(2):
        shop.put(f"bad {day}", day=day, status="lost")
        load(settings, DAY[day])
    (table,) = load_tables()
    assert quarantined_days(settings, table, rule="") == [DAY[0], DAY[1]]
    later = settings.model_copy(
        update={"warehouse_start_date": (FIRST_DAY + timedelta(days=1)).date()}
    )
    assert quarantined_days(later, table, rule="") == [DAY[1]]


def test_the_status_counts_days_behind_and_rows_once(settings: Settings, shop: Shop) -> None:
    """A row that broke two rules counted twice, and a quiet table that was loaded as days behind."""
    for number in range(40):
        shop.put(f"{number}", second=number)
    shop.put("bad", second=50, amount=0, quantity=0)
    load(settings, DAY[0])
    (table,) = load_tables()
    status = table_status(settings, table)
    assert status.quarantined == 1
    assert status.violations == {"amount_positive": 1, "quantity_minimum": 1}
    assert (status.newest, status.behind) == (None, status.closed), "the day is held"
    shop.put("bad", second=50, amount=0)
    load(settings, DAY[0], DAY[2])
    status = table_status(settings, table)
    assert (status.newest, status.behind) == (DAY[2], status.closed - 3)


@pytest.mark.parametrize("change", ["DROP TABLE {}", "ALTER TABLE {} DROP updated_at"])
def test_a_source_that_is_not_there_is_said_by_its_contract(
    settings: Settings, shop: Shop, change: str
) -> None:
    shop.connection.execute(change.format("shop.transactions"))
    with pytest.raises(SourceSchemaError, match=r"shop\.transactions.* contract transactions"):
        days_to_load(settings, load_tables()[0])


def test_a_held_day_is_run_again_by_hand_though_all_its_rows_are_in_quarantine(
    settings: Settings, shop: Shop
) -> None:
    """Source and warehouse are in step then; `pipeline-assets run` said that all was well."""
    shop.put("bad", status="lost")
    assert not load(settings, DAY[0]).success
    assert DAY[0] in days_to_load(settings, load_tables()[0])


def test_reconciliation_counts_rows_that_belong_to_no_day(settings: Settings, shop: Shop) -> None:
    shop.put("never", updated_at=None)
    shop.put("forever", updated_at="infinity")
    shop.put("mistyped", updated_at="2206-01-07")
    shop.put("before", day=-1)
    job = build_definitions(settings).resolve_job_def("reconcile_transactions")
    with dg.DagsterInstance.ephemeral() as instance:
        (found,) = job.execute_in_process(instance=instance).get_asset_check_evaluations()
    assert (found.passed, found.metadata["rows_without_a_day"].value) == (False, 3)
    assert found.metadata["rows_before_the_first_day"].value == 1
    assert "1 rows last changed before 2026-01-07" in str(found.description)


def test_a_reconciliation_is_retried_unless_that_is_in_vain(settings: Settings, shop: Shop) -> None:
    job = build_definitions(settings).resolve_job_def("reconcile_transactions")
    (node,) = job.nodes
    assert isinstance(node.definition, dg.OpDefinition)
    assert node.definition.retry_policy == RETRY
    shop.connection.execute("DROP TABLE shop.transactions")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    reason = "shop.transactions, the source of contract transactions, doesn't exist"
    assert reason in failures(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def test_the_sensor_asks_again_when_the_source_is_back_at_what_it_was(
    settings: Settings, shop: Shop
) -> None:
    shop.put("a", day=TODAY - 1)
    shop.put("b", day=TODAY - 1, second=1)
    keys: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        for change in (None, shop.remove, None):
            if change:
                change("b")
            elif keys:
                shop.put("b", day=TODAY - 1, second=1)
            ((day, key),) = sensor_tick(settings, instance).items()
            assert key not in keys
            keys.append(key)
            assert load(settings, day, instance=instance, tags={"dagster/run_key": key}).success
        assert sensor_tick(settings, instance) == {}


def test_each_partition_has_its_own_verdict_in_dagster(settings: Settings, shop: Shop) -> None:
    """A bad day followed by a good one must not open the gate for the bad one."""
    shop.put("bad", day=0, status="lost")
    shop.put("good", day=1)
    with dg.DagsterInstance.ephemeral() as instance:
        load(settings, DAY[0], instance=instance)
        load(settings, DAY[1], instance=instance)
        key = dg.AssetCheckKey(dg.AssetKey("validated_transactions"), "status_known")
        assert verdicts(instance, key) == {DAY[0]: False, DAY[1]: True}
