"""Failed runs whose work no other run has done since.

A failure is resolved when what the run failed to make has been made, by any run: an alert ends when the
data is there, not when somebody acknowledges it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets.operations.problems import Problem, alike, few
from pipeline_assets.operations.runs import (
    HORIZON,
    MOST_RUNS,
    View,
    created,
    partition_of,
    root_cause,
)
from pipeline_assets.resources.dagster_instance import StoredEvent, check_results, run_events
from pipeline_assets.running import RETRY

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

Pair = tuple[dg.AssetKey, str]
"""An asset and one of its partitions."""

RETRY_NUMBER, MAX_RETRIES, WILL_RETRY = (
    "dagster/retry_number",
    "dagster/max_retries",
    "dagster/will_retry",
)
GATES = {"DagsterAssetCheckFailedError", "GateError"}
Event = dg.DagsterEventType
TELLING = {
    Event.ASSET_CHECK_EVALUATION_PLANNED,
    Event.STEP_FAILURE,
    Event.RUN_FAILURE,
    Event.ENGINE_EVENT,
}
"""Events that are read whole; of the others only what they are about."""
WANTED = {
    Event.ASSET_MATERIALIZATION_PLANNED,
    Event.ASSET_MATERIALIZATION,
    Event.STEP_UP_FOR_RETRY,
    *TELLING,
}


@dataclass
class Failure:
    """What a failed run's events say."""

    end: int = 0
    """The storage id of the event that ended it."""
    missing: list[Pair] = field(default_factory=list)
    """What it was to make and didn't."""
    checks: list[dg.AssetCheckKey] = field(default_factory=list)
    """What it was to check, if it was to make nothing."""
    step: str = ""
    cause: str = "No reason is on record."
    follows_check: bool = False
    """It failed because a blocking check or the gate did: these have alerts of their own."""
    attempts: int = 1


_known: dict[str, Failure] = {}
"""Run id -> what its events say, which no longer changes."""


def failed_runs(view: View, told: Collection[str] = ()) -> list[Problem]:
    """Failed runs whose work no other run has done since, one problem for those with the same cause.

    `told` are partitions with a failed check or a held day: a run that failed because of these alone
    isn't reported again.
    """
    newest: dict[tuple[Any, ...], dg.RunRecord] = {}
    for record in _failed_records(view):  # the newest first
        newest.setdefault(_target(record.dagster_run), record)
    failures = _failures(view, [record.dagster_run for record in newest.values()])
    resolved = _resolved(view, list(newest.values()), failures)
    groups: dict[str, list[tuple[dg.RunRecord, Failure]]] = defaultdict(list)
    for record in newest.values():
        run = record.dagster_run
        failure = failures[run.run_id]
        follows = failure.follows_check and {key for _, key in failure.missing} <= set(told)
        if run.run_id not in resolved and not follows:
            what = run.job_name if run.job_name != "__ASSET_JOB" else failure.step or "assets"
            groups[f"{what} {failure.step}: {alike(failure.cause)}"].append((record, failure))
    return [_run_problem(view, subject, found) for subject, found in groups.items()]


def _failed_records(view: View) -> Iterator[dg.RunRecord]:
    """All failed runs back to the horizon, page by page: one left out would look resolved."""
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=view.ago(HORIZON))
    cursor = None
    while True:
        page = view.instance.get_run_records(filters, limit=MOST_RUNS, cursor=cursor)
        yield from page
        if len(page) < MOST_RUNS:
            return
        cursor = page[-1].dagster_run.run_id


def _target(run: dg.DagsterRun) -> tuple[Any, ...]:
    selection = run.asset_selection, run.asset_check_selection
    return run.job_name, partition_of(run), *(frozenset(found or ()) for found in selection)


