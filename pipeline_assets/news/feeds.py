"""From a window and the settings to the providers' items, through the archive of raw answers.

Belongs here: the interface that every provider implements, concurrent fetching, and the archive.
Parsing an answer is up to the provider (`rss`, `newsapi`, `sample`), cleaning an item to `articles`.

The archive has a folder for each provider and day: every answer byte for byte, and an `index.json`
that is written last. An archived answer is never fetched again: a day that is run again has the same
bytes, and one on which a source failed asks that source only.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_assets.failures import PermanentError
from pipeline_assets.news import newsapi, rss, sample
from pipeline_assets.news.items import Answer, Item, Run, Source, Window
from pipeline_assets.resources.http import FetchError
from pipeline_assets.resources.local_files import write_atomically

CONCURRENCY = 16  # requests under way; the client limits those at one host
LOOK_BACK_DAYS = 7  # an older answer is hardly the same as today's


class Provider(NamedTuple):
    """What a provider must offer; `fetch` and `parse` raise FetchError for one source's failure."""

    sources: Callable[[Run], list[Source]]
    fetch: Callable[[Source, Run, Sequence[Answer]], list[Answer]]
    parse: Callable[[Source, Answer], list[Item]]


PROVIDERS = {
    "sample": Provider(sample.sources, sample.fetch, rss.parse),
    "rss": Provider(rss.sources, rss.fetch, rss.parse),
    "newsapi": Provider(newsapi.sources, newsapi.fetch, newsapi.parse),
}


Fetched = tuple[list[Answer], list[Item]]


@dataclass(frozen=True)
class Collected:
    """What the sources gave for one window.

    `missing` has the sources that gave nothing they should have, by name, with the reason in words
    that complete "<source> ...". `asked` counts all sources.
    """

    items: list[Item]
    missing: dict[str, str]
    asked: int


def collect(run: Run, archive: Path) -> Collected:
    """Read the window's answers from the archive, fetch those that it lacks, and archive them.

    Raises:
        PermanentError: a provider refuses us altogether, or no source has history for the window.
        FetchError: every source failed, or those that didn't have no history for the window; names each.
            In both cases what did come is archived.
    """
    provider = PROVIDERS[run.settings.news_provider]
    shelf = archive / run.settings.news_provider
    day = shelf / run.window.key
    index = _read_index(day)
    answers = {source: _read_answers(day, entries) for source, entries in index.items() if entries}
    failed_before = {source.name: source for source, entries in index.items() if not entries}
    # A source configured after the day was archived isn't asked for that day: it would be missing
    # in editions that were complete. A source that failed is asked again, at its current address.
    pending = {
        source.name: source
        for source in provider.sources(run)
        if not answers or source.name in failed_before
    }
    # Removed from the settings, or without history: without such a source the day is incomplete too.
    gone = {name: source for name, source in failed_before.items() if name not in pending}

    def read(source: Source, of_source: list[Answer]) -> list[Item]:
        return [item for answer in of_source for item in provider.parse(source, answer)]

    def fetch(source: Source) -> tuple[list[Answer], list[Item]]:
        fetched = provider.fetch(source, run, _latest(shelf, source))
        return fetched, read(source, fetched)  # an answer that can't be read isn't archived

    items = {source: read(source, of_source) for source, of_source in answers.items()}
    fetched, failed, refusal = _fetch_all(fetch, list(pending.values()))
    for source, (of_source, found) in fetched.items():
        answers[source], items[source] = of_source, found
    if pending:
        every_source = (pending | gone).values()
        _write_day(day, answers | {s: [] for s in every_source if s not in answers})
    if refusal:
        raise refusal
    reasons = {name: str(error) for name, error in failed.items()}
    if not answers:
        # If all fail in any other way, that may pass: behind a captive portal every feed redirects
        # to a private address until somebody logs in.
        kind = PermanentError if _beyond_plan(failed) else FetchError
        raise kind(f"no source answered: {_sentences(reasons)}")

    asked = len(answers) + len(failed) + len(gone)
    missing = reasons | dict.fromkeys(
        gone, "did not answer at the time and can't be asked any more"
    )
    for source, found in items.items():
        if reason := _without_history(found, run.window):
            missing[source.name] = reason
    if len(missing) == asked:
        # A source that failed for a while may have news once it answers again.
        for_good = all(isinstance(error, PermanentError) for error in failed.values())
        kind = PermanentError if for_good or _beyond_plan(failed) else FetchError
        raise kind(f"no source has news of {run.window.key} any more: {_sentences(missing)}")
    every = [item for found in items.values() for item in found]
    return Collected(every, missing, asked)


