"""A deployment whose daemon, code server and warm process are killed, each started again by its keeper.

The source changes, the days that are out of step are submitted as the sensor submits them, and while
their runs go from queued to done one of the processes dies, or the database of all of them.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import dagster as dg
import psutil
from dagster._cli.job import _create_run
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.resources.warm_process import process_of
from pipeline_assets.warehouse.reconcile import compare
from pipeline_assets_tests.load_steps import WINDOWS, Pipeline
from pipeline_assets_tests.reliability.kills import MARK, until
from pipeline_assets_tests.reliability.site import Site

Service = Literal["daemon", "code server", "warm process", "run", "postmaster"]
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
CODE = """
from pipeline_assets import definitions
from pipeline_assets.settings import load_settings
from pipeline_assets_tests.load_steps import lenient

definitions.load_tables = lambda: [lenient()]
defs = definitions.build_definitions(load_settings())
"""
STEPS = ("raw_transactions", "validated_transactions", "fct_transactions")
STAGES = ("queued", "launched", *STEPS, "first done")
ENDS = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass
class ServicesSite(Site):
    """Daemon and code server on the site's databases."""

    databases: ClassVar[tuple[str, ...]] = ("source", "warehouse", "dagster")
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.settings.pipeline_data_dir / "home"

    @property
    def socket(self) -> str:
        return str(self.home / "s")

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """The services, from now until the block's end."""
        self.home.mkdir()
        shutil.copy(ROOT / "dagster.yaml", self.home)
        (self.home / "location.py").write_text(CODE)
        (self.home / "workspace.yaml").write_text(
            f"load_from:\n  - grpc_server:\n      socket: {self.socket}\n      location_name: code\n"
        )
        try:
            self.start("code server")
            self.start("daemon")
            yield
        finally:
            for name in ("daemon", "code server"):
                self.running[name].send_signal(signal.SIGINT)
                self.running[name].wait(timeout=120)
            self.instance.dispose()
            for part in (self.instance.run_storage, self.instance.event_log_storage):
                part._engine.dispose()  # type: ignore[attr-defined]  # SQL storages have it

    def start(self, name: str) -> None:
        """Start the daemon or the code server, as its keeper does whenever it isn't there."""
        code = [str(BIN / "dagster"), "code-server", "start", "-f", "location.py"]
        command = {
            "code server": [*code, "--socket", self.socket],
            "daemon": [str(BIN / "dagster-daemon"), "run"],
        }[name]
        variable, value = MARK.split("=")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(self.home), variable: value}
        with (self.home / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=self.home,
                env=environment,
                stdout=log,
                stderr=log,
            )
        if name == "code server":
            until(self.answers, "answered by the code server")

    def answers(self) -> bool:
        try:
            DagsterGrpcClient(socket=self.socket).ping("")
        except dg.DagsterError:
            return False
        return True

    def submit(self, days: list[str]) -> list[str]:
        """Put a run for each of the days into the queue."""
        target = GrpcServerTarget(
            host="localhost", port=None, socket=self.socket, location_name="code"
        )
        run_ids = []
        with WorkspaceProcessContext(self.instance, target) as workspace:
            request = workspace.create_request_context()
            location = request.get_code_location("code")
            repository = location.get_repository("__repository__")
            job = repository.get_full_job("load_transactions")
            for day in days:
                tags = {"dagster/partition": day}
                run = _create_run(self.instance, location, repository, job, {}, tags, None, None)
                self.instance.submit_run(run.run_id, request)
                run_ids.append(str(run.run_id))
        return run_ids

    def out_of_step(self) -> list[str]:
        """The days that the sensor would request."""
        pipeline = Pipeline(self.settings)
        with pipeline.at_source, pipeline.at_warehouse:
            contract = pipeline.table.contract
            found = compare(pipeline.at_source, pipeline.at_warehouse, contract, WINDOWS)
        return [key for key, comparison in found.items() if not comparison.in_step]

    def kill_nothing(self) -> None:
        """The first runs: the warm process is there then, and the tables."""
        self.change()
        self.finish(self.submit(list(WINDOWS)), "nothing was killed")

    def kill_service(self, victim: Service, stage: str) -> None:
        """Kill it as soon as one of the runs has come to a stage; `recover` once all have ended."""
        self.change()
        run_ids = self.submit(self.out_of_step())
        until(lambda: self.has_reached(stage, run_ids), f"at {stage}")
        self.strike(victim, run_ids)
        self.kills += 1
        self.finish(run_ids, f"{victim} killed when {stage}")

    def finish(self, run_ids: list[str], what: str) -> None:
        """Wait for runs and their retries; what is still out of step is requested again, as by the sensor."""
        until(lambda: all(map(self.has_ended, run_ids)), f"over: {what}")
        if late := self.out_of_step():
            again = self.submit(late)
            until(lambda: all(map(self.has_ended, again)), f"over: {what}, the second time")
        assert self.out_of_step() == [], what
        self.recover(what)
        assert self.unfinished() == [], what

    def strike(self, victim: Service, run_ids: list[str]) -> None:
        """`kill -9`, and what the process' keeper does then."""
        if victim == "postmaster":
            server = embedded_postgres.status(self.server.folder)
            assert server
            os.kill(server.pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [])
            self.restart_server()
        elif victim in self.running:
            self.running[victim].kill()
            self.running[victim].wait()
            self.start(victim)
        else:
            for pid in self.pids(victim, run_ids):
                os.kill(pid, signal.SIGKILL)

    def pids(self, victim: Service, run_ids: list[str]) -> list[int]:
        """The warm process, or the processes of the runs, as far as they have one."""
        if victim == "warm process":
            children = psutil.Process(self.running["daemon"].pid).children()
            return [each.pid for each in children if "warm_process" in " ".join(each.cmdline())]
        files = [self.settings.pipeline_data_dir / "run_processes" / run_id for run_id in run_ids]
        return [pid for file in files if file.exists() and (pid := process_of(file))]

    def has_reached(self, stage: str, run_ids: list[str]) -> bool:
        """Whether one of the runs is so far, or farther."""
        runs = [run for run_id in run_ids if (run := self.instance.get_run_by_id(run_id))]
        if stage == "queued" or any(run.is_finished for run in runs):
            return True
        if stage == "launched":
            return any(run.status != dg.DagsterRunStatus.QUEUED for run in runs)
        kind = dg.DagsterEventType.STEP_START
        return any(
            entry.step_key == stage
            for run_id in run_ids
            for entry in self.instance.all_logs(run_id, of_type=kind)
        )

    def has_ended(self, run_id: str) -> bool:
        """Whether a run, or the last of its retries, has succeeded."""
        group = self.instance.get_run_group(run_id)
        return any(run.status == dg.DagsterRunStatus.SUCCESS for run in (group[1] if group else []))

    def unfinished(self) -> list[str]:
        """Runs that are neither done nor failed, and files that say that one lives."""

        def left() -> list[str]:
            runs = [run for run in self.instance.get_runs() if run.status not in ENDS]
            files = (self.settings.pipeline_data_dir / "run_processes").glob("*")
            return [*(f"{run.run_id} is {run.status.value}" for run in runs), *map(str, files)]

        until(lambda: not left(), "free of runs")
        return left()
