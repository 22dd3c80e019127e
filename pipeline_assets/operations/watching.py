"""A look: find every problem, compare with what was reported, report what is new, send the heartbeat.

The sensor `alerts` looks from inside, `pipeline-assets watch` from outside the daemon. Each keeps its
own book in Dagster's storage, beside the runs: without that storage no sensor runs, while the warehouse
may be the very thing that is down.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg

from pipeline_assets.operations import alerts, daemon, data, delivery, runs
from pipeline_assets.operations.alerts import BOOK, Book, Message
from pipeline_assets.operations.checks import ServiceLevel
from pipeline_assets.operations.failed_runs import failed_runs
from pipeline_assets.operations.logs import mask, secret_values
from pipeline_assets.operations.problems import Kind, Problem, moment
from pipeline_assets.operations.runs import Outside, View
from pipeline_assets.resources.dagster_history import stored_value
from pipeline_assets.settings import Settings
from pipeline_assets.settings.rotation import current, read_again, replace

TIME_TO_TELL = timedelta(seconds=20)
"""Dagster ends a sensor's tick after 60 s; messages not sent within this time wait for the next look."""
ASLEEP = timedelta(minutes=5)
"""A longer gap between two looks means that the daemon was down."""

OUTSIDE = "pipeline_assets.alerts.outside"
"""Where the watch keeps its book, as the sensor does its own under `BOOK`."""

LOADED_EVERY = timedelta(minutes=5)
"""How often the watch loads the code: at most a fiftieth of a core goes into it."""

DATABASE_LIBRARIES = {"dagster_postgres", "psycopg", "psycopg2", "sqlalchemy"}
"""What Dagster reaches its storage by: the watch uses no other database."""

Look = Callable[[], list[Problem]]


def look_inside(
    view: View, levels: Sequence[ServiceLevel], awake_since: datetime
) -> tuple[list[Problem], set[Kind]]:
    """Every problem that a sensor can see, and the kinds that it could not look for.

    A look that fails is itself a problem, and says nothing about the kinds it looks for: a warehouse that
    can't be reached has not released its held days.
    """
    problems: list[Problem] = []
    unknown: set[Kind] = set()

    def look(what: str, kinds: Sequence[Kind], find: Look) -> None:
        try:
            problems.extend(find())
        except Exception as error:  # whatever it is, the other looks and the reporting go on
            unknown.update(kinds)
            cause = f"{type(error).__name__}: {error}"
            facts = {"What": what, "Cause": " ".join(cause.split())[:500]}
            problems.append(Problem("look_failed", what, view.now, facts=facts))

    look("late data", ["data_late"], lambda: data.late_data(view, levels))
    failing: list[data.Failed] = []

    def checks() -> list[Problem]:
        failing.extend(data.failing_checks(view.instance, view.ago(runs.HORIZON)))
        return data.failed_checks(view, failing)

    look("checks", ["check_failed", "model_refused"], checks)
    look("held days", ["day_held", "check_failed"], lambda: data.held_days(view))
    held = {day for each in problems if each.kind == "day_held" for day in each.members}
    told = {failed.partition for failed in failing} | held
    look("failed runs", ["run_failed"], lambda: failed_runs(view, told))
    look("waiting runs", ["run_waiting", "queue_long"], lambda: runs.waiting_runs(view))
    look("slow runs", ["run_slow"], lambda: runs.slow_runs(view))
    look("backfills", ["backfill_failed"], lambda: runs.failed_backfills(view))
    look("freshness", ["freshness_missed"], lambda: data.missed_freshness(view))
    look("failing ticks", ["tick_failing"], lambda: daemon.failing_ticks(view))
    look("late ticks", ["tick_late"], lambda: daemon.late_ticks(view, awake_since))
    look("automation", ["switched_off"], lambda: daemon.switched_off(view))
    if "day_held" in unknown:
        # Which failed checks follow from a held day is unknown: they are reported once it is known.
        problems = [problem for problem in problems if problem.kind != "check_failed"]
    return data.without_consequences(problems), unknown


def look_outside(
    view: Outside, awake_since: datetime, broken: Sequence[Problem]
) -> tuple[list[Problem], set[Kind]]:
    """Problems that no sensor can report; `broken` are the code locations that don't load.

    Without a daemon or code the sensor `alerts` can't run: its absence is then neither reported as a problem
    of its own nor as over.
    """
    problems = [*daemon.silent_daemons(view.instance, view.now), *broken]
    unknown: set[Kind] = {"tick_late"} if problems else set()
    if not problems:
        problems += missing_looks(view, awake_since)
    if url := view.settings.pipeline_ui_url:
        problems += daemon.silent_ui(str(url), view.now)
    return problems, unknown


def missing_looks(view: Outside, awake_since: datetime) -> list[Problem]:
    """The sensor `alerts`, if it should look and doesn't: it watches all others, and none watches it."""
    states = [
        state for state in view.instance.all_instigator_state() if state.instigator_name == "alerts"
    ]
    on = view.settings.pipeline_automation == "running" or any(each.is_running for each in states)
    stored = stored_value(view.instance, BOOK)
    last = Book.model_validate_json(stored).looked_at if stored else None
    waited = view.now - max(filter(None, [last, awake_since]))
    if not on or waited < timedelta(minutes=view.settings.alert_late_minutes):
        return []
    facts = {
        "What": "alerts",
        "Cause": (
            f"It last looked for problems {moment(last) if last else 'never'}: it is off, or its code "
            "location doesn't answer the daemon."
        ),
        "Effect": "Nobody is told of anything that it looks for.",
        "Page": view.link("automation?search=alerts"),
    }
    return [Problem("tick_late", "alerts", last or awake_since, facts=facts)]


