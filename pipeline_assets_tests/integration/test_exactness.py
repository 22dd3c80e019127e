"""Source and warehouse agree whatever happened in between: checked by SQL independent of the code."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipeline_assets.quality.contract import ContractError, Rule
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger, lookup, marts, reconcile
from pipeline_assets.warehouse.gate import SAMPLE_ROWS, judge
from pipeline_assets.warehouse.reconcile import compare, rows_outside
from pipeline_assets.warehouse.tables import Table
from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.load_steps import (
    DAYS,
    KEYS,
    WINDOWS,
    Pipeline,
    lenient,
    numbered,
    strict,
)
from pipeline_assets_tests.reliability.oracle import mart_differences
from pipeline_assets_tests.waiting import LONGEST, until


class CrashError(Exception):
    """Stands for whatever ends a load halfway."""


class CrashingFiles(PartitionFiles):
    """Files whose reader dies before its last batch."""

    def read(self, asset: str, partition: str, columns: list[str] | None = None) -> Iterator[Any]:
        batches = list(super().read(asset, partition, columns))
        yield from batches[:-1]
        raise CrashError


VALID = "amount > 0 AND quantity >= 1"
COLUMNS = "order_id, customer_id, ordered_at, amount::numeric(14,2), quantity, updated_at"


def truth(shop: Shop) -> list[Any]:
    return shop.connection.execute(
        f"SELECT {COLUMNS} FROM shop.transactions WHERE {VALID} ORDER BY order_id"
    ).fetchall()


def loaded(warehouse: psycopg.Connection) -> list[Any]:
    if warehouse.execute("SELECT to_regclass('analytics.fct_transactions')").fetchone() == (None,):
        return []
    return warehouse.execute(
        f"SELECT {COLUMNS} FROM analytics.fct_transactions ORDER BY order_id"
    ).fetchall()


orders = st.sampled_from(["1", "2", "3", "4"])
days = st.integers(0, DAYS - 1)
actions = st.one_of(
    st.tuples(st.just("put"), orders, days, st.integers(0, 5), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("delete"), orders),
    st.tuples(st.just("run"), days),
    st.tuples(st.just("replay"), days),
    st.tuples(st.just("crash in gate"), days),
    st.tuples(st.just("crash in load"), days),
)


# Few orders and days, so that they collide: a held day has an order that another day has loaded.
moves = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("ab"), st.integers(0, 1), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("run"), st.integers(0, 1)),
    st.tuples(st.just("replay"), st.integers(0, 1)),
    st.tuples(st.just("delete"), st.sampled_from("ab")),
)


@contextmanager
def crash() -> Iterator[None]:
    """Expect a crash halfway, or an error because there was nothing to read or load yet."""
    from pipeline_assets.resources.files import MissingPartitionError

    with pytest.raises((CrashError, ledger.GateError, MissingPartitionError)):
        yield


@pytest.mark.parametrize(("key", "table"), [("text", lenient), ("bigint", numbered)])
@examples(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(actions, max_size=14))
def test_any_history_ends_in_step_with_the_source(
    key: str,
    table: Callable[[], Table],
    settings: Settings,
    shop: Shop,
    warehouse: psycopg.Connection,
    history: list[tuple[Any, ...]],
) -> None:
    shop.connection.execute("TRUNCATE shop.transactions")
    shop.connection.execute(
        f"ALTER TABLE shop.transactions ALTER order_id TYPE {key} USING order_id::{key}"
    )
    warehouse.execute("DROP SCHEMA IF EXISTS analytics, quarantine, pipeline CASCADE")
    pipeline = Pipeline(settings, table())
    crashing = CrashingFiles(pipeline.files.root)
    clock = 0
    for action, *arguments in history:
        if action == "put":
            order, day, quantity, amount = arguments
            clock += 1  # a later change has a later time within its day
            customer = day + quantity  # so that an order changes its customer and day too
            shop.put(order, day, clock, quantity=quantity, amount=amount, customer_id=customer)
        elif action == "delete":
            shop.remove(*arguments)
        elif action == "run":
            pipeline.run(KEYS[arguments[0]])
        elif action == "replay":  # of what was extracted earlier, now perhaps stale
            day = KEYS[arguments[0]]
            if ledger.batches(pipeline.at_warehouse, pipeline.table.contract, [day]):
                pipeline.judge(day)
                pipeline.load(day)
        elif action == "crash in gate":
            with crash():
                pipeline.judge(KEYS[arguments[0]], crashing)
        else:
            before = loaded(warehouse)
            with crash():
                pipeline.load(KEYS[arguments[0]], crashing)
            assert loaded(warehouse) == before

    assert pipeline.catch_up() == []

    assert loaded(warehouse) == truth(shop)
    assert mart_differences(warehouse) == []
    pipeline.at_source.close()
    pipeline.at_warehouse.close()


@examples(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(moves, min_size=6, max_size=14))
def test_a_gate_that_holds_days_loses_no_order_that_the_source_has(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection, history: list[tuple[Any, ...]]
) -> None:
    """Whatever is held and replayed in between; once the source is corrected, the warehouse equals it."""
    shop.connection.execute("TRUNCATE shop.transactions")
    warehouse.execute("DROP SCHEMA IF EXISTS analytics, quarantine, pipeline CASCADE")
    pipeline = Pipeline(settings, strict())
    clock, known = 0, set[str]()
    for action, *arguments in history:
        if action == "put":
            order, day, amount = arguments
            clock += 1
            shop.put(order, day, clock, amount=amount)
        elif action == "delete":
            shop.remove(*arguments)
        else:
            day = KEYS[arguments[0]]
            with suppress(ledger.GateError):
                if action == "run":
                    pipeline.run(day)
                elif ledger.batches(pipeline.at_warehouse, pipeline.table.contract, [day]):
                    pipeline.judge(day)
                    pipeline.load(day)
        there = {
            row[0] for row in shop.connection.execute("SELECT order_id FROM shop.transactions")
        }
        before, known = known, {row[0] for row in loaded(warehouse)}
        assert before & there <= known

    shop.connection.execute("UPDATE shop.transactions SET amount = 3 WHERE amount = 0")
    for day in KEYS:
        pipeline.run(day)
    assert pipeline.catch_up() == []
    assert loaded(warehouse) == truth(shop)
    assert mart_differences(warehouse) == []
    pipeline.at_source.close()
    pipeline.at_warehouse.close()


def test_a_change_time_that_goes_back_ends_in_step(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """As when a source is restored or an update undone."""
    pipeline = Pipeline(settings)
    shop.put("a", 2, 1)
    pipeline.run(KEYS[2])
    shop.put("a", 0, 2, amount=5)
    assert pipeline.catch_up() == []
    assert loaded(warehouse) == truth(shop)


def test_a_change_time_that_goes_back_within_its_day_ends_in_step(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """It never did: the file has the order, so it wasn't deleted, but an older one, so it wasn't loaded."""
    pipeline = Pipeline(settings)
    shop.put("a", 0, 2)
    pipeline.run(KEYS[0])
    shop.put("a", 0, 1, amount=5)
    assert pipeline.catch_up() == []
    assert loaded(warehouse) == truth(shop)


def test_a_row_whose_change_time_becomes_infinite_leaves_the_warehouse(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """It belongs to no day any more; the reconciliation counts it."""
    pipeline = Pipeline(settings)
    shop.put("a", 0, 1)
    pipeline.run(KEYS[0])
    shop.connection.execute("UPDATE shop.transactions SET updated_at = 'infinity'")
    pipeline.run(KEYS[0])
    assert loaded(warehouse) == []


def test_a_held_day_takes_nothing_from_the_days_before(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """Orders that a held day has and rejects were deleted from the day that had loaded them."""
    pipeline = Pipeline(settings, strict())
    for order in "abc":
        shop.put(order, 0, 1)
    pipeline.run(KEYS[0])
    before = loaded(warehouse)
    for order in "ab":
        shop.put(order, 1, 1, currency="DOGE")
    pipeline.extract(KEYS[1])
    pipeline.judge(KEYS[1])
    with pytest.raises(ledger.GateError):
        pipeline.load(KEYS[1])

    days = {key: WINDOWS[key] for key in KEYS[:1]}
    found = compare(pipeline.at_source, pipeline.at_warehouse, pipeline.table.contract, days)
    assert found[KEYS[0]].in_step
    pipeline.run(KEYS[0])
    assert loaded(warehouse) == before

    # When the day passes, with the orders set aside, its load deletes their older versions.
    released = Pipeline(settings, lenient())
    released.run(KEYS[1])
    assert loaded(warehouse) == [row for row in before if row[0] == "c"]
    assert mart_differences(warehouse) == []


def test_a_column_that_somebody_added_with_a_default_gets_it(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    pipeline = Pipeline(settings)
    warehouse.execute(
        "ALTER TABLE analytics.fct_transactions ADD noted boolean NOT NULL DEFAULT true"
    )
    shop.put("a", 0, 1)
    pipeline.run(KEYS[0])
    assert loaded(warehouse) == truth(shop)
    assert warehouse.execute("SELECT noted FROM analytics.fct_transactions").fetchall() == [(True,)]


def test_what_a_judgement_keeps_to_be_shown_is_small(settings: Settings, shop: Shop) -> None:
    """A range keeps these rows of each of its days; as slices, they kept the whole day in memory."""
    pipeline = Pipeline(settings)
    for number in range(500):
        is_good = number % 3 == 0
        status = "completed" if is_good else "lost" * 9999
        shop.put(f"{number}", second=number, amount=int(is_good), status=status)
    pipeline.extract(KEYS[0])
    judgement = judge(
        pipeline.table, KEYS[0], WINDOWS[KEYS[0]], pipeline.files, pipeline.at_warehouse, "run"
    )
    assert set(judgement.samples) == {"amount_positive", "status_known"}
    for shown in (judgement.preview, *judgement.samples.values()):
        assert shown.num_rows == SAMPLE_ROWS
        assert shown.get_total_buffer_size() < 500 * SAMPLE_ROWS


def test_a_rule_that_cannot_be_worked_out_holds_its_day_and_no_other(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """The error ended a range: no day after it was judged, and none was loaded."""
    contract = strict().contract
    square = Rule("square_small", "sql", ("customer_id",), "customer_id * customer_id < 0")
    table = replace(strict(), contract=replace(contract, rules=(*contract.rules, square)))
    pipeline = Pipeline(settings, table)
    for day, customer in enumerate((1, 1 << 62, 3)):
        shop.put(f"{day}", day, customer_id=customer)
    for key in KEYS:
        pipeline.extract(key)
        pipeline.judge(key)

    pipeline.load(KEYS[0])
    with pytest.raises(ledger.GateError, match="square_small"):
        pipeline.load(KEYS[1])
    pipeline.load(KEYS[2])

    assert [row[0] for row in loaded(warehouse)] == ["0", "2"]


def test_a_day_of_which_every_row_is_gone_is_emptied_part_by_part(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "KEYS_PER_QUESTION", 3)
    pipeline = Pipeline(settings)
    for number in range(10):
        shop.put(f"{number}", 0, number)
    pipeline.run(KEYS[0])
    shop.put("0", 1)
    shop.connection.execute("DELETE FROM shop.transactions WHERE order_id <> '0'")
    pipeline.run(KEYS[0])
    assert [row[0] for row in loaded(warehouse)] == ["0"], (
        "the one that moved stays until it is loaded"
    )
    assert mart_differences(warehouse) == []


def test_a_moved_row_has_its_part_of_the_day_looked_up_and_no_other(
    settings: Settings,
    shop: Shop,
    warehouse: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Pipeline(settings)
    for number in range(200):
        shop.put(f"order {number}", 0, number)
    pipeline.run(KEYS[0])
    shop.put("order 7", 1)
    shop.put("order 8", 1)
    asked = []

    def chunks(cursor: Any) -> Iterator[list[Any]]:
        for keys in lookup.chunks(cursor):
            asked.extend(keys)
            yield keys

    monkeypatch.setattr(reconcile, "chunks", chunks)
    window = {KEYS[0]: WINDOWS[KEYS[0]]}
    found = compare(shop.connection, warehouse, pipeline.table.contract, window)[KEYS[0]]
    assert found.in_step
    assert {("order 7",), ("order 8",)} <= set(asked)
    assert len(asked) < 10


def test_a_change_time_beyond_the_calendar_leaves_the_others_in_step(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """After one typing mistake no day could be compared: Python has no year 20261."""
    pipeline = Pipeline(settings)
    for order in "ab":
        shop.put(order, 0, 1)
    pipeline.run(KEYS[0])
    shop.connection.execute(
        "UPDATE shop.transactions SET updated_at = '20261-01-08' WHERE order_id = 'a'"
    )
    assert rows_outside(shop.connection, pipeline.table.contract, FIRST_DAY) == (1, 0)
    assert pipeline.catch_up() == []
    assert [row[0] for row in loaded(warehouse)] == ["b"]


def test_a_change_time_without_a_zone_is_the_same_moment(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """The contract's has one: Python can't compare the two."""
    shop.connection.execute(
        "ALTER TABLE shop.transactions ALTER updated_at TYPE timestamp USING updated_at AT TIME ZONE 'UTC'"
    )
    shop.connection.execute("SET TimeZone = 'UTC'")
    pipeline = Pipeline(settings)
    for order in "ab":
        shop.put(order, 0, 1)
    pipeline.run(KEYS[0])
    shop.put("a", 1)
    shop.remove("b")
    pipeline.run(KEYS[0])
    assert [row[0] for row in loaded(warehouse)] == ["a"], "it moved to a day that isn't loaded yet"
    assert pipeline.catch_up() == []


def test_a_mart_with_a_percent_sign_equals_its_rebuild(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """In a query with parameters, psycopg would take it for a placeholder."""
    table = lenient()
    customers, sales = table.marts
    columns = tuple(
        replace(column, logic="count(*) FILTER (WHERE status LIKE 'comp%')")
        if column.name == "orders"
        else column
        for column in sales.columns
    )
    mart = replace(sales, columns=columns)
    pipeline = Pipeline(settings, replace(table, marts=(customers, mart)))
    shop.put("a", 0, 1)
    shop.put("b", 0, 2, status="refunded")
    pipeline.run(KEYS[0])
    contract = pipeline.table.contract
    assert marts.differing_groups(warehouse, contract, mart, WINDOWS[KEYS[0]]) == 0
    assert warehouse.execute("SELECT orders FROM analytics.daily_sales").fetchall() == [(1,)]


def test_a_mart_of_groups_that_rows_may_be_missing_from_is_refused() -> None:
    table = lenient()
    columns = tuple(
        replace(column, required=column.name != "currency") for column in table.contract.columns
    )
    with pytest.raises(ContractError, match=r"groups by currency, which isn.t"):
        replace(table, contract=replace(table.contract, columns=columns))


def test_a_file_older_than_the_source_deletes_nothing_that_is_still_there(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    pipeline = Pipeline(settings)
    shop.put("a", 0, 1)
    pipeline.extract(KEYS[0])
    raw = Path(pipeline.files.path("raw_transactions", KEYS[0]))
    older = raw.read_bytes()
    shop.put("b", 0, 2)
    pipeline.run(KEYS[0])
    raw.write_bytes(older)  # of a slower run, which writes last
    pipeline.judge(KEYS[0])
    pipeline.load(KEYS[0])
    assert loaded(warehouse) == truth(shop)


@pytest.mark.parametrize("order", ["a", "new"])
def test_marts_are_right_when_two_loads_write_the_same_order(
    settings: Settings,
    shop: Shop,
    warehouse: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
) -> None:
    first, second = Pipeline(settings), Pipeline(settings)
    shop.put("a", 0, 1, customer_id=1)
    first.run(KEYS[0])
    for day, pipeline in ((1, first), (2, second)):
        shop.put(order, day, 1, customer_id=day + 1)
        pipeline.extract(KEYS[day])
        pipeline.judge(KEYS[day])
    upserted, commit = threading.Event(), threading.Event()
    refresh = marts.refresh

    def slow_refresh(*arguments: Any) -> dict[str, int]:
        if not upserted.is_set():
            upserted.set()
            assert commit.wait(LONGEST)
        return refresh(*arguments)

    monkeypatch.setattr("pipeline_assets.warehouse.load.refresh", slow_refresh)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first.load, KEYS[1])
        assert upserted.wait(LONGEST)
        other = pool.submit(second.load, KEYS[2])
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        try:
            until(lambda: other.done() or warehouse.execute(waiting).fetchall())
        finally:
            commit.set()
        one.result()
        other.result()
    assert first.catch_up() == []
    assert loaded(warehouse) == truth(shop)
    assert mart_differences(warehouse) == []


LOADER = """
import sys
from pipeline_assets.settings import load_settings
from pipeline_assets_tests.load_steps import KEYS, Pipeline