def _failures(view: View, runs: Iterable[dg.DagsterRun]) -> dict[str, Failure]:
    """Run id -> its failure; runs that no look has read yet are read by one query."""
    by_id = {run.run_id: run for run in runs}
    if len(_known) > 5 * MOST_RUNS:
        _known.clear()
    events: dict[str, list[StoredEvent]] = {run_id: [] for run_id in by_id if run_id not in _known}
    if events:
        for event in run_events(view.instance, events, WANTED, TELLING):
            events[event.run_id].append(event)
    _known.update({run_id: _read(view, by_id[run_id], found) for run_id, found in events.items()})
    return {run_id: _known[run_id] for run_id in by_id}


def _read(view: View, run: dg.DagsterRun, events: Iterable[StoredEvent]) -> Failure:
    found = Failure()
    planned: dict[dg.AssetKey, None] = {}
    checks: list[StoredEvent] = []
    made: set[Pair] = set()
    retries: dict[str | None, int] = defaultdict(int)
    said: StoredEvent | None = None
    for stored in events:
        if stored.kind == Event.ASSET_MATERIALIZATION_PLANNED and stored.asset:
            planned[stored.asset] = None
        elif stored.kind == Event.ASSET_CHECK_EVALUATION_PLANNED:
            checks.append(stored)
        elif stored.kind == Event.ASSET_MATERIALIZATION and stored.asset:
            made.add((stored.asset, stored.partition or ""))
        elif stored.kind == Event.STEP_UP_FOR_RETRY:
            retries[stored.step_key] += 1
        elif stored.kind == Event.STEP_FAILURE and not found.step:
            data = stored.event.step_failure_data
            found.step = stored.step_key or ""
            found.attempts = retries[stored.step_key] + 1
            told = data.user_failure_data
            found.cause = root_cause(data.error, (told and told.description) or "")
            found.follows_check = bool(GATES & set(_classes(data.error)))
        elif stored.kind == Event.ENGINE_EVENT and not found.end:
            said = stored
        elif stored.kind == Event.RUN_FAILURE:
            found.end = stored.storage_id
            if not found.step:
                found.cause = _without_step(stored.event, said)
    keys = _partition_keys(view, run, planned)
    found.missing = [(asset, key) for asset in planned for key in keys if (asset, key) not in made]
    if not planned:
        plans: list[Any] = [stored.event.event_specific_data for stored in checks]
        found.checks = [plan.asset_check_key for plan in plans]
    return found


def _without_step(event: dg.DagsterEvent, said: StoredEvent | None) -> str:
    """Why a run failed without a failed step: killed, not started in time, code that doesn't load.

    `said` is the last engine event before the failure: there, what ended the run from outside gives its
    reason. Later ones are about the run's retry.
    """
    data: Any = event.event_specific_data
    if data is not None and data.error is not None:
        return root_cause(data.error)
    message = event.message or ""
    if "marked as failed from outside" not in message:
        return message
    return (said.event.message if said else "") or message


