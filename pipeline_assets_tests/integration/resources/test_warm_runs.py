"""Runs that start warm: real daemon, code server, launcher, warm process and `kill -9`.

The code location is a small one of the tests' own: only how runs start and end is tested. One deployment
serves all tests of the module.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil
import psycopg
import pytest
from dagster._cli.job import _create_run
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient

from pipeline_assets.resources import embedded_postgres, warm_launcher
from pipeline_assets.resources.warm_process import changed_since, process_of
from pipeline_assets_tests import databases
from pipeline_assets_tests.reliability.deployment import BIN, ROOT, answers, running
from pipeline_assets_tests.waiting import until

VARIES = 20
"""How many more descriptors, or threads, the launcher's process may have after any number of runs.

gRPC's vary by five from one run to the next.
"""

CODE = """
import errno
import os
import signal
import time
from pathlib import Path

import dagster as dg

from pipeline_assets.settings import load_settings

VERSION = 1
load_settings()
FOLDER = Path(os.environ["WARM_RUNS_FOLDER"])
real_fork = os.fork


def fork() -> int:
    try:
        how = (FOLDER / "fork").read_text()
    except FileNotFoundError:
        return real_fork()
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hangs":
        time.sleep(1)
    raise OSError(getattr(errno, how), "no fork")


os.fork = fork


@dg.op
def first(context) -> None:
    print("printed by the run")
    with (FOLDER / (context.run.root_run_id or context.run_id)).open("a") as file:
        file.write(f"version {VERSION}\\n")


@dg.op(ins={"before": dg.In(dg.Nothing)})
def second(context) -> None:
    gate = context.run.tags.get("waits_for")
    while gate and not (FOLDER / gate).exists():
        time.sleep(0.02)
    if "fails" in context.run.tags:
        raise ValueError("it was asked to")
    if "exits" in context.run.tags:
        os._exit(0)
    if "loses" in context.run.tags:  # Dagster's database, until it says that its process exits
        store = dg.DagsterInstance.handle_new_event

        def lose(instance, event, **options):
            if "Process for run exited" not in event.message:
                raise ConnectionError("Dagster's database is away")
            store(instance, event, **options)

        dg.DagsterInstance.handle_new_event = lose


@dg.job(executor_def=dg.in_process_executor)
def both():
    second(first())


