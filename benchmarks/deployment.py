"""A deployment by `dagster dev`: start and stop it, query it as the UI does, measure its CPU.

For the benchmarks of Dagster itself, each of which brings its own definitions.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import measure

ROOT = Path(__file__).parents[1]
LAUNCH = """
mutation ($location: String!, $job: String!, $day: String!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: [{key: "dagster/partition", value: $day}]}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
ENDS = ("SUCCESS", "FAILURE", "CANCELED")


@contextmanager
def dagster_dev(folder: Path, data: Path, **settings: str) -> Iterator[tuple[str, float]]:
    """`dagster dev` in a folder: its address, and the seconds until it answered.

    `data` is its data folder, `settings` are more variables of its environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    begun = time.perf_counter()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "dagster"), "dev", "--port", str(port)],
        cwd=folder,
        env=os.environ | settings | {"PIPELINE_DATA_DIR": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while True:
            try:
                requests.get(f"{address}/server_info", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                if process.poll() is not None:
                    raise SystemExit(f"dagster dev in {folder} ended by itself") from None
                time.sleep(0.02)
        try:
            yield address, time.perf_counter() - begun
        finally:
            process.send_signal(signal.SIGINT)


def graphql(address: str, query: str, **variables: str) -> dict[str, Any]:
    """The data in the answer of the UI's GraphQL API."""
    body = {"query": query, "variables": variables}
    found: dict[str, Any] = requests.post(f"{address}/graphql", json=body, timeout=60).json()
    return dict(found["data"])


def launch(address: str, location: str, job: str, day: str) -> str:
    """Queue a run of a partition, as the UI does; returns its id."""
    answer = graphql(address, LAUNCH, location=location, job=job, day=day)["launchRun"]
    if "run" not in answer:
        raise SystemExit(f"{job} {day} could not be launched: {answer}")
    return str(answer["run"]["runId"])


def wait(address: str, run_id: str) -> None:
    """Wait for a run to succeed; end the benchmark if it doesn't."""
    while (status := graphql(address, STATUS, id=run_id)["runOrError"]["status"]) not in ENDS:
        time.sleep(0.05)
    if status != "SUCCESS":
        raise SystemExit(f"run {run_id} ended as {status}")


def cpu_seconds(*processes: psutil.Process) -> float:
    """CPU seconds of processes and all their descendants, including those that have ended."""
    found = [each for process in processes for each in (process, *process.children(recursive=True))]
    return sum(measure.cpu_seconds(each, ended_children=True) for each in found)
