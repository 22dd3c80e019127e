"""Who has been told of what: from the problems that exist now to the messages still to be delivered.

The book has an alert for every problem that was reported and still exists, and a message for everything
that some channel has yet to get. Every look compares it with the problems, so that nothing depends on
events or a cursor: after a pause of any length the next look reports what is wrong then. A message leaves
the book channel by channel once it was delivered: a caller that saves the book after each delivery loses
no message, and repeats one after a crash between the two.

No Dagster, no network, no clock: the caller passes problems, a way to send, a way to save and the time.
"""

from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel

from pipeline_assets.operations.problems import WORDS, Kind, Problem, few, moment

BOOK = "pipeline_assets.alerts"
"""Where the sensor keeps its book, among the daemon's values in Dagster's storage."""

Level = Literal["failure", "success"]

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=10)
KEPT_MESSAGES = 500
"""A limit, as channels may never come back; the oldest messages are dropped first, and another one says how
many."""

FORGOTTEN: frozenset[Kind] = frozenset(
    ("run_failed", "check_failed", "model_refused", "backfill_failed")
)
"""Kinds that are looked for only back to a horizon; a problem of another kind that isn't found is over."""


class DeliveryError(Exception):
    """A channel didn't take a message; says why, without the channel's address."""


class Alert(BaseModel):
    """A problem that was reported and still exists."""

    kind: str
    """A `Kind`, or one that only a newer version knows: that may have written the book."""
    subject: str
    title: str
    text: str
    since: datetime
    """When it began."""
    newest: datetime | None = None
    """The problem's `since` when it was last seen: a check that fails each day has a new one each day."""
    told_at: datetime
    members: list[str]
    """Everything that ever belonged to it, so that what recurs isn't counted twice."""
    suppressed: int = 0
    """New members since it was last reported."""
    repeated: int = 0
    """New members since it was first reported."""


class Message(BaseModel):
    """Something to tell; `waiting` names the channels that don't have it yet."""

    title: str
    text: str
    level: Level
    waiting: list[str]
    left_out: int = 0
    """How many messages it stands for that could not be kept."""


class Channel(BaseModel):
    """How delivery to a channel goes."""

    delivered: int = 0
    failures: int = 0
    """In a row, up to now."""
    failing_since: datetime | None = None
    next_try: datetime | None = None
    reason: str = ""


class Book(BaseModel):
    """Everything that must survive a restart. Fingerprint -> alert; name -> channel."""

    alerts: dict[str, Alert] = {}
    messages: list[Message] = []
    channels: dict[str, Channel] = {}
    looked_at: datetime | None = None
    awake_since: datetime | None = None
    """Since when looks come without a long pause."""


def channel_problems(book: Book, names: Iterable[str]) -> list[Problem]:
    """A problem for each channel that fails, for the others to tell."""
    return [
        Problem(
            "channel_failing",
            name,
            channel.failing_since,
            facts={"What": name, "Cause": channel.reason},
        )
        for name in names
        if (channel := book.channels.get(name)) and channel.failing_since
    ]


def update(
    book: Book,
    problems: Iterable[Problem],
    now: datetime,
    *,
    channels: Collection[str],
    repeat: timedelta,
    unknown: Collection[Kind] = (),
    horizon: datetime | None = None,
) -> None:
    """Bring the book's alerts in line with the problems, and put what is new among its messages.

    New problems are reported at once. Members that join an open alert are counted, and reported after
    `repeat`. Alerts whose problem is gone get their recovery message, except for kinds that are `unknown`
    because the look failed. Those of `FORGOTTEN` kinds whose newest `since` is before the `horizon` are out
    of sight, not resolved, and their last message says so. A new channel is told what is still open.
    """
    new_channels = _changed_channels(book, channels)
    open_before = set(book.alerts)
    found = {problem.fingerprint: problem for problem in problems}
    for fingerprint, problem in found.items():
        alert = book.alerts.get(fingerprint)
        if alert is None:
            book.alerts[fingerprint] = alert = _opened(problem, now)
            _tell(book, problem.title, problem.text, "failure", _others(alert, channels))
            continue
        alert.title, alert.text, alert.newest = problem.title, problem.text, problem.since
        new = [member for member in problem.members if member not in alert.members]
        alert.members += new
        alert.suppressed += len(new)
        alert.repeated += len(new)
        if alert.suppressed and now - alert.told_at >= repeat:
            since = f"{alert.suppressed} more since {moment(alert.told_at)}: {few(new)}".rstrip(
                ": "
            )
            told = _others(alert, channels)
            _tell(book, f"{alert.title} ({since})", alert.text, "failure", told)
            alert.suppressed, alert.told_at = 0, now
    for fingerprint, alert in list(book.alerts.items()):
        if fingerprint not in found and alert.kind in WORDS and alert.kind not in unknown:
            del book.alerts[fingerprint]
            is_old = horizon is not None and (alert.newest or alert.since) < horizon
            forgotten = is_old and alert.kind in FORGOTTEN
            _close(book, alert, now, _others(alert, channels), forgotten=forgotten)
    for fingerprint, alert in book.alerts.items():
        if new_channels and fingerprint in open_before:
            heard = {
                name
                for message in book.messages
                if message.title == alert.title
                for name in message.waiting
            }
            unheard = [name for name in _others(alert, new_channels) if name not in heard]
            _tell(book, alert.title, alert.text, "failure", unheard)


