"""After any pause every missing day is made up for: oldest first, a limited number per tick, each once.

Ticks are driven with simulated times; the runs they request are launched in this process.
"""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.automation import REQUESTS
from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.integration.operations.watch import QUIET, load

SENSOR, JOB = "source_changes_sensor_transactions", "load_transactions"


class Daemon:
    """Ticks a sensor at simulated times; like Dagster's daemon, runs what it requests, each run key once."""

    def __init__(
        self, settings: Settings, instance: dg.DagsterInstance, sensor: str, job: str
    ) -> None:
        self.settings, self.instance, self.sensor, self.job = settings, instance, sensor, job
        self.loaded: list[str] = []

    def requests(self, now: datetime) -> list[dg.RunRequest]:
        definitions = build_definitions(self.settings, now=lambda: now)
        tick = (
            definitions.get_repository_def()
            .get_sensor_def(self.sensor)
            .evaluate_tick(
                dg.build_sensor_context(
                    instance=self.instance,
                    repository_def=definitions.get_repository_def(),
                    resources=build_resources(self.settings),
                )
            )
        )
        return [
            request
            for request in tick.run_requests or []
            if not self.instance.get_runs(
                dg.RunsFilter(tags={"dagster/run_key": str(request.run_key)})
            )
        ]

    def tick(self, now: datetime, *, fails: bool = False) -> list[str]:
        requests = self.requests(now)
        job = build_definitions(self.settings).resolve_job_def(self.job)
        for request in requests:
            assert request.partition_key
            assert request.run_key
            result = job.execute_in_process(
                instance=self.instance,
                partition_key=request.partition_key,
                run_config=QUIET,
                tags={"dagster/run_key": request.run_key},
                raise_on_error=False,
            )
            assert result.success != fails
            self.loaded.append(request.partition_key)
        return [str(request.partition_key) for request in requests]


def moment(day: int, hour: int = 1) -> datetime:
    return FIRST_DAY + timedelta(days=day, hours=hour)


def key(day: int) -> str:
    return f"{FIRST_DAY + timedelta(days=day):%Y-%m-%d}"


@pytest.fixture
def daemon(settings: Settings, instance: dg.DagsterInstance, shop: Shop) -> Daemon:
    """A shop with an order on each of its first days, of which the first is loaded."""
    for day in range(20):
        if day != 3:  # a day without changes must be loaded too
            shop.put(f"order {day}", day=day)
    found = Daemon(settings, instance, SENSOR, JOB)
    assert found.tick(moment(1)) == [key(0)]
    return found


def in_warehouse(warehouse: psycopg.Connection) -> list[str]:
    return [
        row[0]
        for row in warehouse.execute(
            "SELECT partition_key FROM pipeline.batches WHERE loaded_hash IS NOT NULL ORDER BY 1"
        )
    ]


@pytest.mark.slow
def test_a_daemon_that_was_down_for_days_makes_up_for_each_of_them_once(
    daemon: Daemon, warehouse: psycopg.Connection
) -> None:
    down = 13
    first = daemon.tick(moment(down))
    assert first == [key(day) for day in range(1, 1 + REQUESTS)], "oldest first, so many a tick"

    for minutes in range(1, 4):
        daemon.tick(moment(down) + timedelta(minutes=minutes))

    assert in_warehouse(warehouse) == [key(day) for day in range(down)]
    assert Counter(daemon.loaded) == {key(day): 1 for day in range(down)}


@pytest.mark.slow
def test_a_source_that_is_away_for_three_days_costs_a_run_a_day(
    daemon: Daemon, settings: Settings, warehouse: psycopg.Connection
) -> None:
    away = settings.model_copy(
        update={"source_database_url": SecretStr("postgresql://u:p@127.0.0.1:1/none")}
    )
    for day in (2, 3, 4):
        for hour in range(1, 24, 6):
            daemon.settings = away
            with pytest.raises(psycopg.OperationalError):  # the failed tick has an alert of its own
                daemon.tick(moment(day, hour))
    daemon.settings = settings

    for minute in range(3):
        daemon.tick(moment(5) + timedelta(minutes=minute))

    assert in_warehouse(warehouse) == [key(day) for day in range(5)]
    assert len(daemon.loaded) == 5
    rows = warehouse.execute(
        "SELECT count(*), count(DISTINCT order_id) FROM analytics.fct_transactions"
    )
    assert rows.fetchone() == (4, 4)
    assert daemon.instance.get_runs_count() == 5


