"""A process that has imported what runs need, and forks one process per run: the run starts warm.

Nearly the whole cost of a small run is a new interpreter importing Dagster and the definitions: 2.5 s of
CPU. `warm_launcher`, in the process that launches runs (the daemon), starts this module as a program. Only
it talks to this process, through a socket pair, with one line of JSON per message: there is no address that
another process or user could connect to. The decision whether a run may start warm belongs in
`warm_launcher`.

One file per run in the data folder, locked by the run's process, shows which runs live; the kernel releases
a lock however its holder dies. This process holds it too, until the death of a run's process is reported:

    lock held              the run's process lives, its pid is in the file; or its death is being reported
    file, but no lock      the process died, and nobody could report it: run monitoring does
    no file                the run came to its end, or didn't start warm

This process ends when its launcher disconnects or dies, or on SIGTERM, once its forked runs are over.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus
from dagster._cli.api import _execute_run_command_body
from dagster._cli.utils import get_instance_for_cli
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext
from dagster._core.definitions.reconstruct import initialize_repository_def_from_pointer
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import RepositoryPythonOrigin
from dagster._serdes import deserialize_value
from dagster._utils import get_run_crash_explanation
from dagster._utils.interrupts import capture_interrupts

INTERRUPTS = {signal.SIGINT, signal.SIGTERM}


def process_of(run_file: Path) -> int | None:
    """The pid of a run's process; 0 before its start or while its death is reported; None if it is dead.

    Raises:
        FileNotFoundError: the run came to its end, or isn't one of a warm process.
    """
    descriptor = os.open(run_file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 20) or 0)
    finally:
        os.close(descriptor)
    return None


def preload(setup: dict[str, Any]) -> list[str]:
    """Import the modules, load the definitions, and return the files that were read to do so.

    Raises:
        RuntimeError: a forked process wouldn't do the same as a new one.
    """
    read: set[str] = set()
    loading = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if loading and event == "open" and isinstance(arguments[0], str):
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR):  # not bytecode that is being written
                read.add(path)

    sys.addaudithook(note)
    # Arrow's second allocator, jemalloc, starts a thread though it isn't used.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    # A new process gets these from its code server, before it loads the definitions.
    if loader := deserialize_value(setup["instance"], InstanceRef).secrets_loader:
        os.environ.update(loader.get_secrets_for_environment(setup["location"]))
    for module in setup["preload"]:
        importlib.import_module(module)
    pointer = deserialize_value(setup["origin"], RepositoryPythonOrigin).code_pointer
    initialize_repository_def_from_pointer(pointer).load_all_definitions()
    context = DefinitionsLoadContext.get()
    if context.get_pending_reconstruction_metadata() or context.accessed_defs_state_info:
        raise RuntimeError(
            "the definitions are made from stored state, and each run brings its own"
        )
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    if len(threads) > 1:
        raise RuntimeError(f"importing leaves threads, whose locks a fork copies: {threads}")
    gc.collect()
    gc.freeze()  # else a collection in a run would write to, and so copy, every page of this process
    loading = False
    read |= {str(vars(module).get("__file__")) for module in list(sys.modules.values())}
    # The kernel's own files always look new; bytecode is made from the sources, which are included; the
    # launcher has read .env and passed it on in the environment, which takes precedence.
    ignored = ("/proc/", "/sys/", "/dev/")
    return [
        path
        for path in read
        if not path.startswith(ignored)
        and not path.endswith((".pyc", "/.env"))
        and Path(path).is_file()
    ]


def changed_since(moment: float, files: Iterable[str]) -> str | None:
    """A file that was changed, replaced or removed after a moment, if there is one.

    Compares ctime, which only the kernel sets: installers set the modification time.
    """
    for path in files:
        try:
            if os.stat(path).st_ctime > moment:  # noqa: PTH116  # 2,000 files in 4 ms, not 14
                return path
        except OSError:
            return path
    return None


@dataclass
class Run:
    """A forked run; `process` is the run's own, after its death the one that reports it."""

    run_id: str
    file: Path
    lock: int
    process: ForkProcess
    is_reported: bool = False


