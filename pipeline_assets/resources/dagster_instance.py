"""Dagster's own storage, as `dagster.yaml` names it: PostgreSQL and the project's data folder.

Dagster builds these classes in each of its processes; each process resolves the settings itself, so that
`dagster.yaml` contains no address and `dagster dev` needs no variable at all. Below them are retention's
deletions from that storage, and the queries that Dagster's API answers too slowly: together with the
writes of `dagster_event_log.py`, all SQL on Dagster's tables.
"""

import gc
import json
import os
import sys
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from weakref import WeakKeyDictionary

from dagster import (
    AssetCheckKey,
    AssetKey,
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    EventLogEntry,
    Field,
)
from dagster._config.config_schema import UserConfigSchema
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import (
    IO_TYPE_EXTENSION,
    LocalComputeLogManager,
)
from dagster._core.storage.root import LocalArtifactStorage
from dagster._serdes import ConfigurableClassData, deserialize_value
from dagster_postgres import DagsterPostgresStorage, PostgresRunStorage

from pipeline_assets.operations.logs import configure_logging
from pipeline_assets.resources.compute_logs import captured
from pipeline_assets.resources.dagster_event_log import PipelineEventLog
from pipeline_assets.resources.local_files import make_private
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from dagster._core.scheduler.instigation import InstigatorTick

# Options that only the environment can set; every Dagster process loads this module first.
# Events of a range of partitions are stored in batches (`PipelineEventLog`) instead of one by one.
os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "200")
# No step multiplies large matrices, but when pandas is imported OpenBLAS starts threads, which spin:
# 0.12 s of CPU per run.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_complete: set[str] = set()
"""URLs of databases whose tables this process has found or created: tables don't vanish, and checking takes
half the time of opening an instance, which a code server does at each tick."""

_opened: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""The storages' engines, and the pids of the processes that created them."""


def _remember(part: Any) -> None:
    """Register a storage's engine, and make the storage's disposal close its connections too.

    Dagster leaves them to the garbage collector: a code server, which opens an instance per tick, had up to
    46. Dagster disposes of the run and event storages, but never of the schedule storage, which ticks don't
    query.
    """
    engine, dispose = part._engine, part.dispose
    _opened[engine] = os.getpid()

    def close() -> None:
        dispose()
        _close(engine)

    part.dispose = close


def _close(engine: Any) -> None:
    if _opened.get(engine) == os.getpid():  # an inherited engine is still in use in the parent
        engine.dispose()


def close_connections() -> None:
    """Close the idle connections of this process's storages; a storage used again opens new ones.

    A Celery worker opens an instance for each step that it executes, and doesn't close it: eight steps
    left seven connections open, and the steps of sixty days used up all that a server has.
    """
    gc.collect()  # frees the connection that Dagster's check for a table leaves checked out
    for engine in list(_opened):
        _close(engine)


class PipelineRunStorage(PostgresRunStorage):
    """Dagster's run storage, which also tells runs failed by an asset from those failed by Dagster itself."""

    def handle_run_event(
        self, run_id: str, event: DagsterEvent, update_timestamp: datetime | None = None
    ) -> None:
        """Update a run from its event.

        A step's retry policy covers only its function's errors. If the database goes away while Dagster
        reads or writes before or after the function, the step fails at once, and no run is retried for a
        failed step (`run_retries` in dagster.yaml). Recorded as the run's exception, the failure makes the
        run be retried, from that step.
        """
        data = event.event_specific_data
        if isinstance(data, JobFailureData) and _is_dagsters_own(data.first_step_failure_event):
            own = data._replace(failure_reason=RunFailureReason.RUN_EXCEPTION)
            event = event._replace(event_specific_data=own)
        super().handle_run_event(run_id, event, update_timestamp)


def _is_dagsters_own(step_failure: DagsterEvent | None) -> bool:
    return bool(
        step_failure and step_failure.step_failure_data.error_source is ErrorSource.UNEXPECTED_ERROR
    )


