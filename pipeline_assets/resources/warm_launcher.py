"""The run launcher of `dagster.yaml`: runs start warm, in processes forked from a preloaded one.

This module decides whether a run may start warm, and knows which runs are alive; it starts `warm_process`,
which explains the files in the data folder that both use. A run that can't start warm says why in its
log and starts cold, as with Dagster's own launcher: its code server starts an interpreter.

A run never executes older code than a new interpreter would. The warm process is replaced before the
next run when

- a file that was read to load the definitions has changed: a module, a contract, the settings (except `.env`:
  what the launching process read from it is in the environment that it passes on, and takes precedence; a
  secret in Vault or in a file that wasn't there yet is read again once the old one is refused);
- the code server has another identity: it was reloaded in the UI, or restarted. This is checked at each
  launch, except with code servers that the daemon itself replaces every minute without need: there only
  the files decide.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import quote, unquote

from dagster import Array, DagsterEventType, DagsterRun, Field, MetadataValue
from dagster._config.config_schema import UserConfigSchema
from dagster._core.errors import DagsterLaunchFailedError, DagsterUserCodeUnreachableError
from dagster._core.events import EngineEventData
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
)
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._serdes import ConfigurableClassData, serialize_value

from pipeline_assets.resources.warm_process import process_of
from pipeline_assets.settings import load_settings

FOLDER = "run_processes"
TRIED_AGAIN = 300.0  # seconds; each try costs as much as the cold start that follows it
FORK_TIMEOUT = 30.0  # seconds; a fork takes hundredths of one, and one that takes this long hangs
GRACE = 60.0
"""Seconds from a run's interrupt to its kill. Python can't be interrupted in a library's C code: a run that
waited there for a database that never answers would stay for ever, with its connections and locks."""
SHUTS_DOWN = "after telling it to shut down"
"""Part of the answer of a code server that waits for its runs before it ends."""


class ColdStart(Exception):  # noqa: N818  # what happens then, which is no error
    """A run can't start warm; the message says why."""


class WarmProcessEnded(ColdStart):
    """The warm process ended before it answered."""


class RunsAlready(Exception):  # noqa: N818  # likewise
    """The run already has a process: two daemons took it from the queue."""