def _fetch_all(
    fetch: Callable[[Source], Fetched], sources: Sequence[Source]
) -> tuple[dict[Source, Fetched], dict[str, FetchError], PermanentError | None]:
    """What was fetched, the failures by source, and the refusal that ended fetching early."""
    fetched: dict[Source, Fetched] = {}
    failed: dict[str, FetchError] = {}
    refusal = None
    with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="news") as pool:
        futures = {pool.submit(fetch, source): source for source in sources}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, PermanentError) and not isinstance(error, FetchError):
                # Don't wait for the others: as_completed never yields futures cancelled here.
                pool.shutdown(cancel_futures=True)
                break
    for future, source in futures.items():
        if future.cancelled():
            continue
        try:
            fetched[source] = future.result()
        except FetchError as error:
            failed[source.name] = error
        except PermanentError as error:
            refusal = error
    return fetched, dict(sorted(failed.items())), refusal


def _without_history(items: Sequence[Item], window: Window) -> str:
    """Why no item can be from the window, if all are newer than its end; else empty."""
    times = [item.said_time for item in items if item.said_time]
    if not times or len(times) < len(items) or min(times) < window.end:
        return ""
    return (
        f"has no history: it reaches back to {min(times):%Y-%m-%d %H:%M} UTC only, "
        "and no answer of that day was archived"
    )


def _beyond_plan(failed: Mapping[str, FetchError]) -> bool:
    return all(isinstance(error, newsapi.BeyondPlanError) for error in failed.values())


def _sentences(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in sorted(reasons.items()))


def _read_index(folder: Path) -> dict[Source, list[dict[str, Any]]]:
    """Each source's archived answers, none for one that failed. Empty if the day isn't archived."""
    try:
        index = json.loads((folder / "index.json").read_bytes())
    except FileNotFoundError:
        return {}
    return {Source(**entry["source"]): entry["answers"] for entry in index}


def _read_answers(folder: Path, entries: Sequence[dict[str, Any]]) -> list[Answer]:
    return [_read_answer(folder, entry) for entry in entries]


def _read_answer(folder: Path, entry: dict[str, Any]) -> Answer:
    file = folder / entry["file"]
    body = file.read_bytes()
    if hashlib.sha256(body).hexdigest() != entry["sha256"]:
        raise PermanentError(
            f"{file} is not what was archived (its SHA-256 differs): restore it, or delete "
            f"{folder} to fetch the day again"
        )
    fetched_at = datetime.fromisoformat(entry["fetched_at"])
    return Answer(entry["url"], fetched_at, entry["headers"], body)


def _write_day(folder: Path, answers: dict[Source, list[Answer]]) -> None:
    index = []
    for source, of_source in answers.items():
        slug = re.sub(r"[^a-z0-9]+", "-", source.name.lower()).strip("-")[:40]
        # Two names may share a slug, and a slug may be empty.
        stem = f"{slug}-{hashlib.sha256(source.name.encode()).hexdigest()[:8]}"
        entries = []
        for number, answer in enumerate(of_source, start=1):
            sha256 = hashlib.sha256(answer.body).hexdigest()
            # Two runs of one day may write at once: an index must never name the other's bytes.
            file = f"{stem}-{number}-{sha256[:12]}.body"
            write_atomically(folder / file, answer.body)
            entries.append(
                {
                    "file": file,
                    "sha256": sha256,
                    "url": answer.url,
                    "fetched_at": answer.fetched_at.astimezone(UTC).isoformat(),
                    "headers": dict(answer.headers),
                }
            )
        index.append({"source": asdict(source), "answers": entries})
    text = json.dumps(index, indent=1, ensure_ascii=False)
    write_atomically(folder / "index.json", text.encode())


def _latest(shelf: Path, source: Source) -> list[Answer]:
    """The source's answers on the newest of the last archived days, for a conditional request.

    A day that can't be read is no reason to fail another: without an older answer, all is fetched.
    """
    days = sorted(shelf.glob("????-??-??"), reverse=True)[:LOOK_BACK_DAYS]
    for folder in days:
        # The last two: an index that a newer version wrote.
        with suppress(PermanentError, OSError, ValueError, KeyError, TypeError):
            if entries := _read_index(folder).get(source):
                return _read_answers(folder, entries)
    return []
