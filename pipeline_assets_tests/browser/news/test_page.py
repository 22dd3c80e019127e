"""The digest page in Chromium: hostile feeds do nothing, and everybody can read it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import pytest
from pytest_httpserver import HTTPServer

from pipeline_assets.news import digest
from pipeline_assets.news.intake import take_in
from pipeline_assets.news.items import Run, Window
from pipeline_assets.news.settings import Feed, NewsSettings
from pipeline_assets.resources.http import HttpClient, Limits

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed"
    ),
]
WINDOW = Window(datetime(2026, 11, 21, 8, tzinfo=UTC), datetime(2026, 11, 22, 8, tzinfo=UTC))
BEFORE = Window(datetime(2026, 11, 20, 8, tzinfo=UTC), WINDOW.start)
WIDTHS = {"phone": 390, "desktop": 1280}


def edition(run: Run, folder: Path) -> digest.Edition:
    """A morning's edition as the pipeline makes it, without the warehouse in between."""
    taken, articles = take_in(run, folder / "archive")
    good = [article for article in articles if article.title and article.url]
    return digest.compose(run.window, run.settings, taken, good, [])


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM or "/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sample_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second of two sample editions, with a missing source and a link to the day before."""
    folder = tmp_path_factory.mktemp("digests")
    for window in (BEFORE, WINDOW):
        run = Run(window, NewsSettings(), HttpClient("test"), window.end)
        one = edition(run, folder)
        if window is WINDOW:
            one = replace(one, missing=(("Sample Gazette", "answered 503"),))
        page = digest.publish(one, folder / "digests")
    return page


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "&lt;script&gt;window.pwned = 1&lt;/script&gt;",
    '<img src="https://spy.example/pixel.gif" onerror="window.pwned = 1">',
    '<svg onload="window.pwned = 1"><script>window.pwned = 1</script></svg>',
    '"><iframe src="https://spy.example/"></iframe>',
    "' onmouseover='window.pwned = 1' autofocus onfocus='window.pwned = 1",
    "<style>@import 'https://spy.example/x.css'; * { background: url(//spy.example) }</style>",
    '<meta http-equiv="refresh" content="0;url=https://spy.example/">',
    '<base href="https://spy.example/"><link rel="stylesheet" href="https://spy.example/x.css">',
    '<form action="https://spy.example/"><input autofocus onfocus="window.pwned = 1"></form>',
    "</title></h2></style><script>window.pwned = 1</script>",
    "<!--<img src='--><img src=x onerror=window.pwned=1//'>",
    "{{ ''.__class__.__mro__ }} {% include '/etc/passwd' %}",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1>",
    "\u202ereversed <b>bold</b> &#0; &#x1f600;",
    "A" * 1_000_000,
]
LINKS = [
    "javascript:window.pwned=1",
    "data:text/html,<script>window.pwned=1</script>",
    'https://x.example/"onclick="window.pwned=1',
    "https://bank.example@spy.example/",
    "https://x.example/ok",
]


@pytest.fixture
def hostile_page(httpserver: HTTPServer, tmp_path: Path) -> Path:
    """A page made of feeds that attack with every field they have."""
    items = []
    for number, attack in enumerate(ATTACKS):
        text = escape(f"Attack {number} of the day {attack} number{number} word{number}")
        links = [*LINKS, f"https://x.example/{number}"]
        items += [
            f"<item><title>{text}</title><link>{escape(link, {chr(34): '&quot;'})}</link>"
            f"<description>{text}</description><author>{text[:5000]}</author>"
            f"<pubDate>{format_datetime(WINDOW.start)}</pubDate></item>"
            for link in (links if number == 0 else links[-1:])
        ]
    body = (
        f'<rss version="2.0"><channel><title>{ATTACKS[0]}</title>{"".join(items)}</channel></rss>'
    )
    httpserver.expect_request("/feed").respond_with_data(body.replace("\x00", ""))
    outlets = [
        Feed.model_validate({"outlet": outlet, "section": outlet, "url": httpserver.url_for(path)})
        for outlet, path in (("<b onclick=pwned()>Outlet", "/feed"), ("<script>Gone", "/gone"))
    ]
    settings = NewsSettings(news_provider="rss", news_feeds=tuple(outlets), news_cap_per_source=100)
    client = HttpClient("test", Limits(attempts=1))
    run = Run(WINDOW, settings, client, WINDOW.end)
    return digest.publish(edition(run, tmp_path), tmp_path / "digests")


