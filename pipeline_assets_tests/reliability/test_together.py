"""The same days loaded at once through Dagster, and transactions that deadlock: exact, each row once."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from pipeline_assets.definitions import build_definitions
from pipeline_assets.failures import TransientError
from pipeline_assets.quality.rules import find_duplicates
from pipeline_assets.resources import embedded_postgres
from pipeline_assets_tests import databases
from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.integration.operations.watch import QUIET
from pipeline_assets_tests.load_steps import DAYS, KEYS, Pipeline
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.deployment import Deployment, deployment
from pipeline_assets_tests.reliability.kills import MARK
from pipeline_assets_tests.reliability.shop_time import ShopTime, standing
from pipeline_assets_tests.reliability.site import Site
from pipeline_assets_tests.waiting import until

JOB, SENSOR = "load_transactions", "source_changes_sensor_transactions"
ASSETS = [
    "raw_transactions",
    "validated_transactions",
    "fct_transactions",
    "dim_customers",
    "daily_sales",
]
CLOSED = standing(FIRST_DAY + timedelta(days=DAYS, hours=1))
"""The shop's time: the last of the test's days has ended and settled."""
ROUNDS = 4
_numbers = count()


@contextmanager
def deployed(
    site: Site,
    factory: pytest.TempPathFactory,
    time: ShopTime = CLOSED,
    settings: Mapping[str, str] | None = None,
    *,
    daemons: int = 1,
) -> Iterator[Deployment]:
    """Run the project on the site's databases, by the shop's clock."""
    name = f"dagster_together_{next(_numbers)}"
    urls = {
        f"{role}_database_url".upper(): getattr(
            site.settings, f"{role}_database_url"
        ).get_secret_value()
        for role in ("source", "warehouse")
    }
    environment = {
        **urls,
        **dict([MARK.split("=")]),
        "DAGSTER_DATABASE_URL": embedded_postgres.ensure_database(site.server, name),
        "PIPELINE_DATA_DIR": str(site.settings.pipeline_data_dir),
        **time.environment(),
        **(settings or {}),
    }
    module = "pipeline_assets_tests.reliability.shop_time"
    with deployment(factory.mktemp("h"), module, environment, daemons=daemons) as found:
        yield found
    databases.drop(site.server, name)


def wrong(site: Site) -> list[str]:
    """What is wrong by plain SQL and the files' bytes; missing tables are wrong too."""
    with site.connect("source") as source, site.connect("warehouse") as warehouse:
        if warehouse.execute("SELECT to_regclass('analytics.daily_sales')").fetchone() == (None,):
            return ["nothing is loaded"]
        batches = warehouse.execute(
            "SELECT partition_key, verdict FROM pipeline.batches"
            " WHERE table_name = 'transactions' ORDER BY 1"
        ).fetchall()
        found = [] if batches == [(key, "passed") for key in KEYS] else [f"ledger: {batches}"]
        orders, different = warehouse.execute(
            "SELECT count(*), count(DISTINCT order_id) FROM analytics.fct_transactions"
        ).fetchone() or (0, 0)
        found += [] if orders == different else [f"{orders} rows of {different} orders"]
        return (
            found
            + oracle.source_differences(source, warehouse)
            + oracle.torn(warehouse, site.root)
            + oracle.unloaded(warehouse, site.root)
        )


