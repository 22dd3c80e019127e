"""What a deployment may choose, and the error when a choice can't work."""

import re

import pytest
from pydantic import ValidationError

from pipeline_assets.news.settings import NewsSettings

FEED = {"outlet": "Sample Times", "section": "World", "url": "https://times.example/rss"}


def test_the_default_is_the_sample_and_needs_nothing() -> None:
    assert NewsSettings().news_provider == "sample"


def test_the_default_pack_has_several_outlets_a_section() -> None:
    feeds = NewsSettings().news_feeds
    sections = {feed.section for feed in feeds}
    for section in sections:
        assert len({feed.outlet for feed in feeds if feed.section == section}) >= 3, section
    assert all(feed.url.scheme == "https" for feed in feeds)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"news_provider": "newsapi"}, "NEWSAPI_KEY must be set when NEWS_PROVIDER is newsapi"),
        ({"news_provider": "newsapi", "newsapi_key": " "}, "NEWSAPI_KEY must be set"),
        ({"news_provider": "rss", "news_feeds": []}, "NEWS_FEEDS must name a feed"),
        ({"news_feeds": [FEED, FEED]}, "two feeds for Sample Times: World"),
        ({"news_feeds": [{**FEED, "url": "file:///etc/passwd"}]}, "URL scheme should be"),
        ({"news_feeds": [{**FEED, "colour": "red"}]}, "Extra inputs are not permitted"),
        ({"news_provider": "teletext"}, "Input should be 'sample', 'rss' or 'newsapi'"),
        ({"news_language": "English"}, "String should match pattern"),
        ({"news_max_stories": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_work_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        NewsSettings.model_validate(values)


def test_the_key_is_not_printed() -> None:
    settings = NewsSettings.model_validate({"news_provider": "newsapi", "newsapi_key": "hush"})
    assert "hush" not in f"{settings!r} {settings} {settings.model_dump()}"
