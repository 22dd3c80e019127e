"""A problem: something that is wrong now, as a person is told of it.

Belongs here: what a problem is, its wording, and how causes are made comparable. `failed_runs`, `runs`,
`data` and `daemon` find problems; `alerts` records who has been told of which.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

Kind = Literal[
    "run_failed",
    "check_failed",
    "model_refused",
    "day_held",
    "data_late",
    "freshness_missed",
    "run_waiting",
    "run_slow",
    "queue_long",
    "tick_failing",
    "tick_late",
    "switched_off",
    "backfill_failed",
    "channel_failing",
    "look_failed",
    "daemon_silent",
    "storage_unreachable",
    "ui_unreachable",
    "code_broken",
]

WORDS: Mapping[str, tuple[str, str]] = {
    "run_failed": ("Run failed", "Runs again"),
    "check_failed": ("Check failed", "Check passes again"),
    "model_refused": ("Model refused", "Model accepted"),
    "day_held": ("Day held back", "Day no longer held"),
    "data_late": ("Data late", "Data there"),
    "freshness_missed": ("Freshness missed", "Fresh again"),
    "run_waiting": ("Run not started", "Run started"),
    "run_slow": ("Run slow or stuck", "Slow run ended"),
    "queue_long": ("Queue too long", "Queue short again"),
    "tick_failing": ("Tick fails", "Tick works again"),
    "tick_late": ("Tick late", "Tick came"),
    "switched_off": ("Automation switched off", "Automation on again"),
    "backfill_failed": ("Backfill failed", "Backfill done"),
    "channel_failing": ("Alerts not delivered", "Alerts delivered again"),
    "look_failed": ("Operations can't look", "Operations can look again"),
    "daemon_silent": ("Daemon silent", "Daemon back"),
    "storage_unreachable": ("Storage unreachable", "Storage back"),
    "ui_unreachable": ("UI unreachable", "UI back"),
    "code_broken": ("Code location broken", "Code location loads again"),
}
"""Kind -> what the alert is called, and its recovery. `docs/runbook.md` has an entry for each."""

NAMED = 10
"""How many members of a problem a message names."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong. Its kind and subject are its fingerprint: one alert for each.

    `members` are what the problem consists of: the runs or partitions that share its cause. A member
    that joins an open alert is a repetition, not another alert. `facts` are lines "name: value" of the
    message, in their order.
    """

    kind: Kind
    subject: str
    since: datetime
    members: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """What tells it from other problems."""
        return f"{self.kind} {self.subject}"

    @property
    def title(self) -> str:
        """The alert's first line."""
        return f"{WORDS[self.kind][0]}: {self.facts.get('What', self.subject)}"

    @property
    def text(self) -> str:
        """The alert's other lines."""
        return "\n".join(
            f"{name}: {value}"
            for name, value in {
                **self.facts,
                "Since": moment(self.since),
                "Runbook": f"docs/runbook.md#{anchor(self.kind)}",
            }.items()
            if value and name != "What"
        )


def anchor(kind: str) -> str:
    """The anchor of the kind's entry in the runbook; empty for a kind that only a newer version knows."""
    began, _ = WORDS.get(kind, ("", ""))
    return re.sub(r"[^a-z ]", "", began.lower()).replace(" ", "-")


def moment(time: datetime) -> str:
    """A time as messages show it."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def few(names: Iterable[str]) -> str:
    """The first names and how many more there are."""
    found = list(names)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


VARIABLE = re.compile(
    r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"  # run ids
    r"|\b0x[0-9a-f]+\b|\b[0-9a-f]{16,}\b|\d+",
    re.IGNORECASE,
)


def alike(cause: str) -> str:
    """The cause without what differs from one occurrence to the next: numbers, dates, ids."""
    return VARIABLE.sub("#", cause.splitlines()[0] if cause else "")[:200]
