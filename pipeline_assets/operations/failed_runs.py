"""Runs that failed and whose work nobody has done since.

A failure is mended when what the run failed to make has been made, by whatever run: an alert ends when
the data is there and not when somebody clicked.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
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
WANTED = {
    Event.ASSET_MATERIALIZATION_PLANNED,
    Event.ASSET_MATERIALIZATION,
    Event.STEP_UP_FOR_RETRY,
    Event.STEP_FAILURE,
    Event.RUN_FAILURE,
}


@dataclass
class Failure:
    """What a failed run says of itself."""

    end: int = 0
    """The storage id of the event that ended it."""
    missing: list[Pair] = field(default_factory=list)
    """What it was to make and didn't."""
    step: str = ""
    cause: str = "No reason is on record."
    follows_check: bool = False
    """It failed because a blocking check did, or the gate: they have alerts of their own."""
    attempts: int = 1


_known: dict[str, Failure] = {}
"""Run id -> what it says, which no longer changes: a look at 100 failed runs costs 0.4 s, the next 0."""


def failed_runs(view: View, told: Collection[str] = ()) -> list[Problem]:
    """Failed runs whose work nobody has done since, those with the same cause together.

    `told` are partitions with a failed check or a held day: a run that failed because of these alone
    isn't told again.
    """
    newest: dict[tuple[Any, ...], dg.RunRecord] = {}
    for record in _failed_records(view):  # the newest first
        newest.setdefault(_target(record.dagster_run), record)
    failures = {
        record.dagster_run.run_id: _failure(view, record.dagster_run) for record in newest.values()
    }
    late = _still_missing(view, failures.values())
    groups: dict[str, list[tuple[dg.RunRecord, Failure]]] = defaultdict(list)
    for record in newest.values():
        failure = failures[record.dagster_run.run_id]
        if failure.missing:
            mended = not any(late[pair] < failure.end for pair in failure.missing)
        else:
            mended = _succeeded_since(view, record)
        follows = failure.follows_check and {key for _, key in failure.missing} <= set(told)
        if not mended and not follows:
            run = record.dagster_run
            what = run.job_name if run.job_name != "__ASSET_JOB" else failure.step or "assets"
            groups[f"{what} {failure.step}: {alike(failure.cause)}"].append((record, failure))
    return [_run_problem(view, subject, found) for subject, found in groups.items()]


def _failed_records(view: View) -> Iterator[dg.RunRecord]:
    """All back to the horizon, page by page: one left out would look mended."""
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


def _failure(view: View, run: dg.DagsterRun) -> Failure:
    if run.run_id not in _known:
        if len(_known) > 5 * MOST_RUNS:
            _known.clear()
        _known[run.run_id] = _read(view, run)
    return _known[run.run_id]


def _read(view: View, run: dg.DagsterRun) -> Failure:
    found = Failure()
    planned: dict[dg.AssetKey, None] = {}
    made: set[Pair] = set()
    retries: dict[str | None, int] = defaultdict(int)
    storage = view.instance.event_log_storage
    for record in storage.get_records_for_run(run.run_id, of_type=WANTED).records:
        event = record.event_log_entry.get_dagster_event()
        key = event.asset_key
        if event.event_type == Event.ASSET_MATERIALIZATION_PLANNED and key:
            planned[key] = None
        elif event.event_type == Event.ASSET_MATERIALIZATION and key:
            made.add((key, event.partition or ""))
        elif event.event_type == Event.STEP_UP_FOR_RETRY:
            retries[event.step_key] += 1
        elif event.event_type == Event.STEP_FAILURE and not found.step:
            data = event.step_failure_data
            found.step = event.step_key or ""
            found.attempts = retries[event.step_key] + 1
            told = data.user_failure_data
            found.cause = root_cause(data.error, (told and told.description) or "")
            found.follows_check = bool(GATES & set(_classes(data.error)))
        elif event.event_type == Event.RUN_FAILURE:
            found.end = record.storage_id
            if not found.step:
                found.cause = _without_step(view, run, event, found.end)
    keys = _partition_keys(view, run, planned)
    found.missing = [(asset, key) for asset in planned for key in keys if (asset, key) not in made]
    return found


def _without_step(view: View, run: dg.DagsterRun, event: dg.DagsterEvent, end: int) -> str:
    """Why a run ended that no step ended: killed, not started in time, not to be loaded."""
    data: Any = event.event_specific_data
    if data is not None and data.error is not None:
        return root_cause(data.error)
    message = event.message or ""
    if "marked as failed from outside" not in message:
        return message
    # Who ended it from outside said why in an event before; what comes after is about its retry.
    storage = view.instance.event_log_storage
    records = storage.get_records_for_run(run.run_id, of_type=Event.ENGINE_EVENT).records
    said = [
        record.event_log_entry.get_dagster_event().message
        for record in records
        if record.storage_id < end
    ]
    return (said[-1] if said else "") or message


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


def _still_missing(view: View, failures: Iterable[Failure]) -> dict[Pair, int]:
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


def _succeeded_since(view: View, record: dg.RunRecord) -> bool:
    """Whether a later run of the same target succeeded; the only sign where nothing is missing."""
    run = record.dagster_run
    later = view.instance.get_runs(
        dg.RunsFilter(
            job_name=run.job_name,
            statuses=[dg.DagsterRunStatus.SUCCESS],
            created_after=record.create_timestamp,
        ),
        limit=100,
    )
    return any(_target(found) == _target(run) for found in later)


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