@pytest.mark.reliability
def test_two_daemons_a_sensor_a_backfill_and_a_run_launched_twice(
    site: Site,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """All request the same days at the same moment; each run is executed once, each row exists once."""
    site.spoils = False
    with deployed(site, tmp_path_factory, daemons=2) as place:
        for number in range(ROUNDS):
            site.change()
            begun = len(place.runs())
            with ThreadPoolExecutor(4) as pool:
                asked: list[Future[Any]] = [
                    pool.submit(place.switch, SENSOR, on=True),
                    *(pool.submit(place.launch, JOB, KEYS[number % DAYS]) for _ in range(2)),
                    pool.submit(place.backfill, ASSETS, KEYS),
                ]
            for each in asked:
                each.result()
            until(partial(caught_up, site, place, begun + 3, number))
            place.switch(SENSOR, on=False)
            until(place.is_idle)
            assert wrong(site) == [], f"round {number}"

        records = place.runs()
        statuses = Counter(record.dagster_run.status.value for record in records)
        assert statuses == {"SUCCESS": len(records)}
        starts = [
            len(place.instance.all_logs(record.dagster_run.run_id, dg.DagsterEventType.RUN_START))
            for record in records
        ]
        assert set(starts) == {1}, "a run was executed twice"
        by_sensor = [
            record.dagster_run.tags["dagster/run_key"]
            for record in records
            if "dagster/run_key" in record.dagster_run.tags
        ]
        assert len(by_sensor) == len(set(by_sensor)), "a run key was requested twice"
    tell(
        f"{ROUNDS} times three days asked for by a sensor in two daemons, a backfill and two launches: "
        f"{len(records)} runs, {len(by_sensor)} of the sensor, each with a run key of its own; all exact"
    )


def caught_up(site: Site, place: Deployment, runs: int, ticks: int) -> bool:
    """Whether all that was requested is done, by so many runs at least, and the sensor has ticked too."""
    done = len(place.runs()) >= runs and place.is_idle() and ticked(place) > ticks
    return done and not wrong(site)


def ticked(place: Deployment) -> int:
    """How often the sensor has ticked, which it does at least once each time it is switched on."""
    (state,) = (s for s in place.instance.all_instigator_state() if s.instigator_name == SENSOR)
    return len(place.instance.get_ticks(state.instigator_origin_id, state.selector_id))


def test_a_file_that_another_run_replaces_while_it_is_judged_is_judged_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the file is searched for duplicates, the source gets one, and another run extracts the day."""
    shop = Shop(site.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
    shop.put("once")
    pipeline = Pipeline(site.settings)
    pipeline.extract(KEYS[0])

    def found_then_replaced(*arguments: Any) -> Any:
        found = find_duplicates(*arguments)
        shop.connection.execute("INSERT INTO shop.transactions SELECT * FROM shop.transactions")
        pipeline.extract(KEYS[0])
        return found

    with monkeypatch.context() as patch:
        patch.setattr("pipeline_assets.warehouse.gate.find_duplicates", found_then_replaced)
        with pytest.raises(TransientError, match="replaced by another run"):
            pipeline.judge(KEYS[0])
    with site.connect("warehouse") as warehouse:
        assert warehouse.execute("SELECT FROM pipeline.batches").fetchall() == []
    pipeline.judge(KEYS[0])
    pipeline.load(KEYS[0])
    for connection in (pipeline.at_source, pipeline.at_warehouse):
        connection.close()
    with site.connect("source") as source, site.connect("warehouse") as warehouse:
        assert oracle.source_differences(source, warehouse) == []
    shop.connection.close()


BLOCKED = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
AND application_name = 'pipeline_assets'"""
DEADLOCKS = {
    "gate": (
        "SELECT FROM pipeline.batches FOR UPDATE",
        "SELECT pg_advisory_xact_lock(hashtext('transactions'), hashtext(%(key)s))",
    ),
    "load": (
        "LOCK TABLE analytics.daily_sales IN SHARE MODE",
        "SELECT FROM analytics.fct_transactions FOR UPDATE",
    ),
}
"""Stage -> what another transaction locks before the run gets there, and requests once the run waits."""


@pytest.mark.parametrize(
    ("stage", "rounds"),
    [
        pytest.param("load", 1, marks=pytest.mark.slow),
        *(pytest.param(stage, 10, marks=pytest.mark.reliability) for stage in DEADLOCKS),
    ],
)
def test_a_deadlock_is_tried_again_and_comes_out_exact(
    site: Site, stage: str, rounds: int, tell: Callable[[str], None]
) -> None:
    site.spoils = False
    site.change()
    site.recover("before the deadlocks")
    pauses: list[float] = []
    job = build_definitions(site.settings).resolve_job_def(JOB)
    with dg.DagsterInstance.ephemeral() as instance, site.connect("warehouse") as looker:
        # Of the two sessions only the run's looks for deadlocks so soon, so its transaction is aborted.
        name = sql.Identifier(looker.info.dbname)
        looker.execute(sql.SQL("ALTER DATABASE {} SET deadlock_timeout = '2s'").format(name))
        for number in range(rounds):
            site.change()
            for key in KEYS:
                with in_the_way(site, looker, stage, key):
                    result = job.execute_in_process(
                        instance=instance,
                        partition_key=key,
                        run_config=QUIET,
                        raise_on_error=False,
                    )
                assert result.success, f"{stage}, {key}, round {number}"
                (retry,) = (
                    event.step_retry_data
                    for event in result.all_events
                    if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY
                )
                assert retry.error
                assert "deadlock detected" in retry.error.to_string()
                pauses.append(retry.seconds_to_wait or 0)
            for (
                key
            ) in KEYS:  # an order moved to an earlier day is loaded once the later day deleted it
                job.execute_in_process(instance=instance, partition_key=key, run_config=QUIET)
            assert wrong(site) == [], f"{stage}, round {number}"
        until(lambda: deadlocks(looker) == len(pauses))
    assert min(pauses) > 0, "it waits before it tries again"
    tell(
        f"{len(pauses)} deadlocks in the {stage}: each tried again after {min(pauses):.1f} to "
        f"{max(pauses):.1f} s; all exact"
    )


def deadlocks(connection: psycopg.Connection) -> int:
    (found,) = connection.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone() or (0,)
    return int(found)


@contextmanager
def in_the_way(site: Site, looker: psycopg.Connection, stage: str, key: str) -> Iterator[None]:
    """Hold a lock that the run will wait for, and then request one that the run holds."""
    has, wants = DEADLOCKS[stage]

    def close_the_circle() -> None:
        until(lambda: looker.execute(BLOCKED).fetchone() is not None)
        connection.execute(wants, {"key": key})
        connection.rollback()

    with site.connect("warehouse") as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SET deadlock_timeout = '1h'")
        connection.execute("BEGIN")
        connection.execute(has)
        closed = pool.submit(close_the_circle)
        yield
        closed.result()
