"""Clocks that change: summer time, a source's clock that goes back, a worker's clock that jumps."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.integration.operations.test_catch_up import JOB, SENSOR, Daemon
from pipeline_assets_tests.load_steps import DAYS
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.shop_time import ShopTime, standing
from pipeline_assets_tests.reliability.site import Site
from pipeline_assets_tests.reliability.test_faults import rounds
from pipeline_assets_tests.reliability.test_together import deployed, wrong
from pipeline_assets_tests.waiting import until

BERLIN = "Europe/Berlin"
EACH = timedelta(minutes=30)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        pytest.param("2026-03-29", 23, id="spring", marks=pytest.mark.slow),
        pytest.param("2026-10-25", 25, id="autumn", marks=pytest.mark.reliability),
    ],
)
def test_a_day_on_which_the_clocks_change_is_loaded_whole_and_no_other_hour(
    site: Site, day: str, hours: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A real daemon's sensor has the days loaded; PostgreSQL says which row belongs to which day."""
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(BERLIN))
    first, last = midnight - timedelta(days=1), midnight + timedelta(days=2)
    shop = Shop(site.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
    moment = first.astimezone(UTC)
    while moment < last.astimezone(UTC):
        since = (moment - FIRST_DAY).total_seconds()
        shop.put(f"{moment:%m-%dT%H:%M}", 0, int(since))
        moment += EACH
    by_day: list[tuple[str, int]] = shop.connection.execute(
        f"SELECT (updated_at AT TIME ZONE '{BERLIN}')::date::text, count(*) FROM shop.transactions"
        " GROUP BY 1 ORDER BY 1"
    ).fetchall()
    shop.connection.close()
    assert dict(by_day)[day] == hours * 2
    at = standing((last + HOUR).astimezone(UTC))
    settings = {"PIPELINE_TIMEZONE": BERLIN, "WAREHOUSE_START_DATE": by_day[0][0]}
    with deployed(site, tmp_path_factory, at, settings) as place:
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
    site: Site, rounds: int, tell: Callable[[str], None]
) -> None:
    """Changes are stamped with an earlier time of the day or an earlier day, and later correctly again."""
    site.spoils = False
    shop = Shop(site.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
    ticks = 0
    with dg.DagsterInstance.ephemeral() as instance:
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
            # A day that can be loaded only after another one gets its turn an hour later.
            for hour in range(4):
                daemon.tick(FIRST_DAY + timedelta(days=DAYS, hours=1 + hour + number * 5 % 15))
                ticks += 1
                if not wrong(site):
                    break
            assert wrong(site) == [], f"round {number}, {back} back"
    shop.connection.close()
    tell(
        f"{rounds} times a source's clock went back: in step after {ticks / rounds:.1f} ticks an hour apart"
    )


@pytest.mark.reliability
def test_a_worker_whose_clock_jumps_loads_every_day_in_the_end(site: Site) -> None:
    """Back, far ahead and back again: a day that was loaded too early is loaded again once it is over."""
    site.spoils = False
    for _ in range(5):
        site.change()
        with dg.DagsterInstance.ephemeral() as instance:
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


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)], ids=["spring", "autumn"]
)
def test_at_eight_local_time_each_morning_has_its_edition(
    site: Site, day: str, hours: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The mornings before, on and after the change pass in three minutes of a real daemon's schedule."""
    eight = datetime.fromisoformat(f"{day}T08:00").replace(tzinfo=ZoneInfo(BERLIN))
    moments = [eight + timedelta(days=days) for days in (-1, 0, 1)]
    begins, ends = (
        each.astimezone(UTC) for each in (moments[0] - HOUR, moments[-1] + timedelta(hours=12))
    )
    # Each of Dagster's minutes ends at about 19:00 of the shop's time, and so contains one morning.
    started = time.time() // 60 * 60 + 60 + 30
    shop_time = ShopTime(begins.isoformat(), ends.isoformat(), 1440, started)
    settings = {
        "PIPELINE_TIMEZONE": BERLIN,
        "NEWS_START_DATE": f"{eight.date() - timedelta(days=4)}",
    }
    with deployed(site, tmp_path_factory, shop_time, settings) as place:
        place.start_schedule("publish_digest_daily")
        until(lambda: shop_time.now() >= ends and len(place.runs()) >= 3 and place.is_idle())
        tags = [record.dagster_run.tags for record in place.runs(dg.DagsterRunStatus.SUCCESS)]
    keys = [f"{moment.date() - timedelta(days=1)}" for moment in moments]
    assert sorted(each["dagster/partition"] for each in tags) == keys
    folder = site.settings.pipeline_data_dir / "digests"
    made = sorted(file.stem for file in folder.glob("????-??-??.csv"))
    assert made == [f"{moment.date()}" for moment in moments]
    with site.connect("warehouse") as warehouse:
        windows = warehouse.execute(
            f"SELECT (window_end AT TIME ZONE '{BERLIN}')::time::text,"
            " extract(epoch FROM window_end - window_start)::int / 3600"
            " FROM pipeline.batches WHERE table_name = 'news_articles' ORDER BY partition_key"
        ).fetchall()
    assert windows == [("08:00:00", 24), ("08:00:00", hours), ("08:00:00", 24)]
