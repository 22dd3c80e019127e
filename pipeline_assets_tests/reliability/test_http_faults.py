"""The digest over bad networks: it is exact, says which sources it lacks, or fails; in the end it is exact.

Exact means the edition over a good network, byte for byte, and the articles that were served.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import Any, Literal

import dagster as dg
import psycopg
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline_assets.definitions import build_definitions
from pipeline_assets.failures import PERMANENT
from pipeline_assets.news.assets import HOUR
from pipeline_assets.resources.http import HttpClient, Limits
from pipeline_assets.settings import Settings
from pipeline_assets_tests.assets.test_news_assets import failures
from pipeline_assets_tests.integration.news.newsapi_server import KEY, NewsApi, article
from pipeline_assets_tests.integration.operations.test_catch_up import Daemon
from pipeline_assets_tests.integration.operations.watch import QUIET
from pipeline_assets_tests.reliability.proxy import Fault, proxy
from pipeline_assets_tests.reliability.test_faults import rounds

Provider = Literal["rss", "newsapi"]
OUTLETS = ["Courier", "Herald", "Tribune"]
FIRST = date(2026, 1, 7)
ARTICLES = 40
"""Per outlet and day."""
TOPICS = [
    "harbour",
    "bridge",
    "council",
    "river",
    "museum",
    "railway",
    "orchard",
    "glacier",
    "theatre",
]
TOPICS += ["airport", "library", "reactor", "vaccine", "satellite", "festival", "tunnel", "stadium"]
ONCE = dg.RetryPolicy(max_retries=1)
"""For steps: one retry, at once. The project's own policy gives up after some fifty seconds."""
LIMITS = Limits(connect=2, read=0.6, total=20, attempts=4, backoff=0.01)


def headline(outlet: str, day: date, number: int) -> str:
    words = Random(f"{outlet} {day} {number}").sample(TOPICS, 4)
    return f"{' '.join(words).capitalize()} number {number}"


def address(outlet: str, day: date, number: int) -> str:
    return f"https://{outlet.lower()}.example/{day}/{number}"


def published(day: date, number: int) -> datetime:
    return datetime(day.year, day.month, day.day, 9, tzinfo=UTC) + timedelta(minutes=10 * number)


def feed(outlet: str, day: date) -> bytes:
    items = "".join(
        f"<item><title>{headline(outlet, day, n)}</title><link>{address(outlet, day, n)}</link>"
        f"<description>What is known of number {n}.</description>"
        f"<pubDate>{format_datetime(published(day, n))}</pubDate></item>"
        for n in range(ARTICLES)
    )
    return f'<rss version="2.0"><channel><title>Paper</title>{items}</channel></rss>'.encode()


@dataclass
class Press:
    """The outlets' servers, the network in front of them, and the digest made from their answers."""

    settings: Settings
    server: HTTPServer
    provider: Provider
    instance: dg.DagsterInstance
    day: date = FIRST

    def __post_init__(self) -> None:
        self.api = NewsApi(self.server, most_results=1000)
        for outlet in OUTLETS:
            self.server.expect_request(f"/{outlet}").respond_with_handler(self.answer)

    @property
    def key(self) -> str:
        return self.day.isoformat()

    def next_day(self) -> None:
        """Another morning; NewsAPI gives its articles on two pages."""
        self.day += timedelta(days=1)
        self.api.everything = [
            article(
                n,
                f"{published(self.day, n % ARTICLES):%Y-%m-%dT%H:%M:%SZ}",
                title=headline(outlet, self.day, n),
                url=address(outlet, self.day, n),
                source={"id": None, "name": outlet},
            )
            for outlet in OUTLETS
            for n in range(ARTICLES)
        ]

    def answer(self, request: Request) -> Response:
        """Answer without a length, as many servers do: the end of the connection is the end of the answer."""
        body = feed(request.path.strip("/"), self.day)
        return Response(iter([body]), content_type="application/rss+xml")

    def served(self) -> list[tuple[str, str]]:
        return sorted(
            (address(outlet, self.day, n), headline(outlet, self.day, n))
            for outlet in OUTLETS
            for n in range(ARTICLES)
        )

    @contextmanager
    def behind(self, fault: Fault, outlets: int = len(OUTLETS)) -> Iterator[Settings]:
        """Settings with each outlet behind a proxy; the proxies of the first `outlets` have the fault."""
        faults = [fault] * outlets + [Fault("none")] * (len(OUTLETS) - outlets)
        with ExitStack() as stack:
            ports = [
                stack.enter_context(proxy("127.0.0.1", self.server.port, each)) for each in faults
            ]
            yield self.at([f"http://127.0.0.1:{port}" for port in ports])

    def at(self, bases: list[str]) -> Settings:
        if self.provider == "newsapi":
            there: dict[str, Any] = {"newsapi_url": bases[0], "newsapi_key": KEY}
        else:
            feeds = [
                {"outlet": outlet, "section": "World", "url": f"{base}/{outlet}"}
                for outlet, base in zip(OUTLETS, bases, strict=True)
            ]
            there = {"news_feeds": feeds}
        return Settings.model_validate(
            {
                **dict(self.settings),
                "news_provider": self.provider,
                "news_start_date": FIRST,
                **there,
            }
        )

    @property
    def good(self) -> Settings:
        return self.at([f"http://127.0.0.1:{self.server.port}"] * len(OUTLETS))

    def publish(
        self, settings: Settings, instance: dg.DagsterInstance | None = None
    ) -> dg.ExecuteInProcessResult:
        client = HttpClient("test", LIMITS)
        job = build_definitions(settings, {"http": lambda: client}).resolve_job_def(
            "publish_digest"
        )
        return job.execute_in_process(
            instance=instance or self.instance,
            partition_key=self.key,
            run_config=QUIET,
            raise_on_error=False,
        )

    def edition(self, settings: Settings) -> bytes:
        """The edition's stories, as the file has them."""
        return self.file(settings, ".csv").read_bytes()

    def file(self, settings: Settings, suffix: str) -> Path:
        day = self.day + timedelta(days=1)
        return settings.pipeline_data_dir / "digests" / f"{day}{suffix}"

    def expected(self, folder: Path) -> bytes:
        """The edition over a good network, made in a folder and a Dagster instance of its own."""
        settings = self.good.model_copy(update={"pipeline_data_dir": folder})
        with dg.DagsterInstance.ephemeral() as apart:
            result = self.publish(settings, apart)
        assert result.success, failures(result)
        return self.edition(settings)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture(params=["rss", "newsapi"])
