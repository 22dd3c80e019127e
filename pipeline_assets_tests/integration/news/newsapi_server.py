"""A local server that implements NewsAPI's v2 contract: parameters, paging, plan limits, errors."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

KEY = "0123456789abcdef0123456789abcdef"
CATEGORIES = {"business", "entertainment", "general", "health", "science", "sports", "technology"}


def article(number: int, published_at: str, **changes: Any) -> dict[str, Any]:
    """An article as NewsAPI gives it."""
    return {
        "source": {"id": None, "name": "Example Courier"},
        "author": "Desk",
        "title": f"Council number {number} approves its budget - Example Courier",
        "description": f"The council of town {number} approved a budget for the coming year.",
        "url": f"https://courier.example/{number}?utm_source=newsapi",
        "urlToImage": None,
        "publishedAt": published_at,
        "content": "The council … [+1200 chars]",
        **changes,
    }


@dataclass
class NewsApi:
    """The server's articles and the requests it got. `faults` are answered first, one per request."""

    server: HTTPServer
    headlines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    everything: list[dict[str, Any]] = field(default_factory=list)
    most_results: int = 100
    """The free plan gives the first hundred results."""
    newest: datetime = datetime(9999, 1, 1, tzinfo=UTC)
    """`everything` has no article newer than this: the free plan gives articles a day late."""
    faults: dict[str, list[Response]] = field(default_factory=dict)
    """By category, or `everything`."""
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server.expect_request("/v2/top-headlines").respond_with_handler(self._headlines)
        self.server.expect_request("/v2/everything").respond_with_handler(self._everything)

    @property
    def url(self) -> str:
        return self.server.url_for("").rstrip("/")

    def _headlines(self, request: Request) -> Response:
        asked = request.args
        if {"from", "to"} & set(asked):
            return error(400, "parameterInvalid")
        if asked.get("category") not in CATEGORIES:
            return error(400, "parameterInvalid")
        # For a country other than us, NewsAPI answers ok without articles.
        found = self.headlines.get(asked["category"], []) if asked.get("country") == "us" else []
        return self._answer(request, asked["category"], found)

    def _everything(self, request: Request) -> Response:
        asked = request.args
        if not ({"q", "sources", "domains"} & set(asked)):
            return error(400, "parametersMissing")
        start, end = (datetime.fromisoformat(f"{asked[name]}+00:00") for name in ("from", "to"))
        found = [
            one
            for one in self.everything
            if start <= datetime.fromisoformat(one["publishedAt"]) <= min(end, self.newest)
        ]
        return self._answer(request, "everything", found)

    def _answer(self, request: Request, what: str, found: list[dict[str, Any]]) -> Response:
        self.requests.append(request)
        if faults := self.faults.get(what):
            return faults.pop(0)
        if "apiKey" in request.args or request.headers.get("X-Api-Key") != KEY:
            return error(401, "apiKeyInvalid")
        page, size = int(request.args["page"]), int(request.args["pageSize"])
        if size > 100:
            return error(400, "parameterInvalid")
        if page * size > self.most_results:
            return error(426, "maximumResultsReached")
        some = found[(page - 1) * size : page * size]
        return ok({"status": "ok", "totalResults": len(found), "articles": some})


def ok(answer: object) -> Response:
    return Response(json.dumps(answer), content_type="application/json")


def error(status: int, code: str, **headers: str) -> Response:
    body = json.dumps({"status": "error", "code": code, "message": f"{code}: see the docs"})
    return Response(body, status, {name.replace("_", "-"): v for name, v in headers.items()})
