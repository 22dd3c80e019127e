"""What is wrong with the data: failed checks, held days, data later than its contract allows.

A failed check is one whose newest result for a partition is a failure, blocking or not: for a check
that doesn't block, Dagster fails no run and alerts nobody. The gate's verdicts come from the ledger.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import dagster as dg

from pipeline_assets.models.names import PREDICTIONS, TRAINED
from pipeline_assets.operations.checks import ON_TIME, ServiceLevel
from pipeline_assets.operations.problems import Problem, few
from pipeline_assets.operations.runs import View
from pipeline_assets.resources.dagster_instance import check_results
from pipeline_assets.resources.postgres import Database

NEWEST_ONLY = {f"{PREDICTIONS} score_drift", f"{PREDICTIONS} realised_performance"}
"""Checks of a state that the next partition replaces, like the gate's checks of a model."""


class Failed(NamedTuple):
    """A check whose newest result for the partition is a failure."""

    key: dg.AssetCheckKey
    partition: str
    is_newest: bool
    """Whether no later partition has a result."""
    event: dg.EventLogRecord


def failing_checks(instance: dg.DagsterInstance, since: datetime) -> list[Failed]:
    """Checks by partition whose newest result is a failure that isn't older than `since`."""
    results = check_results(instance, since)
    newest: dict[dg.AssetCheckKey, str] = defaultdict(str)
    for result in results:
        newest[result.check] = max(newest[result.check], result.partition or "")
    failed = [result for result in results if not result.passed]
    if not failed:
        return []
    records = instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(
            dg.DagsterEventType.ASSET_CHECK_EVALUATION,
            storage_ids=[result.event for result in failed],
        )
    )
    # Deleting a run deletes its events, but not its checks' results.
    by_id = {record.storage_id: record for record in records}
    return [
        Failed(check, partition or "", (partition or "") == newest[check], by_id[event])
        for check, partition, _, event in failed
        if event in by_id
    ]


def failed_checks(view: View, failing: Sequence[Failed]) -> list[Problem]:
    """A problem for each check that fails now, with all its partitions; one for a refused model."""
    groups: dict[dg.AssetCheckKey, list[Failed]] = defaultdict(list)
    refused: list[Failed] = []
    graph = view.repository.asset_graph
    for failed in failing:
        if not graph.has(failed.key):
            continue  # it was removed
        if failed.key.name == ON_TIME:
            continue  # `late_data` says it, at once
        asset = failed.key.asset_key.to_user_string()
        if asset == TRAINED or f"{asset} {failed.key.name}" in NEWEST_ONLY:
            if not failed.is_newest:
                continue  # a later week's took its place
            if asset == TRAINED:
                refused += [failed] if _is_error(failed) else []
                continue
        # A ranged run has a result for the range as a whole beside each partition's own.
        if failed.partition or graph.get(failed.key).partitions_def is None:
            groups[failed.key].append(failed)
    problems = [_check_problem(view, key, found) for key, found in groups.items()]
    return problems + ([_refused_model(view, refused)] if refused else [])


def _is_error(failed: Failed) -> bool:
    """Whether the failure refuses the model: an accepted model may have warnings."""
    evaluation = failed.event.event_log_entry.asset_check_evaluation
    return bool(evaluation and evaluation.severity == dg.AssetCheckSeverity.ERROR)


def _refused_model(view: View, found: Sequence[Failed]) -> Problem:
    first = min(found, key=lambda failed: failed.event.storage_id)
    causes = [
        f"{failed.key.name}: {_evidence(failed.event.event_log_entry.asset_check_evaluation)}"
        for failed in found
    ]
    problem = _check_problem(view, first.key, found)
    facts = {**problem.facts, "What": f"{TRAINED} {first.partition}", "Cause": "; ".join(causes)}
    return replace(problem, kind="model_refused", subject=TRAINED, facts=facts)


def _check_problem(view: View, key: dg.AssetCheckKey, found: Sequence[Failed]) -> Problem:
    newest = max(found, key=lambda failed: failed.event.storage_id)
    evaluation = newest.event.event_log_entry.asset_check_evaluation
    asset = key.asset_key.to_user_string()
    partitions = sorted({failed.partition for failed in found} - {""})
    run = newest.event.run_id
    blocking = bool(evaluation and evaluation.blocking)
    return Problem(
        "check_failed",
        f"{asset} {key.name}",
        datetime.fromtimestamp(min(failed.event.timestamp for failed in found), UTC),
        members=tuple(partitions or [key.name]),
        facts={
            "What": f"{key.name} of {asset} {few(partitions)}".strip(),
            "Asset": asset,
            "Partition": few(partitions),
            "Cause": _evidence(evaluation),
            "Effect": "What depends on it is not made."
            if blocking
            else "It is told, nothing stops.",
            "Owner": view.owner([key.asset_key]),
            "Run": view.link(f"runs/{run}") if run else "",
            "Check": view.link(f"assets/{asset}?view=checks"),
        },
    )


