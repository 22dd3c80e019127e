"""The provider `sample`: synthetic outlets, so that the digest runs with no key and no internet.

It generates RSS feeds, always the same for a date, with the defects of real feeds: tracking and AMP
links, HTML in summaries, missing titles and dates, a wrong charset, removed articles, stale news. The
rest of the pipeline treats them like real feeds. Their stories come from `sample_stories.yaml`.
Everything made from them is labelled as a sample.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import escape

import yaml

from pipeline_assets.news.items import Answer, Run, Source, Window

OUTLETS = {
    "Sample Times": "World Business Technology Science Sport Culture Health",
    "Example Herald": "World Business Sport Culture",
    "Sample Wire": "World Business Technology Health",
    "Example Post": "World Sport Culture",
    "Sample Ledger": "Business Technology",
    "Example Circuit": "Technology Science",
    "Sample Lantern": "Science Culture Health",
    "Example Whistle": "Sport",
}
UPDATES_A_DAY = 4


@dataclass(frozen=True)
class _Entry:
    title: str
    link: str
    description: str
    published: str


def sources(run: Run) -> list[Source]:
    """A feed for each section of each outlet."""
    del run
    return [
        Source(
            f"{outlet}: {section}",
            outlet,
            section,
            f"https://{_host(outlet)}/{section.lower()}.xml",
        )
        for outlet, sections in OUTLETS.items()
        for section in sections.split()
    ]


def fetch(source: Source, run: Run, before: Sequence[Answer]) -> list[Answer]:
    """Generate the feed of the window; no server is asked."""
    del before
    window = run.window
    entries = list(_entries(source, window))
    _random(window.key, source.name).shuffle(entries)
    items = "\n".join(_xml(entry) for entry in entries)
    # Example Circuit declares a charset that its bytes aren't in.
    charset = "iso-8859-1" if source.outlet == "Example Circuit" else "utf-8"
    body = (
        f'<?xml version="1.0" encoding="{charset}"?>\n<rss version="2.0"><channel>\n'
        f"<title>{escape(source.name)} (synthetic sample)</title><link>https://{_host(source.outlet)}/</link>\n"
        f"<language>en</language>\n{items}\n</channel></rss>\n"
    )
    content_type = {"content-type": f"application/rss+xml; charset={charset}"}
    return [Answer(source.url, window.end, content_type, body.encode())]


def _entries(source: Source, window: Window) -> Iterator[_Entry]:
    today = window.start.date().toordinal()
    for number, event in _events(today):
        yield from _coverage(source, window, event, f"{today}/{number}")
    with_update = [(number, event) for number, event in _events(today - 1) if "update" in event]
    for number, event in _random("updates", str(today)).sample(with_update, UPDATES_A_DAY):
        update = {**event, **event["update"]}
        yield from _coverage(source, window, update, f"{today - 1}/{number}")
    # One of yesterday's events again, unchanged: the digest must not repeat it.
    number, event = with_update[today % len(with_update)]
    yield from _coverage(source, window, event, f"{today - 1}/{number}")
    yield from _defects(source, window)


def _events(ordinal: int) -> list[tuple[int, Mapping[str, Any]]]:
    """The events that begin on a day: half of all, never those of the day before."""
    return list(enumerate(_stories()["events"]))[ordinal % 2 :: 2]


def _coverage(
    source: Source,
    window: Window,
    event: Mapping[str, Any],
    seed: str,
) -> Iterator[_Entry]:
    """The source's entries about the event; none if the outlet doesn't cover it."""
    if event["section"] != source.section:
        return
    facts = _random(seed)
    stories = _stories()
    filled = {
        "place": facts.choice(stories["places"]),
        "org": facts.choice(stories["orgs"]),
        "n": facts.randint(2, 9),
    }
    carriers = [name for name, sections in OUTLETS.items() if event["section"] in sections.split()]
    covering = facts.sample(carriers, facts.randint(1, len(carriers)))
    if source.outlet not in covering:
        return
    position = covering.index(source.outlet)
    own = _random(seed, event["headlines"][0], source.outlet)
    title = event["headlines"][position % len(event["headlines"])].format(**filled)
    chosen = [event["sentences"][position % 2], *event["sentences"][2:]]
    if own.random() < 0.5:
        chosen.append(own.choice(stories["filler"]))
    text = " ".join(sentence.format(**filled) for sentence in chosen)
    moment = window.start + (window.end - window.start) * own.random()
    yield from _published(source, title, text, moment, own)


def _published(
    source: Source, title: str, text: str, moment: datetime, own: Random
) -> Iterator[_Entry]:
    """The entry as this outlet's software writes it, now and then twice."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    link = f"https://{_host(source.outlet)}/{moment:%Y/%m/%d}/{slug}"
    date = format_datetime(moment)
    match source.outlet:
        case "Sample Wire":
            yield _Entry(
                f"{title} - Sample Wire", f"{link}?utm_source=rss&utm_medium=feed", text, date
            )
            if own.random() < 0.2:
                yield _Entry(title, f"{link}/amp", text, date)
        case "Example Herald":
            html = f'<p>{escape(text)}</p><p><a href="{link}">Continue reading...</a></p>'
            yield _Entry(title, f"{link}#comments", html, date)
        case "Example Post":
            html = f'<img src="https://ads.example/1.gif" onerror="alert(1)">{escape(text)}&nbsp;'
            yield _Entry(title, link, html, date)
        case "Sample Ledger":
            yield _Entry(title, link, f"{text[:200]}… [+{own.randint(800, 4000)} chars]", date)
        case _:
            yield _Entry(title, link, text, date)


def _defects(source: Source, window: Window) -> Iterator[_Entry]:
    """Entries that should not reach the page, or not as they are."""
    stories = _stories()
    day = window.start.date()
    own = _random("defects", window.key, source.name)
    home = f"https://{_host(source.outlet)}"
    inside = format_datetime(window.start + timedelta(hours=own.randint(1, 20)))
    filled = {"place": own.choice(stories["places"])}
    match source.name:
        case "Example Post: World":
            yield _Entry("", f"{home}/{day}/untitled", "A picture gallery without a title.", inside)
        case "Sample Wire: World":
            yield _Entry("[Removed]", "https://removed.com", "[Removed]", inside)
        case "Example Herald: World":
            title, summary = (
                stories["german"][name].format(**filled) for name in ("title", "summary")
            )
            yield _Entry(title, f"{home}/{day}/radwege", summary, inside)
        case "Sample Lantern: Culture":
            title = "This week&rsquo;s concerts and exhibitions in {place}".format(**filled)
            yield _Entry(
                title, f"{home}/{day}/listings", "What is on, where & when.", "some time today"
            )
        case "Sample Times: World":
            old = format_datetime(window.start - timedelta(days=3))
            yield _Entry(
                "A story of last week", f"{home}/{day}/old", "It is still in the feed.", old
            )


def _xml(entry: _Entry) -> str:
    return (
        f"<item><title>{escape(entry.title)}</title><link>{escape(entry.link)}</link>"
        f"<description>{escape(entry.description)}</description>"
        f"<pubDate>{escape(entry.published)}</pubDate></item>"
    )


def _random(*seed: str) -> Random:
    return Random(" ".join(seed))  # noqa: S311 - must be the same every time; no secret


def _host(outlet: str) -> str:
    return f"{outlet.lower().replace(' ', '-')}.example"


@cache
def _stories() -> Mapping[str, Any]:
    file = Path(__file__).with_name("sample_stories.yaml")
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
