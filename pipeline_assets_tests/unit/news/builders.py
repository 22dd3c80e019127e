"""Articles and items to test with: a valid one, changed where a test says so."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from pipeline_assets.news.articles import Article
from pipeline_assets.news.items import Item, Window

BERLIN = ZoneInfo("Europe/Berlin")
WINDOW = Window(datetime(2026, 11, 21, 8, tzinfo=BERLIN), datetime(2026, 11, 22, 8, tzinfo=BERLIN))
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def item(**changes: Any) -> Item:
    values: dict[str, Any] = {
        "outlet": "Sample Times",
        "section": "World",
        "url": "https://times.example/1",
        "title": "Council approves the budget",
        "summary": "The council approved a budget for the coming year.",
        "author": "",
        "language": "en",
        "published_at": NOON,
        "fetched_at": WINDOW.end.astimezone(UTC) + timedelta(minutes=1),
    }
    return Item(**{**values, **changes})


def article(number: int = 1, **changes: Any) -> Article:
    values: dict[str, Any] = {
        "article_id": f"{number:016x}",
        "url": f"https://times.example/{number}",
        "title": f"Council of town {number} approves the budget",
        "summary": f"The council of town {number} approved a budget for the coming year.",
        "outlet": "Sample Times",
        "section": "World",
        "author": "",
        "language": "en",
        "published_at": NOON + timedelta(minutes=number),
        "dated_by": "publisher",
        "fetched_at": WINDOW.end.astimezone(UTC),
    }
    return Article(**{**values, **changes})