@dataclass
class Watched:
    """A page with everything that it tried to do."""

    page: "Page"
    requests: list[str] = field(default_factory=list)
    failures: list[tuple[str, str | None]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def opened(browser: "Browser", path: Path, **context: Any) -> Watched:
    page = browser.new_context(**context).new_page()
    watched = Watched(page)
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("requestfailed", lambda one: watched.failures.append((one.url, one.failure)))
    page.on("console", lambda message: watched.messages.append(message.text))
    page.on("pageerror", lambda error: watched.messages.append(str(error)))
    page.on("dialog", lambda dialog: watched.messages.append(dialog.message))
    page.goto(path.as_uri())
    page.wait_for_timeout(300)
    return watched


@pytest.mark.security
class TestHostileFeeds:
    @pytest.mark.parametrize("name", ["2026-11-22.html", "index.html", "feed.xml"])
    def test_nothing_executes_and_no_request_leaves_the_page(
        self, browser: "Browser", hostile_page: Path, name: str
    ) -> None:
        watched = opened(browser, hostile_page.with_name(name))
        page = watched.page
        for link in page.locator("main a").all():
            link.hover(force=True)
            link.focus()

        assert page.evaluate("window.pwned") is None
        # No message either: no attack was left in the page for the policy to stop.
        assert watched.messages == []
        assert watched.requests == [hostile_page.with_name(name).as_uri()]

    def test_strangers_text_makes_no_elements(self, browser: "Browser", hostile_page: Path) -> None:
        page = opened(browser, hostile_page).page
        names = set(page.evaluate("[...document.querySelectorAll('body *')].map(e => e.localName)"))
        assert names <= {
            *(
                "a",
                "header",
                "main",
                "footer",
                "nav",
                "section",
                "article",
                "div",
                "h1",
                "h2",
                "h3",
            ),
            *("p", "span", "strong", "b", "ul", "li", "time", "q", "cite"),
        }
        handlers = page.evaluate(
            "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
            ".filter(name => name.startsWith('on') || name === 'style')"
        )
        assert handlers == []

    def test_every_link_is_plain_web_or_our_own(
        self, browser: "Browser", hostile_page: Path
    ) -> None:
        page = opened(browser, hostile_page).page
        links = page.evaluate("[...document.links].map(a => a.href)")
        ours = hostile_page.parent.as_uri()
        assert len([link for link in links if link.startswith("https://x.example/")]) >= 12
        assert all(link.startswith(("https://x.example/", ours)) for link in links), links

    def test_the_policy_would_stop_what_got_through(
        self, browser: "Browser", hostile_page: Path
    ) -> None:
        page_with_hole = hostile_page.with_name("hole.html")
        html = hostile_page.read_text(encoding="utf-8")
        hole = "".join(attack for attack in ATTACKS[:10] if "refresh" not in attack)
        page_with_hole.write_text(html.replace("</main>", f"{hole}</main>"), encoding="utf-8")
        watched = opened(browser, page_with_hole)
        assert watched.page.evaluate("window.pwned") is None
        asked = {url for url in watched.requests if not url.startswith("file:")}
        assert "https://spy.example/pixel.gif" in asked, "the hole is one"
        assert {(url, reason) for url, reason in watched.failures if url in asked} == {
            (url, "csp") for url in asked
        }


class TestReading:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("device", WIDTHS)
    @pytest.mark.parametrize("name", ["2026-11-22.html", "index.html"])
    def test_axe_finds_nothing(
        self, browser: "Browser", sample_page: Path, name: str, device: str, scheme: str
    ) -> None:
        from axe_playwright_python.sync_playwright import Axe

        viewport = {"width": WIDTHS[device], "height": 900}
        watched = opened(
            browser, sample_page.with_name(name), viewport=viewport, color_scheme=scheme
        )
        found = Axe().run(watched.page).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == []

    @pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
    def test_no_width_needs_sideways_scrolling(
        self, browser: "Browser", sample_page: Path, hostile_page: Path, width: int
    ) -> None:
        for path in (sample_page, sample_page.with_name("index.html"), hostile_page):
            page = opened(browser, path, viewport={"width": width, "height": 800}).page
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path

    def test_light_and_dark_follow_the_reader(self, browser: "Browser", sample_page: Path) -> None:
        def brightness(scheme: str) -> int:
            page = opened(browser, sample_page, color_scheme=scheme).page
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(int(part) for part in color.strip("rgb()").split(",")[:3])

        assert brightness("light") > 700
        assert brightness("dark") < 120

    def test_on_paper_there_is_no_navigation(self, browser: "Browser", sample_page: Path) -> None:
        page = opened(browser, sample_page, color_scheme="dark").page
        assert page.locator("nav").first.is_visible()
        page.emulate_media(media="print")
        assert not page.locator("nav").first.is_visible()
        assert page.locator("article").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
            "rgb(255, 255, 255)",
            "rgba(0, 0, 0, 0)",
        )

    def test_days_and_sections_are_a_key_press_away(
        self, browser: "Browser", sample_page: Path
    ) -> None:
        page = opened(browser, sample_page).page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the stories"
        page.get_by_role("link", name="All editions").first.click()
        assert page.title() == "Morning digest, all editions"
        page.get_by_role("link", name="Sat 21").click()
        assert page.get_by_role("heading", level=1).inner_text() == "Morning digest"
        page.locator("a[rel=next]").first.click()
        assert page.url == sample_page.as_uri()
        page.get_by_role("navigation", name="Sections").get_by_role("link").last.click()
        assert page.evaluate("window.scrollY") > 0
