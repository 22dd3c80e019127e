"""The digest's assets, materialized by Dagster on a real warehouse and a real HTTP peer."""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest
from pytest_httpserver import HTTPServer

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.news.assets import mornings
from pipeline_assets.news.automation import news_automation
from pipeline_assets.operations.retention import REPRODUCIBLE
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.http import HttpClient, Limits
from pipeline_assets.running import RETRY
from pipeline_assets.settings import Settings

KEY, NEXT = "2026-11-20", "2026-11-21"
START = datetime(2026, 11, 20, 8, tzinfo=UTC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry a step as often as usual, but at once: the pauses of one that fails add up to fifty seconds."""
    monkeypatch.setattr(
        "pipeline_assets.news.assets.RETRY", dg.RetryPolicy(max_retries=RETRY.max_retries)
    )


def publish(
    settings: Settings,
    key: str = KEY,
    instance: dg.DagsterInstance | None = None,
    selection: list[str] | None = None,
) -> dg.ExecuteInProcessResult:
    """Run the digest's job for a partition."""
    client = HttpClient("test", Limits(attempts=1, connect=10, read=10, total=20))
    job = build_definitions(settings, {"http": lambda: client}).resolve_job_def("publish_digest")
    return job.execute_in_process(
        instance=instance,
        partition_key=key,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
    )


def checks(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (found,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in found.metadata.items()}


def failures(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(
        event.step_failure_data.user_failure_data.description or ""
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    )


def files(settings: Settings) -> dict[str, bytes]:
    folder = settings.pipeline_data_dir / "digests"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def with_feeds(settings: Settings, server: HTTPServer, *names: str) -> Settings:
    feeds = [
        {"outlet": name.title(), "section": "World", "url": server.url_for(f"/{name}")}
        for name in names
    ]
    return Settings.model_validate({**dict(settings), "news_provider": "rss", "news_feeds": feeds})


def feed(*titles: str, at: datetime = START + timedelta(hours=3)) -> str:
    items = "".join(
        f"<item><title>{title}</title><link>https://paper.example/{title.replace(' ', '-')}</link>"
        f"<description>{title}, in more words.</description>"
        f"<pubDate>{format_datetime(at)}</pubDate></item>"
        for title in titles
    )
    return f'<rss version="2.0"><channel><title>Paper</title>{items}</channel></rss>'


def test_a_morning_becomes_articles_in_the_warehouse_and_an_edition(
    settings: Settings, warehouse: psycopg.Connection
) -> None:
    result = publish(settings)

    assert result.success
    found = checks(result)
    assert {name for name, check in found.items() if not check.passed} == set()
    page = settings.pipeline_data_dir / "digests" / "2026-11-21.html"
    about = metadata(result, "news_digest")
    assert about["page"] == str(page)
    stories = rows(page.with_suffix(".csv"))
    assert len(stories) == about["dagster/row_count"] >= 10
    assert stories[0]["headline"] in about["preview"].replace("\\", "")
    assert "Saturday, 21 November 2026" in page.read_text()
    count = warehouse.execute(
        "SELECT count(*), count(*) FILTER (WHERE provider = 'sample'),"
        " min(published_at) >= '2026-11-20 08:00Z', max(published_at) < '2026-11-21 08:00Z',"
        " count(DISTINCT url) FROM analytics.news_articles"
    ).fetchone()
    articles = metadata(result, "news_articles")["dagster/row_count"]
    assert count == (articles, articles, True, True, articles)


def test_articles_that_break_the_contract_are_set_aside(
    settings: Settings, warehouse: psycopg.Connection
) -> None:
    publish(settings)
    found = warehouse.execute(
        "SELECT source_row ->> 'url', broken_rules FROM quarantine.news_articles ORDER BY 1"
    ).fetchall()
    assert [(url.split("/")[2], rules) for url, rules in found] == [
        ("example-post.example", ["title_present"]),
        ("removed.com", ["title_present"]),
    ]
    ledger = warehouse.execute(
        "SELECT verdict, rows_quarantined, rows_written = rows_valid FROM pipeline.batches"
        " WHERE table_name = 'news_articles'"
    ).fetchall()
    assert ledger == [("passed", 2, True)]


def test_a_morning_made_again_has_the_same_bytes(settings: Settings) -> None:
    publish(settings)
    publish(settings, NEXT)
    first = files(settings)
    for key in (NEXT, KEY):
        assert publish(settings, key).success
    assert files(settings) == first


def test_yesterdays_stories_are_updates_or_left_out(settings: Settings) -> None:
    publish(settings)
    after = metadata(publish(settings, NEXT), "news_digest")
    assert after["updates"] >= 3
    assert after["repeated"] >= 1
    page = files(settings)["2026-11-22.html"].decode()
    assert page.count(">Update<") == after["updates"]
    assert f"{after['repeated']} stor" in page


def test_an_edition_whose_files_are_gone_says_what_makes_them_again(settings: Settings) -> None:
    """As after ninety days, when retention removes the files that can be made again from the archive."""
    publish(settings)
    publish(settings, NEXT)
    first = files(settings)
    PartitionFiles(settings.files_url).remove(REPRODUCIBLE, datetime.now(UTC) + timedelta(days=1))

    assert f"materialize partition {KEY} of news_articles first" in failures(
        publish(settings, NEXT)
    )

    assert publish(settings, KEY, selection=["news_articles"]).success
    assert publish(settings, NEXT).success
    assert files(settings) == first


def test_an_edition_without_articles_says_what_to_do(settings: Settings) -> None:
    alone = publish(settings, selection=["news_digest"])
    assert (
        f"news_articles {KEY}: not validated yet; materialize the partition from its source on"
        in failures(alone)
    )


def test_too_many_broken_rows_hold_the_edition_back(
    settings: Settings, httpserver: HTTPServer, warehouse: psycopg.Connection
) -> None:
    httpserver.expect_request("/one").respond_with_data(feed("Fine", "", "[Removed]"))
    rss = with_feeds(settings, httpserver, "one")

    result = publish(rss)

    assert not result.success
    found = checks(result)["title_present"]
    assert (found.passed, found.blocking, found.metadata["violations"].value) == (False, True, 2)
    assert files(rss) == {}
    assert warehouse.execute("SELECT count(*) FROM analytics.news_articles").fetchone() == (0,)
    alone = publish(rss, selection=["news_digest"])
    assert "held by title_present" in failures(alone)


def test_a_missing_source_is_a_warning_and_on_the_page(
    settings: Settings, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/one").respond_with_data(feed("Council approves budget"))
    httpserver.expect_request("/two").respond_with_data("gone", status=410)
    rss = with_feeds(settings, httpserver, "one", "two")

    result = publish(rss)

    assert result.success
    found = checks(result)["every_source_answered"]
    assert (found.passed, found.severity.value) == (False, "WARN")
    assert found.metadata["missing"].value == {"Two: World": "answered 410"}
    page = files(rss)["2026-11-21.html"].decode()
    assert "<b>Two: World</b> answered 410." in page
    assert "Sample edition" not in page


def test_an_empty_morning_fails_before_an_edition(
    settings: Settings, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/one").respond_with_data(feed("Old", at=START - timedelta(days=2)))
    rss = with_feeds(settings, httpserver, "one")
    result = publish(rss)
    assert not result.success
    assert not checks(result)["not_empty"].passed
    assert files(rss) == {}


def test_no_answer_at_all_fails_and_never_shows_the_sample(
    settings: Settings, httpserver: HTTPServer
) -> None:
    httpserver.expect_request("/one").respond_with_data("no", status=503)
    rss = with_feeds(settings, httpserver, "one")
    result = publish(rss)
    assert not result.success
    assert files(rss) == {}


def test_articles_in_another_language_are_a_warning_when_they_are_most(
    settings: Settings, httpserver: HTTPServer
) -> None:
    german = [f"Der Stadtrat beschließt am Abend den Haushalt für Bezirk {n}" for n in range(4)]
    httpserver.expect_request("/one").respond_with_data(feed("Council approves budget", *german))
    result = publish(with_feeds(settings, httpserver, "one"))
    found = checks(result)["language_share"]
    assert (found.passed, found.severity.value) == (False, "WARN")
    assert found.metadata["languages"].value == {"en": 1, "de": 4}


def test_no_secret_gets_into_metadata_or_files(settings: Settings, httpserver: HTTPServer) -> None:
    key = "0123456789abcdef0123456789abcdef"
    httpserver.expect_request("/v2/everything").respond_with_json(
        {"status": "error", "code": "apiKeyInvalid", "message": f"bad {key}"}, status=401
    )
    newsapi = Settings.model_validate(
        {
            **dict(settings),
            "news_provider": "newsapi",
            "newsapi_key": key,
            "newsapi_url": httpserver.url_for("/").rstrip("/"),
        }
    )
    result = publish(newsapi)
    assert not result.success
    assert "set NEWSAPI_KEY to a valid one" in failures(result)
    assert key not in "".join(str(event) for event in result.all_events)


class TestSchedule:
    @pytest.mark.parametrize(
        ("tick", "partition", "hours"),
        [
            ("2027-03-28 08:00", "2027-03-27", 23),  # the clocks went forward in the night
            ("2027-03-29 08:00", "2027-03-28", 24),
            ("2027-10-31 08:00", "2027-10-30", 25),  # and back
            ("2027-11-01 08:00", "2027-10-31", 24),
        ],
    )
    def test_at_eight_local_time_the_window_has_just_closed(
        self, settings: Settings, tick: str, partition: str, hours: int
    ) -> None:
        berlin = settings.model_copy(update={"pipeline_timezone": "Europe/Berlin"})
        at = datetime.fromisoformat(tick).replace(tzinfo=ZoneInfo("Europe/Berlin"))
        definitions = build_definitions(berlin)
        schedule = definitions.resolve_schedule_def("publish_digest_daily")
        assert (schedule.cron_schedule, schedule.execution_timezone) == (
            "0 8 * * *",
            "Europe/Berlin",
        )
        with dg.build_schedule_context(
            scheduled_execution_time=at, repository_def=definitions.get_repository_def()
        ) as context:
            (request,) = schedule.evaluate_tick(context).run_requests or []
        assert request.partition_key == partition
        window = mornings(berlin).time_window_for_partition_key(partition)
        assert window.end.timestamp() == at.timestamp()
        assert (window.end.timestamp() - window.start.timestamp()) / 3600 == hours


class TestMissedMornings:
    """The sensor, tick by tick; its runs are made by hand in between."""

    def tick(
        self, settings: Settings, instance: dg.DagsterInstance, now: datetime
    ) -> dg.RunRequest | str:
        definitions = build_definitions(settings)
        assets = [definitions.resolve_assets_def(name) for name in ("news_articles", "news_digest")]
        automation = news_automation(assets, mornings(settings), running=True, now=lambda: now)
        (sensor,) = automation.sensors or []
        assert isinstance(sensor, dg.SensorDefinition)
        context = dg.build_sensor_context(
            instance,
            repository_def=definitions.get_repository_def(),
            resources=build_resources(settings),
        )
        data = sensor.evaluate_tick(context)
        return data.run_requests[0] if data.run_requests else str(data.skip_message)

    def test_nothing_was_missed_before_the_first_edition(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        assert "No edition has been made yet" in str(self.tick(settings, instance, START))

    def test_missed_mornings_are_made_oldest_first_each_once(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        publish(settings, "2026-11-17", instance)
        now = datetime(2026, 11, 22, 12, tzinfo=UTC)
        made = []
        for _ in range(5):
            request = self.tick(settings, instance, now)
            if isinstance(request, str):
                break
            assert request.partition_key
            made.append(request.partition_key)
            publish(settings, request.partition_key, instance)
        assert made == ["2026-11-18", "2026-11-19", "2026-11-20"]
        assert request == "No morning was missed."
        assert len(list((settings.pipeline_data_dir / "digests").glob("*.csv"))) == 4

    def test_one_that_failed_is_not_started_again(
        self, settings: Settings, instance: dg.DagsterInstance, httpserver: HTTPServer
    ) -> None:
        publish(settings, "2026-11-19", instance)
        httpserver.expect_request("/one").respond_with_data("no", status=503)
        publish(with_feeds(settings, httpserver, "one"), "2026-11-20", instance)
        now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        assert self.tick(settings, instance, now) == "No morning was missed."

    def test_one_that_its_gate_holds_is_left_to_a_person(
        self, settings: Settings, instance: dg.DagsterInstance, httpserver: HTTPServer
    ) -> None:
        """Its answers are archived: each hour's run would judge the same articles."""
        now = datetime.now(UTC)  # runs have today's time stamps, and the sensor looks back a week
        window = now.replace(hour=8, minute=0, second=0, microsecond=0) - timedelta(days=3)
        days = [f"{window + timedelta(days=number):%Y-%m-%d}" for number in (-2, -1, 0, 1)]
        httpserver.expect_request("/one").respond_with_data(
            feed("A", "", "", "", at=window + timedelta(hours=3))
        )
        for day in days[:2]:
            assert publish(settings, day, instance).success
        held = publish(with_feeds(settings, httpserver, "one"), days[2], instance)
        assert not held.success
        assert not checks(held)["title_present"].passed
        asked = self.tick(settings, instance, now + timedelta(hours=2))
        assert isinstance(asked, dg.RunRequest)
        assert asked.partition_key == days[3]

    def test_one_that_the_warehouse_has_lost_is_made_again(
        self, settings: Settings, instance: dg.DagsterInstance, warehouse: psycopg.Connection
    ) -> None:
        """As after a failover to a replica without the last transactions: Dagster has it as materialized."""
        for day in ("2026-11-17", "2026-11-18", "2026-11-19"):
            publish(settings, day, instance)
        now = datetime(2026, 11, 20, 12, tzinfo=UTC)
        assert self.tick(settings, instance, now) == "No morning was missed."
        everything = "SELECT url, title, published_at FROM analytics.news_articles ORDER BY url"
        before = warehouse.execute(everything).fetchall()
        made = files(settings)
        for table in ("pipeline.batches", "quarantine.news_articles"):
            warehouse.execute(f"DELETE FROM {table} WHERE partition_key = '2026-11-18'")
        warehouse.execute(
            "DELETE FROM analytics.news_articles WHERE published_at < '2026-11-19T08:00Z'"
        )

        request = self.tick(settings, instance, now)
        assert isinstance(request, dg.RunRequest)
        assert request.partition_key == "2026-11-18"
        for day in ("2026-11-17", request.partition_key):
            assert publish(settings, day, instance).success
        assert warehouse.execute(everything).fetchall() == before
        assert files(settings) == made
        assert self.tick(settings, instance, now) == "No morning was missed."

    def test_the_newest_is_left_to_the_schedule(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        publish(settings, "2026-11-19", instance)
        next_tick = datetime(2026, 11, 22, 8, tzinfo=UTC)
        before = self.tick(settings, instance, next_tick - timedelta(minutes=1))
        assert before == "No morning was missed."
        after = self.tick(settings, instance, next_tick + timedelta(minutes=1))
        assert isinstance(after, dg.RunRequest)
        assert after.partition_key == "2026-11-20"

    @pytest.mark.parametrize("job", ["publish_digest", "__ASSET_JOB"])
    def test_it_waits_while_an_edition_is_being_made(
        self, settings: Settings, instance: dg.DagsterInstance, job: str
    ) -> None:
        """By its job, or by Materialize in the UI's graph: two runs would fetch one morning at once."""
        publish(settings, "2026-11-17", instance)
        of_graph = frozenset({dg.AssetKey("news_articles")}) if job == "__ASSET_JOB" else None
        instance.add_run(
            dg.DagsterRun(
                job_name=job,
                status=dg.DagsterRunStatus.STARTED,
                tags={"dagster/partition": "2026-11-18"},
                asset_selection=of_graph,
            )
        )
        now = datetime(2026, 11, 21, 12, tzinfo=UTC)
        assert "is being made" in str(self.tick(settings, instance, now))

    def test_a_week_is_as_far_back_as_it_goes(
        self, settings: Settings, instance: dg.DagsterInstance
    ) -> None:
        publish(settings, "2026-11-02", instance)
        request = self.tick(settings, instance, datetime(2026, 11, 21, 12, tzinfo=UTC))
        assert isinstance(request, dg.RunRequest)
        assert request.partition_key == "2026-11-14"
