"""Dagster's event log on PostgreSQL: a ranged run's events in batches, failures when they are complete.

Deletions from it and queries on it are in `dagster_instance.py`.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from dagster import AssetCheckKey, DagsterEvent, DagsterEventType, EventLogEntry, RunsFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    SqlEventLogStorageTable,
)
from dagster_postgres import PostgresEventLogStorage
from sqlalchemy.dialects import postgresql

ENDS_WITHIN = 60.0
"""Seconds between a run's last event and its row; longer if its process died in between."""


class PipelineEventLog(PostgresEventLogStorage):
    """Dagster's event log, which also batches a ranged run's planned events and partitions' check results.

    Dagster stores each of these with three statements and three commits, 4 ms: most of the time that a
    ranged run took. The results come from `warehouse/checks.py::log_partitions`.
    """

    def get_logs_for_all_runs_by_log_id(
        self,
        after_cursor: int = -1,
        dagster_event_type: DagsterEventType | set[DagsterEventType] | None = None,
        limit: int | None = None,
    ) -> Mapping[int, EventLogEntry]:
        """Dagster's own answer, up to the first fresh event of a run that hasn't ended by its row.

        The daemon asks for new failures, each once, and retries a run if its row says that it failed. The
        row is written after the event: a server that restarted in between, for 0.4 s, cost a run its retry.
        """
        found = super().get_logs_for_all_runs_by_log_id(after_cursor, dagster_event_type, limit)
        since = time.time() - ENDS_WITHIN
        fresh = {entry.run_id for entry in found.values() if entry.timestamp > since}
        if not fresh:
            return found
        runs = self._instance.get_runs(RunsFilter(run_ids=list(fresh)))
        at_work = {run.run_id for run in runs if not run.is_finished}
        return dict(takewhile(lambda each: each[1].run_id not in at_work, found.items()))

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events with one statement per table if all are of these kinds.

        Otherwise Dagster stores them; check results without a partition it stores one by one.
        """
        found = [event.get_dagster_event() for event in events]
        if not events or not all(map(_is_batched, found)):
            super().store_event_batch(events)
            return
        rows = [self._event_to_row(event) for event in events]
        assets: dict[str, tuple[EventLogEntry, int]] = {}
        planned: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        with self.index_transaction() as connection:
            ids = connection.execute(
                SqlEventLogStorageTable.insert().returning(
                    SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
                ),
                rows,
            ).scalars()
            for entry, row, event, number in zip(events, rows, found, ids, strict=True):
                if event.event_type is DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
                    assets[row["asset_key"]] = entry, number  # the table keeps the newest
                elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED:
                    planned += _planned_checks(event, row, number)
                else:
                    results.append(_check_result(event, row, number))
            if planned:
                connection.execute(AssetCheckExecutionsTable.insert(), planned)
            if results:
                connection.execute(_RESULTS, results)
            # Last, because it locks the assets' rows against other runs.
            for entry, number in assets.values():
                self._store_asset_event(connection, entry, number)


_KEY = ("asset_key", "check_name", "run_id", "partition")
_OUTCOME = (
    "execution_status",
    "evaluation_event",
    "evaluation_event_timestamp",
    "evaluation_event_storage_id",
    "materialization_event_storage_id",
)
_INSERT = postgresql.insert(AssetCheckExecutionsTable)
# A result replaces its planned row, if there is one. The returned ids are not used: without RETURNING,
# SQLAlchemy sends such a statement row by row.
_RESULTS = _INSERT.on_conflict_do_update(
    index_elements=_KEY, set_={name: _INSERT.excluded[name] for name in _OUTCOME}
).returning(AssetCheckExecutionsTable.c.id)


def _is_batched(event: DagsterEvent) -> bool:
    if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
        # A unique index treats nulls as distinct: a result without a partition matches no planned row.
        return event.asset_check_evaluation_data.partition is not None
    return event.event_type in (
        DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
    )


def _planned_checks(event: DagsterEvent, row: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """A planned check's rows in the table of check executions, one for each partition."""
    planned = event.asset_check_planned_data
    subset = planned.partitions_subset
    shared = _execution(
        planned.asset_check_key, AssetCheckExecutionRecordStatus.PLANNED, row, number
    )
    keys = subset.get_partition_keys() if subset else [None]
    return [shared | {"partition": key} for key in keys]


def _check_result(event: DagsterEvent, row: dict[str, Any], number: int) -> dict[str, Any]:
    """A check's result as a row of the table of check executions."""
    result = event.asset_check_evaluation_data
    target = result.target_materialization_data
    status = (
        AssetCheckExecutionRecordStatus.SUCCEEDED
        if result.passed
        else AssetCheckExecutionRecordStatus.FAILED
    )
    return _execution(result.asset_check_key, status, row, number) | {
        "partition": result.partition,
        "materialization_event_storage_id": target.storage_id if target else None,
    }


def _execution(
    check: AssetCheckKey, status: AssetCheckExecutionRecordStatus, row: dict[str, Any], number: int
) -> dict[str, Any]:
    """The columns that planned checks and results share, from their event's `row` in the event log."""
    return {
        "asset_key": check.asset_key.to_string(),
        "check_name": check.name,
        "run_id": row["run_id"],
        "execution_status": status.value,
        "evaluation_event": row["event"],
        "evaluation_event_timestamp": row["timestamp"],
        "evaluation_event_storage_id": number,
    }
