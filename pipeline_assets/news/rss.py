"""The provider `rss`: RSS 0.9x, 1.0, 2.0 and Atom feeds of the configured outlets, no key needed.

Also the parser of the sample outlets, whose feeds are made here instead of fetched.
"""

import re
from calendar import timegm
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from time import struct_time
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.parsers import expat

from pipeline_assets.news.items import Answer, Item, Run, Source
from pipeline_assets.resources.http import FetchError, Response, is_transient

# The busiest feeds have 200 entries; a feed with more is broken or wants to fill the page.
MAX_ENTRIES = 500
MAX_ATTRIBUTES = 500
"""Of one tag. Python's XML reader walks over all for each: 100,000 in a feed of 1 MB took two minutes."""

ROOT = re.compile(rb"<((?:\w+:)?(?:rss|feed|RDF))\b[^>]*(?<!/)>")
"""How a feed's document opens; it ends where this is closed."""


def sources(run: Run) -> list[Source]:
    """Every configured feed; a feed has no history, but what it still lists may reach back."""
    return [
        Source(f"{feed.outlet}: {feed.section}", feed.outlet, feed.section, str(feed.url))
        for feed in run.settings.news_feeds
    ]


def fetch(source: Source, run: Run, before: Sequence[Answer]) -> list[Answer]:
    """Ask for the feed, unless it is the same as `before`, its last answers.

    Raises FetchError, in words that complete "<source> ...".
    """
    known = before[0] if before else None
    conditions = {
        condition: known.headers[header]
        for condition, header in (("If-None-Match", "etag"), ("If-Modified-Since", "last-modified"))
        if known and header in known.headers
    }
    accept = "application/rss+xml, application/atom+xml, application/xml;q=0.9, */*;q=0.5"
    ours = {str(feed.url) for feed in run.settings.news_feeds if feed.private}
    response = run.client.get(
        source.url,
        headers={"Accept": accept, **conditions},
        transient=lambda answer: is_transient(answer) or _is_cut_short(answer),
        public_only=source.url not in ours and _is_public_name(source.url),
    )
    if response.status == 304 and known:
        return [Answer(known.url, run.now, known.headers, known.body)]
    if response.status != 200:
        raise FetchError(f"answered {response.status}")
    if _is_cut_short(response):
        raise FetchError("broke off its answer")
    headers = {
        name: response.headers[name]
        for name in ("etag", "last-modified", "content-type")
        if name in response.headers
    }
    return [Answer(response.url, run.now, headers, response.body)]


def _is_cut_short(response: Response) -> bool:
    """Whether the document doesn't end: a connection that closes may look like the end of an answer.

    The reader would take the entries that came for all there are. An empty answer was cut before its start.
    """
    if response.status == 200 and not response.body:
        return True
    opened = ROOT.search(response.body)
    return opened is not None and b"</" + opened[1] not in response.body[opened.end() :]


def _is_public_name(url: str) -> bool:
    """Whether others decide what the address is: an address itself or `localhost` is meant as it is."""
    host = urlsplit(url).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def parse(source: Source, answer: Answer) -> list[Item]:
    """The feed's entries, in its order. Raises FetchError when the body can't be read as a feed."""
    import feedparser

    headers = {"content-type": _content_type(answer)}
    try:
        _refuse_wide_tags(answer.body, headers)
        feed = feedparser.parse(
            answer.body,
            response_headers=headers,
            # Articles are reduced to text, which is stricter and a third faster.
            sanitize_html=False,
            resolve_relative_uris=False,
        )
    except FetchError:
        raise
    except Exception as error:  # others' reader, of anybody's bytes: `&#xD800;` is a UnicodeError
        raise FetchError("answered with a feed that can't be read") from error
    if not feed.get("version") and not feed.entries:  # of nothing it says no version at all
        raise FetchError("answered with something that isn't a feed")
    declared = str(feed.feed.get("language") or "")
    return [_item(entry, source, answer, declared) for entry in feed.entries[:MAX_ENTRIES]]


def _refuse_wide_tags(body: bytes, headers: dict[str, str]) -> None:
    from feedparser.encodings import convert_to_utf8

    def look(_: str, attributes: dict[str, str]) -> None:
        if len(attributes) > MAX_ATTRIBUTES:
            raise FetchError(f"has a tag of more than {MAX_ATTRIBUTES} attributes")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = look
    with suppress(expat.ExpatError):  # feedparser mends what it can
        parser.Parse(convert_to_utf8(headers, body, {}), True)


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


def _item(entry: dict[str, Any], source: Source, answer: Answer, language: str) -> Item:
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


# Hours from UTC. dateutil knows UTC and GMT by name, and no other zone.
_ZONES = {
    name: timezone(timedelta(hours=hours))
    for name, hours in {
        **{"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7},
        **{
            "WET": 0,
            "BST": 1,
            "CET": 1,
            "WEST": 1,
            "CEST": 2,
            "EET": 2,
            "EEST": 3,
            "JST": 9,
            "UT": 0,
        },
    }.items()
}


def _published_at(entry: dict[str, Any]) -> datetime | None:
    for name in ("published", "updated"):
        # dict.get: feedparser's own makes the one up of the other, and warns of it.
        text, parsed = dict.get(entry, name), dict.get(entry, f"{name}_parsed")
        if text and (moment := _moment(str(text)) or _in_other_words(str(text), parsed)):
            return moment
    return None


def _moment(text: str) -> datetime | None:
    from dateutil import parser

    try:
        # What the text leaves out would be today's otherwise, another one at each reading.
        moment = parser.parse(text[:100], default=datetime(1, 1, 1), tzinfos=_ZONES)  # noqa: DTZ001 - set below
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC) if moment.year > 1990 else None
    except (ValueError, OverflowError):
        return None


def _in_other_words(text: str, parsed: struct_time | None) -> datetime | None:
    """The date that feedparser read, in Korean, Greek or Hungarian for example."""
    if parsed is None or str(parsed.tm_year) not in text:
        return None  # it fills gaps with the present, and reads the same feed differently tomorrow
    try:
        return datetime.fromtimestamp(timegm(parsed), UTC)
    except (ValueError, OverflowError, OSError):
        return None
