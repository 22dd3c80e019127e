"""The provider `rss`: RSS 0.9x, 1.0, 2.0 and Atom feeds of the configured outlets, no key needed.

Also the parser of the sample outlets, whose feeds are made here instead of fetched.
"""

from calendar import timegm
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

from pipeline_assets.news.items import Answer, Item, Source, Window
from pipeline_assets.news.settings import NewsSettings
from pipeline_assets.resources.http import FetchError, HttpClient

# The busiest feeds have 200 entries; a feed with more is broken or wants to fill the page.
MAX_ENTRIES = 500


def sources(settings: NewsSettings, window: Window, now: datetime) -> list[Source]:
    """Every configured feed; a feed has no history, but what it still lists may reach back."""
    del window, now
    return [
        Source(f"{feed.outlet}: {feed.section}", feed.outlet, feed.section, str(feed.url))
        for feed in settings.news_feeds
    ]


def fetch(
    source: Source,
    window: Window,
    settings: NewsSettings,
    client: HttpClient,
    before: Sequence[Answer],
) -> list[Answer]:
    """Ask for the feed, unless it is the same as `before`, its last answers.

    Raises FetchError, in words that complete "<source> ...".
    """
    del window, settings
    known = before[0] if before else None
    conditions = {
        condition: known.headers[header]
        for condition, header in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
        if known and header in known.headers
    }
    accept = "application/rss+xml, application/atom+xml, application/xml;q=0.9, */*;q=0.5"
    response = client.get(source.url, headers={"Accept": accept, **conditions})
    now = datetime.now(UTC)
    if response.status == 304 and known:
        return [Answer(known.url, now, known.headers, known.body)]
    if response.status != 200:
        raise FetchError(f"answered {response.status}")
    headers = {
        name: response.headers[name]
        for name in ("etag", "last-modified", "content-type")
        if name in response.headers
    }
    return [Answer(response.url, now, headers, response.body)]


def parse(source: Source, answer: Answer) -> list[Item]:
    """The feed's entries, in its order. Raises FetchError when the body is no feed at all."""
    import feedparser

    feed = feedparser.parse(
        answer.body,
        response_headers={"content-type": _content_type(answer)},
        # Articles are reduced to text, which is stricter and a third faster.
        sanitize_html=False,
        resolve_relative_uris=False,
    )
    if not feed.version and not feed.entries:
        raise FetchError("answered with something that isn't a feed")
    declared = str(feed.feed.get("language") or "")
    return [_item(entry, source, answer, declared) for entry in feed.entries[:MAX_ENTRIES]]


def _content_type(answer: Answer) -> str:
    """The declared type, with the charset corrected where the bytes themselves prove it wrong.

    Text in another charset is practically never valid UTF-8, while feeds in UTF-8 that declare
    iso-8859-1 are common.
    """
    declared = answer.headers.get("content-type", "application/xml")
    try:
        answer.body.decode("utf-8")
    except UnicodeDecodeError:
        return declared
    return f"{declared.partition(';')[0]}; charset=utf-8"


def _item(entry: Mapping[str, Any], source: Source, answer: Answer, language: str) -> Item:
    link = str(entry.get("link") or "").strip()
    contents = entry.get("content") or [{}]
    return Item(
        outlet=source.outlet,
        section=source.section,
        url=_absolute(answer.url, link),
        title=str(entry.get("title") or ""),
        summary=str(entry.get("summary") or contents[0].get("value") or ""),
        author=str(entry.get("author") or ""),
        language=language,
        published_at=_published_at(entry),
        fetched_at=answer.fetched_at,
    )


def _absolute(base: str, link: str) -> str:
    try:
        return urljoin(base, link) if link else ""
    except ValueError:  # such as an unclosed bracket of an IPv6 address
        return ""


def _published_at(entry: Mapping[str, Any]) -> datetime | None:
    parsed = entry.get("published_parsed") or entry.get("updated_parsed")
    if parsed is not None:
        try:
            return datetime.fromtimestamp(timegm(parsed), UTC)
        except (ValueError, OverflowError, OSError):  # a year 0 in an otherwise readable date
            return None
    return _unusual_date(str(entry.get("published") or entry.get("updated") or ""))


def _unusual_date(text: str) -> datetime | None:
    from dateutil import parser

    try:
        moment = parser.parse(text[:100])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