def tell(
    view: Outside,
    book_key: str,
    find: Callable[[datetime], tuple[list[Problem], set[Kind]]],
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    *,
    beats: bool = True,
) -> str:
    """Look once, report what is new, and return the outcome as a sentence.

    `find` gets the time since when looks have come without a long pause. A look that `beats` requests
    HEARTBEAT_URL at its end.
    """
    storage = view.instance.daemon_cursor_storage
    stored = storage.get_cursor_values({book_key}).get(book_key)
    book = Book.model_validate_json(stored) if stored else Book()

    def save(found: Book) -> None:
        storage.set_cursor_values({book_key: found.model_dump_json()})

    if book.looked_at is None or view.now - book.looked_at > ASLEEP:
        book.awake_since = view.now
    book.looked_at = view.now
    problems, unknown = find(book.awake_since or view.now)
    addresses = _tell_news(view.settings, book, problems, view.now, clock, save, unknown)
    url = view.settings.heartbeat_url
    if beats and url and not _unheard(book, addresses):
        delivery.beat(url)
    return _summary(book, addresses)


def _tell_news(
    settings: Settings,
    book: Book,
    problems: Sequence[Problem],
    now: datetime,
    clock: Callable[[], datetime],
    save: Callable[[Book], None],
    unknown: Collection[Kind] = (),
) -> dict[str, str]:
    """Report what is new to the book, and what waits in it; returns the channels' addresses."""
    addresses = delivery.channels(current(settings, "alert_urls"))
    secrets = sorted(secret_values(settings), key=len, reverse=True)
    alerts.update(
        book,
        [*problems, *alerts.channel_problems(book, addresses)],
        now,
        channels=addresses,
        repeat=timedelta(minutes=settings.alert_repeat_minutes),
        unknown=unknown,
        horizon=now - runs.HORIZON,
    )
    save(book)  # before anything is sent, so that the next look doesn't report it again

    def send(name: str, message: Message) -> None:
        masked = message.model_copy(
            update={
                "title": mask(f"[{settings.pipeline_env}] {message.title}", secrets),
                "text": mask(message.text, secrets),
            }
        )
        delivery.send(addresses, name, masked, secrets)

    deadline = clock() + TIME_TO_TELL
    alerts.deliver(book, send, clock, save, channels=addresses, deadline=deadline)
    if book.messages:
        _read_addresses_again(settings)
    return addresses


def _read_addresses_again(settings: Settings) -> None:
    """Read ALERT_URLS again, as a channel fails: if it has changed, the next look uses the new addresses.

    Messages that waited for an address that is gone go to the new ones.
    """
    newest = read_again("alert_urls", alerts.DeliveryError("a channel fails"))
    if newest:
        replace(settings, "alert_urls", newest)


def _unheard(book: Book, addresses: dict[str, str]) -> bool:
    """Whether a message waits that no channel took: then the missing heartbeat is the alarm."""
    return any(set(message.waiting) == set(addresses) for message in book.messages)


def _summary(book: Book, addresses: dict[str, str]) -> str:
    counts = [f"{len(book.alerts)} problems"]
    if not addresses:
        counts.append("nobody is told, as ALERT_URLS is empty")
    if book.messages:
        counts.append(f"{len(book.messages)} messages wait for {_waiting(book)}")
    titles = "; ".join(alert.title for alert in book.alerts.values())
    return f"{', '.join(counts)}. {titles}"[:1000].strip()


def _waiting(book: Book) -> str:
    return ", ".join(sorted({name for message in book.messages for name in message.waiting}))


def watch_outside(
    settings: Settings, workspace: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[tuple[str, bool]]:
    """Look from outside the daemon at each iteration; yields the outcome, and whether all is well.

    This process doesn't load the definitions: they may be what is broken. Those that `workspace` names are
    loaded every few minutes, in a process of their own. Dagster's storage may be unreachable, and the book
    with it: who was told of that is kept in a book in this process's memory.
    """
    own_book = Book()
    broken: list[Problem] = []
    loaded_at = datetime.min.replace(tzinfo=UTC)

    def find(view: Outside, awake_since: datetime) -> tuple[list[Problem], set[Kind]]:
        nonlocal broken, loaded_at
        if view.now - loaded_at >= LOADED_EVERY:
            broken, loaded_at = daemon.broken_code(workspace, view.now), view.now
        return look_outside(view, awake_since, broken)

    while True:
        now, away = clock(), []
        try:
            with dg.DagsterInstance.get() as instance:
                view = Outside(instance, settings, now)
                said = tell(view, OUTSIDE, partial(find, view), clock, beats=False)
            well = said.startswith("0 problems")
        except Exception as error:  # whatever it is, is what we report
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            cause = mask(cause, sorted(secret_values(settings), key=len, reverse=True))
            away = [_failed_look(error, cause, now)]
            said, well = f"{away[0].title}. {cause}", False
        _tell_news(settings, own_book, away, now, clock, lambda _: None)
        yield said, well


def _failed_look(error: Exception, cause: str, now: datetime) -> Problem:
    """Why a look didn't come to its end: Dagster's storage is away, or something else is wrong."""
    # A second try takes another 12 s where nothing answers: only for errors that could be of anything.
    of_a_database = type(error).__module__.partition(".")[0] in DATABASE_LIBRARIES
    if of_a_database or not _storage_answers():
        facts = {
            "What": "Dagster's database",
            "Cause": cause,
            "Effect": "Nothing is scheduled, started or alerted from inside.",
        }
        return Problem("storage_unreachable", "dagster", now, facts=facts)
    return Problem("look_failed", "watch", now, facts={"What": "watch", "Cause": cause})


def _storage_answers() -> bool:
    try:
        with dg.DagsterInstance.get() as instance:
            stored_value(instance, OUTSIDE)
    except Exception:  # whatever it raises
        return False
    return True
