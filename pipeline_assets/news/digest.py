"""An edition on disk: data, CSV, page, text, and the index and feed of all editions.

Belongs here: everything that readers and spreadsheets open. `stories` decides which stories are in an
edition. `<date>.json` is the edition; every other file is derived from these files and the settings alone,
so the same editions give the same bytes, whatever the order in which they were published.
"""

import base64
import csv
import hashlib
import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter

from pipeline_assets.news.articles import Article
from pipeline_assets.news.items import Window
from pipeline_assets.news.settings import NewsSettings
from pipeline_assets.news.stories import Story, select
from pipeline_assets.resources.local_files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

    from pipeline_assets.news.intake import Intake

COLUMNS = (
    "edition",  # the morning on which it is read, YYYY-MM-DD
    "rank",  # 1 is the story that the edition opens with
    "section",
    "story_id",
    "headline",
    "outlet",
    "url",
    "published_at",  # ISO 8601 in UTC; empty where the publisher doesn't say
    "summary",  # the publishers' own sentences, verbatim
    "outlets",  # how many carry the story
    "also_at",  # the other outlets' addresses, separated by a space
    "keywords",  # separated by a semicolon and a space
    "is_update",  # true if yesterday's articles covered it too
    "provider",  # sample means synthetic
)
FEED_EDITIONS = 14
WORDS_A_MINUTE = 230
QUIET = 3  # with fewer stories the page says that the day was quiet


@dataclass(frozen=True)
class Edition:
    """One morning's digest. Times are in UTC; pages show them in `timezone`.

    `missing` has the sources that gave nothing they should have, with the reason in words that
    complete "<source> ...". The counts account for the articles that no story shows.
    """

    date: date
    starts_at: datetime
    ends_at: datetime
    timezone: str
    provider: str
    language: str
    stories: tuple[Story, ...]
    missing: tuple[tuple[str, str], ...]
    sources: int
    articles: int
    duplicates: int
    muted: int
    other_languages: int
    repeated: int

    @property
    def is_quiet(self) -> bool:
        """Whether there is so little to tell that the page should say so."""
        return len(self.stories) < QUIET

    @property
    def minutes(self) -> int:
        """How long it takes to read, at least one."""
        texts = [
            text
            for story in self.stories
            for text in (story.headline, *(quote.text for quote in story.summary))
        ]
        words = sum(len(text.split()) for text in texts)
        return max(1, round(words / WORDS_A_MINUTE))

    @property
    def sections(self) -> list[tuple[str, list[Story]]]:
        """The stories after the first by section, in the order of each section's highest rank."""
        headings: dict[str, list[Story]] = {}
        for story in self.stories[1:]:
            headings.setdefault(story.section, []).append(story)
        return list(headings.items())

    @property
    def outlets(self) -> int:
        """How many outlets the stories are from."""
        return len({o for s in self.stories for o in (s.outlet, *(name for name, _ in s.also_at))})


_EDITION = TypeAdapter(Edition)


def compose(
    window: Window,
    settings: NewsSettings,
    intake: "Intake",
    today: Iterable[Article],
    yesterday: Iterable[Article],
) -> Edition:
    """The edition of a window: its articles grouped into stories, and the counts shown to readers."""
    selection = select(today, yesterday, settings)
    return Edition(
        date=window.edition,
        starts_at=window.start.astimezone(UTC),
        ends_at=window.end.astimezone(UTC),
        timezone=str(window.start.tzinfo),
        provider=intake.provider,
        language=settings.news_language,
        stories=selection.stories,
        missing=tuple(sorted(intake.missing.items())),
        sources=intake.sources,
        articles=selection.articles,
        duplicates=intake.duplicates,
        muted=selection.muted,
        other_languages=selection.other_languages,
        repeated=selection.repeated,
    )


def publish(edition: Edition, folder: Path, site_url: str = "") -> Path:
    """Save the edition, and rewrite the files that link to it. Returns the path of its page.

    The pages before and after get a link to it, the index and the feed an entry. Callers publish one
    edition at a time: whichever call reads the folder last must see all of them.
    """
    name = edition.date.isoformat()
    write_atomically(folder / f"{name}.json", _EDITION.dump_json(edition, indent=1) + b"\n")
    write_atomically(folder / f"{name}.csv", to_csv(edition).encode())
    write_atomically(folder / f"{name}.txt", to_text(edition).encode())
    editions = editions_in(folder)
    place = editions.index(edition.date)
    for day in editions[max(place - 1, 0) : place + 2]:
        page = to_page(load(folder, day), *_neighbours(editions, day))
        write_atomically(folder / f"{day}.html", page.encode())
    newest = [load(folder, day) for day in reversed(editions)]
    write_atomically(folder / "index.html", to_index(newest).encode())
    write_atomically(folder / "feed.xml", to_feed(newest[:FEED_EDITIONS], site_url).encode())
    return folder / f"{name}.html"


def editions_in(folder: Path) -> list[date]:
    """The mornings that have an edition, the oldest first."""
    return sorted(date.fromisoformat(file.stem) for file in folder.glob("????-??-??.json"))