pipeline = Pipeline(load_settings())
print("ready", flush=True)
while True:
    for key in KEYS:
        pipeline.run(key)
"""


@pytest.mark.slow
def test_a_killed_loader_leaves_the_old_state_or_the_new(
    settings: Settings,
    shop: Shop,
    warehouse: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings.source_database_url
    assert settings.warehouse_database_url
    monkeypatch.setenv("SOURCE_DATABASE_URL", settings.source_database_url.get_secret_value())
    monkeypatch.setenv("WAREHOUSE_DATABASE_URL", settings.warehouse_database_url.get_secret_value())
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path))
    for kill in range(8):
        for number in range(30):
            shop.put(f"{number:02}", number % DAYS, kill * 100 + number, amount=kill + 1)
        with subprocess.Popen(
            [sys.executable, "-c", LOADER], stdout=subprocess.PIPE, text=True
        ) as loader:
            assert loader.stdout
            assert loader.stdout.readline() == "ready\n"
            time.sleep(0.03 * kill)  # so that each kill hits another moment
            loader.kill()
        # In one snapshot: the server may still be executing a COMMIT sent before the kill.
        with warehouse.transaction():
            warehouse.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            rows = warehouse.execute(
                """SELECT count(*), coalesce(sum(rows_valid), 0) FROM pipeline.batches
                   WHERE loaded_hash IS NOT NULL"""
            ).fetchone()
            there = len(loaded(warehouse))
        assert rows is not None
        # A day is loaded in whole or not at all, and the ledger says which.
        assert (there, int(rows[1])) in {(10 * days, 10 * days) for days in range(4)}
    pipeline = Pipeline(settings)
    assert pipeline.catch_up() == []
    assert loaded(warehouse) == truth(shop)
    assert mart_differences(warehouse) == []
