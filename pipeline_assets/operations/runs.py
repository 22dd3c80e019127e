"""Problems of runs that haven't ended (not started, slow, too many waiting), and what the looks share.

Everything is read from Dagster's storage as it is now; no look follows its events. Runs that failed are
in `failed_runs`.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.operations.problems import Problem, moment
from pipeline_assets.operations.status import why_slow
from pipeline_assets.resources import dagster_history
from pipeline_assets.settings import Settings

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

HORIZON = timedelta(days=30)
"""How far back failures are looked for; older ones are given up, and a message says so."""
MOST_RUNS = 1000
"""How many runs a look reads at a time, which takes 0.2 s."""


@dataclass(frozen=True)
class Outside:
    """What a look from outside sees: the instance, the settings and the time."""

    instance: dg.DagsterInstance
    settings: Settings
    now: datetime

    def link(self, path: str) -> str:
        """The address of a page in Dagster's UI; empty if PIPELINE_UI_URL isn't set."""
        base = self.settings.pipeline_ui_url
        return f"{str(base).rstrip('/')}/{path}" if base else ""

    def ago(self, span: timedelta) -> datetime:
        """The moment that long before now."""
        return self.now - span


@dataclass(frozen=True)
class View(Outside):
    """What a sensor sees: the definitions, too."""

    repository: dg.RepositoryDefinition

    def owner(self, keys: Iterable[dg.AssetKey]) -> str:
        """Who owns the assets."""
        graph = self.repository.asset_graph
        owners = {owner for key in keys if graph.has(key) for owner in graph.get(key).owners}
        return ", ".join(sorted(owner.removeprefix("team:") for owner in owners))

    def owner_of(self, run: dg.DagsterRun) -> str:
        """Who owns what the run is about: its selection, or all of its job."""
        keys = run.asset_selection or set()
        if not keys and self.repository.has_job(run.job_name):
            keys = self.repository.get_job(run.job_name).asset_layer.selected_asset_keys
        return self.owner(keys)


def partition_of(run: dg.DagsterRun) -> str:
    """The run's partition, or its range as `first to last`, or nothing."""
    span = [run.tags.get(f"dagster/asset_partition_range_{end}", "") for end in ("start", "end")]
    return run.tags.get("dagster/partition") or " to ".join(filter(None, dict.fromkeys(span)))


def root_cause(error: "SerializableErrorInfo | None", told: str = "") -> str:
    """The error of our code or of a library, without Dagster's wrapping, and its root cause.

    `told` is the description of a `dg.Failure`, which is worded for people.
    """
    chain = []
    while error is not None:
        chain.append(error)
        error = error.cause or (None if len(chain) > 1 else error.context)
    ours = [link for link in chain if not (link.cls_name or "").startswith("Dagster")] or chain
    lines = [told or _line(ours[0])] if ours else [told]
    if ours and (deepest := _line(ours[-1])) and not _says(lines[0], deepest):
        lines.append(f"at its root {deepest}")
    return "; ".join(filter(None, lines)) or "No reason is on record."


def _line(error: "SerializableErrorInfo") -> str:
    return " ".join(error.message.split())[:500]


def _says(line: str, deepest: str) -> bool:
    return deepest in line or deepest.partition(": ")[2] in line


def created(record: dg.RunRecord) -> datetime:
    """When the run was created; PostgreSQL's storage has the time in UTC, without a zone."""
    return record.create_timestamp.replace(tzinfo=UTC)


def waiting_runs(view: View) -> list[Problem]:
    """Runs that should have started, each job once, and a queue that is too long."""
    waiting = view.instance.get_run_records(
        dg.RunsFilter(statuses=dagster_history.WAITING), limit=MOST_RUNS, ascending=True
    )
    problems = []
    limit = timedelta(minutes=view.settings.alert_late_minutes)
    by_job = defaultdict(list)
    for record in waiting:
        if view.now - created(record) > limit:
            by_job[record.dagster_run.job_name].append(record)
    for job, records in by_job.items():
        first = min(records, key=created)
        problems.append(
            Problem(
                "run_waiting",
                job,
                created(first),
                members=tuple(record.dagster_run.run_id for record in records),
                facts={
                    "What": f"{job} {partition_of(first.dagster_run)}".strip(),
                    "Cause": (
                        f"{len(records)} runs wait for more than {view.settings.alert_late_minutes} "
                        f"minutes; this one is {first.dagster_run.status.value}."
                    ),
                    "Owner": view.owner_of(first.dagster_run),
                    "Run": view.link(f"runs/{first.dagster_run.run_id}"),
                },
            )
        )
    queued = [r for r in waiting if r.dagster_run.status == dg.DagsterRunStatus.QUEUED]
    if len(queued) > view.settings.alert_queue_length:
        oldest = min(map(created, queued))
        most = (
            f" or more (the oldest {MOST_RUNS} were counted)" if len(waiting) == MOST_RUNS else ""
        )
        problems.append(
            Problem(
                "queue_long",
                "runs",
                oldest,
                facts={
                    "What": f"more than {view.settings.alert_queue_length} runs wait",
                    "Cause": f"{len(queued)}{most}; the oldest since {moment(oldest)}.",
                    "Queue": view.link("runs?view=queued"),
                },
            )
        )
    return problems


def slow_runs(view: View) -> list[Problem]:
    """Runs under way for longer than usual, and those that have written nothing for long."""
    found = dagster_history.slow_runs(view.instance, view.now, view.settings.alert_slow_factor)
    return [_slow_run(view, slow) for slow in found]


def _slow_run(view: View, slow: dagster_history.Slow) -> Problem:
    run = view.instance.get_run_by_id(slow.run.run_id)
    return Problem(
        "run_slow",
        slow.run.run_id,
        slow.begun,
        facts={
            "What": f"{slow.run.job} {slow.run.partition or ''}".strip(),
            "Partition": slow.run.partition or "",
            "Cause": why_slow(slow),
            "Owner": view.owner_of(run) if run else "",
            "Run": view.link(f"runs/{slow.run.run_id}") or slow.run.run_id,
        },
    )


def failed_backfills(view: View) -> list[Problem]:
    """Backfills that Dagster itself gave up; the failed runs of others have their own alerts."""
    from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

    found = view.instance.get_backfills(
        filters=BulkActionsFilter(
            statuses=[BulkActionStatus.FAILED], created_after=view.ago(HORIZON)
        ),
        limit=MOST_RUNS,
    )
    return [
        Problem(
            "backfill_failed",
            backfill.backfill_id,
            datetime.fromtimestamp(backfill.backfill_timestamp, UTC),
            facts={
                "What": backfill.title or backfill.backfill_id,
                "Cause": root_cause(backfill.error),
                "Backfill": view.link(f"runs/b/{backfill.backfill_id}"),
            },
        )
        for backfill in found
    ]
