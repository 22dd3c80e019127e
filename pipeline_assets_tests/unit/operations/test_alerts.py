"""The book of which channel was told what, under any order of problems, failures and crashes."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from pipeline_assets.operations.alerts import (
    KEPT_MESSAGES,
    Book,
    DeliveryError,
    Message,
    deliver,
    update,
)
from pipeline_assets.operations.problems import Problem, alike, anchor

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
CHANNELS = ["mail", "hook"]
REPEAT = timedelta(hours=1)


def problem(name: str, *members: str) -> Problem:
    return Problem("run_failed", name, BEGIN, members=members, facts={"What": name})


def _same(moment: datetime) -> datetime:
    return moment


class CrashError(Exception):
    """The process is gone."""


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from("abc")),  # the problems that exist at a look
            st.sets(st.sampled_from(CHANNELS)),  # the channels that fail
            st.integers(0, 6),  # the delivery at which the process dies; mostly none
        ),
        max_size=12,
    )
)
def test_every_change_reaches_every_channel_in_order_whatever_breaks(
    looks: list[tuple[set[str], set[str], int]],
) -> None:
    stored = Book().model_dump_json()
    got: dict[str, list[str]] = {name: [] for name in CHANNELS}
    expected: list[str] = []
    open_before: set[str] = set()
    quiet: list[tuple[set[str], set[str], int]] = [(set(), set(), 0)] * 2
    for number, (names, away, dies) in enumerate([*looks, *quiet]):
        now = BEGIN + timedelta(hours=number)
        book = Book.model_validate_json(stored)
        problems = [problem(name) for name in sorted(names)]
        update(book, problems, now, channels=CHANNELS, repeat=REPEAT)
        expected += [f"Run failed: {name}" for name in sorted(names - open_before)]
        closed = [a.title for a in Book.model_validate_json(stored).alerts.values()]
        gone = [t for t in closed if t.removeprefix("Run failed: ") not in names]
        expected += [t.replace("Run failed", "Runs again") for t in gone]
        open_before = names
        stored = book.model_dump_json()
        sent = 0

        def send(name: str, message: Message, away: set[str] = away, dies: int = dies) -> None:
            nonlocal sent
            if name in away:
                raise DeliveryError("away")
            got[name].append(message.title)
            sent += 1
            if sent == dies:
                raise CrashError

        def save(found: Book) -> None:
            nonlocal stored
            stored = found.model_dump_json()

        with suppress(CrashError):
            deliver(book, send, partial(_same, now), save, channels=CHANNELS, deadline=now + REPEAT)

    for titles in got.values():
        # At least once, in order; a crash between delivery and saving repeats one message.
        without_repeats = [t for i, t in enumerate(titles) if i == 0 or titles[i - 1] != t]
        in_order = [t for i, t in enumerate(expected) if i == 0 or expected[i - 1] != t]
        assert without_repeats == in_order
    assert Book.model_validate_json(stored).messages == []


def test_what_joins_an_open_alert_is_counted_and_told_later() -> None:
    book = Book()
    update(book, [problem("a", "1")], BEGIN, channels=CHANNELS, repeat=REPEAT)
    for minutes in (1, 2, 59):
        found = [problem("a", *"123456"[: 1 + minutes % 7])]
        update(book, found, BEGIN + timedelta(minutes=minutes), channels=CHANNELS, repeat=REPEAT)
    assert len(book.messages) == 1
    update(book, found, BEGIN + timedelta(minutes=60), channels=CHANNELS, repeat=REPEAT)
    assert [message.title for message in book.messages] == [
        "Run failed: a",
        "Run failed: a (3 more since 2026-03-01 00:00 UTC)",
    ]
    update(book, [], BEGIN + timedelta(hours=2), channels=CHANNELS, repeat=REPEAT)
    assert "recurred 3 times" in book.messages[-1].text


def test_what_nobody_could_look_for_is_not_mended() -> None:
    book = Book()
    update(book, [problem("a")], BEGIN, channels=CHANNELS, repeat=REPEAT)
    update(book, [], BEGIN, channels=CHANNELS, repeat=REPEAT, unknown={"run_failed"})
    assert list(book.alerts) == ["run_failed a"]


def test_what_only_a_newer_version_knows_stays_open() -> None:
    """After a rollback, or before a watch is replaced, an older version reads the newer one's book."""
    book = Book()
    update(book, [problem("a")], BEGIN, channels=CHANNELS, repeat=REPEAT)
    newer = Book.model_validate_json(book.model_dump_json().replace("run_failed", "sky_falls"))
    update(newer, [], BEGIN, channels=CHANNELS, repeat=REPEAT)
    assert list(newer.alerts) == ["sky_falls a"]


