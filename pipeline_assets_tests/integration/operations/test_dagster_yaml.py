"""Dagster accepts every setting of dagster.yaml, and each does what the comment there says."""

import subprocess
import time
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler import DagsterDaemonScheduler
from dagster._core.scheduler.instigation import TickStatus

from pipeline_assets_tests.integration.test_command import (
    BIN,
    ROOT,
    dagster_dev,
    environment,
    graphql,
)

__all__ = ["environment"]  # a fixture


@pytest.fixture
def instance(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    """The instance as every Dagster process builds it, on an embedded database of the test's own."""
    for name, value in {**environment, "DAGSTER_HOME": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    return dg.DagsterInstance.get()


def test_each_setting_reaches_the_part_of_dagster_that_it_is_for(
    instance: dg.DagsterInstance,
) -> None:
    concurrency = instance.get_concurrency_config()
    queue = concurrency.run_queue_config
    assert queue is not None
    assert (queue.max_concurrent_runs, queue.max_user_code_failure_retries) == (4, 480)
    assert queue.user_code_failure_retry_delay == 30
    assert queue.tag_concurrency_limits == [{"key": "dagster/backfill", "limit": 2}]
    assert instance.run_coordinator.dequeue_interval_seconds == 1  # type: ignore[attr-defined]  # the queued one has it
    pools = concurrency.pool_config
    assert (pools.default_pool_limit, pools.pool_granularity.value) == (3, "run")  # type: ignore[union-attr]  # set in the file
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_start_timeout_seconds == 300
    assert instance.run_monitoring_poll_interval_seconds == 10
    assert instance.run_launcher.supports_check_run_worker_health
    assert instance.run_monitoring_max_runtime_seconds == 14400
    assert instance.get_settings("run_monitoring")["free_slots_after_run_end_seconds"] == 300
    assert instance.run_retries_enabled
    assert isinstance(instance.scheduler, DagsterDaemonScheduler)
    assert instance.scheduler.max_tick_retries == 3
    from dagster._core.definitions.run_request import InstigatorType

    ticks = instance.get_tick_retention_settings(InstigatorType.SENSOR)
    assert (ticks[TickStatus.SKIPPED], ticks[TickStatus.FAILURE]) == (7, 30)
    assert instance.get_tick_retention_settings(InstigatorType.SCHEDULE)[TickStatus.SUCCESS] == 90
    assert instance.managed_python_loggers == ["root"]
    assert not instance.telemetry_enabled
    assert not instance.nux_enabled


LAUNCH = """
mutation { launchRun(executionParams: {
  selector: {repositoryLocationName: "pipeline_assets.definitions", repositoryName: "__repository__",
             jobName: "load_transactions"}
  executionMetadata: {tags: [{key: "dagster/partition", value: "%s"}]}
}) { __typename ... on PythonError { message } } }
"""
RUNS = "{ runsOrError { ... on Runs { results { status startTime endTime } } } }"


@pytest.mark.reliability
def test_runs_wait_in_the_queue_while_their_pool_is_full(
    environment: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(
        [str(BIN / "dagster"), "instance", "concurrency", "set", "source", "1"],
        env=environment | {"DAGSTER_HOME": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    days = ("2026-01-08", "2026-01-09")
    with dagster_dev(environment, tmp_path / "dev.log") as address:
        for day in days:
            assert graphql(address, LAUNCH % day)["launchRun"] == {"__typename": "LaunchRunSuccess"}
        deadline = time.monotonic() + 240
        while True:
            answer = graphql(address, RUNS)["runsOrError"]
            assert isinstance(answer, dict)
            runs = answer["results"]
            if all(run["status"] == "SUCCESS" for run in runs):
                break
            assert not [run for run in runs if run["status"] in ("FAILURE", "CANCELED")]
            assert time.monotonic() < deadline, runs
            time.sleep(0.5)
    assert len(runs) == len(days)
    spans = sorted((run["startTime"], run["endTime"]) for run in runs)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