def _evidence(evaluation: dg.AssetCheckEvaluation | None) -> str:
    """What the check says: its description and its short metadata."""
    if evaluation is None:
        return ""
    short = [
        f"{name}={entry.value}"
        for name, entry in evaluation.metadata.items()
        if isinstance(entry.value, int | float | str) and len(str(entry.value)) <= 80
    ]
    return " ".join(filter(None, [evaluation.description, ", ".join(short)]))


def held_days(view: View) -> list[Problem]:
    """A problem for each table that has partitions held back by the gate."""
    from pipeline_assets.warehouse.ledger import Held, held_batches

    with Database("warehouse", view.settings).connect(autocommit=True) as warehouse:
        batches = held_batches(warehouse)
    groups: dict[str, list[Held]] = defaultdict(list)
    for batch in batches:
        groups[batch.table_name].append(batch)
    problems = []
    for table, found in groups.items():
        days = [batch.partition_key for batch in found]
        rules = sorted({rule for batch in found for rule in batch.broken_rules})
        newest = max(found, key=lambda batch: batch.validated_at)
        problems.append(
            Problem(
                "day_held",
                table,
                min(batch.validated_at for batch in found),
                members=tuple(days),
                facts={
                    "What": f"{table} {few(days)}",
                    "Partition": few(days),
                    "Cause": (
                        f"The contract's {few(rules)} broken; {newest.rows_quarantined} rows of "
                        f"{newest.partition_key} are in quarantine.{table}. Nothing of it was loaded."
                    ),
                    "Owner": view.owner([dg.AssetKey(f"validated_{table}"), dg.AssetKey(table)]),
                    "Run": view.link(f"runs/{newest.validated_by}") or newest.validated_by,
                },
            )
        )
    return problems


def without_consequences(problems: Sequence[Problem]) -> list[Problem]:
    """The problems without the failed checks that a held day already tells of."""
    held = {
        asset: set(problem.members)
        for problem in problems
        if problem.kind == "day_held"
        for asset in (problem.subject, f"validated_{problem.subject}")
    }
    return [
        problem
        for problem in problems
        if not (
            problem.kind == "check_failed"
            and set(problem.members) <= held.get(problem.facts["Asset"], set())
        )
    ]


def missed_freshness(view: View) -> list[Problem]:
    """Assets whose freshness policy Dagster's own daemon judged as failed."""
    from dagster._core.definitions.freshness import FreshnessState

    graph = view.repository.asset_graph
    keys = [key for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy]
    states = view.instance.get_freshness_state_records(keys)
    return [
        Problem(
            "freshness_missed",
            key.to_user_string(),
            state.updated_at,
            facts={
                "What": key.to_user_string(),
                "Asset": key.to_user_string(),
                "Cause": "Nothing of it was materialized for longer than its contract allows.",
                "Owner": view.owner([key]),
                "Page": view.link(f"assets/{key.to_user_string()}"),
            },
        )
        for key, state in states.items()
        if state.freshness_state == FreshnessState.FAIL
    ]


def late_data(view: View, levels: Sequence[ServiceLevel]) -> list[Problem]:
    """A problem for each table that lacks partitions which its contract promises by now.

    FreshnessPolicy knows only how old the last materialization of any partition is: the backfill of an
    old day satisfies it. Held days have an alert of their own.
    """
    from pipeline_assets.warehouse.ledger import ensure_schema

    problems = []
    with Database("warehouse", view.settings).connect(autocommit=True) as warehouse:
        for level in levels[:1]:  # all tables share one ledger
            ensure_schema(warehouse, level.contract)
        for level in levels:
            late = level.late(warehouse, view.now)
            if not late:
                continue
            asset = level.asset.to_user_string()
            problems.append(
                Problem(
                    "data_late",
                    asset,
                    level.due(late[0]) or view.now,
                    members=tuple(late),
                    facts={
                        "What": f"{asset} {few(late)}",
                        "Asset": asset,
                        "Partition": few(late),
                        "Cause": (
                            f"Not loaded {level.contract.latency_hours:g} h after its window began, "
                            f"as contract {level.contract.name} promises."
                        ),
                        "Owner": view.owner([level.asset]),
                        "Page": view.link(f"assets/{asset}?view=partitions"),
                    },
                )
            )
    return problems
