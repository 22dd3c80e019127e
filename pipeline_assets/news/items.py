"""The types that all parts of the news pipeline share: window, run, source, answer, item.

No logic, and no import of a news module but the settings, so that all of them can import this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pipeline_assets.news.settings import NewsSettings

if TYPE_CHECKING:
    from pipeline_assets.resources.http import HttpClient

AHEAD = timedelta(hours=1)


class Window(NamedTuple):
    """The time that an edition covers, [start, end), both with the digest's time zone."""

    start: datetime
    end: datetime

    @property
    def edition(self) -> date:
        """The morning on which the edition is read: its name everywhere."""
        return self.end.date()

    @property
    def key(self) -> str:
        """The partition, named as Dagster does: by the day on which the window starts."""
        return self.start.date().isoformat()


@dataclass(frozen=True)
class Run:
    """One collection: which window, how, and when. `now` dates the answers of live feeds."""

    window: Window
    settings: NewsSettings
    client: "HttpClient"
    now: datetime


@dataclass(frozen=True)
class Source:
    """One thing to ask a provider for. `name` is unique among a provider's sources."""

    name: str
    outlet: str
    section: str
    url: str


@dataclass(frozen=True)
class Answer:
    """One response of a source, byte for byte as it came (decompressed)."""

    url: str
    fetched_at: datetime
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Item:
    """One article as a provider gives it: text may be HTML, anything may be empty or hostile.

    `published_at` is in UTC, or None if the provider gives no readable date. `language` is what
    the provider declares (`en`, `en-gb`) or empty.
    """

    outlet: str
    section: str
    url: str
    title: str
    summary: str
    author: str
    language: str
    published_at: datetime | None
    fetched_at: datetime

    @property
    def said_time(self) -> datetime | None:
        """`published_at` if plausible: clocks differ, but nobody publishes tomorrow's news."""
        moment = self.published_at
        return moment if moment and moment <= self.fetched_at + AHEAD else None