def test_what_is_out_of_sight_is_given_up_and_not_called_mended() -> None:
    book = Book()
    update(book, [problem("a")], BEGIN, channels=CHANNELS, repeat=REPEAT)
    later = BEGIN + timedelta(days=31)
    update(book, [], later, channels=CHANNELS, repeat=REPEAT, horizon=later - timedelta(days=30))
    assert book.messages[-1].title == "Given up: Run failed: a"


def test_what_began_long_ago_and_recurred_since_is_mended_when_it_is_gone() -> None:
    """A daily check without partitions: only its newest result counts, and each day brings a new one."""
    book = Book()
    for days in range(33):
        now = BEGIN + timedelta(days=days)
        failed = [Problem("check_failed", "a reconciled", now)] if days < 32 else []
        horizon = now - timedelta(days=30)
        update(book, failed, now, channels=CHANNELS, repeat=REPEAT, horizon=horizon)
    assert book.messages[-1].title == "Check passes again: a reconciled"
    assert book.messages[-1].level == "success"
    assert "It began 2026-03-01 00:00 UTC" in book.messages[-1].text


def test_what_is_seen_at_any_age_is_mended_when_it_is_gone() -> None:
    book = Book()
    held = Problem("day_held", "transactions", BEGIN)
    update(book, [held], BEGIN, channels=CHANNELS, repeat=REPEAT)
    later = BEGIN + timedelta(days=31)
    update(book, [], later, channels=CHANNELS, repeat=REPEAT, horizon=later - timedelta(days=30))
    assert book.messages[-1].title == "Day no longer held: transactions"


def test_a_mended_address_gets_what_waited_for_the_wrong_one() -> None:
    """A channel's name is a hash of its address, so that another address is another channel."""
    book = Book()
    update(book, [problem("a"), problem("b")], BEGIN, channels=["wrong"], repeat=REPEAT)
    update(book, [problem("a"), problem("b")], BEGIN, channels=["wrong"], repeat=REPEAT)
    update(book, [problem("b")], BEGIN, channels=["right"], repeat=REPEAT)
    update(book, [problem("b")], BEGIN, channels=["right"], repeat=REPEAT)
    assert [(message.title, message.waiting) for message in book.messages] == [
        ("Run failed: a", ["right"]),
        ("Run failed: b", ["right"]),
        ("Runs again: a", ["right"]),
    ]


def test_what_a_new_channel_never_heard_of_is_told_to_it_alone() -> None:
    book = Book()
    update(book, [problem("a")], BEGIN, channels=[], repeat=REPEAT)
    for channels in (["mail"], ["mail"], CHANNELS, CHANNELS, ["mail"]):
        update(book, [problem("a")], BEGIN, channels=channels, repeat=REPEAT)
    titles = [(message.title, message.waiting) for message in book.messages]
    assert titles == [("Run failed: a", ["mail"])]  # `hook` was removed, and what waited for it
    update(book, [problem("a")], BEGIN, channels=CHANNELS, repeat=REPEAT)
    assert book.messages[-1].waiting == ["hook"]


def test_the_number_of_alerts_that_were_left_out_is_right() -> None:
    book = Book()
    for number in range(KEPT_MESSAGES + 20):
        found = [problem(str(number))]
        update(book, found, BEGIN, channels=CHANNELS, repeat=REPEAT, unknown={"run_failed"})
    assert len(book.messages) == KEPT_MESSAGES
    assert book.messages[0].title == "21 alerts could not be kept"  # one dropped for this note
    assert book.messages[1].title == "Run failed: 21"


def test_causes_that_differ_in_numbers_are_the_same() -> None:
    one = (
        "FileNotFoundError: /data/2026-01-07/7d4c3c66-16ae-4a7e-9f6c-2f5b3a0f8d11 at line 12\nmore"
    )
    two = (
        "FileNotFoundError: /data/2026-01-08/11111111-16ae-4a7e-9f6c-2f5b3a0f8d11 at line 7\nother"
    )
    assert alike(one) == alike(two) != alike("KeyError: 'a'")


def test_an_anchor_is_githubs() -> None:
    assert anchor("look_failed") == "operations-cant-look"
