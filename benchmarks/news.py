"""Ten thousand articles of fifty feeds, from the servers to the digest: seconds and megabytes.

`make bench` runs it. The feeds come from a local server that answers concurrently, as on the internet;
everything after that is what a morning's run does.
"""

import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

from pipeline_assets.news import digest, intake
from pipeline_assets.news.items import Run, Window
from pipeline_assets.news.settings import Feed, NewsSettings
from pipeline_assets.resources.http import USER_AGENT, HttpClient

FEEDS, ENTRIES = 50, 200
SECONDS, MEGABYTES = 20, 500
WINDOW = Window(datetime(2026, 11, 21, 8, tzinfo=UTC), datetime(2026, 11, 22, 8, tzinfo=UTC))


def feed(number: int) -> bytes:
    """A feed of 200 entries; two thirds tell one of 1,500 events, the others their own.

    Words follow Zipf's law, as in a language, since that decides how much articles have in common.
    """
    own = Random(number)  # noqa: S311 - the same every time
    words = [f"{'bdfklmnprst'[n % 11]}{'aeiou'[n % 5]}{n:x}" for n in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    items = []
    for entry in range(ENTRIES):
        event = own.randrange(1500) if own.random() < 0.67 else 100_000 + number * ENTRIES + entry
        told = Random(event).choices(words, weights, k=30)  # noqa: S311 - the same every time
        text = own.sample(told, 18) + own.choices(words, weights, k=12)
        at = WINDOW.start + timedelta(seconds=own.randrange(86_400))
        items.append(
            f"<item><title>{' '.join(told[:4] + text[:5])}</title>"
            f"<link>https://outlet{number}.example/{entry}?utm_source=rss</link>"
            f"<description>&lt;p&gt;{' '.join(text[5:20])}. {' '.join(text[20:])}.&lt;/p&gt;"
            f"</description><pubDate>{format_datetime(at)}</pubDate></item>"
        )
    return f'<rss version="2.0"><channel><title>x</title>{"".join(items)}</channel></rss>'.encode()


@contextmanager
def server() -> Iterator[str]:
    """Serve the feeds at /<number>; yields the server's address."""
    bodies = {f"/{number}": feed(number) for number in range(FEEDS)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/rss+xml")
            self.end_headers()
            self.wfile.write(bodies[self.path])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def main() -> None:
    """Run once, print each step, and fail beyond the bounds."""
    folder = Path(tempfile.mkdtemp())
    steps: list[tuple[str, float]] = []

    def step(name: str, began: float) -> float:
        now = time.perf_counter()
        steps.append((name, now - began))
        return now

    with server() as url:
        pack = [
            Feed.model_validate({"outlet": f"Outlet {n}", "url": f"{url}/{n}"})
            for n in range(FEEDS)
        ]
        settings = NewsSettings(news_provider="rss", news_feeds=tuple(pack), news_language="en")
        at = began = time.perf_counter()
        run = Run(WINDOW, settings, HttpClient(USER_AGENT), WINDOW.end)
        taken, found = intake.take_in(run, folder / "archive")
        at = step("fetch, archive, clean", at)
    # The words are of no language, so the detected one is replaced; detecting it has been timed.
    in_language = [replace(article, language="en") for article in found]
    edition = digest.compose(WINDOW, settings, taken, in_language, [])
    at = step("tell apart, rank, sum up", at)
    digest.publish(edition, folder / "digests")
    step("publish", at)
    seconds = time.perf_counter() - began
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shutil.rmtree(folder)
    for name, spent in steps:
        print(f"{name:<28}{spent:6.2f} s")  # noqa: T201 - what it is for
    carried = max(len(story.also_at) + 1 for story in edition.stories)
    print(  # noqa: T201 - what it is for
        f"{taken.items:,} articles of {taken.sources} feeds to"
        f" {len(edition.stories)} stories (the first in {carried} outlets):"
        f" {seconds:.1f} s, {megabytes:.0f} MB at most"
    )
    if seconds > SECONDS or megabytes > MEGABYTES:
        raise SystemExit(f"more than {SECONDS} s or {MEGABYTES} MB")


if __name__ == "__main__":
    main()