def _changed_channels(book: Book, channels: Collection[str]) -> list[str]:
    """The channels that are new, which get what waited for those that are gone.

    A channel's name comes from its address: correcting an address removes one name and adds another.
    """
    new = [name for name in channels if name not in book.channels]
    for message in book.messages:
        kept = [name for name in message.waiting if name in channels]
        message.waiting = sorted({*kept, *new}) if len(kept) < len(message.waiting) else kept
    book.messages = [message for message in book.messages if message.waiting]
    book.channels = {name: book.channels.get(name, Channel()) for name in channels}
    return new


def _opened(problem: Problem, now: datetime) -> Alert:
    return Alert(
        kind=problem.kind,
        subject=problem.subject,
        title=problem.title,
        text=problem.text,
        since=problem.since,
        told_at=now,
        members=list(problem.members),
    )


def _others(alert: Alert, channels: Collection[str]) -> list[str]:
    """The channels to tell: a channel that fails isn't told of its own failure."""
    own = alert.subject if alert.kind == "channel_failing" else None
    return [name for name in channels if name != own]


def _close(
    book: Book, alert: Alert, now: datetime, channels: Collection[str], *, forgotten: bool
) -> None:
    began, ended = WORDS[alert.kind]
    about = alert.title.removeprefix(f"{began}: ")
    lines = [f"It began {moment(alert.since)} and was over by {moment(now)}."]
    if alert.repeated:
        lines.append(f"It recurred {alert.repeated} times meanwhile.")
    if forgotten:
        lines = [f"Not resolved since {moment(alert.since)}; nobody looks any more.", alert.text]
        _tell(book, f"Given up: {alert.title}", "\n".join(lines), "failure", channels)
    else:
        _tell(book, f"{ended}: {about}", "\n".join(lines), "success", channels)


def _tell(book: Book, title: str, text: str, level: Level, channels: Collection[str]) -> None:
    if channels:
        book.messages.append(Message(title=title, text=text, level=level, waiting=sorted(channels)))
    if (excess := len(book.messages) - KEPT_MESSAGES) > 0:
        dropped = book.messages[: excess + 1]  # the note needs a place too
        left_out = sum(message.left_out or 1 for message in dropped)
        note = Message(
            title=f"{left_out} alerts could not be kept",
            text=f"More than {KEPT_MESSAGES} waited for delivery; the oldest were left out.",
            level="failure",
            waiting=sorted({name for message in dropped for name in message.waiting}),
            left_out=left_out,
        )
        book.messages[: excess + 1] = [note]


def deliver(
    book: Book,
    send: Callable[[str, Message], None],
    clock: Callable[[], datetime],
    save: Callable[[Book], None],
    *,
    channels: Collection[str],
    deadline: datetime,
) -> None:
    """Send what waits, oldest first, each channel in its order; save after each delivery.

    A channel that fails is left alone for a while, longer each time. `send` raises DeliveryError.
    """
    for name in channels:
        channel = book.channels.setdefault(name, Channel())
        for message in book.messages:
            now = clock()
            if now >= deadline or (channel.next_try and now < channel.next_try):
                break
            if name not in message.waiting:
                continue
            try:
                send(name, message)
            except DeliveryError as error:
                channel.failures += 1
                channel.failing_since = channel.failing_since or now
                channel.reason = str(error)
                pause = FIRST_PAUSE * 2 ** min(channel.failures - 1, 10)
                channel.next_try = now + min(pause, LONGEST_PAUSE)
                save(book)
                break
            message.waiting.remove(name)
            channel.delivered += 1
            channel.failures, channel.reason = 0, ""
            channel.failing_since = channel.next_try = None
            save(book)
    book.messages = [message for message in book.messages if message.waiting]
    save(book)