class Server:
    """Serves one launcher, and is the parent of its runs' processes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reader = connection.makefile("r")
        self.runs: list[Run] = []
        self.instance = ""
        self.began = time.time()
        self.files: list[str] = []

    def serve(self) -> None:
        """Start runs until the launcher is gone, then wait for the last of them."""
        listens = True
        while listens or self.runs:
            sentinels = [run.process.sentinel for run in self.runs]
            ready = wait([*sentinels, self.connection] if listens else sentinels)
            for run in [run for run in self.runs if run.process.sentinel in ready]:
                self.runs.remove(run)
                self.bury(run)
            if self.connection in ready:
                line = self.reader.readline()
                listens = bool(line)
                if line:
                    answer = json.dumps(self.answer(json.loads(line))) + "\n"
                    with contextlib.suppress(OSError):  # it has gone
                        self.connection.sendall(answer.encode())

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what a message asks for; an empty answer means that it is done."""
        try:
            if "origin" in message:
                self.instance = message["instance"]
                self.files = preload(message)
            elif stale := changed_since(self.began, self.files):
                return {"stale": f"{stale} has changed"}
            elif not self.start(message["run_id"], Path(message["file"])):
                return {"runs": True}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {}

    def start(self, run_id: str, file: Path) -> bool:
        """Fork the process of a run; False if it has one already."""
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        try:
            os.ftruncate(lock, 0)
            process = self.fork(execute_run, (run_id, self.instance, file, lock), {lock})
        except BaseException:
            file.unlink()  # without a lock it would mean that the run died
            os.close(lock)
            raise
        self.runs.append(Run(run_id, file, lock, process))
        return True

    def bury(self, run: Run) -> None:
        """Clean up after an ended process; have its death reported if it left the run's file."""
        run.process.join()
        code = run.process.exitcode
        run.process.close()
        if run.file.exists() and not run.is_reported:
            os.ftruncate(run.lock, 0)  # the kernel may reuse the pid
            arguments = (run.run_id, self.instance, run.file, code)
            run.process, run.is_reported = self.fork(report_death, arguments, set()), True
            self.runs.append(run)
        else:
            os.close(run.lock)

    def fork(
        self, target: Callable[..., None], arguments: tuple[Any, ...], keep: set[int]
    ) -> ForkProcess:
        """Run a function in a forked process, which closes this one's connection and locks except `keep`."""

        def child() -> None:
            # Open copies outlive us: the launcher would see no EOF, a dead run would seem to hold its lock.
            self.reader.close()
            self.connection.close()
            for lock in {run.lock for run in self.runs} - keep:
                os.close(lock)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if numpy := sys.modules.get("numpy"):
                numpy.random.seed()  # Python's own generator does so by itself
            try:
                target(*arguments)
            finally:
                # multiprocessing ends forked processes without exit handlers: temporary folders would stay.
                atexit._run_exitfuncs()

        process = multiprocessing.get_context("fork").Process(target=child)
        # Holds interrupts back until the child can handle them.
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        return process


def execute_run(run_id: str, instance_ref: str, file: Path, lock: int) -> None:
    """Do what `dagster api execute_run` does, with the same events, signals and threads.

    That ends without an error even if it couldn't record how the run ended, because Dagster's database was
    away for longer than it retries. Then the file stays, and this process's end is reported as a death.
    """
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        with get_instance_for_cli(deserialize_value(instance_ref, InstanceRef)) as instance:
            _execute_run_command_body(
                run_id, instance, lambda _: None, set_exit_code_on_failure=False
            )
            run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        file.unlink()


def report_death(run_id: str, instance_ref: str, file: Path, exit_code: int) -> None:
    """Say in the run's log how its process ended, and that the run was canceled or has failed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    with DagsterInstance.from_ref(deserialize_value(instance_ref, InstanceRef)) as instance:
        run = instance.get_run_by_id(run_id)
        if run and not run.is_finished:
            message = get_run_crash_explanation(f"Run execution process for {run_id}", exit_code)
            instance.report_engine_event(message, run)
            if run.status == DagsterRunStatus.CANCELING:  # a failed run would be retried
                instance.report_run_canceled(run)
            else:
                instance.report_run_failed(run)
    file.unlink()


def main() -> None:
    """Serve the launcher at the other end of the socket whose descriptor is the argument."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C is for the runs; SIGTERM has the same effect as losing the launcher.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: connection.shutdown(socket.SHUT_RDWR))
    Server(connection).serve()


if __name__ == "__main__":
    main()
