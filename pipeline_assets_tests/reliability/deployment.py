"""A deployment to be attacked: a code server, daemons and their runs, all real Dagster processes.

What a person would do in the UI goes through the UI's own GraphQL schema, executed in this process.
"""

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient

from pipeline_assets_tests.waiting import until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LAUNCH = """
mutation ($job: String!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "code", repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
BACKFILL = """
mutation ($assets: [AssetKeyInput!], $days: [String!]) {
  launchPartitionBackfill(backfillParams: {assetSelection: $assets, partitionNames: $days}) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""


class Deployment:
    """A Dagster home folder, and the processes that use it."""

    def __init__(self, home: Path, instance: dg.DagsterInstance, stack: ExitStack) -> None:
        self.home, self.instance, self.stack = home, instance, stack
        self.started: dict[str, psutil.Popen] = {}

    @cached_property
    def workspace(self) -> WorkspaceProcessContext:
        """The code location, once it has a server."""
        target = GrpcServerTarget(
            host="localhost", port=None, socket=str(self.home / "s"), location_name="code"
        )
        return WorkspaceProcessContext(self.instance, target)

    def start(self, name: str, command: list[str | Path]) -> None:
        """Start one of its processes; it is ended with the deployment."""
        self.started[name] = self.stack.enter_context(running(name, command, self.home))

    @contextmanager
    def killed(self, name: str) -> Iterator[None]:
        """`kill -9` one of its processes, and restart it after the block as its supervisor would."""
        process = self.started[name]
        command = process.args
        process.kill()
        process.wait()
        yield
        self.start(name, command)
        until(lambda: answers(self.home / "s"))

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Execute a query of the UI's API; returns the answer."""
        from dagster_graphql.schema import create_schema

        answer = asyncio.run(
            create_schema().execute_async(
                query,
                context_value=self.workspace.create_request_context(),
                variable_values=variables,
            )
        )
        assert answer.errors is None, answer.errors
        ((found),) = (answer.data or {}).values()
        assert found["__typename"] in ("LaunchRunSuccess", "LaunchBackfillSuccess"), found
        return dict(found)

    def launch(self, job: str, day: str, tags: Mapping[str, str] | None = None) -> str:
        """Start a partition's run; returns its id."""
        stated = {"dagster/partition": day, **(tags or {})}
        listed = [{"key": key, "value": value} for key, value in stated.items()]
        return str(self.ask(LAUNCH, job=job, tags=listed)["run"]["runId"])

    def backfill(self, assets: list[str], days: list[str]) -> str:
        """Start the backfill of some assets' partitions; returns its id."""
        found = self.ask(BACKFILL, assets=[{"path": [name]} for name in assets], days=days)
        return str(found["backfillId"])

    def switch(self, sensor: str, *, on: bool) -> None:
        """Switch a sensor on or off."""
        location = self.workspace.create_request_context().get_code_location("code")
        found = location.get_repository("__repository__").get_sensor(sensor)
        if on:
            self.instance.start_sensor(found)
        else:
            self.instance.stop_sensor(found.get_remote_origin_id(), found.selector_id, found)

    def start_schedule(self, name: str) -> None:
        """Switch a schedule on."""
        location = self.workspace.create_request_context().get_code_location("code")
        self.instance.start_schedule(location.get_repository("__repository__").get_schedule(name))

    def runs(self, *statuses: dg.DagsterRunStatus) -> list[dg.RunRecord]:
        """All runs, or those of some statuses."""
        wanted = dg.RunsFilter(statuses=statuses) if statuses else None
        return list(self.instance.get_run_records(wanted))

    def is_idle(self) -> bool:
        """Whether no run waits or runs, and no backfill has more to ask for."""
        backfills = self.instance.get_backfills()
        ended = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")
        return all(each.status.value in ended for each in backfills) and not self.runs(
            *(s for s in dg.DagsterRunStatus if s.value not in ("SUCCESS", "FAILURE", "CANCELED"))
        )

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The deployment's live processes, by kind: the warm process doesn't count as the daemon's."""
        found: dict[str, list[psutil.Process]] = {}
        for name, process in self.started.items():
            with suppress(psutil.Error):
                for each in [process, *process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        found.setdefault(_kind(each, process) or name, []).append(each)
        return found


def _kind(process: psutil.Process, root: psutil.Process) -> str:
    """`launcher` for the warm process, `runs` for runs, forked from it or started cold; empty for others."""
    command = " ".join(process.cmdline())
    if "execute_run" in command:
        return "runs"
    if process == root or "warm_process" not in command:
        return ""
    parent = process.parent()
    is_run = parent is not None and "warm_process" in " ".join(parent.cmdline())
    return "runs" if is_run else "launcher"


@contextmanager
def deployment(
    home: Path, module: str, environment: Mapping[str, str], *, daemons: int = 1
) -> Iterator[Deployment]:
    """Run a code server and daemons by the project's dagster.yaml; all of them end with the block."""
    shutil.copy(ROOT / "dagster.yaml", home)
    (home / "workspace.yaml").write_text(
        f"load_from:\n  - grpc_server:\n      socket: {home / 's'}\n      location_name: code\n"
    )
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.chdir(home)  # this process launches too
        for name, value in {"DAGSTER_HOME": str(home), **environment}.items():
            patch.setenv(name, value)
        instance = stack.enter_context(dg.DagsterInstance.get())
        server: list[str | Path] = [BIN / "dagster", "code-server", "start", "-m", module]
        server += ["--working-directory", ROOT, "--socket", home / "s"]
        found = Deployment(home, instance, stack)
        found.start("code server", server)
        until(lambda: answers(home / "s"))
        for number in range(daemons):
            name = f"daemon {number + 1}" if daemons > 1 else "daemon"
            found.start(name, [BIN / "dagster-daemon", "run"])
        context = stack.enter_context(found.workspace).create_request_context()
        context.get_code_location("code")  # raises if the location doesn't load
        yield found


@contextmanager
def running(name: str, command: list[str | Path], home: Path) -> Iterator[psutil.Popen]:
    with (home / f"{name}.log").open("ab") as log:
        process = psutil.Popen(command, cwd=home, stdout=log, stderr=log)
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):  # it was killed
                process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def answers(socket: Path) -> bool:
    try:
        DagsterGrpcClient(socket=str(socket)).ping("")
    except dg.DagsterError:
        return False
    return True
