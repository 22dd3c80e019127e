"""Batched writes leave the same in Dagster's tables as Dagster's own writes; failures are told in time."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from pipeline_assets.resources import dagster_event_log
from pipeline_assets.warehouse.checks import log_partitions

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-20")
RANGE = ["2026-01-03", "2026-01-12"]
CHECKS = ["even", "positive"]


def specs(asset: str) -> list[dg.AssetCheckSpec]:
    return [dg.AssetCheckSpec(name, asset=asset, partitions_def=DAYS) for name in CHECKS]


def results(day: str) -> Iterator[dg.AssetCheckResult]:
    for name in CHECKS:
        passed = name == "positive" or int(day[-1]) % 2 == 0
        yield dg.AssetCheckResult(
            check_name=name,
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{day}'s" if passed else None,
            metadata={"rows": int(day[-2:]), "text": "O'Neil; %s :x"},
        )


@dg.asset(
    partitions_def=DAYS,
    check_specs=specs("first"),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def first(context: dg.AssetExecutionContext) -> Iterator[Any]:
    # One day more than the run's: its results weren't planned.
    keys = [*context.partition_keys, "2026-01-15"]
    log_partitions(context, "first", ((key, results(key)) for key in keys))
    yield dg.MaterializeResult(check_results=list(results(keys[0])))


@dg.asset(
    partitions_def=DAYS,
    deps=[first],
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[dg.AssetCheckSpec("whole", asset="second")],
)
def second() -> Iterator[Any]:
    yield dg.MaterializeResult(check_results=[dg.AssetCheckResult(check_name="whole", passed=True)])


def stored(instance: dg.DagsterInstance, run_id: str) -> dict[str, list[tuple[Any, ...]]]:
    """A run's events and check executions, without what differs between any two runs."""
    queries = {
        "events": "SELECT dagster_event_type, step_key, asset_key, partition, event FROM event_logs"
        " WHERE run_id = :run AND dagster_event_type LIKE 'ASSET_%' ORDER BY id",
        "executions": "SELECT found.asset_key, check_name, found.partition, execution_status,"
        " evaluation_event, materialization_event_storage_id IS NULL,"
        " evaluation_event_timestamp = logged.timestamp, evaluation_event = logged.event"
        " FROM asset_check_executions AS found"
        " LEFT JOIN event_logs AS logged ON logged.id = evaluation_event_storage_id"
        " WHERE found.run_id = :run ORDER BY 1, 2, 3",
        "assets": "SELECT asset_key, last_run_id = :run FROM asset_keys ORDER BY 1",
        "tags": "SELECT logged.partition, tag.asset_key, tag.key FROM asset_event_tags AS tag"
        " JOIN event_logs AS logged ON logged.id = tag.event_id"
        " WHERE logged.run_id = :run ORDER BY 1, 2, 3",
    }
    found = {}
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]  # SQL storages have it
        for name, query in queries.items():
            rows = connection.execute(sa.text(query), {"run": run_id}).fetchall()
            found[name] = [
                tuple(
                    _comparable(value, run_id) if isinstance(value, str) else value for value in row
                )
                for row in rows
            ]
    return found


def _comparable(value: str, run_id: str) -> str:
    value = value.replace(run_id, "RUN")
    # Storage ids, times and versions that Dagster generates.
    value = re.sub(r'"(timestamp|storage_id|pid|[^"]*pointer/first)": "?[\d.]+', r'"\1": 0', value)
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{64}", "ID", value)


def run(instance: dg.DagsterInstance) -> str:
    done = dg.materialize(
        [first, second],
        instance=instance,
        tags={
            "dagster/asset_partition_range_start": RANGE[0],
            "dagster/asset_partition_range_end": RANGE[1],
        },
    )
    assert done.success
    return done.run_id


@contextmanager
def writes_of_checks(instance: dg.DagsterInstance) -> Iterator[list[str]]:
    """The statements that write check executions, as the server gets them: one per row of an executemany."""
    found: list[str] = []

    def note(_1: Any, _2: Any, statement: str, rows: Any, _3: Any, _4: bool) -> None:
        if re.match("(INSERT INTO|UPDATE) asset_check_executions", statement):
            found.extend([statement] * (len(rows) if isinstance(rows, list) else 1))

    engine = instance.event_log_storage._engine  # type: ignore[attr-defined]  # SQL storages have it
    sa.event.listen(engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize(("size", "writes"), [("7", 7), ("200", 2)])
def test_a_ranged_run_leaves_what_it_leaves_event_by_event(
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    size: str,
    writes: int,
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "0")
    expected = stored(instance, run(instance))
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", size)
    with writes_of_checks(instance) as statements:
        written = run(instance)

    found = stored(instance, written)
    assert found == expected
    assert "Falling back" not in capfd.readouterr().err
    of_the_range = 2 * 3  # its own three results: Dagster tries an UPDATE for each, then inserts it
    assert len(statements) == writes + of_the_range
    statuses = {row[1:4] for row in found["executions"] if "first" in row[0]}
    assert ("even", "2026-01-03", "FAILED") in statuses
    assert ("even", "2026-01-04", "SUCCEEDED") in statuses
    assert ("positive", "2026-01-15", "SUCCEEDED") in statuses
    assert len(statuses) == 2 * (10 + 1 + 1)  # the range as a whole is the last
    assert all(row[6:] == (True, True) for row in found["executions"])
    key = dg.AssetCheckKey(dg.AssetKey("first"), "even")
    (newest,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert newest.run_id == written


@pytest.mark.parametrize(("within", "between"), [(60.0, 0), (0.0, 1)])
def test_a_failure_is_told_once_the_runs_row_says_so(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, within: float, between: int
) -> None:
    """The daemon asked between the two, found a run that hadn't failed, and never retried it.

    A run whose process dies between the two doesn't hold back the others' failures for ever.
    """
    monkeypatch.setattr(dagster_event_log, "ENDS_WITHIN", within)
    told = []

    def ask() -> None:
        found = instance.event_log_storage.get_logs_for_all_runs_by_log_id(
            after_cursor=0, dagster_event_type={dg.DagsterEventType.RUN_FAILURE}
        )
        told.append(len(found))

    handle = instance.run_storage.handle_run_event

    def asked_before(run_id: str, event: dg.DagsterEvent, *rest: Any) -> None:
        if event.event_type is dg.DagsterEventType.RUN_FAILURE:
            ask()
        handle(run_id, event, *rest)

    monkeypatch.setattr(instance.run_storage, "handle_run_event", asked_before)

    @dg.asset
    def broken() -> None:
        raise dg.Failure("no more of this")

    dg.materialize([broken], instance=instance, raise_on_error=False)
    ask()
    assert told == [between, 1]
