"""Clocks that change: summer time, a source's that goes back, a worker's that jumps."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.integration.operations.test_catch_up import JOB, SENSOR, Daemon
from pipeline_assets_tests.load_steps import DAYS
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.deployment import until
from pipeline_assets_tests.reliability.site import Site
from pipeline_assets_tests.reliability.test_faults import rounds
from pipeline_assets_tests.reliability.test_together import deployed, wrong

BERLIN = "Europe/Berlin"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""Debian's libfaketime: it tells a process another time than the system's."""
EACH = timedelta(minutes=30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)], ids=["spring", "autumn"]
)
def test_a_day_on_which_the_clocks_change_is_loaded_whole_and_no_other_hour(
    site: Site, day: str, hours: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Loaded by the sensor of a real daemon; which row belongs to which day is told by PostgreSQL."""
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(BERLIN))
    first, last = midnight - timedelta(days=1), midnight + timedelta(days=2)
    shop = Shop(site.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
    moment = first.astimezone(UTC)
    while moment < last.astimezone(UTC):
        since = (moment - FIRST_DAY).total_seconds()
        shop.put(f"{moment:%m-%dT%H:%M}", 0, int(since))
        moment += EACH
    by_day = shop.connection.execute(
        f"SELECT (updated_at AT TIME ZONE '{BERLIN}')::date::text, count(*) FROM shop.transactions"
        " GROUP BY 1 ORDER BY 1"
    ).fetchall()
    shop.connection.close()
    assert dict(by_day)[day] == hours * 2
    at = (last + timedelta(hours=1)).astimezone(UTC).isoformat()
    settings = {"PIPELINE_TIMEZONE": BERLIN, "WAREHOUSE_START_DATE": by_day[0][0]}
    with deployed(site, tmp_path_factory, at, **settings) as place:
        place.switch(SENSOR, on=True)
        with site.connect("warehouse") as warehouse:
            until(
                lambda: (
                    warehouse.execute("SELECT to_regclass('pipeline.batches')").fetchone()
                    != (None,)
                )
            )
            until(
                lambda: (
                    warehouse.execute(
                        "SELECT count(*) FROM pipeline.batches WHERE loaded_hash IS NOT NULL"
                    ).fetchone()
                    == (len(by_day),)
                    and place.is_idle()
                )
            )
            batches = warehouse.execute(
                "SELECT partition_key, rows_extracted,"
                " extract(epoch FROM window_end - window_start)::int / 3600"
                " FROM pipeline.batches ORDER BY 1"
            ).fetchall()
    assert [batch[:2] for batch in batches] == by_day
    assert [batch[2] for batch in batches] == [24, hours, 24]
    with site.connect("source") as source, site.connect("warehouse") as warehouse:
        assert oracle.source_differences(source, warehouse) == []
        assert oracle.torn(warehouse, site.root) == []


@rounds(2, 25)
def test_a_source_whose_clock_goes_back_is_in_step_in_the_end(
    site: Site,
    rounds: int,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """Changes are stamped with an earlier time of the day, or with a day before, then rightly again."""
    site.spoils = False
    shop = Shop(site.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
    folder = str(tmp_path_factory.mktemp("instance"))
    ticks = 0
    with dg.DagsterInstance.local_temp(folder) as instance:
        daemon = Daemon(site.settings, instance, SENSOR, JOB)
        for number in range(rounds):
            site.change()
            back = timedelta(seconds=site.random.randrange(1, (DAYS - 1) * 86_400))
            shop.connection.execute(
                "UPDATE shop.transactions SET updated_at = greatest(updated_at - %s, %s),"
                " amount = amount + 1, ordered_at = least(ordered_at, greatest(updated_at - %s, %s))"
                " WHERE hashtext(order_id || %s) %% 3 = 0",
                [back, FIRST_DAY, back, FIRST_DAY, str(number)],
            )
            for hour in range(
                4
            ):  # a day that another must be loaded before has its turn an hour later
                daemon.tick(FIRST_DAY + timedelta(days=DAYS, hours=1 + hour + number * 5 % 15))
                ticks += 1
                if not wrong(site):
                    break
            assert wrong(site) == [], f"round {number}, {back} back"
    shop.connection.close()
    tell(
        f"{rounds} times a source's clock went back: in step after {ticks / rounds:.1f} ticks an hour apart"
    )


@rounds(1, 5)
def test_a_worker_whose_clock_jumps_loads_every_day_in_the_end(
    site: Site, rounds: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Back, far ahead and back again: a day that was loaded before it came is loaded when it has."""
    site.spoils = False
    for _ in range(rounds):
        site.change()
        folder = str(tmp_path_factory.mktemp("instance"))
        with dg.DagsterInstance.local_temp(folder) as instance:
            daemon = Daemon(site.settings, instance, SENSOR, JOB)
            jumps = [1, DAYS, -400, 2, 40, 0, DAYS, 1, 60, DAYS]
            site.random.shuffle(jumps)
            for days in jumps:
                daemon.tick(
                    FIRST_DAY + timedelta(days=days, hours=1, minutes=site.random.randrange(60))
                )
            site.change()  # the clock is right from here on
            for hour in range(2, 5):
                daemon.tick(FIRST_DAY + timedelta(days=DAYS, hours=hour))
        with site.connect("source") as source, site.connect("warehouse") as warehouse:
            assert oracle.source_differences(source, warehouse) == []
            assert oracle.torn(warehouse, site.root) == []
            assert oracle.unloaded(warehouse, site.root) == []


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="Debian's libfaketime isn't installed")
@pytest.mark.parametrize(
    ("day", "utc"), [("2027-03-28", "06:00"), ("2027-10-31", "07:00")], ids=["spring", "autumn"]
)
def test_at_eight_on_the_day_of_the_change_a_real_daemon_makes_the_edition(
    site: Site, day: str, utc: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """All of Dagster's processes live on that morning; the databases' server doesn't."""
    due = datetime.fromisoformat(f"{day}T{utc}+00:00")
    clock = tmp_path / "clock"

    def set_clock(moment: datetime) -> None:
        ahead = (moment - datetime.now(UTC)).total_seconds()
        part = clock.with_suffix(".part")
        part.write_text(f"{ahead:+.0f}\n")
        part.rename(clock)

    set_clock(due - timedelta(seconds=60))
    before = due.date() - timedelta(days=1)
    with deployed(
        site,
        tmp_path_factory,
        None,
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        PIPELINE_TIMEZONE=BERLIN,
        NEWS_START_DATE=f"{before - timedelta(days=3)}",
    ) as place:
        place.start_schedule("publish_digest_daily")
        set_clock(due - timedelta(seconds=10))
        until(lambda: place.runs(dg.DagsterRunStatus.SUCCESS))
        (record,) = place.runs()
        (state,) = place.instance.all_instigator_state()
        ticks = place.instance.get_ticks(state.instigator_origin_id, state.selector_id)
    assert [datetime.fromtimestamp(tick.timestamp, UTC) for tick in ticks] == [due]
    assert record.dagster_run.tags["dagster/partition"] == f"{before}"
    assert (site.settings.pipeline_data_dir / "digests" / f"{day}.csv").exists()