defs = dg.Definitions(jobs=[both])
"""


class Deployment:
    """A home folder with the project's dagster.yaml, and what runs in it."""

    def __init__(self, home: Path, data: Path, instance: dg.DagsterInstance) -> None:
        self.home, self.data, self.instance = home, data, instance
        self.code = home / "location.py"
        self.socket = home / "s"
        target = GrpcServerTarget(
            host="localhost", port=None, socket=str(self.socket), location_name="code"
        )
        self.workspace = WorkspaceProcessContext(instance, target)
        self.noticed_within = 2 * instance.run_monitoring_poll_interval_seconds + 40
        """Seconds from a death that nobody reports to the run's failure: two polls, on a busy machine."""

    def create(self, **tags: str) -> str:
        """A run of the job, not started."""
        location = self.workspace.create_request_context().get_code_location("code")
        repository = location.get_repository("__repository__")
        job = repository.get_full_job("both")
        run = _create_run(self.instance, location, repository, job, {}, tags, None, None)
        return str(run.run_id)

    def submit(self, **tags: str) -> str:
        """A run that waits for the daemon, as the UI starts it."""
        run_id = self.create(**tags)
        self.instance.submit_run(run_id, self.workspace.create_request_context())
        return run_id

    def launch_cold(self, executable: str, workspace: WorkspaceProcessContext, **tags: str) -> str:
        """Launch a run that can't start warm, as its interpreter isn't there."""
        run = self.instance.get_run_by_id(self.create(**tags))
        assert run
        assert run.job_code_origin
        repository = run.job_code_origin.repository_origin._replace(executable_path=executable)
        moved = run.job_code_origin._replace(repository_origin=repository)
        context = workspace.create_request_context()
        self.instance.run_launcher.launch_run(
            LaunchRunContext(run._replace(job_code_origin=moved), context)
        )
        return str(run.run_id)

    def status(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        return run.status.value if run else ""

    def ended(self, run_id: str) -> str:
        """Wait for the run to end, and return its status."""
        ends = ("SUCCESS", "FAILURE", "CANCELED")
        until(lambda: self.status(run_id) in ends)
        return self.status(run_id)

    def log(self, run_id: str) -> str:
        return "\n".join(entry.message for entry in self.instance.all_logs(run_id))

    def waits(self, run_id: str) -> int:
        """Wait until the run is in its second step, and return the pid of its process."""
        until(lambda: 'Started execution of step "second"' in self.log(run_id))
        found = re.search(r"Started process for run \(pid: (\d+)\)", self.log(run_id))
        assert found
        return int(found[1])

    def open(self, gate: str) -> None:
        """Let the runs that wait for this gate continue."""
        (self.home / gate).touch()

    def steps(self, run_id: str) -> str:
        """What the first step wrote, in the run and its retries."""
        return (self.home / run_id).read_text()

    def files(self) -> list[Path]:
        """The files of runs that are alive, or whose death went unnoticed."""
        return list((self.data / "run_processes").glob("*"))

    def warm(self) -> list[psutil.Process]:
        """The warm processes and the processes forked from them."""
        return self.processes("warm_process")

    def processes(self, named: str = "") -> list[psutil.Process]:
        """The deployment's processes, by their environment, whose command contains a text."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if (
                    process.environ().get("WARM_RUNS_FOLDER") == str(self.home)
                    and process.pid != os.getpid()
                    and named in " ".join(process.cmdline())
                ):
                    found.append(process)
        return found

    def started_warm(self) -> psutil.Process:
        """The daemon's warm process, started by a run if there is none."""
        for _ in range(3):  # after a kill the first run starts cold, the next starts it
            run_id = self.submit()
            assert self.ended(run_id) == "SUCCESS", self.log(run_id)
            pids = {each.pid for each in self.warm()}
            for each in self.warm():
                with suppress(psutil.NoSuchProcess):  # the run's, which has just ended
                    if each.ppid() not in pids and each.ppid() != os.getpid():
                        return each
        raise AssertionError("no warm process was started")


@pytest.fixture(scope="module")
def deployment(
    server: embedded_postgres.Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    home, data = tmp_path_factory.mktemp("h"), tmp_path_factory.mktemp("data")
    shutil.copy(ROOT / "dagster.yaml", home)
    (home / "location.py").write_text(CODE)
    (home / "workspace.yaml").write_text(
        f"load_from:\n  - grpc_server:\n      socket: {home / 's'}\n      location_name: code\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.chdir(home)  # this process launches too, and the code's path is relative
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("PIPELINE_DATA_DIR", str(data))
        patch.setenv("WARM_RUNS_FOLDER", str(home))
        url = embedded_postgres.ensure_database(server, "warm_runs")
        patch.setenv("DAGSTER_DATABASE_URL", url)
        code_server: list[str | Path] = [
            BIN / "dagster",
            "code-server",
            "start",
            "-f",
            "location.py",
        ]
        with (
            dg.DagsterInstance.get() as instance,
            running("code server", [*code_server, "--socket", home / "s"], home),
        ):
            until(lambda: answers(home / "s"))
            with running("daemon", [BIN / "dagster-daemon", "run"], home):
                found = Deployment(home, data, instance)
                with found.workspace:
                    yield found
        until(lambda: not found.processes())  # nothing is left of it
    databases.drop(server, "warm_runs")


@pytest.mark.slow
def test_a_run_starts_warm_and_tells_the_same_as_a_cold_one(deployment: Deployment) -> None:
    warm = deployment.started_warm()
    first = deployment.submit()
    assert deployment.ended(first) == "SUCCESS"
    assert "cold" not in deployment.log(first)
    until(lambda: not deployment.files())
    warm.kill()
    cold = deployment.submit()
    assert deployment.ended(cold) == "SUCCESS"
    message = f"Starting cold: the warm process (pid {warm.pid}) has ended."
    assert message in deployment.log(cold)
    assert "Started a warm process" not in deployment.log(cold)
    again = deployment.submit()
    assert deployment.ended(again) == "SUCCESS"
    assert re.search(r"Started a warm process \(pid \d+\): there was none", deployment.log(again))

    def told(run_id: str) -> list[str]:
        until(lambda: "Process for run exited" in deployment.log(run_id))
        entries = deployment.instance.all_logs(run_id)
        return [
            re.sub(r"\(pid: \d+\)|\d+(\.\d+)?m?s|\S+/storage\S*", "", entry.message)
            for entry in entries
            if "WarmRunLauncher" not in entry.message
        ]

    assert told(first) == told(cold) == told(again)
    for run_id in (first, cold):
        logs = deployment.instance.compute_log_manager
        (captured,) = deployment.instance.all_logs(
            run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED
        )
        key = [run_id, "compute_logs", captured.dagster_event.logs_captured_data.file_key]  # type: ignore[union-attr]  # has one
        assert "printed by the run" in (logs.get_log_data(key).stdout or b"").decode()


@pytest.mark.slow
def test_a_failure_is_the_steps(deployment: Deployment) -> None:
    run_id = deployment.submit(fails="yes")
    assert deployment.ended(run_id) == "FAILURE"
    (failure,) = deployment.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    assert "it was asked to" in str(failure.dagster_event)


@pytest.mark.slow
def test_a_run_is_terminated_by_a_process_that_did_not_launch_it(deployment: Deployment) -> None:
    run_id = deployment.submit(waits_for="never")
    deployment.waits(run_id)
    assert deployment.instance.run_launcher.terminate(run_id)
    assert deployment.ended(run_id) == "CANCELED"
    assert not deployment.instance.run_launcher.terminate(run_id)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill -9", "exits", "loses"])
def test_a_run_whose_process_goes_is_failed_at_once_and_resumed(
    deployment: Deployment, how: str
) -> None:
    if how != "kill -9":
        run_id = deployment.submit(**{how: "yes", "dagster/max_retries": "0"})
        reason = "unexpectedly exited with code 0"
    else:
        run_id = deployment.submit(waits_for="killed")
        os.kill(deployment.waits(run_id), signal.SIGKILL)
        reason = "was terminated by signal 9 (SIGKILL)"
    assert deployment.ended(run_id) == "FAILURE"
    assert reason in deployment.log(run_id)
    assert "Detected run worker status" not in deployment.log(run_id)
    if how == "kill -9":
        deployment.open("killed")
        retry = until(lambda: retry_of(deployment.instance, run_id))
        assert deployment.ended(retry) == "SUCCESS"
        assert deployment.steps(run_id) == "version 1\n", "what was done isn't done again"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["EAGAIN", "ENOMEM", "dies", "hangs"])
def test_a_run_that_cannot_be_forked_starts_cold_and_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(warm_launcher, "FORK_TIMEOUT", 1.0)
    launcher = deployment.instance.run_launcher
    run_id = deployment.create(waits_for=f"not forked: {how}", **{"dagster/max_retries": "0"})
    fault = deployment.home / "fork"
    fault.write_text(how)
    try:
        deployment.instance.launch_run(run_id, deployment.workspace.create_request_context())
    finally:
        fault.unlink()
    reason = {
        "dies": r"the warm process \(pid \d+\) has ended",
        "hangs": r"the warm process \(pid \d+\) didn't answer within 1 s and was killed",
    }.get(how, r"the warm process can't do it: .*no fork")
    assert re.search(f"Starting cold: {reason}", deployment.log(run_id)), deployment.log(run_id)
    deployment.waits(run_id)
    run = deployment.instance.get_run_by_id(run_id)
    assert run
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    deployment.open(f"not forked: {how}")
    assert deployment.ended(run_id) == "SUCCESS"
    assert deployment.log(run_id).count("Started process for run") == 1


def test_a_warm_process_that_cannot_load_is_not_tried_for_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try costs as much as the cold start after it."""
    tries = []

    def impossible(setup: dict[str, str], *_: object) -> None:
        tries.append(setup)
        raise warm_launcher.ColdStart("importing leaves threads")

    monkeypatch.setattr(warm_launcher, "WarmProcess", impossible)
    with dg.DagsterInstance.ephemeral() as instance:
        launcher = warm_launcher.WarmRunLauncher([], tmp_path)
        launcher.register_instance(instance)
        for reloads in ("", "", "", "now", "now"):
            with pytest.raises(warm_launcher.ColdStart, match="importing leaves threads"):
                launcher._new_process("code", {"executable": "python", "reloads": reloads})
        assert [each["reloads"] for each in tries] == ["", "now"]
        monkeypatch.setattr(warm_launcher, "TRIED_AGAIN", 0.0)
        with pytest.raises(warm_launcher.ColdStart):
            launcher._new_process("code", {"executable": "python", "reloads": "now"})
        assert len(tries) == 3


@pytest.mark.slow
def test_a_run_starts_cold_where_no_warm_process_can_be_started(deployment: Deployment) -> None:
    gone = str(deployment.home / "removed" / "python")
    run_id = deployment.launch_cold(gone, deployment.workspace)
    reason = f"Starting cold: [Errno 2] No such file or directory: '{gone}'."
    assert reason in deployment.log(run_id)
    assert deployment.ended(run_id) == "SUCCESS"


@pytest.mark.slow
def test_a_run_lives_on_when_the_warm_process_is_killed(deployment: Deployment) -> None:
    warm = deployment.started_warm()
    run_id = deployment.submit(waits_for="survived")
    pid = deployment.waits(run_id)
    warm.kill()
    until(lambda: not psutil.pid_exists(warm.pid))
    launcher, run = deployment.instance.run_launcher, deployment.instance.get_run_by_id(run_id)
    assert run
    assert launcher.check_run_worker_health(run).run_worker_id == str(pid)
    deployment.open("survived")
    assert deployment.ended(run_id) == "SUCCESS"


@pytest.mark.slow
def test_monitoring_finds_a_run_that_died_together_with_the_warm_process(
    deployment: Deployment,
) -> None:
    warm = deployment.started_warm()
    run_id = deployment.submit(waits_for="never", **{"dagster/max_retries": "0"})
    pid = deployment.waits(run_id)
    warm.suspend()  # it can't report
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    warm.kill()
    assert deployment.ended(run_id) == "FAILURE"
    assert time.monotonic() - killed < deployment.noticed_within
    assert "Detected run worker status FAILED: 'its process was killed" in deployment.log(run_id)
    deployment.started_warm()
    # The dead run's file is removed when the next warm process starts; the file of the run that started it,
    # when that run's process ends, a moment after its success is stored.
    until(lambda: not deployment.files())


@pytest.mark.slow
def test_monitoring_finds_a_cold_run_that_died_together_with_its_code_server(
    deployment: Deployment,
) -> None:
    socket = deployment.home / "c"
    command: list[str | Path] = [BIN / "dagster", "api", "grpc", "-f", "location.py"]
    target = GrpcServerTarget(host="localhost", port=None, socket=str(socket), location_name="code")
    with running("dying code server", [*command, "--socket", socket], deployment.home) as server:
        until(lambda: answers(socket))
        with WorkspaceProcessContext(deployment.instance, target) as workspace:
            run_id = deployment.launch_cold(
                "/removed/python", workspace, waits_for="never", **{"dagster/max_retries": "0"}
            )
            pid = deployment.waits(run_id)
            server.kill()
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            assert deployment.ended(run_id) == "FAILURE"
            assert time.monotonic() - killed < deployment.noticed_within
    assert "Detected run worker status FAILED: 'its process is gone'" in deployment.log(run_id)


@pytest.mark.slow
def test_no_run_executes_older_code_than_the_files_or_the_code_server_have(
    deployment: Deployment,
) -> None:
    old = deployment.started_warm()
    waiting = deployment.submit(waits_for="reloaded")
    deployment.waits(waiting)
    client = DagsterGrpcClient(socket=str(deployment.socket))
    try:
        client.reload_code(timeout=60)  # as the UI's button does
        run_id = deployment.submit()
        assert deployment.ended(run_id) == "SUCCESS"
        assert "the code server was reloaded" in deployment.log(run_id)
        deployment.code.write_text(CODE.replace("VERSION = 1", "VERSION = 2"))
        run_id = deployment.submit()
        assert deployment.ended(run_id) == "SUCCESS"
        assert f"{deployment.code} has changed" in deployment.log(run_id)
        assert deployment.steps(run_id) == "version 2\n"
    finally:
        deployment.code.write_text(CODE)
        client.reload_code(timeout=60)
    deployment.open("reloaded")
    assert deployment.ended(waiting) == "SUCCESS"
    until(lambda: not psutil.pid_exists(old.pid))  # it had no more runs to wait for


@pytest.mark.slow
def test_no_run_says_that_a_changed_dotenv_counts(deployment: Deployment) -> None:
    """The daemon passes on what it read from the file, which takes precedence over the file itself."""
    dotenv = deployment.home / ".env"
    dotenv.write_text("ALERT_LATE_MINUTES=11")
    deployment.code.touch()
    try:
        deployment.started_warm()
        dotenv.write_text("ALERT_LATE_MINUTES=12")
        run_id = deployment.submit()
        assert deployment.ended(run_id) == "SUCCESS"
        assert "has changed" not in deployment.log(run_id)
    finally:
        dotenv.unlink()


@pytest.mark.slow
def test_two_launchers_at_once_start_each_run_once(deployment: Deployment) -> None:
    """The daemon's launcher, and that of this process."""
    deployment.started_warm()
    queued = [deployment.submit() for _ in range(3)]
    direct = [deployment.create() for _ in range(3)]

    def launch(run_id: str) -> None:
        deployment.instance.launch_run(run_id, deployment.workspace.create_request_context())

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(launch, direct))
    for run_id in [*queued, *direct]:
        assert deployment.ended(run_id) == "SUCCESS"
        assert deployment.steps(run_id) == "version 1\n"
    until(lambda: not deployment.files())


@pytest.mark.slow
def test_a_run_that_two_daemons_take_is_started_once(deployment: Deployment) -> None:
    run_id = deployment.submit(waits_for="taken")
    deployment.waits(run_id)
    context = deployment.workspace.create_request_context()
    run = deployment.instance.get_run_by_id(run_id)
    assert run
    deployment.instance.run_launcher.launch_run(LaunchRunContext(run, context))
    deployment.open("taken")
    assert deployment.ended(run_id) == "SUCCESS"
    assert "Not started again" in deployment.log(run_id), deployment.log(run_id)
    assert deployment.log(run_id).count("Started process for run") == 1


@pytest.mark.slow
def test_sigterm_interrupts_a_run_and_lets_the_warm_process_wait_for_its_runs(
    deployment: Deployment,
) -> None:
    warm = deployment.started_warm()
    interrupted = deployment.submit(waits_for="never", **{"dagster/max_retries": "0"})
    goes_on = deployment.submit(waits_for="drained")
    pid = deployment.waits(interrupted)
    deployment.waits(goes_on)
    os.kill(pid, signal.SIGTERM)
    assert deployment.ended(interrupted) == "FAILURE"
    assert "Execution was interrupted unexpectedly" in deployment.log(interrupted)
    assert "exited with code" not in deployment.log(interrupted), "it ended by itself"
    warm.terminate()
    next_one = deployment.submit()
    assert deployment.ended(next_one) == "SUCCESS"
    assert psutil.pid_exists(warm.pid), "it has a run"
    deployment.open("drained")
    assert deployment.ended(goes_on) == "SUCCESS"
    until(lambda: not psutil.pid_exists(warm.pid))


@pytest.mark.slow
def test_what_starts_runs_is_nobody_elses(deployment: Deployment) -> None:
    warm = deployment.started_warm()
    run_id = deployment.submit(waits_for="private")
    deployment.waits(run_id)
    folder = deployment.data / "run_processes"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / run_id).stat().st_mode & 0o777 == 0o600
    assert warm.cmdline()[1:3] == ["-m", "pipeline_assets.resources.warm_process"]
    assert warm.cmdline()[3].isdigit()
    assert {str(each.laddr) for each in warm.net_connections("all")} == {""}, "no address"
    assert warm.num_threads() == 1
    deployment.open("private")
    assert deployment.ended(run_id) == "SUCCESS"


