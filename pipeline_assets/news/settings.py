"""What a deployment can choose about the news digest.

Belongs here: the fields, their defaults and the default pack of outlets. Each field's name in
capitals is its environment variable; the project's one `Settings` inherits them. Limits that
protect us from servers are in the HTTP client; grouping articles into stories is up to `stories`.
"""

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr, model_validator

GENERAL = "Top stories"
"""The default section: a story goes under another one if any of its articles names one."""


class Feed(BaseModel):
    """One RSS or Atom feed. `section` is the heading that its stories go under.

    `private` allows a server in our own network; the host names of other feeds must not lead there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outlet: str = Field(min_length=1, max_length=60)
    section: str = Field(default=GENERAL, min_length=1, max_length=40)
    url: HttpUrl
    private: bool = False


def _feed(outlet: str, section: str, url: str) -> Feed:
    return Feed(outlet=outlet, section=section, url=HttpUrl(url))


DEFAULT_FEEDS = (
    _feed("BBC News", "World", "https://feeds.bbci.co.uk/news/world/rss.xml"),
    _feed("The Guardian", "World", "https://www.theguardian.com/world/rss"),
    _feed("NPR", "World", "https://feeds.npr.org/1004/rss.xml"),
    _feed("Al Jazeera", "World", "https://www.aljazeera.com/xml/rss/all.xml"),
    _feed("Deutsche Welle", "World", "https://rss.dw.com/rdf/rss-en-world"),
    _feed("France 24", "World", "https://www.france24.com/en/rss"),
    _feed("ABC News Australia", "World", "https://www.abc.net.au/news/feed/51120/rss.xml"),
    _feed("CBC News", "World", "https://www.cbc.ca/webfeed/rss/rss-world"),
    _feed("BBC News", "Business", "https://feeds.bbci.co.uk/news/business/rss.xml"),
    _feed("The Guardian", "Business", "https://www.theguardian.com/business/rss"),
    _feed("NPR", "Business", "https://feeds.npr.org/1006/rss.xml"),
    _feed("BBC News", "Technology", "https://feeds.bbci.co.uk/news/technology/rss.xml"),
    _feed("Ars Technica", "Technology", "https://feeds.arstechnica.com/arstechnica/index"),
    _feed("The Verge", "Technology", "https://www.theverge.com/rss/index.xml"),
    _feed("BBC News", "Science", "https://feeds.bbci.co.uk/news/science_and_environment/rss.xml"),
    _feed("The Guardian", "Science", "https://www.theguardian.com/science/rss"),
    _feed("NASA", "Science", "https://www.nasa.gov/news-release/feed/"),
    _feed("Nature", "Science", "https://www.nature.com/nature.rss"),
)


class NewsSettings(BaseModel):
    """Where the news comes from and what a reader wants to see of it."""

    model_config = ConfigDict(frozen=True)

    news_provider: Literal["sample", "rss", "newsapi"] = "sample"
    """`sample` is synthetic and says so on every page; the others never fall back to it."""
    newsapi_key: SecretStr | None = None
    newsapi_url: HttpUrl = HttpUrl("https://newsapi.org")
    newsapi_country: str = "us"
    """For top headlines; for any country but `us` NewsAPI returns no articles, and no error."""
    newsapi_domains: tuple[str, ...] = (
        "bbc.co.uk",
        "theguardian.com",
        "npr.org",
        "aljazeera.com",
        "apnews.com",
        "reuters.com",
        "arstechnica.com",
        "theverge.com",
    )
    """The outlets whose articles of the window are requested, besides the top headlines."""
    news_feeds: tuple[Feed, ...] = DEFAULT_FEEDS
    """As JSON in the environment: `[{"outlet": ..., "section": ..., "url": ...}]`."""
    news_start_date: date = date(2026, 11, 1)
    """The first partition: its edition is that of the morning after."""
    news_language: str = Field(default="en", pattern="^[a-z]{2}$")
    """Articles in another language are kept in the table and left out of the digest."""
    news_mute: tuple[str, ...] = ()
    """Words or phrases: an article whose title or summary has one is left out."""
    news_keep: tuple[str, ...] = ()
    """Words or phrases: a story that has one comes first, however few outlets carry it."""
    news_max_stories: int = Field(default=30, ge=1, le=200)
    news_cap_per_source: int = Field(default=5, ge=1)
    """How many stories of an edition may open with the same outlet."""
    news_site_url: HttpUrl | None = None
    """Where the digests are served, for the absolute links of `feed.xml`; unset: relative ones."""

    @model_validator(mode="after")
    def _complete(self) -> "NewsSettings":
        if self.news_provider == "newsapi" and not (
            self.newsapi_key and self.newsapi_key.get_secret_value().strip()
        ):
            raise ValueError(
                "NEWSAPI_KEY must be set when NEWS_PROVIDER is newsapi; newsapi.org has free ones, "
                "with which articles other than the top headlines come a day late"
            )
        names = [f"{feed.outlet}: {feed.section}" for feed in self.news_feeds]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"NEWS_FEEDS has two feeds for {doubled[0]}; give each its own section"
            )
        if self.news_provider == "rss" and not names:
            raise ValueError("NEWS_FEEDS must name a feed when NEWS_PROVIDER is rss")
        return self
