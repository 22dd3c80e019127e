"""Whether everything is fine, computed once for the command, the page in the UI and the metrics.

It reads Dagster's history and the warehouse's ledger, and says what is wrong and what to do about it. A
part that can't be read is itself a problem and hides no other. Nothing is changed or sent here:
`watching` sends the alerts.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pipeline_assets.models.names import ORDERS, PREDICTIONS
from pipeline_assets.models.status import in_production
from pipeline_assets.operations.alerts import BOOK, Book
from pipeline_assets.operations.problems import anchor, moment
from pipeline_assets.quality.ddl import exist
from pipeline_assets.resources.dagster_history import (
    Check,
    Instigator,
    Run,
    Slow,
    Watched,
    checks,
    ended_runs,
    heartbeats,
    instigators,
    newest_partition,
    runs_by_status,
    slow_runs,
    stored_value,
    unfinished_runs,
)
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.tables import load_tables

if TYPE_CHECKING:
    import dagster as dg

    from pipeline_assets.models.records import Deployment

NEWS_TABLE, DIGEST = "news_articles", "news_digest"
HEARTBEAT = timedelta(minutes=5)
"""Daemons send a heartbeat every 30 s; Dagster itself tolerates half an hour without one."""
DAY, WEEK = timedelta(days=1), timedelta(weeks=1)
GRACE = timedelta(hours=1)
"""What a partition's load may take after its window closed; a week's has a day, as a model is trained."""
OWN_TABLES = {NEWS_TABLE: (DAY, GRACE), PREDICTIONS: (WEEK, DAY)}
"""Tables that an asset of their own loads -> how long their partitions are, and their grace."""
FIX_BEHIND = {
    NEWS_TABLE: "The sensor `missed_mornings` makes up for a week; older ones have no source.",
    PREDICTIONS: "The sensor `model_weeks` makes up for them; `pipeline-assets run` scores the newest.",
}
LOOK_BACK = timedelta(days=7)
"""How far back failed runs are looked at."""
CHECKS_BACK = timedelta(days=30)
"""How far back checks' results are read: as far as the alerts look."""
SEEN_HERE: dict[str, str] = {
    "run_failed": "failed run",
    "check_failed": "check",
    "day_held": "held",
    "data_late": "behind",
    "run_waiting": "queued",
    "run_slow": "stuck",
    "tick_failing": "tick",
    "tick_late": "tick",
}
"""Kind of an alert -> the kind of problem here that reports the same. An alert is shown unless such a problem
is: the alerts look at more tables and further back than the status."""


