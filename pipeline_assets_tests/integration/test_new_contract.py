"""A new contract beside the previous one: both load one table at once, and the table ends up exact."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from random import Random
from threading import Lock
from typing import TYPE_CHECKING

import psycopg

from pipeline_assets.quality.contract import Column
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.load import prepare
from pipeline_assets.warehouse.tables import Table
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.load_steps import KEYS, Pipeline, lenient

if TYPE_CHECKING:
    import pandas as pd

VERSION = "1.1.0"
ORDERS = [f"order {number:02d}" for number in range(30)]
STATUSES = ("pending", "completed", "cancelled", "refunded")
ROUNDS = 3
FACTS = "SELECT order_id, amount, updated_at, label FROM analytics.fct_transactions ORDER BY 1"
WANTED_FACTS = """
SELECT order_id, amount, updated_at, status || ' ' || currency FROM shop.transactions ORDER BY 1
"""
CUSTOMERS = "SELECT customer_id, orders, spend, pending FROM analytics.dim_customers ORDER BY 1"
WANTED_CUSTOMERS = """
SELECT customer_id, count(*) FILTER (WHERE status = 'completed'),
    coalesce(sum(amount) FILTER (WHERE status = 'completed'), 0),
    count(*) FILTER (WHERE status = 'pending')
FROM shop.transactions GROUP BY 1 ORDER BY 1
"""


def newer() -> Table:
    """The transactions with one more column in their contract, and one more in a mart."""
    old = lenient()
    customers, *others = old.marts
    label = Column("label", "text", False, "How it stands.", derived_from=("status", "currency"))
    pending = dataclasses.replace(
        customers.column("orders"),
        name="pending",
        required=False,
        logic="count(*) FILTER (WHERE status = 'pending')",
    )

    def derive(frame: "pd.DataFrame") -> "pd.DataFrame":
        return old.derive(frame).assign(label=frame["status"] + " " + frame["currency"])

    contract = dataclasses.replace(
        old.contract, version=VERSION, columns=(*old.contract.columns, label)
    )
    mart = dataclasses.replace(customers, version=VERSION, columns=(*customers.columns, pending))
    return dataclasses.replace(old, contract=contract, derive=derive, marts=(mart, *others))


def fill(shop: Shop, chance: Random) -> None:
    """Change a third of the orders, some of which move to another day."""
    for order in chance.sample(ORDERS, len(ORDERS) // 3):
        shop.put(
            order,
            day=chance.randrange(len(KEYS)),
            second=chance.randrange(80_000),
            customer_id=chance.randrange(5),
            amount=Decimal(chance.randrange(1, 9_999)) / 100,
            status=chance.choice(STATUSES),
        )


def older_days(new: Pipeline) -> list[str]:
    """The days loaded by the previous contract, which the sensor requests."""
    known = ledger.batches(new.at_warehouse, new.table.contract)
    return [key for key, batch in known.items() if batch.contract_version != VERSION]


def test_a_day_that_the_new_contract_judged_and_did_not_load_is_missed(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """It counted as loaded, by the previous contract, and in step: its new column stayed empty for ever."""
    shop.put("a")
    Pipeline(settings).run(KEYS[0])
    new = Pipeline(settings, newer())

    def missed() -> set[str]:
        day = date.fromisoformat(KEYS[0])
        return ledger.never_loaded(warehouse, new.table.contract, day, day)

    new.extract(KEYS[0])
    new.judge(KEYS[0])
    assert missed() == {KEYS[0]}
    new.load(KEYS[0])
    assert missed() == set()
    new.judge(KEYS[0])  # judging it by the same contract again keeps the load on record
    assert missed() == set()


def test_old_and_new_load_one_table_at_once_and_the_new_one_makes_it_exact(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    chance = Random(8)
    for order in ORDERS:
        shop.put(order, day=chance.randrange(len(KEYS)), customer_id=chance.randrange(5))
    old = Pipeline(settings)
    for key in KEYS:
        old.run(key)
    new = Pipeline(settings, newer())
    under_way = {key: Lock() for key in KEYS}  # a day has one run at a time

    def load(pipeline: Pipeline, order: list[str]) -> None:
        for _ in range(ROUNDS):
            for key in order:
                prepare(pipeline.at_warehouse, pipeline.table)
                with under_way[key]:
                    pipeline.run(key)

    with ThreadPoolExecutor() as both:
        loads = [both.submit(load, old, KEYS), both.submit(load, new, KEYS[::-1])]
        while not all(each.done() for each in loads):
            fill(shop, chance)
    for each in loads:
        each.result()
    # The old version's last load comes after all of the new one's.
    fill(shop, chance)
    for key in KEYS:
        old.run(key)
    assert older_days(new) == KEYS

    for key in older_days(new):
        prepare(new.at_warehouse, new.table)
        new.run(key)
    assert new.catch_up() == older_days(new) == []
    for wanted, found in ((WANTED_FACTS, FACTS), (WANTED_CUSTOMERS, CUSTOMERS)):
        assert warehouse.execute(found).fetchall() == shop.connection.execute(wanted).fetchall()


def test_a_new_version_changes_tables_while_the_old_one_is_in_the_middle_of_a_load(
    settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """They don't deadlock, which PostgreSQL would resolve by failing one of them."""
    shop.put("a")
    Pipeline(settings).run(KEYS[0])
    waiting = (
        "SELECT pid FROM pg_locks JOIN pg_database AS d ON d.oid = database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    with ThreadPoolExecutor() as pool, Database("warehouse", settings).connect() as load:
        # As a load does: its own lock first, rows after that.
        ledger.wait_for_other_loads(load, "analytics.fct_transactions")
        migration = pool.submit(Pipeline, settings, newer())
        while not warehouse.execute(waiting).fetchone():
            assert not migration.done(), migration.result()
        for table in ("fct_transactions", "dim_customers"):
            load.execute(f"UPDATE analytics.{table} SET customer_id = customer_id")
        load.commit()
        assert migration.result().catch_up() == []
