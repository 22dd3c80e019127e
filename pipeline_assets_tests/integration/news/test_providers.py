"""What every provider and the archive behind it must do; then what is particular to each provider."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response
from werkzeug.datastructures import Headers

from pipeline_assets.failures import NotYetError, PermanentError, is_transient
from pipeline_assets.news import feeds as news_feeds
from pipeline_assets.news.feeds import Collected
from pipeline_assets.news.items import Run, Window
from pipeline_assets.news.settings import Feed, NewsSettings
from pipeline_assets.resources.http import FetchError, HttpClient, Limits
from pipeline_assets_tests.integration.news.newsapi_server import (
    KEY,
    NewsApi,
    article,
    error,
    ok,
)

BERLIN = ZoneInfo("Europe/Berlin")
WINDOW = Window(datetime(2026, 11, 21, 8, tzinfo=BERLIN), datetime(2026, 11, 22, 8, tzinfo=BERLIN))
JUST_AFTER = WINDOW.end + timedelta(minutes=1)
INSIDE = WINDOW.start + timedelta(hours=5)


def rss(*entries: tuple[str, datetime]) -> bytes:
    items = "".join(
        f"<item><title>{title}</title><link>https://paper.example/{title.replace(' ', '-')}</link>"
        f"<description>About {title}.</description><pubDate>{format_datetime(at)}</pubDate></item>"
        for title, at in entries
    )
    return f'<rss version="2.0"><channel><title>Paper</title>{items}</channel></rss>'.encode()


def quick_client() -> HttpClient:
    return HttpClient(
        "test", Limits(connect=10, read=10, total=20, attempts=3, backoff=0), sleep=lambda _: None
    )


def collect(
    settings: NewsSettings, archive: Path, now: datetime = JUST_AFTER, window: Window = WINDOW
) -> Collected:
    return news_feeds.collect(Run(window, settings, quick_client(), now), archive)


@dataclass
class Case:
    """A provider with its archive, the number of requests sent, and a way to break one of its sources."""

    settings: NewsSettings
    requests: Callable[[], int]
    break_one: Callable[[], str] | None
    """Makes one source fail from now on and returns its name; None for the sample, which requests nothing."""
    archive: Path

    def collect(self, window: Window = WINDOW, now: datetime = JUST_AFTER) -> Collected:
        return collect(self.settings, self.archive, now, window)


class FeedServer:
    """Serves feeds by name; what a name maps to can change."""

    def __init__(self, server: HTTPServer) -> None:
        self.server = server
        self.feeds: dict[str, Response | bytes] = {}
        self.requests: list[Request] = []
        server.expect_request("/").respond_with_data("")
        for name in ("one", "two", "three"):
            server.expect_request(f"/{name}").respond_with_handler(self._answer)

    def _answer(self, request: Request) -> Response:
        self.requests.append(request)
        answer = self.feeds[request.path.strip("/")]
        return answer if isinstance(answer, Response) else Response(answer)

    def settings(self, *names: str) -> NewsSettings:
        feeds = [
            {"outlet": name.title(), "section": "World", "url": self.server.url_for(f"/{name}")}
            for name in names
        ]
        return NewsSettings(news_provider="rss", news_feeds=tuple(Feed(**feed) for feed in feeds))


@pytest.fixture
def feeds(httpserver: HTTPServer) -> FeedServer:
    return FeedServer(httpserver)


@pytest.fixture
def newsapi(httpserver: HTTPServer) -> NewsApi:
    return NewsApi(httpserver)


def newsapi_settings(server: NewsApi, key: str = KEY) -> NewsSettings:
    return NewsSettings.model_validate(
        {"news_provider": "newsapi", "newsapi_key": key, "newsapi_url": server.url}
    )


@pytest.fixture(params=["sample", "rss", "newsapi"])
def case(request: pytest.FixtureRequest, httpserver: HTTPServer, tmp_path: Path) -> Case:
    if request.param == "sample":
        return Case(NewsSettings(), lambda: 0, None, tmp_path)
    if request.param == "rss":
        server = FeedServer(httpserver)
        for name in ("one", "two", "three"):
            server.feeds[name] = rss((f"Story of {name}", INSIDE))

        def break_feed() -> str:
            server.feeds["two"] = Response(status=503)
            return "Two: World"

        settings = server.settings("one", "two", "three")
        return Case(settings, lambda: len(server.requests), break_feed, tmp_path)
    api = NewsApi(httpserver)
    at = INSIDE.astimezone(UTC).isoformat().replace("+00:00", "Z")
    api.headlines = {"general": [article(1, at)], "science": [article(2, at)]}
    api.everything = [article(number, at) for number in range(3, 9)]

    def break_category() -> str:
        api.faults["science"] = [error(500, "unexpectedError")] * 3
        return "NewsAPI science headlines"

    return Case(newsapi_settings(api), lambda: len(api.requests), break_category, tmp_path)


class TestEveryProvider:
    def test_it_gives_items_of_the_window(self, case: Case) -> None:
        collected = case.collect()

        inside = [
            item
            for item in collected.items
            if item.published_at and WINDOW.start <= item.published_at < WINDOW.end
        ]
        assert len(inside) >= 3
        assert all(item.published_at.tzinfo is UTC for item in inside if item.published_at)
        assert all(item.outlet and item.section for item in inside)
        assert any(item.title and item.url.startswith("https://") for item in inside)
        assert collected.missing == {}

    def test_what_is_archived_is_not_asked_for_again_and_gives_the_same(self, case: Case) -> None:
        first = case.collect()
        asked = case.requests()

        again = case.collect(now=JUST_AFTER + timedelta(days=400))

        assert again == first
        assert case.requests() == asked

    def test_it_archives_bytes_that_match_their_checksums(self, case: Case) -> None:
        case.collect()
        folder = case.archive / case.settings.news_provider / "2026-11-21"
        index = json.loads((folder / "index.json").read_text())
        entries = [entry for source in index for entry in source["answers"]]
        files = {file.name for file in folder.iterdir()}

        assert files == {entry["file"] for entry in entries} | {"index.json"}
        assert KEY not in "".join(file.read_text() for file in folder.iterdir())

    @pytest.mark.security
    def test_an_archive_that_was_changed_is_refused(self, case: Case) -> None:
        case.collect()
        file = next((case.archive / case.settings.news_provider / "2026-11-21").glob("*.body"))
        file.write_bytes(file.read_bytes() + b" ")

        with pytest.raises(PermanentError, match="is not what was archived"):
            case.collect()

    @pytest.mark.parametrize("case", ["rss", "newsapi"], indirect=True)
    def test_one_failing_source_does_not_cost_the_edition(self, case: Case) -> None:
        assert case.break_one
        name = case.break_one()

        collected = case.collect()

        assert list(collected.missing) == [name]
        assert len(collected.items) >= 2

    @pytest.mark.parametrize("case", ["rss", "newsapi"], indirect=True)
    def test_only_the_failed_source_is_asked_again(self, case: Case) -> None:
        assert case.break_one
        case.break_one()
        broken = case.collect()
        asked = case.requests()

        again = case.collect()

        # The failed source gets at most three more attempts, the others none.
        assert case.requests() - asked <= 3
        assert len(again.items) >= len(broken.items)
        assert again.asked == broken.asked


GONE = "did not answer at the time and can't be asked any more"


class TestRss:
    def test_a_feed_that_has_not_changed_is_not_sent_again(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        body = rss(("Today", INSIDE), ("Tomorrow", INSIDE + timedelta(days=1)))
        feeds.feeds["one"] = Response(
            body, headers={"ETag": '"v1"', "Last-Modified": "Sat, 21 Nov 2026 20:00:00 GMT"}
        )
        settings = feeds.settings("one")
        first = collect(settings, tmp_path)
        feeds.feeds["one"] = Response(status=304)
        tomorrow = Window(WINDOW.end, WINDOW.end + timedelta(days=1))

        second = collect(settings, tmp_path, tomorrow.end, tomorrow)

        asked = feeds.requests[1].headers
        assert asked["If-None-Match"] == '"v1"'
        assert asked["If-Modified-Since"] == "Sat, 21 Nov 2026 20:00:00 GMT"
        assert [item.title for item in second.items] == [item.title for item in first.items]
        archived = [file.read_bytes() for file in tmp_path.glob("rss/2026-11-22/*.body")]
        assert archived == [body], "each day can be made again from its own folder"

    @pytest.mark.parametrize("damage", ["changed", "removed", "newer", "cut short"])
    def test_a_damaged_archive_of_another_day_fails_that_day_alone(
        self, feeds: FeedServer, tmp_path: Path, damage: str
    ) -> None:
        """One damaged file ended every later edition: its answer is the base of conditional requests."""
        feeds.feeds["one"] = rss(("Today", INSIDE), ("Tomorrow", INSIDE + timedelta(days=1)))
        collect(feeds.settings("one"), tmp_path)
        (body,) = tmp_path.glob("rss/*/*.body")
        index = body.with_name("index.json")
        if damage == "changed":
            body.write_bytes(b"something else")
        elif damage == "removed":
            body.unlink()
        elif damage == "newer":
            index.write_text(index.read_text().replace('"outlet"', '"publisher"'))
        else:
            index.write_text("[")
        tomorrow = Window(WINDOW.end, WINDOW.end + timedelta(days=1))
        collected = collect(feeds.settings("one"), tmp_path, tomorrow.end, tomorrow)
        assert len(collected.items) == 2

    def test_two_runs_of_a_day_leave_an_archive_that_can_be_read(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        """The bodies had the same name: the last index named the other run's bytes."""
        folder = tmp_path / "rss" / WINDOW.key
        settings = feeds.settings("one")
        indexes = []
        for title in ("First", "Second"):
            feeds.feeds["one"] = rss((title, INSIDE))
            collect(settings, tmp_path)
            indexes.append((folder / "index.json").read_bytes())
            (folder / "index.json").unlink()  # the other run began before it was there
        for index, title in zip(indexes, ("First", "Second"), strict=True):
            (folder / "index.json").write_bytes(index)
            assert [item.title for item in collect(settings, tmp_path).items] == [title]

    def test_all_sources_failing_fails_the_run_and_names_each(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        feeds.feeds = {"one": Response(status=404), "two": b"<html>no feed</html>"}

        with pytest.raises(FetchError) as raised:
            collect(feeds.settings("one", "two"), tmp_path)

        assert str(raised.value) == (
            "no source answered: One: World answered 404; "
            "Two: World answered with something that isn't a feed"
        )

    def test_a_corrected_address_is_used_for_the_day_that_failed(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        feeds.feeds = {"one": rss(("Fine", INSIDE)), "two": Response(status=404)}
        settings = feeds.settings("one", "two")
        collect(settings, tmp_path)
        feeds.feeds["three"] = rss(("Found", INSIDE))
        moved = settings.news_feeds[1].model_copy(
            update={"url": feeds.settings("three").news_feeds[0].url}
        )
        corrected = settings.model_copy(update={"news_feeds": (settings.news_feeds[0], moved)})

        collected = collect(corrected, tmp_path)

        assert {item.title for item in collected.items} == {"Fine", "Found"}
        assert collected.missing == {}

    def test_a_feed_added_later_is_not_missing_in_the_days_before(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        feeds.feeds = {"one": rss(("Fine", INSIDE)), "two": rss(("New", INSIDE))}
        collect(feeds.settings("one"), tmp_path)

        again = collect(feeds.settings("one", "two"), tmp_path)

        assert [item.title for item in again.items] == ["Fine"]
        assert again.asked == 1

    def test_a_feed_that_failed_stays_missing_when_it_is_asked_no_more(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        down = Response(status=503)
        feeds.feeds = {"one": rss(("Fine", INSIDE)), "two": down, "three": down}
        collect(feeds.settings("one", "two", "three"), tmp_path)
        feeds.feeds["two"] = rss(("Late", INSIDE))

        for _ in range(2):  # the first asks `two`, the second sends no request
            again = collect(feeds.settings("one", "two"), tmp_path)

            assert {item.title for item in again.items} == {"Fine", "Late"}
            assert again.missing == {"Three: World": GONE}
            assert again.asked == 3
        feeds.feeds["three"] = rss(("Back", INSIDE))
        assert collect(feeds.settings("one", "two", "three"), tmp_path).missing == {}

    def test_a_past_day_without_archive_says_that_feeds_have_no_history(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        later = WINDOW.end + timedelta(days=9)
        feeds.feeds["one"] = rss(("Later", later))

        with pytest.raises(PermanentError, match="has no history: it reaches back to 2026-12-01"):
            collect(feeds.settings("one"), tmp_path, later)

    def test_a_past_day_is_made_of_the_feeds_that_still_reach_back(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        later = WINDOW.end + timedelta(days=2)
        feeds.feeds = {"one": rss(("Later", later)), "two": rss(("Then", INSIDE), ("Now", later))}

        collected = collect(feeds.settings("one", "two"), tmp_path, later)

        assert list(collected.missing) == ["One: World"]
        assert "has no history" in collected.missing["One: World"]

    def test_a_past_day_may_be_made_once_a_source_that_fails_is_back(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        later = WINDOW.end + timedelta(days=2)
        feeds.feeds = {"one": rss(("Later", later)), "two": Response(status=503)}
        with pytest.raises(FetchError, match="no source has news of 2026-11-21 any more") as raised:
            collect(feeds.settings("one", "two"), tmp_path, later)
        assert is_transient(raised.value)
        feeds.feeds["two"] = Response(status=410)  # and for good
        with pytest.raises(PermanentError) as in_vain:
            collect(feeds.settings("one", "two"), tmp_path, later)
        assert not is_transient(in_vain.value)
        feeds.feeds["two"] = rss(("Then", INSIDE), ("Now", later))
        assert collect(feeds.settings("one", "two"), tmp_path, later).items


def dated(text: str) -> bytes:
    return (
        "<rss version='2.0'><channel><item><title>A</title><link>https://a.example/1</link>"
        f"<pubDate>{text}</pubDate></item></channel></rss>"
    ).encode()


NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
# Ways to write noon UTC on 21 November 2026, or that day without a time.
DATES = {
    "Sat, 21 Nov 2026 12:00:00 GMT": NOON,
    "Sat, 21 Nov 2026 12:00:00 +0000": NOON,
    "Sat, 21 Nov 2026 12:00:00 UT": NOON,
    "Sat, 21 Nov 2026 12:00:00 Z": NOON,
    "Sat, 21 Nov 2026 07:00:00 EST": NOON,
    "Sat, 21 Nov 2026 04:00:00 PST": NOON,
    "Sat, 21 Nov 2026 23:00:00 AEDT": NOON,
    "Sat, 21 Nov 2026 17:30:00 IST": NOON,
    "Sat, 21 Nov 2026 13:00:00 +0100": NOON,
    "Sat, 21 Nov 2026 13:00:00 +01:00": NOON,
    "Sat, 21 Nov 2026 17:30:00 +0530": NOON,
    "Sat, 21 Nov 2026 12:00 GMT": NOON,
    "21 Nov 2026 12:00:00 GMT": NOON,
    "Sat, 21 Nov 26 12:00:00 GMT": NOON,
    "Saturday, 21 November 2026 12:00:00 GMT": NOON,
    "Saturday, 21-Nov-26 12:00:00 GMT": NOON,
    "Sat Nov 21 12:00:00 2026": NOON,
    "Nov 21, 2026 12:00 PM": NOON,
    "November 21, 2026 12:00:00 UTC": NOON,
    "2026-11-21T12:00:00Z": NOON,
    "2026-11-21T12:00:00+00:00": NOON,
    "2026-11-21T12:00:00.000Z": NOON,
    "2026-11-21T13:00:00+01:00": NOON,
    "2026-11-21T13:00:00+0100": NOON,
    "2026-11-21T12:00Z": NOON,
    "2026-11-21 12:00:00": NOON,
    "2026-11-21 12:00:00 +0000": NOON,
    "20261121T120000Z": NOON,
    "2026-11-21": NOON.replace(hour=0),
    "20261121": NOON.replace(hour=0),
    "Sat, 21 Nov 2026": NOON.replace(hour=0),
    "2026/11/21 12:00:00 GMT": NOON,
}


def described(text: str, encoding: str = "utf-8") -> bytes:
    return (
        f"<?xml version='1.0' encoding='{encoding}'?><rss version='2.0'><channel><item>"
        f"<title>A</title><description>{text}</description></item></channel></rss>"
    ).encode("latin-1")


class NowhereResponse(Response):
    """A redirect to an invalid URL, which werkzeug would refuse to send."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        del environ
        return Headers({"Location": "http://[", "Content-Length": "0"})


UNREADABLE = "answered with a feed that can't be read"
# A source's answer, and the reason reported for it; the feed reader raised a different error on each.
BROKEN: dict[str, tuple[Response | bytes, str]] = {
    "a number that is no character": (described("&#1234567890;"), UNREADABLE),
    "a number beyond any": (described("&#99999999999;"), UNREADABLE),
    "half a character": (described("&#xD800;"), UNREADABLE),
    "an encoding that refuses": (described("caf\xe9", "undefined"), UNREADABLE),
    "a redirect to no URL": (
        NowhereResponse(status=302),
        "redirects to an address that isn't a valid URL",
    ),
    "a pause of 5,000 digits": (
        Response(status=429, headers={"Retry-After": "9" * 5000}),
        "answered 429",
    ),
    "a pause until a year without end": (
        Response(status=429, headers={"Retry-After": "Fri, 31 Dec 9999999999 23:59:59 GMT"}),
        "answered 429",
    ),
}


class TestHostileFeeds:
    @pytest.mark.security
    @pytest.mark.parametrize("name", BROKEN)
    def test_a_broken_feed_costs_the_edition_nothing_but_itself(
        self, feeds: FeedServer, tmp_path: Path, name: str
    ) -> None:
        answer, reason = BROKEN[name]
        feeds.feeds = {"one": rss(("Fine", INSIDE)), "two": answer}

        collected = collect(feeds.settings("one", "two"), tmp_path)

        assert [item.title for item in collected.items] == ["Fine"]
        assert collected.missing == {"Two: World": reason}

    @pytest.mark.parametrize("text", DATES)
    def test_dates_are_read(self, feeds: FeedServer, tmp_path: Path, text: str) -> None:
        feeds.feeds["one"] = dated(text)
        (item,) = collect(feeds.settings("one"), tmp_path).items
        assert item.published_at == DATES[text]

    @pytest.mark.parametrize(
        "text", ["", "yesterday", "32 Foo 2026", "0000-00-00", "12:00", "Sat, 21 Nov 0000 25:61"]
    )
    def test_what_is_no_date_is_none(self, feeds: FeedServer, tmp_path: Path, text: str) -> None:
        feeds.feeds["one"] = dated(text)
        (item,) = collect(feeds.settings("one"), tmp_path).items
        assert item.published_at is None

    @pytest.mark.parametrize(
        ("body", "title"),
        [
            (b"<rss version='0.91'><channel><item><title>T</title></item></channel></rss>", "T"),
            (
                b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
                b'xmlns="http://purl.org/rss/1.0/"><channel/><item><title>T</title></item></rdf:RDF>',
                "T",
            ),
            (
                b'<feed xmlns="http://www.w3.org/2005/Atom"><entry><title type="html">'
                b"T &amp;amp; U</title></entry></feed>",
                "T &amp; U",
            ),
        ],
        ids=["RSS 0.91", "RSS 1.0", "Atom"],
    )
    def test_the_dialects_are_read(
        self, feeds: FeedServer, tmp_path: Path, body: bytes, title: str
    ) -> None:
        feeds.feeds["one"] = body
        (item,) = collect(feeds.settings("one"), tmp_path).items
        assert item.title == title

    @pytest.mark.parametrize("part", [0, 0.5, 0.9])
    def test_a_feed_that_is_cut_short_is_asked_again_and_not_archived(
        self, feeds: FeedServer, tmp_path: Path, part: float
    ) -> None:
        """A lost connection may look like the end of the answer; the entries received aren't all."""
        whole = rss(*((f"Number {n}", INSIDE) for n in range(20)))
        feeds.feeds["one"] = whole[: int(len(whole) * part)]
        with pytest.raises(FetchError, match="One: World broke off its answer"):
            collect(feeds.settings("one"), tmp_path)
        assert len(feeds.requests) == 3
        feeds.feeds["one"] = whole
        assert len(collect(feeds.settings("one"), tmp_path).items) == 20

    @pytest.mark.parametrize(
        ("declared", "actual"),
        [("utf-8", "utf-8"), ("iso-8859-1", "utf-8"), ("utf-8", "cp1252"), ("utf-16", "utf-8")],
    )
    def test_a_wrong_charset_does_not_garble(
        self, feeds: FeedServer, tmp_path: Path, declared: str, actual: str
    ) -> None:
        text = (
            f'<?xml version="1.0" encoding="{declared}"?>' + rss(("Café “Zürich”", INSIDE)).decode()
        )
        feeds.feeds["one"] = Response(
            text.encode(actual), content_type=f"application/rss+xml; charset={declared}"
        )
        (item,) = collect(feeds.settings("one"), tmp_path).items
        assert item.title == "Café “Zürich”"

    @pytest.mark.security
    def test_entities_neither_multiply_nor_read_files(
        self, feeds: FeedServer, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("the secret")
        laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
        feeds.feeds["one"] = (
            f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY l0 "lol">{laughs}'
            f'<!ENTITY f SYSTEM "{secret.as_uri()}">]><rss version="2.0"><channel>'
            "<item><title>A &l9; B</title><description>&f;</description></item></channel></rss>"
        ).encode()

        (item,) = collect(feeds.settings("one"), tmp_path).items

        assert len(item.title) < 1000
        assert "the secret" not in item.summary

    def test_a_feed_with_endless_entries_is_cut(self, feeds: FeedServer, tmp_path: Path) -> None:
        feeds.feeds["one"] = rss(*[(f"Number {n}", INSIDE) for n in range(700)])
        collected = collect(feeds.settings("one"), tmp_path)
        assert len(collected.items) == 500


class TestNewsApi:
    def collect(
        self, server: NewsApi, folder: Path, now: datetime = JUST_AFTER, **changes: Any
    ) -> Collected:
        settings = newsapi_settings(server).model_copy(update=changes)
        return collect(settings, folder, now)

    @pytest.mark.security
    def test_the_key_is_in_the_header_and_nowhere_else(
        self, newsapi: NewsApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        newsapi.everything = [article(1, "2026-11-21T12:00:00Z")]
        self.collect(newsapi, tmp_path)

        assert all(request.headers["X-Api-Key"] == KEY for request in newsapi.requests)
        assert all(KEY not in request.url for request in newsapi.requests)
        assert KEY not in caplog.text
        assert KEY not in repr(newsapi_settings(newsapi))

    def test_a_fresh_window_asks_for_headlines_and_everything_inside_it(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.headlines["sports"] = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.everything = [
            article(2, "2026-11-21T06:59:59Z"),
            article(3, "2026-11-21T07:00:00Z"),
            article(4, "2026-11-22T06:59:59Z"),
            article(5, "2026-11-22T07:00:00Z"),
        ]
        items = self.collect(newsapi, tmp_path).items

        assert sorted(item.url.partition("?")[0][-1] for item in items) == ["1", "3", "4"]
        assert {item.section for item in items} == {"Sport", "Top stories"}

    def test_a_past_window_asks_for_everything_alone(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.everything = [article(1, "2026-11-21T12:00:00Z")]
        self.collect(newsapi, tmp_path, now=WINDOW.end + timedelta(days=5))
        assert {request.path for request in newsapi.requests} == {"/v2/everything"}

    @pytest.mark.parametrize("early", [[], [article(1, "2026-11-21T07:00:30Z")]])
    def test_a_plan_that_is_a_day_late_is_asked_again_a_day_later(
        self, newsapi: NewsApi, tmp_path: Path, early: list[dict[str, Any]]
    ) -> None:
        """When the window closes, at most its first minute is available; that must not pass for all of it."""
        newsapi.headlines["sports"] = [article(2, "2026-11-21T12:00:00Z")]
        newsapi.everything = [*early, article(3, "2026-11-21T12:00:00Z")]
        newsapi.newest = JUST_AFTER - timedelta(hours=24)
        first = self.collect(newsapi, tmp_path)
        assert [item.section for item in first.items] == ["Sport"]
        assert first.missing == {
            "NewsAPI everything": "has no article of the last 24 hours: "
            "with a free key NewsAPI gives them a day late"
        }
        newsapi.newest += timedelta(hours=24)

        again = self.collect(newsapi, tmp_path, now=JUST_AFTER + timedelta(hours=24))

        assert again.missing == {}
        assert len(again.items) == 2 + len(early)

    def test_headlines_that_failed_stay_missing_when_their_day_is_over(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.everything = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.faults["science"] = [error(500, "unexpectedError")] * 3
        first = self.collect(newsapi, tmp_path)
        assert first.missing == {"NewsAPI science headlines": "answered 500 (unexpectedError)"}

        again = self.collect(newsapi, tmp_path, now=WINDOW.end + timedelta(days=2))

        assert again.missing == {"NewsAPI science headlines": GONE}
        assert (again.items, again.asked) == (first.items, 8)

    @pytest.mark.parametrize(("most", "pages", "count"), [(100, 2, 100), (1000, 3, 250)])
    def test_paging_ends_with_the_data_or_the_plan(
        self, newsapi: NewsApi, tmp_path: Path, most: int, pages: int, count: int
    ) -> None:
        newsapi.most_results = most
        newsapi.everything = [article(n, "2026-11-21T12:00:00Z") for n in range(250)]
        collected = self.collect(newsapi, tmp_path, now=WINDOW.end + timedelta(days=5))

        assert len(newsapi.requests) == pages
        assert len(collected.items) == count
        assert collected.missing == {}

    def test_rate_limits_and_errors_of_the_moment_are_retried(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.everything = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.faults["everything"] = [
            error(429, "rateLimited", Retry_After="1"),
            Response('{"status": "ok", "articles": [{"tit', content_type="application/json"),
        ]
        assert len(self.collect(newsapi, tmp_path).items) == 1

    @pytest.mark.security
    @pytest.mark.parametrize("total", ["many", [], {}, None, 1e400])
    def test_a_number_of_results_that_is_none_costs_its_source_alone(
        self, newsapi: NewsApi, tmp_path: Path, total: Any
    ) -> None:
        newsapi.headlines["general"] = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.faults["everything"] = [ok({"status": "ok", "totalResults": total, "articles": []})]

        collected = self.collect(newsapi, tmp_path)

        assert len(collected.items) == 1
        assert collected.missing == {
            "NewsAPI everything": "answered with JSON that isn't NewsAPI's"
        }

    @pytest.mark.parametrize("text", ["", "soon", "0001-01-01T00:00:00+05:00"])
    def test_what_is_no_date_is_none(self, newsapi: NewsApi, tmp_path: Path, text: str) -> None:
        newsapi.headlines["general"] = [article(1, text)]
        (item,) = self.collect(newsapi, tmp_path).items
        assert item.published_at is None

    def test_half_a_character_is_no_failure(self, newsapi: NewsApi, tmp_path: Path) -> None:
        """JSON can hold half a surrogate pair: a teaser that was cut in the middle of an emoji."""
        half = article(1, "2026-11-21T12:00:00Z", description="Rain \ud83d", title="Storm \udc00")
        newsapi.headlines["general"] = [half]
        (item,) = self.collect(newsapi, tmp_path).items
        assert (item.title, item.summary) == ("Storm ?", "Rain ?")

    @pytest.mark.parametrize(
        ("status", "code", "advice"),
        [
            (401, "apiKeyInvalid", "set NEWSAPI_KEY to a valid one"),
            (401, "apiKeyDisabled", "set NEWSAPI_KEY to a valid one"),
        ],
    )
    def test_a_refused_key_is_permanent_and_says_what_to_do(
        self, newsapi: NewsApi, tmp_path: Path, status: int, code: str, advice: str
    ) -> None:
        newsapi.faults["everything"] = [error(status, code)] * 9

        with pytest.raises(PermanentError, match=f"{code}.*{advice}") as raised:
            self.collect(newsapi, tmp_path, now=WINDOW.end + timedelta(days=5))

        assert len(newsapi.requests) == 1, "asking again is pointless, and costs quota"
        assert KEY not in str(raised.value)

    def test_a_quota_that_is_used_up_is_for_a_later_run(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.faults["everything"] = [error(429, "apiKeyExhausted")] * 9
        with pytest.raises(NotYetError, match=r"apiKeyExhausted.*again later"):
            self.collect(newsapi, tmp_path, now=WINDOW.end + timedelta(days=5))
        assert len(newsapi.requests) == 1

    def test_a_refusal_ends_the_edition_with_sources_still_waiting(
        self, newsapi: NewsApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The wait for them never ended: `as_completed` doesn't yield the futures that were cancelled."""
        monkeypatch.setattr(news_feeds, "CONCURRENCY", 1)
        newsapi.faults["general"] = [error(401, "apiKeyInvalid")] * 9
        with pytest.raises(PermanentError, match="apiKeyInvalid"):
            self.collect(newsapi, tmp_path)

    def test_what_came_before_the_quota_ran_out_is_kept(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.headlines["business"] = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.faults["everything"] = [error(429, "apiKeyExhausted")]
        with pytest.raises(PermanentError):
            self.collect(newsapi, tmp_path)
        newsapi.requests.clear()

        self.collect(newsapi, tmp_path)

        asked = [request.args.get("category", "everything") for request in newsapi.requests]
        assert "everything" in asked
        assert "business" not in asked

    def test_a_day_beyond_the_plan_is_permanent_and_says_what_to_do(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.faults["everything"] = [error(426, "parameterInvalid")] * 3
        with pytest.raises(PermanentError, match=r"it has no such history.*NEWSAPI_KEY") as raised:
            self.collect(newsapi, tmp_path, now=WINDOW.end + timedelta(days=60))
        assert not is_transient(raised.value), "each try costs quota: a free key has 100 a day"
        assert len(newsapi.requests) == 1

    def test_a_day_beyond_the_plan_keeps_the_headlines_that_it_has(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.headlines["general"] = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.faults["everything"] = [error(426, "parameterInvalid")] * 2
        for now in (JUST_AFTER, WINDOW.end + timedelta(days=60)):
            collected = self.collect(newsapi, tmp_path, now=now)
            assert len(collected.items) == 1
            assert "it has no such history" in collected.missing["NewsAPI everything"]

    def test_a_country_without_headlines_leaves_everything(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        newsapi.headlines["general"] = [article(1, "2026-11-21T12:00:00Z")]
        newsapi.everything = [article(2, "2026-11-21T12:00:00Z")]
        items = self.collect(newsapi, tmp_path, newsapi_country="de").items
        assert [item.url.partition("?")[0][-1] for item in items] == ["2"]

    def test_articles_with_nothing_in_them_are_passed_on_as_they_are(
        self, newsapi: NewsApi, tmp_path: Path
    ) -> None:
        nothing = dict.fromkeys(article(1, ""), None)
        newsapi.headlines["general"] = [nothing]
        (item,) = self.collect(newsapi, tmp_path).items
        assert (item.title, item.url, item.outlet, item.published_at) == ("", "", "", None)


class TestSample:
    def test_a_date_always_gives_the_same_and_another_date_something_else(
        self, tmp_path: Path
    ) -> None:
        def made(folder: str, window: Window) -> dict[str, bytes]:
            collect(NewsSettings(), tmp_path / folder, window=window)
            files = (tmp_path / folder / "sample" / window.key).iterdir()
            return {file.name: file.read_bytes() for file in files}

        next_day = Window(*(moment + timedelta(days=1) for moment in WINDOW))
        assert made("a", WINDOW) == made("b", WINDOW)
        assert made("a", WINDOW) != made("a", next_day)

    def test_every_address_is_one_that_nobody_can_own(self, tmp_path: Path) -> None:
        items = collect(NewsSettings(), tmp_path).items
        hosts = {item.url.split("/")[2] for item in items}
        assert all(host.endswith(".example") for host in hosts - {"removed.com"})

    def test_it_is_never_a_fall_back(self, feeds: FeedServer, tmp_path: Path) -> None:
        feeds.feeds["one"] = Response(status=500)
        with pytest.raises(FetchError):
            collect(feeds.settings("one"), tmp_path)
        assert not (tmp_path / "sample").exists()