@dataclass(frozen=True)
class TableState:
    """A table by its ledger; `behind` are the closed partitions that were never loaded, oldest first."""

    name: str
    loaded: int
    rows_loaded: int
    rows_quarantined: int
    held: list[str]
    behind: list[str]
    newest_change: datetime | None
    """The newest change of the source that was loaded."""
    newest_window: datetime | None
    """The end of the newest partition that was loaded."""


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do about it, each a sentence or two."""

    kind: str
    what: str
    remedy: str


@dataclass
class Status:
    """Where the deployment stands at a moment. Parts that could not be read are in `unknown`."""

    at: datetime
    environment: str
    automated: bool
    """Whether schedules and sensors are on by default: then a daemon has to be running."""
    late: timedelta
    """After how long a waiting run, a tick or a look is late: ALERT_LATE_MINUTES."""
    heartbeats: dict[str, datetime] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    unfinished: list[Run] = field(default_factory=list)
    slow: list[Slow] = field(default_factory=list)
    ended: list[Run] = field(default_factory=list)
    instigators: list[Instigator] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    tables: list[TableState] = field(default_factory=list)
    alerts: Book = field(default_factory=Book)
    """The open alerts, the messages that wait, and the channels' state."""
    edition: date | None = None
    """The morning of the newest edition of the digest."""
    champion: "Deployment | None" = None
    """The deployment of the model in production."""
    unknown: dict[str, str] = field(default_factory=dict)
    """`dagster` or `warehouse` -> why it could not be read."""

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, the most pressing first; empty if everything is fine."""
        found = [
            *_unreadable(self),
            *_daemon_problems(self),
            *_run_problems(self),
            *_instigator_problems(self),
            *_table_problems(self),
            *_check_problems(self),
        ]
        return [*found, *_alert_problems(self, {problem.kind for problem in found})]

    @property
    def failed(self) -> list[Run]:
        """Failed runs without a later ended run of the same job that shares a partition with them.

        What a failed range left undone is loaded day by day: what is still missing of it is reported as
        behind or held.
        """
        return [
            run
            for number, run in enumerate(self.ended)  # newest first
            if run.status == "failure"
            and not any(later.overlaps(run) for later in self.ended[:number])
        ]


def deployment_status(
    instance: "Callable[[], dg.DagsterInstance]",
    settings: Settings,
    known: Watched,
    now: datetime | None = None,
) -> Status:
    """Where the deployment stands now. Opening the instance may fail too: its database may be down."""
    now = now or datetime.now(UTC)
    status = Status(
        now,
        settings.pipeline_env,
        automated=settings.pipeline_automation == "running",
        late=timedelta(minutes=settings.alert_late_minutes),
    )
    try:
        _read_dagster(status, instance(), known, settings.alert_slow_factor)
    except Exception as error:  # whatever the storage raises is what we report
        status.unknown["dagster"] = _one_line(error)
    try:
        status.tables = table_states(settings, now)
        status.champion = in_production(settings)
    except Exception as error:  # likewise
        status.unknown["warehouse"] = _one_line(error)
    return status


def _read_dagster(
    status: Status, instance: "dg.DagsterInstance", known: Watched, slow_factor: float
) -> None:
    status.heartbeats = heartbeats(instance)
    status.runs = runs_by_status(instance)
    status.unfinished = unfinished_runs(instance)
    status.slow = slow_runs(instance, status.at, slow_factor)
    status.ended = ended_runs(instance, status.at - LOOK_BACK, known)
    status.instigators = instigators(instance, known, status.late)
    status.checks = checks(instance, known.checks, status.at - CHECKS_BACK)
    if book := stored_value(instance, BOOK):
        status.alerts = Book.model_validate_json(book)
    if partition := newest_partition(instance, DIGEST):
        status.edition = date.fromisoformat(partition) + timedelta(days=1)


def table_states(settings: Settings, now: datetime) -> list[TableState]:
    """The state of every table with a pipeline, from the ledger alone: the tables' size adds no cost."""
    tables = {
        table.contract.name: (settings.warehouse_start_date, DAY, GRACE) for table in load_tables()
    }
    with closing(Database("warehouse", settings).connect(autocommit=True)) as warehouse:
        exists = exist(warehouse, ["pipeline.batches"])
        rows = warehouse.execute(LEDGER).fetchall() if exists else []
    found = {row[0]: row[1:] for row in rows}
    for name, (length, grace) in OWN_TABLES.items():
        is_made = name != PREDICTIONS or ORDERS in tables  # else by a model that is no more
        if name in found and is_made:
            # Partitions before the first one in the ledger weren't missed.
            tables[name] = (date.fromisoformat(found[name][-1]), length, grace)
    states = []
    for name, (first, length, grace) in tables.items():
        keys, valid, quarantined, held, change, window, begins, _ = found.get(name, NOTHING)
        loaded = set(keys)
        zone = ZoneInfo(settings.pipeline_timezone)
        expected = _closed(first, begins, zone, now - grace, length)
        states.append(
            TableState(
                name=name,
                loaded=len(loaded),
                rows_loaded=valid,
                rows_quarantined=quarantined,
                held=held,
                behind=[key for key in expected if key not in loaded],
                newest_change=change,
                newest_window=window,
            )
        )
    return states


LEDGER = """
SELECT table_name,
    coalesce(array_agg(partition_key) FILTER (WHERE loaded_hash IS NOT NULL), '{}'),
    coalesce(sum(rows_valid) FILTER (WHERE loaded_hash IS NOT NULL), 0)::bigint,
    coalesce(sum(rows_quarantined), 0)::bigint,
    coalesce(array_agg(partition_key ORDER BY partition_key) FILTER (WHERE verdict = 'failed'), '{}'),
    max(source_watermark) FILTER (WHERE loaded_hash IS NOT NULL),
    max(window_end) FILTER (WHERE loaded_hash IS NOT NULL),
    max(window_start), min(partition_key)
FROM pipeline.batches GROUP BY table_name
"""
NOTHING: tuple[list[str], int, int, list[str], None, None, None, str] = (
    *([], 0, 0, []),
    *(None, None, None, ""),
)


def _closed(
    first: date, begins: datetime | None, zone: ZoneInfo, now: datetime, length: timedelta = DAY
) -> list[str]:
    """The days or weeks whose windows ended by `now`, by their first day; a window begins at the hour at
    which a known one did."""
    at = begins.astimezone(zone).time() if begins else datetime.min.time()
    keys = []
    while datetime.combine(first + length, at, zone) <= now:
        keys.append(first.isoformat())
        first += length
    return keys


def _unreadable(status: Status) -> Iterator[Problem]:
    for part, reason in status.unknown.items():
        yield Problem(
            "unreadable",
            f"The {part} database does not answer: {reason}",
            f"Look whether it runs and whether {part.upper()}_DATABASE_URL is right.",
        )


