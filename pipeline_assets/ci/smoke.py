"""A smoke test of a deployment: materialize one partition of each pipeline through its API.

It runs the newest partition of each job, whichever that is: loads are idempotent, so a deployment in use
takes no harm. It shows that webserver, daemon, code, run workers and databases work together; the tests
cover what the pipelines do.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_assets.failures import PermanentError
from pipeline_assets.models.names import ORDERS
from pipeline_assets.warehouse.tables import load_tables

POLL = 1.0
"""Seconds between two requests for the same state."""

_REPOSITORIES = """
query { repositoriesOrError {
  __typename
  ... on PythonError { message }
  ... on RepositoryConnection { nodes { name location { name } jobs { name } } }
} }
"""
_PARTITIONS = """
query($job: PipelineSelector!) { pipelineOrError(params: $job) {
  __typename
  ... on PipelineNotFoundError { message }
  ... on PythonError { message }
  ... on Pipeline { partitionKeysOrError(reverse: true, limit: 1) { partitionKeys } }
} }
"""
_LAUNCH = """
mutation($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) {
  __typename
  ... on Error { message }
  ... on LaunchRunSuccess { run { runId } }
} }
"""
_RUN = """
query($run: ID!) { runOrError(runId: $run) {
  __typename
  ... on Error { message }
  ... on Run { status assetMaterializations { partition assetKey { path } } }
} }
"""


class SmokeTestError(PermanentError):
    """The deployment didn't do what it was asked for; the message says what it answered."""


@dataclass(frozen=True)
class Materialized:
    """What a job of the deployment did."""

    job: str
    partition: str
    run_id: str
    assets: tuple[str, ...]


def pipelines() -> list[str]:
    """A job of each pipeline: warehouse, news, model. None trains: a new model is for the weekly gate."""
    tables = [table.contract.name for table in load_tables()]
    model = ["build_snapshots"] if ORDERS in tables else []
    return [*(f"load_{name}" for name in tables[:1]), "publish_digest", *model]


def smoke_test(url: str, timeout: float, jobs: Sequence[str]) -> Iterator[Materialized]:
    """Run the newest partition of each job on the Dagster at `url`, one after another.

    `timeout` is in seconds and applies to each job twice: until its code is loaded, which takes a while just
    after a deployment, and from the launch, through the queue, to the end of the run.

    Raises:
        SmokeTestError: the deployment can't be reached or doesn't know a job; a run fails, isn't over in
            time, or ends without materializing its partition.
    """
    for job in jobs:
        selector = _selector(url, job, timeout)
        partition = _newest_partition(url, selector)
        run_id = _launch(url, selector, partition)
        yield Materialized(job, partition, run_id, _outcome(url, job, partition, run_id, timeout))


def _selector(url: str, job: str, timeout: float) -> dict[str, str]:
    deadline = time.monotonic() + timeout
    while True:
        found = _ask(url, _REPOSITORIES, "repositoriesOrError")
        for repository in found["nodes"]:
            if job in {each["name"] for each in repository["jobs"]}:
                return {
                    "repositoryLocationName": repository["location"]["name"],
                    "repositoryName": repository["name"],
                    "pipelineName": job,
                }
        if time.monotonic() > deadline:
            raise SmokeTestError(f"{url} has no job {job}: did its code load? See {url}/locations")
        time.sleep(POLL)


def _newest_partition(url: str, selector: dict[str, str]) -> str:
    found = _ask(url, _PARTITIONS, "pipelineOrError", job=selector)
    keys: list[str] = found["partitionKeysOrError"]["partitionKeys"]
    if not keys:
        raise SmokeTestError(f"{selector['pipelineName']} has no partition yet: its start is ahead")
    return keys[0]


def _launch(url: str, selector: dict[str, str], partition: str) -> str:
    job = {name: value for name, value in selector.items() if name != "pipelineName"}
    tags = {"dagster/partition": partition, "smoke_test": "true"}
    parameters = {
        "selector": {**job, "jobName": selector["pipelineName"]},
        "executionMetadata": {
            "tags": [{"key": key, "value": value} for key, value in tags.items()]
        },
    }
    found = _ask(url, _LAUNCH, "launchRun", parameters=parameters)
    run_id: str = found["run"]["runId"]
    return run_id


def _outcome(url: str, job: str, partition: str, run_id: str, timeout: float) -> tuple[str, ...]:
    deadline = time.monotonic() + timeout
    while True:
        run = _ask(url, _RUN, "runOrError", run=run_id)
        if run["status"] in ("FAILURE", "CANCELED"):
            raise SmokeTestError(f"{job} {partition}: {run['status']}; see {url}/runs/{run_id}")
        if run["status"] == "SUCCESS":
            break
        if time.monotonic() > deadline:
            raise SmokeTestError(
                f"{job} {partition}: still {run['status']} after {timeout:g} s; see {url}/runs/{run_id}"
            )
        time.sleep(POLL)
    assets = tuple(
        "/".join(each["assetKey"]["path"])
        for each in run["assetMaterializations"]
        if each["partition"] == partition
    )
    if not assets:
        raise SmokeTestError(f"{job} {partition}: succeeded and materialized nothing")
    return assets


def _ask(url: str, query: str, field: str, **variables: Any) -> dict[str, Any]:
    """The API's answer to a query; an error among the answers is raised."""
    import requests

    try:
        response = requests.post(
            f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        response.raise_for_status()
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        raise SmokeTestError(f"{url} doesn't answer as Dagster does: {error}") from error
    if errors := answer.get("errors"):
        raise SmokeTestError(f"{url}: {errors[0]['message']}")
    found: dict[str, Any] = answer["data"][field]
    if found["__typename"].endswith(("Error", "Invalid", "Conflict")):
        raise SmokeTestError(f"{url}: {found.get('message', found['__typename'])}")
    return found
