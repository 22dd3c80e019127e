"""The provider `newsapi`: NewsAPI v2's top headlines by category, and everything by chosen outlets.

The key travels in a header, never in the URL, so that no log, archive or error can hold it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline_assets.failures import NotYetError, PermanentError
from pipeline_assets.news.items import Answer, Item, Run, Source
from pipeline_assets.news.settings import GENERAL
from pipeline_assets.resources.http import FetchError, Response, is_transient
from pipeline_assets.settings.rotation import current, read_again, replace

SECTIONS = {
    "general": GENERAL,
    "business": "Business",
    "technology": "Technology",
    "science": "Science",
    "health": "Health",
    "sports": "Sport",
    "entertainment": "Culture",
}
EVERYTHING = "everything"
PAGE_SIZE = 100  # the largest; the free plan gives one such page
MAX_PAGES = 10  # a paid plan has thousands of results; an edition reads the latest 1,000 of each
# NewsAPI has only the current top headlines: requested later, none would be from the window.
HEADLINES_LAST = timedelta(hours=24)
DELAY = timedelta(hours=24)  # of articles on the free plan, which has the headlines at once
NOT_NEWSAPI = "answered with JSON that isn't NewsAPI's"


class BeyondPlanError(FetchError):
    """The key's plan doesn't reach back to the window, and never will."""


def sources(run: Run) -> list[Source]:
    """All articles of the window by outlet, and the top headlines if it closed within `HEADLINES_LAST`."""
    base = str(run.settings.newsapi_url).rstrip("/")
    everything = Source("NewsAPI everything", EVERYTHING, GENERAL, f"{base}/v2/everything")
    if run.now - run.window.end > HEADLINES_LAST:
        return [everything]
    headlines = [
        Source(f"NewsAPI {category} headlines", category, section, f"{base}/v2/top-headlines")
        for category, section in SECTIONS.items()
    ]
    return [*headlines, everything]


def fetch(source: Source, run: Run, before: Sequence[Answer]) -> list[Answer]:
    """Every page of the source.

    Raises:
        PermanentError: the key is refused or its quota used up; says what to do.
        BeyondPlanError: the plan doesn't reach back to the window; likewise.
        FetchError: another failure, in words that complete "<source> ...".
    """
    del before
    pages: list[Answer] = []
    for page in range(1, MAX_PAGES + 1):
        response = _ask(source, run, page)
        answer = _json(response)
        if response.status == 426 and answer.get("code") == "maximumResultsReached":
            break  # not a failure: this is how the plan says that there is no more
        if response.status != 200 or answer.get("status") != "ok":
            raise _failure(response.status, answer)
        total = answer.get("totalResults")
        if not isinstance(total, int):
            raise FetchError(NOT_NEWSAPI)
        pages.append(Answer(response.url, run.now, {}, response.body))
        if page * PAGE_SIZE >= total or not answer.get("articles"):
            break
    late = run.now - DELAY
    if source.outlet == EVERYTHING and run.window.end > late:
        times = [item.published_at for page in pages for item in parse(source, page)]
        # If these pages were archived, the window would never get more than its first minutes.
        if not any(time and time > late for time in times):
            raise FetchError(
                "has no article of the last 24 hours: with a free key NewsAPI gives them a day late"
            )
    return pages


def _ask(source: Source, run: Run, page: int) -> Response:
    """Fetch one page; if the key is refused and has been changed in the settings, with the new one.

    Raises:
        PermanentError: the key is refused, and the settings have no other.
    """
    while True:
        key = current(run.settings, "newsapi_key")
        response = run.client.get(
            source.url,
            params=_question(source, run) | {"page": str(page)},
            headers={
                "X-Api-Key": key.get_secret_value() if key else "",
                "Accept": "application/json",
            },
            transient=_transient,
        )
        if response.status != 401:
            return response
        refusal = _failure(401, _json(response))
        newest = read_again("newsapi_key", refusal)
        if newest is None or newest == key:
            raise refusal
        replace(run.settings, "newsapi_key", newest)


def parse(source: Source, answer: Answer) -> list[Item]:
    """The articles of one page, in its order. Raises FetchError when it isn't NewsAPI's JSON."""
    try:
        articles = json.loads(answer.body)["articles"]
        return [_item(article, source, answer) for article in articles]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FetchError(NOT_NEWSAPI) from error


def _question(source: Source, run: Run) -> dict[str, str]:
    window, settings = run.window, run.settings
    if source.outlet != EVERYTHING:
        return {
            "country": settings.newsapi_country,
            "category": source.outlet,
            "pageSize": str(PAGE_SIZE),
        }
    last = window.end - timedelta(seconds=1)  # `to` is inclusive
    return {
        "domains": ",".join(settings.newsapi_domains),
        "language": settings.news_language,
        "from": f"{window.start.astimezone(UTC):%Y-%m-%dT%H:%M:%S}",
        "to": f"{last.astimezone(UTC):%Y-%m-%dT%H:%M:%S}",
        "sortBy": "publishedAt",
        "pageSize": str(PAGE_SIZE),
    }


def _transient(response: Response) -> bool:
    code = _json(response).get("code")
    cut_short = response.status == 200 and not _json(response)
    return cut_short or (is_transient(response) and code != "apiKeyExhausted")


def _json(response: Response) -> dict[str, Any]:
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):  # the latter for 100,000 brackets
        return {}
    return answer if isinstance(answer, dict) else {}


def _failure(status: int, answer: Mapping[str, Any]) -> Exception:
    code = str(answer.get("code") or "no code")
    if not re.fullmatch(r"[A-Za-z ]{1,60}", code):  # the server has seen the key, and may echo it
        code = "no code of NewsAPI's"
    if status == 401:
        return PermanentError(
            f"NewsAPI refused the key ({code}): set NEWSAPI_KEY to a valid one from newsapi.org"
        )
    if code == "apiKeyExhausted":
        return NotYetError(
            "NewsAPI's quota is used up (apiKeyExhausted; the free plan has 100 requests a day): "
            "run the partition again later, as the sensor missed_mornings does each hour, or set "
            "NEWSAPI_KEY to a key with a larger plan"
        )
    if status == 426:
        return BeyondPlanError(
            f"is beyond the plan of this key ({code}): it has no such history; "
            "set NEWSAPI_KEY to a key with a larger plan"
        )
    return FetchError(f"answered {status} ({code})" if answer else f"answered {status}, no JSON")


def _item(article: Mapping[str, Any], source: Source, answer: Answer) -> Item:
    return Item(
        outlet=_text((article.get("source") or {}).get("name")),
        section=source.section,
        url=_text(article.get("url")),
        title=_text(article.get("title")),
        summary=_text(article.get("description") or article.get("content")),
        author=_text(article.get("author")),
        language="",
        published_at=_published_at(_text(article.get("publishedAt"))),
        fetched_at=answer.fetched_at,
    )


def _text(value: object) -> str:
    """A value as encodable text: where a teaser was cut, JSON can have half an emoji (a surrogate)."""
    return str(value or "").encode(errors="replace").decode()


def _published_at(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # the latter for the first hours of year 1
        return None