def test_a_day_is_not_asked_for_while_it_waits_or_runs(
    daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    (request,) = daemon.requests(moment(2))
    for status in (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED):
        run = dg.DagsterRun(
            job_name=JOB,
            status=status,
            tags={"dagster/partition": key(1), "dagster/run_key": str(request.run_key)},
        )
        instance.run_storage.add_run(run)
        assert daemon.requests(moment(2)) == []
        assert daemon.requests(moment(2, hour=3)) == [], "however long it takes"
        instance.delete_run(run.run_id)
    assert len(daemon.requests(moment(2))) == 1


def test_a_day_is_left_alone_until_it_has_settled(daemon: Daemon) -> None:
    ended = moment(2, hour=0)
    assert (
        daemon.requests(ended + timedelta(minutes=19)) == []
    )  # the schedule starts the day's run after 15 minutes
    assert [r.partition_key for r in daemon.requests(ended + timedelta(minutes=20))] == [key(1)]


def test_an_order_that_changes_today_has_no_ended_day_loaded_again(
    daemon: Daemon, settings: Settings, shop: Shop, warehouse: psycopg.Connection
) -> None:
    """The warehouse keeps its old version until today ends; a soak test loaded such days every minute."""
    assert daemon.tick(moment(2)) == [key(1)]
    shop.put("order 1", day=2, second=3600, amount=5)
    for hour in (2, 3):
        assert daemon.requests(moment(2, hour)) == []
    again = load(settings, daemon.instance, key(1))
    (in_step,) = (
        check
        for check in again.get_asset_check_evaluations()
        if check.check_name == "in_step_with_source"
    )
    assert in_step.passed
    shop.remove("order 0")
    assert daemon.tick(moment(2, hour=4)) == [key(0)], "what is gone is a difference"

    assert daemon.tick(moment(3)) == [key(2)]

    rows = warehouse.execute("SELECT order_id, amount FROM analytics.fct_transactions ORDER BY 1")
    assert [(order, int(amount)) for order, amount in rows] == [("order 1", 5), ("order 2", 10)]


def test_a_day_that_fails_for_a_while_is_tried_each_hour(
    daemon: Daemon, instance: dg.DagsterInstance, warehouse: psycopg.Connection
) -> None:
    for hour in (1, 1, 2):  # from the second on, the run key has the hour
        (request,) = daemon.requests(moment(2, hour))
        tags = {"dagster/run_key": str(request.run_key)}
        failed_run(instance, JOB, key(1), ended=moment(2, hour), tags=tags)
    assert daemon.requests(moment(2, hour=2)) == []
    assert daemon.tick(moment(2, hour=3)) == [key(1)]
    assert in_warehouse(warehouse) == [key(0), key(1)]


def test_a_day_that_failed_for_good_is_left_alone_until_its_source_changes(
    daemon: Daemon, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.connection.execute("ALTER TABLE shop.transactions ADD COLUMN coupon text")
    assert daemon.tick(moment(2), fails=True) == [key(1)]
    shop.connection.execute("ALTER TABLE shop.transactions DROP COLUMN coupon")
    assert daemon.requests(moment(2, hour=5)) == []
    shop.put("another", day=1, second=1)
    assert daemon.tick(moment(2, hour=5)) == [key(1)]
    assert in_warehouse(warehouse) == [key(0), key(1)]


def test_a_held_day_whose_source_was_mended_is_loaded_though_a_run_fails_before_the_gate(
    daemon: Daemon, instance: dg.DagsterInstance, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("bad", day=1, second=1, status="lost")  # a good order of that day is held with it
    assert daemon.tick(moment(2), fails=True) == [key(1)]
    for hour in (1, 2, 9):
        assert daemon.requests(moment(2, hour)) == [], "the source is as it was"
    shop.put("bad", day=1, second=2)
    (request,) = daemon.requests(moment(2, hour=9))
    tags = {"dagster/run_key": str(request.run_key)}
    failed_run(instance, JOB, key(1), ended=moment(2, hour=9), tags=tags)
    assert daemon.tick(moment(2, hour=10)) == [key(1)]
    assert in_warehouse(warehouse) == [key(0), key(1)]


@pytest.fixture
def news(settings: Settings, instance: dg.DagsterInstance) -> Callable[..., Daemon]:
    def make(**others: object) -> Daemon:
        chosen = settings.model_copy(
            update={"news_start_date": (datetime.now(UTC) - timedelta(days=8)).date(), **others}
        )
        return Daemon(chosen, instance, "missed_mornings", "publish_digest")

    return make


def publish(daemon: Daemon, day: str) -> dg.ExecuteInProcessResult:
    job = build_definitions(daemon.settings).resolve_job_def("publish_digest")
    return job.execute_in_process(
        instance=daemon.instance, partition_key=day, run_config=QUIET, raise_on_error=False
    )


def test_mornings_that_a_provider_was_away_for_are_made_when_it_is_back(
    news: Callable[..., Daemon], instance: dg.DagsterInstance
) -> None:
    """The schedule's runs of them failed; that they were started mustn't keep them from being made later."""
    now = datetime.now(UTC)
    days = [f"{now - timedelta(days=back):%Y-%m-%d}" for back in (6, 5, 4)]
    daemon = news()
    assert publish(daemon, days[0]).success
    run_ids = [
        failed_run(instance, "publish_digest", day, ended=now - timedelta(minutes=30))
        for day in days[1:]
    ]
    assert all(run_ids)

    asked = daemon.requests(now)
    assert [str(request.partition_key) for request in asked] == [
        f"{now - timedelta(days=3):%Y-%m-%d}"
    ], "those that failed half an hour ago are left alone; one that nobody started isn't"

    done = []
    for minute in range(8):
        done += daemon.tick(now + timedelta(minutes=40 + minute))
    assert done[:2] == days[1:], "oldest first"
    assert len(done) == len(set(done))


def test_a_morning_that_failed_for_good_is_left_to_a_person(
    news: Callable[..., Daemon], instance: dg.DagsterInstance
) -> None:
    now = datetime.now(UTC)
    daemon = news()
    days = [f"{now - timedelta(days=back):%Y-%m-%d}" for back in (3, 2)]
    assert publish(daemon, days[0]).success
    failed_run(
        instance,
        "publish_digest",
        days[1],
        ended=now - timedelta(hours=5),
        tags={"pipeline_assets/permanent": "true"},
    )
    assert daemon.requests(now) == []


def failed_run(
    instance: dg.DagsterInstance,
    job: str,
    day: str,
    *,
    ended: datetime,
    tags: dict[str, str] | None = None,
) -> str:
    """Store a run that failed at that moment, and return its id."""
    run = dg.DagsterRun(job_name=job, tags={"dagster/partition": day, **(tags or {})})
    instance.run_storage.add_run(run)
    instance.report_run_failed(run)
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]  # SQL's has it
        from sqlalchemy import text

        connection.execute(
            text("UPDATE runs SET end_time = :ended WHERE run_id = :run"),
            {"ended": ended.timestamp(), "run": run.run_id},
        )
    return run.run_id