def _daemon_problems(status: Status) -> Iterator[Problem]:
    if "dagster" in status.unknown or not status.automated:
        return
    silent = [
        f"{kind} since {_ago(status.at, beat)}"
        for kind, beat in status.heartbeats.items()
        if status.at - beat > HEARTBEAT
    ]
    if silent or not status.heartbeats:
        yield Problem(
            "daemon",
            f"Dagster's daemon is silent: {', '.join(silent) or 'it never ran'}. Nothing starts by itself.",
            "Start it (`dagster-daemon run`, or `make dev` on a laptop) and look at its log.",
        )


def _run_problems(status: Status) -> Iterator[Problem]:
    waiting = [
        run for run in status.unfinished if run.is_waiting and status.at - run.created > status.late
    ]
    if waiting:
        yield Problem(
            "queued",
            f"{len(waiting)} runs wait, {_named(waiting[0])} since {_ago(status.at, waiting[0].created)}.",
            "See Runs → Queued for what each waits for: `max_concurrent_runs`, a pool, or the daemon.",
        )
    for slow in status.slow:
        yield Problem(
            "stuck",
            f"{_named(slow.run)}: {why_slow(slow)}",
            "If its log stands still, terminate it; what it loaded stays, and the next run does the rest.",
        )
    for run in status.failed:
        yield Problem(
            "failed run",
            f"{_named(run)} failed {_ago(status.at, run.ended or run.created)} ago.",
            f"Read why on the run's page (run {run.run_id[:8]}); re-execute it from failure once fixed.",
        )


def _instigator_problems(status: Status) -> Iterator[Problem]:
    for found in status.instigators:
        if found.failures:
            yield Problem(
                "tick",
                f"The {found.kind} {found.name} failed {found.failures} times in a row: {found.error}",
                "Its page under Automation has the whole error; it is tried again at its next tick.",
            )
        if found.late_from and status.at >= found.late_from:
            last = f"{_ago(status.at, found.last_tick)} ago" if found.last_tick else "never"
            yield Problem(
                "tick",
                f"The {found.kind} {found.name} is late; it last ticked {last}.",
                "Look whether the daemon runs and the code location loads.",
            )


def _table_problems(status: Status) -> Iterator[Problem]:
    for table in status.tables:
        if table.held:
            again = (
                "materialize the partition again"
                if table.name in OWN_TABLES
                else f"`pipeline-assets quarantine replay {table.name}`"
            )
            yield Problem(
                "held",
                f"{table.name}: {_some(table.held)} held back by the contract; nothing of it is loaded.",
                f"`pipeline-assets quarantine show {table.name}` has the rows. Fix the source or the "
                f"contract, then {again}.",
            )
        behind = [key for key in table.behind if key not in table.held]
        if behind:
            fix = FIX_BEHIND.get(table.name, "`pipeline-assets run` loads it now.")
            yield Problem("behind", f"{table.name}: {_some(behind)} not loaded.", fix)


def _check_problems(status: Status) -> Iterator[Problem]:
    for check in status.checks:
        if not check.passed:
            where = f" for {check.partition}" if check.partition else ""
            yield Problem(
                "check",
                f"The check {check.name} of {check.asset} failed{where}.",
                "The asset's page, under Checks, has what it found.",
            )


def _alert_problems(status: Status, said: Collection[str]) -> Iterator[Problem]:
    looked_at = status.alerts.looked_at
    if looked_at is None or status.at - looked_at > status.late:
        return  # no sensor looks now, so the open alerts may be over
    for alert in status.alerts.alerts.values():
        if SEEN_HERE.get(alert.kind) not in said:
            yield Problem("alert", alert.title, f"See docs/runbook.md#{anchor(alert.kind)}.")


def why_slow(slow: Slow) -> str:
    """Why a run counts as slow or stuck, in words."""
    causes = []
    if slow.usual:
        usual = f"{slow.usual.total_seconds():.0f} s are usual."
        causes.append(f"Under way since {moment(slow.begun)}; {usual}")
    if slow.silent_since:
        since = moment(slow.silent_since)
        causes.append(f"It has written nothing since {since}: its process may be gone.")
    return " ".join(causes)


def _named(run: Run) -> str:
    job = "a run of single assets" if run.job.startswith("__") else run.job
    return f"{job} for {run.partition}" if run.partition else job


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys)} partitions from {keys[0]} to {keys[-1]}"


def _ago(now: datetime, then: datetime) -> str:
    minutes = int((now - then).total_seconds() // 60)
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes // 60} hours" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days"


def _one_line(error: Exception) -> str:
    from pipeline_assets.operations.logs import mask

    # A database's error names its address.
    text = str(error).strip() or type(error).__name__
    return mask(text.splitlines()[0], [])