class PipelineStorage(DagsterPostgresStorage):
    """Runs, events and schedules in the database at DAGSTER_DATABASE_URL, else the embedded one."""

    def __init__(self, url: str, create: bool, inst_data: ConfigurableClassData | None) -> None:
        super().__init__(url, create and url not in _complete, inst_data)
        if create:
            _complete.add(url)
        self._run_storage = PipelineRunStorage(url, should_autocreate_tables=False)
        self._event_log_storage = PipelineEventLog(url, should_autocreate_tables=False)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure but whether to create the tables (Dagster's own commands set it)."""
        return {"should_autocreate_tables": Field(bool, is_required=False, default_value=True)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings, and configure the process's logging.

        The daemon and the webserver load no definitions: this is the first project code that they run.
        """
        settings = _settings()
        configure_logging(settings)
        database = Database("dagster", settings)
        # Each event is committed by itself, and waiting for the disk is nearly its whole cost (4.8 ms of
        # 4.9). If the machine loses power, the last half second of Dagster's own history may be lost;
        # the warehouse and its ledger do wait for the disk.
        options = "?options=-c%20synchronous_commit%3Doff" if database.is_embedded else ""
        create = config_value["should_autocreate_tables"]
        storage = database.open(lambda url: cls(_for_psycopg2(url) + options, create, inst_data))
        # Dagster keeps connections open in its webserver only; elsewhere each statement opens a new one.
        # A ranged run of 319 days and three assets opened 5,000 and took 113 s; with a pool, 25 s.
        parts: tuple[Any, ...] = (
            storage.run_storage,
            storage.event_log_storage,
            storage.schedule_storage,
        )
        for part in parts:
            part.optimize_for_webserver(
                statement_timeout=60_000, pool_recycle=3600, max_overflow=20
            )
            # A pooled connection is tested before it is used: a run whose server restarted did all of its
            # work, at its end used a connection from before the restart, and was marked as failed.
            part._engine.pool._pre_ping = True
            # The webserver calls it again, for connections that wouldn't follow a changed password.
            part.optimize_for_webserver = _nothing_more
            if not database.is_embedded:
                _follow_logins(part, database)
            _remember(part)
        # Dagster calls this for every materialization, on another connection; tables don't vanish.
        events = storage.event_log_storage
        events.has_table = cache(events.has_table)  # type: ignore[attr-defined]  # PostgreSQL's has it
        return storage


def upgrade(instance: DagsterInstance) -> None:
    """Create or upgrade Dagster's tables, however long it takes: minutes for an index on a long history."""
    from sqlalchemy import event

    parts: tuple[Any, ...] = (
        instance.run_storage,
        instance.event_log_storage,
        instance.schedule_storage,
    )
    for part in parts:
        event.listen(part._engine, "checkout", _without_limit)
    instance.upgrade()


def _without_limit(connection: Any, *_: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")


def _settings() -> Settings:
    """This process's settings, cached: loading takes 11 ms, and each instance needs them three times.

    A login that changes is read again once it is refused.
    """
    return _settings_in(frozenset(os.environ.items()))


@cache
def _settings_in(environment: frozenset[tuple[str, str]]) -> Settings:
    del environment
    return load_settings()


def _nothing_more(statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
    """Do nothing: the storage keeps its connections already."""


def _for_psycopg2(url: str) -> str:
    """Name psycopg2, which dagster-postgres ships: a bare postgresql:// may come to mean psycopg 3."""
    return "postgresql+psycopg2://" + url.partition("://")[2]


def _follow_logins(part: Any, database: Database) -> None:
    """Make a storage's new connections use the settings' current login."""

    def on_login(url: str) -> None:
        # Dagster connects with this URL where a page of the UI follows a run.
        part.postgres_url = _for_psycopg2(url)

    database.follow(part._engine, on_login)


class PipelineComputeLogs(LocalComputeLogManager):
    """What runs print, in the data folder (`dagster dev` alone would delete it when it ends)."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        del config_value
        return cls(_in_data_folder("compute_logs"), inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        """Capture both streams of this process, and create a marker file when that is complete."""
        out, err = (
            Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        )
        with captured(sys.stdout, out), captured(sys.stderr, err):
            yield CapturedLogContext(log_key)
        complete = self.complete_artifact_path(log_key)  # type: ignore[no-untyped-call]  # it has no types
        Path(complete).touch()


class PipelineArtifacts(LocalArtifactStorage):
    """Dagster's own files; those of the assets are in `partitions`."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        del config_value
        return cls(_in_data_folder("artifacts"), inst_data)


def _in_data_folder(name: str) -> str:
    folder = _settings().pipeline_data_dir
    make_private(folder)
    return str(folder / name)


# Event types that may be removed once a run has long ended; all others stay. Runs' and steps' outcomes,
# materializations, check results and planned events are not listed: partitions' and checks' statuses are
# computed from them. STEP_OUTPUT tells where a run can be resumed; a run this old isn't resumed, as a new
# run of the partition does the same.
REMOVABLE_EVENTS = (
    "ENGINE_EVENT",
    "HANDLED_OUTPUT",
    "HOOK_COMPLETED",
    "HOOK_SKIPPED",
    "LOADED_INPUT",
    "LOGS_CAPTURED",
    "RESOURCE_INIT_STARTED",
    "RESOURCE_INIT_SUCCESS",
    "STEP_INPUT",
    "STEP_OUTPUT",
    "STEP_WORKER_STARTED",
    "STEP_WORKER_STARTING",
)
_OLD_EVENTS = (
    "FROM event_logs WHERE id <= :newest AND (dagster_event_type IS NULL"
    " OR dagster_event_type = ANY(:types)) AND run_id IN"
    " (SELECT run_id FROM runs WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED'))"
)
_NO_LIMIT = "SET LOCAL statement_timeout = 0"
"""For work that no page waits for: the storage's limit of a minute is the webserver's."""
_BATCH = 10_000
"""Rows per transaction: a lock is held for tenths of a second, however much there is to remove."""


def remove_run_logs(instance: DagsterInstance, before: datetime) -> tuple[int, int]:
    """Remove what ended runs printed and logged before a moment; return (runs, events).

    Dagster's `delete_run` also removes the run's materializations, so that their partitions look missing.
    Dagster can't remove only a run's other events, so they are deleted by SQL.
    """
    from sqlalchemy import text

    storage = instance.event_log_storage
    old: dict[str, Any] = {"types": list(REMOVABLE_EVENTS)}
    with storage.index_transaction() as connection:  # type: ignore[attr-defined]  # SQL storages have it
        connection.execute(text(_NO_LIMIT))
        # Ids grow with time: the index on type and id finds the rest without looking at newer events.
        newest = "SELECT max(id) FROM event_logs WHERE timestamp < :before"
        old["newest"] = connection.execute(text(newest), {"before": _stored(before)}).scalar() or 0
        # A run's output is removed before the events by which the run is found, in case of a crash between.
        found = connection.execute(
            text(f"SELECT DISTINCT run_id {_OLD_EVENTS}"), old
        )  # our own text
        runs = [run_id for (run_id,) in found]
    for run_id in runs:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    events = 0
    statement = text(
        f"DELETE FROM event_logs WHERE id IN (SELECT id {_OLD_EVENTS} LIMIT {_BATCH})"  # noqa: S608 - our own text
    )
    while True:
        with storage.index_transaction() as connection:  # type: ignore[attr-defined]  # likewise
            connection.execute(text(_NO_LIMIT))
            removed = connection.execute(statement, old).rowcount
        events += removed
        if removed < _BATCH:
            return len(runs), events


def remove_ticks(instance: DagsterInstance, before: datetime) -> None:
    """Remove ticks older than a moment, except each schedule's and sensor's newest.

    Dagster removes old ticks when a schedule or sensor ticks; this covers those that no longer do. From its
    newest tick a schedule knows where to continue.
    """
    states = instance.all_instigator_state()
    newest = newest_ticks(instance, [state.selector_id for state in states], 1)
    for state in states:
        for tick in newest.get(state.selector_id, []):
            until = min(before.timestamp(), tick.timestamp)
            instance.purge_ticks(state.instigator_origin_id, state.selector_id, until)


# One index scan per selector; Dagster ranks or sorts all ticks that are kept.
_NEWEST_TICKS = """
SELECT selector, id, tick_body FROM unnest(CAST(:selectors AS text[])) AS selector, LATERAL (
    SELECT id, tick_body, timestamp FROM job_ticks WHERE selector_id = selector
    ORDER BY timestamp DESC LIMIT :count
) AS tick ORDER BY selector, timestamp DESC
"""


def newest_ticks(
    instance: DagsterInstance, selectors: Collection[str], count: int
) -> "dict[str, list[InstigatorTick]]":
    """The newest ticks of schedules and sensors, by selector id, newest first; without ticks, absent.

    With a million ticks, a week of a hundred sensors, Dagster's `get_batch_ticks` takes 6 s for the last two
    of each, its `get_ticks` 0.1 s for those of one sensor; this takes 5 ms for all.
    """
    from dagster._core.scheduler.instigation import InstigatorTick, TickData

    found: dict[str, list[InstigatorTick]] = {}
    rows = _rows(instance, _NEWEST_TICKS, selectors=list(selectors), count=count)
    for selector, number, body in rows:
        tick = InstigatorTick(number, deserialize_value(body, TickData))
        found.setdefault(selector, []).append(tick)
    return found


class CheckResult(NamedTuple):
    """The newest result of a check for one partition, or without one."""

    check: AssetCheckKey
    partition: str | None
    passed: bool
    event: int
    """The storage id of its event."""


_CHECKS = """
SELECT asset_key, check_name, partition, max(evaluation_event_storage_id),
    max(CASE WHEN execution_status = 'FAILED' THEN evaluation_event_storage_id END)
FROM asset_check_executions
WHERE execution_status IN ('SUCCEEDED', 'FAILED') AND evaluation_event_timestamp >= :since
GROUP BY asset_key, check_name, partition
"""


def check_results(instance: DagsterInstance, since: datetime) -> list[CheckResult]:
    """The newest result of each check and partition since a moment.

    Dagster's `get_asset_check_partition_info` joins each check's whole history with all
    materializations: 2.9 s with 10,000 runs. A test compares the results of both.
    """
    rows = _rows(instance, _CHECKS, since=_stored(since))
    return [
        CheckResult(
            AssetCheckKey(AssetKey(json.loads(asset)), name), partition, failed != newest, newest
        )
        for asset, name, partition, newest, failed in rows
    ]


class StoredEvent(NamedTuple):
    """An event of a run, as columns of Dagster's table; parsing its text is the expensive part."""

    run_id: str
    storage_id: int
    kind: DagsterEventType
    step_key: str | None
    asset: AssetKey | None
    partition: str | None
    text: str | None

    @property
    def event(self) -> DagsterEvent:
        """The parsed event; only for kinds that were requested `whole`."""
        return deserialize_value(self.text or "", EventLogEntry).get_dagster_event()


_EVENTS = """
SELECT run_id, id, dagster_event_type, step_key, asset_key, partition,
    CASE WHEN dagster_event_type = ANY(:whole) THEN event END
FROM event_logs WHERE run_id = ANY(:runs) AND dagster_event_type = ANY(:kinds) ORDER BY id
"""


def run_events(
    instance: DagsterInstance,
    run_ids: Collection[str],
    kinds: Collection[DagsterEventType],
    whole: Collection[DagsterEventType],
) -> Iterator[StoredEvent]:
    """The runs' events of some kinds, oldest first; those of the `whole` kinds with their text.

    Dagster's API needs a query per run and parses every event, even for 300 runs.
    """
    asked = {"runs": list(run_ids), "kinds": _names(kinds), "whole": _names(whole)}
    for run_id, number, kind, step, asset, partition, text in _rows(instance, _EVENTS, **asked):
        key = AssetKey(json.loads(asset)) if asset else None
        yield StoredEvent(run_id, number, DagsterEventType(kind), step, key, partition, text)


def last_events(instance: DagsterInstance, run_ids: Collection[str]) -> dict[str, datetime]:
    """When each run last wrote an event; a run without any is absent."""
    query = (
        "SELECT run_id, max(timestamp) FROM event_logs WHERE run_id = ANY(:runs) GROUP BY run_id"
    )
    rows = _rows(instance, query, runs=list(run_ids))
    return {run_id: moment.replace(tzinfo=UTC) for run_id, moment in rows}


def _rows(instance: DagsterInstance, query: str, **values: Any) -> Sequence[Any]:
    from sqlalchemy import text

    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]  # SQL storages have it
        rows: Sequence[Any] = connection.execute(text(query), values).fetchall()
    return rows


def _stored(moment: datetime) -> datetime:
    """The moment as the storage's columns have it: in UTC, without a time zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def _names(kinds: Iterable[DagsterEventType]) -> list[str]:
    return [kind.value for kind in kinds]
