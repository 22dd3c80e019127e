"""Log lines of real runs in processes of their own: started by Python, and by `dagster dev`."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline_assets_tests.integration.test_command import (
    ROOT,
    dagster_dev,
    environment,
    graphql,
)

__all__ = ["environment"]  # a fixture

KEYS = {"time", "level", "logger", "environment", "run_id", "job", "step", "asset", "partition"}
LEAKY = """
import logging
import warnings
import dagster as dg
import pipeline_assets.definitions

@dg.asset(partitions_def=dg.DailyPartitionsDefinition("2026-01-07"))
def leaky(context) -> None:
    context.log.info("the key is k3y-of-news")
    logging.getLogger("a.library").warning("retrying postgresql://me:hidden@db/x")
    raise ValueError("k3y-of-news was refused")

warnings.warn("old things of a library")
logging.getLogger("a.library").warning("before any run, with k3y-of-news")
with dg.DagsterInstance.get() as instance:
    dg.materialize([leaky], partition_key="2026-01-08", instance=instance, raise_on_error=False)
"""


def lines(text: str) -> list[dict[str, Any]]:
    """The JSON lines of an output that other programs print to as well."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def leaky_run(environment: dict[str, str], pipeline_env: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", LEAKY],
        env=environment
        | {
            "DAGSTER_HOME": str(ROOT),
            "PIPELINE_ENV": pipeline_env,
            "NEWSAPI_KEY": "k3y-of-news",
            "COLUMNS": "1000",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stderr


@pytest.mark.security
def test_every_line_of_a_run_says_where_it_belongs_and_no_secret(
    environment: dict[str, str],
) -> None:
    text = leaky_run(environment, "staging")

    assert "k3y-of-news" not in text
    assert ":hidden@" not in text
    found = lines(text)
    assert all(line.keys() >= KEYS and line["environment"] == "staging" for line in found)
    before, *of_run = [line for line in found if line["logger"] in ("a.library", "dagster")]
    assert (before["message"], before["run_id"]) == ("before any run, with ***", None)
    assert {line["partition"] for line in of_run} == {"2026-01-08"}
    assert len({line["run_id"] for line in of_run}) == 1
    assert [line["logger"] for line in found if "old things" in line["message"]] == ["py.warnings"]
    said = {line["message"]: line for line in of_run}
    for message in ("the key is ***", "retrying postgresql://me:***@db/x"):  # ours, a library's
        assert (said[message]["asset"], said[message]["step"]) == ("leaky", "leaky")
    assert [line["message"] for line in found].count("retrying postgresql://me:***@db/x") == 1
    (failure,) = [line for line in of_run if line["event"] == "STEP_FAILURE"]
    assert (failure["level"], failure["asset"]) == ("ERROR", "leaky")
    assert "*** was refused" in failure["error"]


@pytest.mark.security
def test_in_dev_lines_are_for_people_and_have_no_secret_either(environment: dict[str, str]) -> None:
    text = leaky_run(environment, "dev")
    assert "k3y-of-news" not in text
    assert ":hidden@" not in text
    assert lines(text) == []
    assert "the key is ***" in text


LAUNCH = """
mutation { launchRun(executionParams: {
  selector: {repositoryLocationName: "pipeline_assets.definitions", repositoryName: "__repository__",
             jobName: "report_status"}
}) { ... on LaunchRunSuccess { run { runId } } } }
"""


@pytest.mark.slow
def test_each_process_of_dagster_dev_writes_json_with_the_environment(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "dev.log"
    environment |= {"PIPELINE_ENV": "staging", "PIPELINE_AUTOMATION": "stopped"}
    with dagster_dev(environment, log) as address:
        launched: Any = graphql(address, LAUNCH)["launchRun"]
        run_id = launched["run"]["runId"]
        status = f'{{ runOrError(runId: "{run_id}") {{ ... on Run {{ status }} }} }}'
        deadline = time.monotonic() + 180
        while True:
            found: Any = graphql(address, status)["runOrError"]
            assert found["status"] not in ("FAILURE", "CANCELED"), log.read_text()
            if found["status"] == "SUCCESS":
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
    found = lines(log.read_text())
    loggers = {line["logger"] for line in found if line.get("environment") == "staging"}
    assert "dagster-webserver" in loggers
    assert any(name.startswith("dagster.daemon") for name in loggers)
    assert {line.get("environment") for line in found} == {"staging"}
    of_run = [line for line in found if line.get("run_id") == run_id and line["event"]]
    assert {"PIPELINE_START", "ASSET_MATERIALIZATION"} <= {line["event"] for line in of_run}
    assert {line["environment"] for line in of_run} == {"staging"}
    assert {"status_report"} == {line["asset"] for line in of_run if line["step"]}
