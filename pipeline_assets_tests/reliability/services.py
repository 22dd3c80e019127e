"""A deployment whose daemon, code server and warm process are killed, and restarted by their supervisors.

The source changes, and the days that are out of step are launched as the sensor would request them; or an
edition is due, or there are other snapshots to learn from. While the runs go from queued to done, one of the
processes is killed, or the database server of all of them.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import dagster as dg
import psutil
from dagster._core.events import DagsterEvent
from pydantic import SecretStr

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.resources.warm_process import process_of
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.reconcile import compare
from pipeline_assets_tests.load_steps import KEYS, WINDOWS, Pipeline
from pipeline_assets_tests.model_world import WEEK
from pipeline_assets_tests.reliability.deployment import Deployment, deployment
from pipeline_assets_tests.reliability.jobs import TRAIN, DigestSite, JobSite, ModelSite
from pipeline_assets_tests.reliability.kills import MARK
from pipeline_assets_tests.reliability.site import Site
from pipeline_assets_tests.waiting import until

Service = Literal["daemon", "code server", "warm process", "run", "postmaster"]
PATIENCE = 900.0
"""Seconds. A run that the daemon had dequeued but not started when it died is found only after the
`start_timeout_seconds` of dagster.yaml, five minutes."""
LOAD, PUBLISH = "load_transactions", "publish_digest"
JOBS = {
    LOAD: (
        "queued",
        "launched",
        "raw_transactions",
        "validated_transactions",
        "fct_transactions",
        "first done",
    ),
    PUBLISH: ("news_articles", "news_digest"),
    TRAIN: ("trained_model", "deployed_model"),
}
"""The stages at which a service is killed, by job."""


@dataclass
class ServicesSite(Site):
    """Daemon and code server on the site's databases."""

    spoils: bool = False
    place: Deployment | None = None

    def __post_init__(self) -> None:
        common = self.settings, self.server, self.random
        self.digest, self.model = DigestSite(*common), ModelSite(*common)
        self.others: dict[str, JobSite] = {PUBLISH: self.digest, TRAIN: self.model}

    @contextmanager
    def deployed(self, home: Path) -> Iterator[None]:
        """Run the services until the block's end; each day is loaded once before the block."""
        environment = dict([MARK.split("=")]) | variables(self.settings)
        module = "pipeline_assets_tests.reliability.quick_models"
        with deployment(home, module, environment) as self.place:
            self.change()
            self.finish(self.launch(KEYS), "nothing was killed")
            yield
            for storage in (self.instance.run_storage, self.instance.event_log_storage):
                storage._engine.dispose()  # type: ignore[union-attr]  # SQL storages have it
        self.place = None

    @property
    def instance(self) -> dg.DagsterInstance:
        assert self.place
        return self.place.instance

    def launch(self, keys: list[str], job: str = LOAD) -> list[str]:
        """Put a run for each of the partitions into the queue."""
        assert self.place
        self.place.workspace.refresh_workspace()  # the code server may have been restarted
        return [self.place.launch(job, key) for key in keys]

    def request(self, job: str) -> list[str]:
        """Make work for a job, and launch what its sensor would request."""
        if job == LOAD:
            self.change()
            return self.launch(self.out_of_step())
        self.others[job].change()
        return self.launch([self.digest.mornings[-1] if job == PUBLISH else WEEK], job)

    def out_of_step(self) -> list[str]:
        """The days that the sensor would request."""
        pipeline = Pipeline(self.settings)
        with pipeline.at_source, pipeline.at_warehouse:
            contract = pipeline.table.contract
            found = compare(pipeline.at_source, pipeline.at_warehouse, contract, WINDOWS)
        return [key for key, comparison in found.items() if not comparison.in_step]

    def kill(self, victim: Service, job: str, stage: str) -> None:
        """Kill the victim as soon as one of the runs has come to a stage; judge once all have ended.

        If nothing was left to be killed by then, new runs are launched.
        """
        struck = False
        while not struck:
            runs = self.request(job)
            until(partial(self.has_reached, stage, runs), f"at {stage}")
            struck = self.strike(victim, runs)
            self.finish(runs, f"{victim} killed when {stage}")
            if job in self.others:
                assert self.others[job].check(finished=True) == [], f"{victim} killed in {stage}"
        self.kills += 1

    def abandon(self) -> list[str]:
        """Kill the daemon after it dequeued a run and before it started it; judge as `kill` does.

        The moment is too short to be hit, so the event that the daemon writes before it is written here.
        Returns how that run and its retries have ended.
        """
        assert self.place
        with self.place.killed("daemon"):
            runs = self.request(LOAD)
            first = self.instance.get_run_by_id(runs[0])
            assert first
            assert first.status == dg.DagsterRunStatus.QUEUED
            taken = DagsterEvent(dg.DagsterEventType.PIPELINE_STARTING.value, first.job_name)
            self.instance.report_dagster_event(taken, first.run_id)
        self.kills += 1
        self.finish(runs, "daemon killed between taking a run and starting it")
        _, group = self.instance.get_run_group(first.run_id) or ("", [])
        return sorted(each.status.value for each in group)

    def finish(self, runs: list[str], what: str) -> None:
        """Wait for runs and their retries; launch days that are still out of step, as the sensor would."""
        until(lambda: all(map(self.has_succeeded, runs)), f"over: {what}", PATIENCE)
        if late := self.out_of_step():
            again = self.launch(late)
            until(lambda: all(map(self.has_succeeded, again)), f"over again: {what}", PATIENCE)
        assert self.out_of_step() == [], what
        until(lambda: not self.unfinished(), f"free of runs: {what}", PATIENCE)
        self.recover(what)

    def strike(self, victim: Service, runs: list[str]) -> bool:
        """`kill -9`, then restart as the process' supervisor would; returns whether there was one to kill."""
        assert self.place
        if victim == "postmaster":
            server = embedded_postgres.status(self.server.folder)
            assert server
            os.kill(server.pid, signal.SIGKILL)
            until(lambda: not psutil.pid_exists(server.pid), "dead")
            self.restart_server()
        elif victim in ("daemon", "code server"):
            with self.place.killed(victim):
                pass
        else:
            until(lambda: self.pids(victim, runs) or self.are_over(runs), f"alive: {victim}")
            struck = False
            for pid in self.pids(victim, runs):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    struck = True
            return struck
        return True

    def pids(self, victim: Service, runs: list[str]) -> list[int]:
        """The warm process, or the processes of those runs that have one."""
        assert self.place
        if victim == "warm process":
            return [each.pid for each in self.place.processes().get("launcher", [])]
        found = []
        for run in runs:
            with suppress(FileNotFoundError):  # it hasn't begun, or is over
                found.append(process_of(self.settings.pipeline_data_dir / "run_processes" / run))
        return [pid for pid in found if pid]

    def are_over(self, runs: list[str]) -> bool:
        """Whether all have ended, however."""
        found = [self.instance.get_run_by_id(run) for run in runs]
        return all(run and run.is_finished for run in found)

    def has_reached(self, stage: str, run_ids: list[str]) -> bool:
        """Whether one of the runs has reached the stage or passed it."""
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

    def has_succeeded(self, run_id: str) -> bool:
        """Whether a run has succeeded, or a retry of it."""
        _, group = self.instance.get_run_group(run_id) or (run_id, [])
        return any(run.status == dg.DagsterRunStatus.SUCCESS for run in group)

    def executed_twice(self) -> list[str]:
        """Runs that began twice or succeeded unbegun, and runs without just one success, retries included."""
        found, successes = [], Counter[str]()
        for run in self.instance.get_runs():
            begun = len(self.instance.all_logs(run.run_id, dg.DagsterEventType.RUN_START))
            succeeded = run.status == dg.DagsterRunStatus.SUCCESS
            successes[run.root_run_id or run.run_id] += succeeded
            if begun > 1 or (succeeded and begun == 0):
                found.append(f"{run.run_id} ({run.status.value}) began {begun} times")
        return found + [f"{n} of {root} succeeded" for root, n in successes.items() if n != 1]

    def left_behind(self) -> list[str]:
        """What is left once the services have ended; until then they are nobody's leftovers."""
        return [] if self.place else self.model.left_behind()

    def unfinished(self) -> list[str]:
        """Runs that haven't ended, and leftover files of run processes."""
        runs = [run for run in self.instance.get_runs() if not run.is_finished]
        files = (self.settings.pipeline_data_dir / "run_processes").glob("*")
        return [*(f"{run.run_id} is {run.status.value}" for run in runs), *map(str, files)]


def variables(settings: Settings) -> dict[str, str]:
    """The environment variables that give these settings."""
    found = {}
    for name, value in settings.model_dump(exclude_defaults=True).items():
        secret = value.get_secret_value() if isinstance(value, SecretStr) else value
        found[name.upper()] = json.dumps(secret) if isinstance(secret, tuple) else str(secret)
    return found