class WarmProcess:
    """The launcher's handle on a warm process, which ends when this is closed or the launcher dies.

    Raises:
        ColdStart: it can't load the definitions in time.
        OSError: it can't be started.
    """

    def __init__(self, setup: Mapping[str, str | list[str]], executable: str, timeout: float):
        self.setup = setup
        self.connection, its = socket.socketpair()
        self.reader = self.connection.makefile("r")
        try:
            with its:
                # Like a code server, it inherits this process's environment and working folder.
                self.process = subprocess.Popen(
                    [executable, "-m", "pipeline_assets.resources.warm_process", str(its.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[its.fileno()],
                )
            threading.Thread(target=self.process.wait, daemon=True).start()  # reaps it
            self.ask(setup, timeout)
        except BaseException:
            self.close()
            raise

    def ask(self, message: Mapping[str, str | list[str]], timeout: float) -> str | None:
        """Send a request; return why the loaded code is stale (then nothing was done), else None.

        Raises:
            WarmProcessEnded: it has ended, or was killed because it didn't answer in time.
            RunsAlready: the run already has a process, from any launcher.
            ColdStart: it failed to do what was asked.
        """
        line, ended = "", "has ended"
        try:
            self.connection.settimeout(timeout)
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            line = self.reader.readline()
        except TimeoutError:
            self.process.kill()
            self.process.wait()  # until then it may hold the lock of a run that it hasn't forked
            ended = f"didn't answer within {timeout:g} s and was killed"
        except OSError:
            pass  # it is gone
        if not line:
            self.close()
            raise WarmProcessEnded(f"the warm process (pid {self.process.pid}) {ended}")
        answer = json.loads(line)
        if "runs" in answer:
            raise RunsAlready
        if "error" in answer:
            raise ColdStart(f"the warm process can't do it: {answer['error']}")
        return cast("str | None", answer.get("stale"))

    def close(self) -> None:
        """Disconnect from the process, which ends once its runs are over."""
        self.reader.close()
        self.connection.close()


class WarmRunLauncher(DefaultRunLauncher):
    """Launches runs in forked processes where possible, else as its parent class does."""

    def __init__(
        self, preload: Sequence[str], folder: Path, inst_data: ConfigurableClassData | None = None
    ) -> None:
        super().__init__(inst_data)
        self._preload = list(preload)
        self._folder = folder
        self._warm: dict[str, WarmProcess] = {}
        self._impossible: dict[str, tuple[object, float, str]] = {}
        """Setup, time and reason of warm processes that can't load what their runs need."""
        self._lock = threading.Lock()

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """`preload`: modules that runs import beyond those that the definitions import."""
        return {"preload": Field(Array(str), is_required=False, default_value=[])}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        return cls(config_value["preload"], load_settings().pipeline_data_dir / FOLDER, inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run warm if possible; else cold, with the reason in its log.

        Raises as Dagster's launcher does if the code server is unreachable or its code doesn't load; a
        code server that is about to end counts as unreachable.
        """
        run = context.dagster_run
        try:
            if self._process(run.run_id) is not None:
                raise RunsAlready
            with self._lock:
                self._launch_warm(run, self._setup(context))
        except (ColdStart, OSError) as reason:  # OSError: no handle, memory, space or interpreter
            host = {"host": MetadataValue.text(socket.gethostname())}
            self._say(f"Starting cold: {reason}.", run, EngineEventData(host))
            # A warm process that ended before forking leaves this file, which would mean that the run died.
            self._file(run.run_id).unlink(missing_ok=True)
            try:
                super().launch_run(context)
            except DagsterLaunchFailedError as error:
                if SHUTS_DOWN not in str(error):
                    raise
                # The daemon then requeues the run for the next code server; otherwise every run fails
                # that is launched while the old code server still waits for its runs.
                raise DagsterUserCodeUnreachableError(str(error)) from error
        except RunsAlready:
            self._say("Not started again: the run has a process already.", run)

    def _setup(self, context: LaunchRunContext) -> dict[str, str | list[str]]:
        """What the run's warm process has to load; a different setup needs a new process."""
        run = context.dagster_run
        if sys.platform != "linux":
            raise ColdStart("only on Linux can a process be forked that has imported so much")
        if run.job_code_origin is None or run.remote_job_origin is None or not context.workspace:
            raise ColdStart("the run doesn't say where its code is")
        location = context.workspace.get_code_location(run.remote_job_origin.location_name)
        origin = run.job_code_origin.repository_origin
        reloads = ""
        if isinstance(location.origin, GrpcServerCodeLocationOrigin):
            if origin.container_image or not location.origin.socket:
                raise ColdStart("its code server may be on another host or in a container")
            reloads = location.origin.create_client().get_server_id()
        elif not isinstance(location.origin, ManagedGrpcPythonEnvCodeLocationOrigin):
            raise ColdStart("its code location has no code server")
        return {
            "origin": serialize_value(origin),
            "executable": origin.executable_path,
            "preload": self._preload,
            "instance": serialize_value(self._instance.get_ref()),
            "location": location.name,
            "reloads": reloads,
        }

    def _launch_warm(self, run: DagsterRun, setup: dict[str, str | list[str]]) -> None:
        key = str(setup["origin"])
        try:
            needed = self._start(self._warm.get(key), setup, run)
            if needed:
                if old := self._warm.pop(key, None):
                    old.close()
                self._remove_leftovers()
                new = self._warm[key] = self._new_process(key, setup)
                self._say(f"Started a warm process (pid {new.process.pid}): {needed}.", run)
                if needed := self._start(new, setup, run):
                    raise ColdStart(f"while the warm process was started {needed}")
        except WarmProcessEnded:
            self._warm.pop(key, None)
            raise

    def _new_process(self, key: str, setup: dict[str, str | list[str]]) -> WarmProcess:
        """A new warm process; one that failed with the same setup isn't tried again for a while."""
        failed_with, failed_at, reason = self._impossible.get(key, (None, 0.0, ""))
        if failed_with == setup and time.monotonic() < failed_at + TRIED_AGAIN:
            raise ColdStart(f"{reason}; that is tried again after {TRIED_AGAIN:g} s")
        timeout = self._instance.code_server_process_startup_timeout
        try:
            return WarmProcess(setup, str(setup["executable"]), timeout)
        except WarmProcessEnded:  # somebody killed it, or the machine was too slow
            raise
        except ColdStart as error:
            self._impossible[key] = setup, time.monotonic(), str(error)
            raise

    def _start(
        self, warm: WarmProcess | None, setup: dict[str, str | list[str]], run: DagsterRun
    ) -> str | None:
        """Start the run in a warm process, or return why a new one is needed."""
        if warm is None:
            return "there was none"
        if warm.setup != setup:
            return "the code server was reloaded"
        file = self._file(run.run_id)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return warm.ask({"run_id": run.run_id, "file": str(file)}, FORK_TIMEOUT)
        except WarmProcessEnded:
            # It may have forked the run's process before it ended, and no run may start twice.
            now = self._instance.get_run_by_id(run.run_id)
            if self._process(run.run_id) is not None or (now and now.status != run.status):
                return None
            raise

    def _remove_leftovers(self) -> None:
        """Remove the files of finished or deleted runs whose processes didn't remove them."""
        for file in self._folder.glob("*"):
            run_id = unquote(file.name)
            if self._process(run_id) is None:
                run = self._instance.get_run_by_id(run_id)
                if run is None or run.is_finished:
                    file.unlink(missing_ok=True)

    def _file(self, run_id: str) -> Path:
        return self._folder / quote(run_id, safe="")

    def _process(self, run_id: str) -> int | None:
        """The pid of the run's living process; 0 while its file has none."""
        try:
            return process_of(self._file(run_id))
        except FileNotFoundError:
            return None

    def _say(self, message: str, run: DagsterRun, data: EngineEventData | None = None) -> None:
        self._instance.report_engine_event(message, run, data, cls=self.__class__)

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run, from any launcher; return whether there was anything to interrupt."""
        run = self._instance.get_run_by_id(run_id)
        pid = self._process(run_id)
        if not run or run.is_finished or not pid:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]  # it has no types
        self._instance.report_run_canceling(run)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)
        timer = threading.Timer(GRACE, self._kill, (run_id, pid))
        timer.daemon = True
        timer.start()
        return True

    def _kill(self, run_id: str, pid: int) -> None:
        """Kill a run's process if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self._process(run_id) == pid:
                os.kill(pid, signal.SIGKILL)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True, for runs that started warm, and for cold ones of a code server on this machine."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process lives. Its parent reports its death at once, unless it died too."""
        try:
            pid = process_of(self._file(run.run_id))
        except FileNotFoundError:
            if self._has_lost_its_cold_process(run):
                return CheckRunHealthResult(WorkerStatus.FAILED, "its process is gone")
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not a run that started warm")
        if pid is None:
            return CheckRunHealthResult(
                WorkerStatus.FAILED, "its process was killed, and the warm process before it"
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))

    def _has_lost_its_cold_process(self, run: DagsterRun) -> bool:
        """Whether a code server on this machine started the run, and the pid in its log is nobody's."""
        origin = run.job_code_origin
        if origin is None or origin.repository_origin.container_image:
            return False
        if not json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("socket"):
            return False
        told: dict[str, Any] = {}
        for entry in self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
            event = entry.get_dagster_event()
            told = {**event.engine_event_data.metadata, **told}  # the first pid is the run's
        if "pid" not in told or "host" not in told or told["host"].value != socket.gethostname():
            return False
        try:
            os.kill(int(told["pid"].value), 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return False

    def dispose(self) -> None:
        """Disconnect from the warm processes."""
        with self._lock:
            while self._warm:
                self._warm.popitem()[1].close()