def load(folder: Path, day: date) -> Edition:
    """The edition of that morning, as it was published."""
    return _EDITION.validate_json((folder / f"{day}.json").read_bytes())


def _neighbours(editions: Sequence[date], day: date) -> tuple[date | None, date | None]:
    place = editions.index(day)
    before = editions[place - 1] if place else None
    after = editions[place + 1] if place + 1 < len(editions) else None
    return before, after


def to_csv(edition: Edition) -> str:
    """One row per story under the header `COLUMNS`, by RFC 4180, safe to open in a spreadsheet."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    for rank, story in enumerate(edition.stories, start=1):
        published = story.published_at
        row = (
            edition.date.isoformat(),
            str(rank),
            story.section,
            story.story_id,
            story.headline,
            story.outlet,
            story.url,
            published.astimezone(UTC).isoformat() if published else "",
            " ".join(quote.text for quote in story.summary),
            str(1 + len(story.also_at)),
            " ".join(url for _, url in story.also_at),
            "; ".join(story.keywords),
            str(story.is_update).lower(),
            edition.provider,
        )
        rows.writerow([_no_formula(cell) for cell in row])
    return text.getvalue()


# The full-width signs too: Excel reads them as the plain ones.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def _no_formula(cell: str) -> str:
    """Spreadsheets run what begins like a formula; an apostrophe makes it text."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def to_text(edition: Edition) -> str:
    """The edition as the body of a plain-text mail, 72 columns wide except for addresses."""
    return "\n".join(_text_lines(edition)) + "\n"


def _text_lines(edition: Edition) -> Iterator[str]:
    zone = ZoneInfo(edition.timezone)
    yield f"Morning digest, {long_date(edition.date)}"
    yield _plural(len(edition.stories), "story", "stories") + f", {edition.minutes} min"
    if edition.provider == "sample":
        yield from ("", "SAMPLE: these articles are synthetic; no outlet or event is real.")
    for name, reason in edition.missing:
        yield from ("", *textwrap.wrap(f"Missing: {name} {reason}.", 72))
    if edition.is_quiet:
        yield from ("", "A quiet day: " + quiet_words(edition))
    number = 0
    headings = [(edition.stories[0].section, [edition.stories[0]])] if edition.stories else []
    for section, stories in headings + edition.sections:
        if number != 1 or section != headings[0][0]:
            yield from ("", section.upper())
        for story in stories:
            number += 1
            update = "Update: " if story.is_update else ""
            yield ""
            yield from textwrap.wrap(f"{number}. {update}{story.headline}", 72)
            at = f", {story.published_at.astimezone(zone):%a %H:%M}" if story.published_at else ""
            yield f"   {story.outlet}{at}"
            for quote in story.summary:
                yield from textwrap.wrap(
                    quote.text, 72, initial_indent="   ", subsequent_indent="   "
                )
            yield f"   {story.url}"
            if story.also_at:
                also = ", ".join(outlet for outlet, _ in story.also_at)
                yield from textwrap.wrap(
                    f"Also at {also}", 72, initial_indent="   ", subsequent_indent="   "
                )


def to_page(edition: Edition, before: date | None, after: date | None) -> str:
    """The edition as one self-contained HTML page, with links to the editions around it."""
    return _render("digest.html.jinja", edition=edition, before=before, after=after)


def to_index(editions: Sequence[Edition]) -> str:
    """A page of all editions by month, the newest first."""
    months = groupby(editions, key=lambda edition: edition.date.replace(day=1))
    return _render("index.html.jinja", months=[(month, list(group)) for month, group in months])


def to_feed(editions: Sequence[Edition], site_url: str) -> str:
    """An Atom feed with an entry for each of the editions, the newest first.

    Without `site_url` its links are relative, which suits readers of the local folder only.
    """
    base = f"{site_url.rstrip('/')}/" if site_url else ""
    return _render("feed.xml.jinja", editions=editions, base=base)


def quiet_words(edition: Edition) -> str:
    """What a quiet day's page says after "A quiet day: "."""
    if not edition.stories:
        return (
            "there is nothing that yesterday's edition didn't have."
            if edition.repeated
            else "there is nothing to tell."
        )
    return f"only {_plural(len(edition.stories), 'story', 'stories')} to tell."


def long_date(day: date) -> str:
    """`Sunday, 22 November 2026`."""
    return f"{day:%A}, {day.day} {day:%B %Y}"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(values)


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).with_name("templates")
    # Escape in every template, whatever its file name: the text comes from third parties.
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = (folder / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.globals |= {
        # No script, image, font, frame or form, from here or anywhere; this one style sheet only.
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{digest}'",
        "style": style,
        "plural": _plural,
        "long_date": long_date,
        "quiet_words": quiet_words,
        "FEED_EDITIONS": FEED_EDITIONS,
    }
    environment.filters |= {"local": _local, "utc": _utc}
    return environment


def _local(moment: datetime, timezone: str) -> datetime:
    return moment.astimezone(ZoneInfo(timezone))


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