@pytest.mark.parametrize(
    "many",
    [pytest.param(10, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.reliability)],
)
def test_nothing_is_left_of_many_runs(
    deployment: Deployment, server: embedded_postgres.Server, many: int
) -> None:
    launcher = deployment.instance.run_launcher

    def runs(number: int) -> None:
        for _ in range(number):
            run_id = deployment.create()
            deployment.instance.launch_run(run_id, deployment.workspace.create_request_context())
            assert deployment.ended(run_id) == "SUCCESS"
        until(lambda: not deployment.files())

    def held(process: psutil.Process) -> tuple[int, int]:
        return process.num_fds(), process.num_threads()

    def memory(process: psutil.Process) -> int:
        return int(process.memory_full_info().uss)

    runs(10)
    here = psutil.Process()  # the launcher's process
    (warm,) = (psutil.Process(each.process.pid) for each in launcher._warm.values())  # type: ignore[attr-defined]  # ours
    until(lambda: not warm.children())
    before, here_before = held(warm), held(here)
    memory_before, memory_here = memory(warm), memory(here)
    runs(many)
    # A run's descriptors are closed a moment after its process is gone: the last run's may still be open.
    until(lambda: not warm.children())
    until(lambda: all(now <= then for now, then in zip(held(warm), before, strict=True)))
    assert memory(warm) - memory_before < 1 << 20
    assert all(now - then < VARIES for now, then in zip(held(here), here_before, strict=True))
    assert memory(here) - memory_here < 8 << 20, "beside the launcher it holds this test"
    with psycopg.connect(server.url()) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'warm_runs'"
        until(lambda: connection.execute(query).fetchone()[0] < 20)  # type: ignore[index]  # one row


def retry_of(instance: dg.DagsterInstance, run_id: str) -> str | None:
    group = instance.get_run_group(run_id)
    runs = [run for run in (group[1] if group else []) if run.run_id != run_id]
    return runs[0].run_id if runs else None


def test_a_file_that_is_newer_or_gone_makes_what_was_loaded_stale(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    file.touch()
    changed = file.stat().st_ctime
    assert changed_since(changed, [str(file)]) is None
    assert changed_since(changed - 0.1, [str(file)]) == str(file)
    os.utime(file, (0, 0))  # as installers do
    assert changed_since(changed - 0.1, [str(file)]) == str(file)
    file.unlink()
    assert changed_since(changed, [str(file)]) == str(file)


def test_a_file_without_a_lock_is_a_dead_runs(tmp_path: Path) -> None:
    file = tmp_path / "run"
    with pytest.raises(FileNotFoundError):
        process_of(file)
    file.write_text("123")
    assert process_of(file) is None
    script = (
        "import fcntl, sys\nfile = open(sys.argv[1])\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        assert process_of(file) == 123
        holder.kill()
        holder.wait()
        assert process_of(file) is None
