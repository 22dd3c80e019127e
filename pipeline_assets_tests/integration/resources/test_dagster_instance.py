"""Dagster's storage on a real PostgreSQL whose server restarts while it is in use."""

import sys
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from pipeline_assets.resources.dagster_instance import upgrade


def end_sessions(instance: dg.DagsterInstance) -> int:
    """End all connections to Dagster's database, as a restart does; return their number."""
    url = instance.run_storage.postgres_url  # type: ignore[attr-defined]  # PostgreSQL's has it
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        others = " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return len(connection.execute(sa.text(query + others)).fetchall())


def test_a_run_whose_server_restarts_ends_as_it_went(instance: dg.DagsterInstance) -> None:
    """Such a run did all of its work, but was marked as failed: its last statement used a lost connection."""
    ended = []

    @dg.asset
    def restarted() -> None:
        ended.append(end_sessions(instance))

    @dg.asset(deps=[restarted])
    def after() -> None:
        ended.append(end_sessions(instance))

    result = dg.materialize([restarted, after], instance=instance)

    assert min(ended) > 0
    assert result.success
    run = instance.get_run_by_id(result.run_id)
    assert run
    assert run.status == dg.DagsterRunStatus.SUCCESS
    end_sessions(instance)
    assert instance.get_runs_count() == 1
    assert instance.get_latest_materialization_event(dg.AssetKey("after"))
    assert instance.all_instigator_state() == []


def test_a_run_whose_server_goes_away_under_dagsters_own_statement_is_run_again(
    instance: dg.DagsterInstance,
) -> None:
    """A step's retries cover only its function's errors: one of Dagster's own failed the run for good."""
    engine = instance.event_log_storage._engine  # type: ignore[attr-defined]  # SQL storages have it
    lost: list[int] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def lose(connection: sa.Connection, _: Any, statement: str, *__: Any) -> None:
        if not lost and statement.startswith("INSERT") and executed:
            lost.append(end_sessions(instance))

    executed: list[int] = []

    @dg.asset
    def made() -> None:
        executed.append(1)

    @dg.asset
    def broken() -> None:
        raise dg.Failure("no more of this")

    interrupted = dg.materialize([made], instance=instance, raise_on_error=False)
    failed = dg.materialize([broken], instance=instance, raise_on_error=False)

    assert lost
    for result, again in ((interrupted, "true"), (failed, "false")):
        run = instance.get_run_by_id(result.run_id)
        assert run
        assert run.status == dg.DagsterRunStatus.FAILURE
        assert run.tags["dagster/will_retry"] == again
    assert [event.step_key for event in interrupted.get_step_failure_events()] == ["made"]


def test_an_instance_that_is_opened_again_connects_once_it_is_asked(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code server opens one per tick: checking for the tables each time took nine connections."""
    connected: list[object] = []
    driver: Any = sys.modules["psycopg2"]  # it has no types
    connect = driver.connect

    def count(*arguments: Any, **options: Any) -> Any:
        connected.append(arguments)
        return connect(*arguments, **options)

    monkeypatch.setattr(driver, "connect", count)
    with dg.DagsterInstance.from_ref(instance.get_ref()) as again:
        assert not connected
        assert again.get_runs_count() == 0
        assert again.get_runs_count() == 0
    assert len(connected) == 1


def test_an_upgrade_has_no_time_limit(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index on a long history takes longer than the minute that the webserver's statements have."""
    engine = instance.event_log_storage._engine  # type: ignore[attr-defined]  # SQL storages have it

    def limit() -> str:
        with engine.connect() as connection:
            return str(connection.execute(sa.text("SHOW statement_timeout")).scalar())

    limits = [limit()]
    monkeypatch.setattr(instance, "upgrade", lambda: limits.append(limit()))
    upgrade(instance)
    assert limits == ["1min", "0"]