def press(
    request: pytest.FixtureRequest,
    settings: Settings,
    httpserver: HTTPServer,
    instance: dg.DagsterInstance,
) -> Press:
    return Press(settings, httpserver, request.param, instance)


def faults(random: Random) -> list[Fault]:
    """Every fault for all connections; those that end a connection also for the first two only."""
    somewhere = random.randrange(200, 9_000)
    for_all = [
        Fault("reset", resets_after=somewhere),
        Fault("refused", resets_after=0),
        Fault("cut", resets_after=somewhere, orderly=True),
        Fault("silence", resets_after=somewhere, stalls=3 * LIMITS.read),
        Fault("latency", delays=0.05, piece=2_000),
        Fault("partial reads", piece=random.randrange(7, 99)),
    ]
    return [*for_all, *(replace(fault, connections=2) for fault in for_all[:4])]


@rounds(1, 5)
def test_the_digest_over_a_bad_network_is_exact_or_says_that_it_is_not(
    press: Press,
    seed: int,
    rounds: int,
    tmp_path: Path,
    warehouse: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[[str], None],
) -> None:
    monkeypatch.setattr("pipeline_assets.news.assets.RETRY", ONCE)
    random = Random(seed)
    exact = lacking = failed = 0
    for number in range(rounds):
        found = faults(random)
        for fault in found if rounds > 1 else random.sample(found, 3):
            press.next_day()
            what = f"{press.provider}, {fault}, round {number}"
            expected = press.expected(tmp_path / "expected")
            with press.behind(fault, random.randint(1, len(OUTLETS))) as settings:
                result = press.publish(settings)
                passes = fault.connections is not None or fault.resets_after is None
                if not result.success:
                    failed += 1
                    assert not passes, what
                    assert not press.file(settings, ".csv").exists(), what
                    (run,) = press.instance.get_runs(limit=1)
                    assert PERMANENT not in run.tags, f"{what}: {failures(result)}"
                elif missing := missing_of(result):
                    lacking += 1
                    page = press.file(settings, ".html").read_text()
                    assert all(name in page for name in missing), what
                    assert press.edition(settings) != expected, what
                else:
                    exact += 1
                    assert press.edition(settings) == expected, what
                assert passes <= (result.success and not missing_of(result)), what

            assert press.publish(press.good).success, what
            assert press.edition(press.good) == expected, what
            assert stored(warehouse, press) == press.served(), what
    tell(
        f"{exact + lacking + failed} editions over bad networks: {exact} exact at once, {lacking} said "
        f"what they lacked, {failed} failed; all exact in the end"
    )


def missing_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (found,) = (
        check
        for check in result.get_asset_check_evaluations()
        if check.check_name == "every_source_answered"
    )
    missing: dict[str, Any] = found.metadata["missing"].value  # type: ignore[assignment]  # a dict
    assert found.passed == (not missing)
    return missing


def stored(warehouse: psycopg.Connection, press: Press) -> list[tuple[str, str]]:
    rows = warehouse.execute(
        "SELECT url, title FROM analytics.news_articles WHERE published_at::date = %s ORDER BY 1",
        [press.day],
    )
    return rows.fetchall()


@pytest.mark.slow
def test_a_morning_without_any_network_is_made_when_it_is_back(
    press: Press,
    tmp_path: Path,
    warehouse: psycopg.Connection,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sensor requests it an hour after it failed."""
    monkeypatch.setattr("pipeline_assets.news.assets.RETRY", ONCE)
    today = datetime.now(UTC)
    # Whole days before the last window: if a window ended less than a day ago, NewsAPI must also have
    # articles of the last 24 hours.
    press.day = (today - timedelta(hours=HOUR)).date() - timedelta(days=4)
    press.next_day()
    press.expected(tmp_path / "expected")
    assert press.publish(press.good).success
    press.next_day()
    expected = press.expected(tmp_path / "expected")
    with press.behind(Fault("refused", resets_after=0)) as settings:
        assert not press.publish(settings).success
    missed = press.day

    daemon = Daemon(press.good, instance, "missed_mornings", "publish_digest")
    assert daemon.requests(today) == []
    assert daemon.tick(today + timedelta(hours=2)) == [missed.isoformat()]

    assert press.edition(press.good) == expected
    assert stored(warehouse, press) == press.served()