def _partition_keys(view: View, run: dg.DagsterRun, planned: Iterable[dg.AssetKey]) -> list[str]:
    if key := run.tags.get("dagster/partition"):
        return [key]
    first, last = (run.tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
    graph = view.repository.asset_graph
    for asset in planned:
        partitions = graph.get(asset).partitions_def if graph.has(asset) else None
        if first and last and partitions:
            return list(partitions.get_partition_keys_in_range(dg.PartitionKeyRange(first, last)))
    return []


def _resolved(
    view: View, records: Sequence[dg.RunRecord], failures: Mapping[str, Failure]
) -> set[str]:
    """The runs whose work has been done since, judged by what they were for.

    What was to be made has been made. What was to be checked has a newer result, for any partition: a job
    of checks alone is about whichever partition is the newest. For any other run, a later one of the same
    target has succeeded.
    """
    made = _newest_made(view, failures.values())
    checked = _newest_checked(view, failures.values())
    others = [record for record in records if _is_other(failures[record.dagster_run.run_id])]
    ran = _newest_success(view, others)
    resolved = set()
    for record in records:
        run = record.dagster_run
        failure = failures[run.run_id]
        if _is_other(failure):
            again = ran.get(_target(run))
            done = again is not None and again > created(record)
        else:
            done = all(made[pair] > failure.end for pair in failure.missing)
            done &= all(checked.get(key, 0) > failure.end for key in failure.checks)
        if done:
            resolved.add(run.run_id)
    return resolved


def _is_other(failure: Failure) -> bool:
    return not failure.missing and not failure.checks


def _newest_made(view: View, failures: Iterable[Failure]) -> dict[Pair, int]:
    """Each missing pair -> the storage id of its newest materialization, 0 if there is none."""
    wanted: dict[dg.AssetKey, set[str]] = defaultdict(set)
    for failure in failures:
        for asset, key in failure.missing:
            wanted[asset].add(key)
    storage = view.instance.event_log_storage
    return {
        (asset, key): ids.get(key, 0)
        for asset, keys in wanted.items()
        for ids in [
            storage.get_latest_storage_id_by_partition(
                asset, Event.ASSET_MATERIALIZATION, partitions=keys
            )
        ]
        for key in keys
    }


def _newest_checked(view: View, failures: Iterable[Failure]) -> dict[dg.AssetCheckKey, int]:
    """Check -> the storage id of its newest result; empty if no failed run was to bring one."""
    if not any(failure.checks for failure in failures):
        return {}
    newest: dict[dg.AssetCheckKey, int] = defaultdict(int)
    for result in check_results(view.instance, view.ago(HORIZON)):
        newest[result.check] = max(newest[result.check], result.event)
    return newest


def _newest_success(view: View, records: Sequence[dg.RunRecord]) -> dict[tuple[Any, ...], datetime]:
    """Target -> when its newest successful run was created, for the jobs of these runs."""
    newest: dict[tuple[Any, ...], datetime] = {}
    for job in {record.dagster_run.job_name for record in records}:
        later = view.instance.get_run_records(
            dg.RunsFilter(
                job_name=job,
                statuses=[dg.DagsterRunStatus.SUCCESS],
                created_after=min(created(record) for record in records),
            ),
            limit=MOST_RUNS,
        )
        for record in later:  # the newest first
            newest.setdefault(_target(record.dagster_run), created(record))
    return newest


def _run_problem(view: View, subject: str, found: list[tuple[dg.RunRecord, Failure]]) -> Problem:
    record, failure = found[0]
    run = record.dagster_run
    assets = list(dict.fromkeys(asset for _, each in found for asset, _ in each.missing))
    partitions = sorted({partition_of(each.dagster_run) for each, _ in found} - {""})
    ended = [each.end_time for each, _ in found if each.end_time]
    what = run.job_name if run.job_name != "__ASSET_JOB" else failure.step or "assets"
    return Problem(
        "run_failed",
        subject,
        datetime.fromtimestamp(min(ended), UTC) if ended else created(record),
        members=tuple(partitions or [run.run_id]),
        facts={
            "What": " ".join(filter(None, [what, few(partitions)])),
            "Step": failure.step,
            "Not made": few(asset.to_user_string() for asset in assets),
            "Partition": few(partitions),
            "Cause": failure.cause,
            "Attempt": _attempt(view, run, failure),
            "Owner": view.owner(assets or [dg.AssetKey(failure.step or "none")]),
            "Run": view.link(f"runs/{run.run_id}") or run.run_id,
        },
    )


def _attempt(view: View, run: dg.DagsterRun, failure: Failure) -> str:
    """Which attempt failed, of how many, and whether there will be another."""
    number = int(run.tags.get(RETRY_NUMBER, "0")) + 1
    most = int(run.tags.get(MAX_RETRIES, view.instance.run_retries_max_retries)) + 1
    again = run.tags.get(WILL_RETRY) == "true"
    steps = f"{failure.attempts} of {RETRY.max_retries + 1} of the step, " if failure.step else ""
    return f"{steps}run {number} of {most}; {'is retried' if again else 'is not retried'}"


def _classes(error: "SerializableErrorInfo | None") -> list[str]:
    classes = []
    while error is not None:
        classes.append(error.cls_name or "")
        error = error.cause
    return classes
