"""Killing a run at a named moment: the engine of the crash matrix, without hooks in the package.

A victim runs in a process forked from one that has all modules loaded (so that a kill costs a tenth of
a second, not an interpreter's start), with a trap in it: just before or after a function or a
statement, `kill -9` hits the process itself, its PostgreSQL backend, or the server's postmaster.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import psycopg
from psycopg import sql

from pipeline_assets_tests.waiting import LONGEST

Victim = Literal["process", "backend", "postmaster"]
TRANSIENT = 75
"""Exit code of a run that failed in a way that is tried again (EX_TEMPFAIL of sysexits.h)."""
MARK = f"RELIABILITY_SUITE={os.getpid()}"
"""In the environment of every process forked here and of what it starts; nowhere else."""


@dataclass(frozen=True)
class Moment:
    """When a run is hit: before or after what a stage does."""

    stage: str
    when: Literal["before", "after"]
    what: str
    """A function as `module:name`, or how a statement begins."""
    often: int = 1
    """How often the moment comes in a run: the trap snaps at any one of these times."""

    def __str__(self) -> str:
        return f"{self.stage}: {self.when} {self.what.rpartition('.')[2]}"


@dataclass
class Trap:
    """A moment's trap: it snaps at the `hit`-th time that the moment comes."""

    moment: Moment
    victim: Victim
    hit: int
    backend: int = 0

    def comes(self, when: str) -> None:
        """Count the moment if the trap is on this side of it, and snap if its time has come."""
        if when != self.moment.when:
            return
        self.hit -= 1
        if self.hit == 0:
            self.snap()

    def snap(self) -> None:
        """Kill the victim."""
        if self.victim == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        assert self.backend, f"{self.moment}: there is no connection yet, and so no backend"
        os.kill(
            self.backend if self.victim == "backend" else postmaster(self.backend), signal.SIGKILL
        )

    def set(self) -> None:
        """Lay the trap in this process, which is a child made for it."""
        self.watch_statements()
        if ":" in self.moment.what:
            self.watch_function()

    def watch_function(self) -> None:
        module_name, _, path = self.moment.what.partition(":")
        module = importlib.import_module(module_name)
        *owners, name = path.split(".")
        owner: Any = module
        for part in owners:
            owner = getattr(owner, part)
        function = getattr(owner, name)

        def trapped(*arguments: Any, **named: Any) -> Any:
            self.comes("before")
            found = function(*arguments, **named)
            self.comes("after")
            return found

        setattr(owner, name, trapped)
        if owner is module:  # others have imported it by name
            for other in list(sys.modules.values()):
                for key, value in list(vars(other).items()) if other else []:
                    if value is function:
                        setattr(other, key, trapped)

    def watch_statements(self) -> None:
        connect, execute, copy = psycopg.connect, psycopg.Cursor.execute, psycopg.Cursor.copy

        def noting_connect(*arguments: Any, **named: Any) -> Any:
            found = connect(*arguments, **named)
            self.backend = found.info.backend_pid
            return found

        def is_meant(cursor: psycopg.Cursor[Any], query: Any) -> bool:
            self.backend = cursor.connection.info.backend_pid
            text = query.as_string(cursor) if isinstance(query, sql.Composable) else str(query)
            return text.lstrip().startswith(self.moment.what)

        def trapped_execute(cursor: Any, query: Any, *arguments: Any, **named: Any) -> Any:
            meant = is_meant(cursor, query)
            if meant:
                self.comes("before")
            found = execute(cursor, query, *arguments, **named)
            if meant:
                self.comes("after")
            return found

        def trapped_copy(cursor: Any, query: Any, *arguments: Any, **named: Any) -> Any:
            if is_meant(cursor, query):
                self.comes("before")
            return copy(cursor, query, *arguments, **named)

        psycopg.connect = noting_connect
        psycopg.Cursor.execute = trapped_execute  # type: ignore[method-assign, assignment]  # that is the trap
        psycopg.Cursor.copy = trapped_copy  # type: ignore[method-assign, assignment]  # the same


def postmaster(backend: int) -> int:
    """The pid of the server's first process, the parent of its backends."""
    import psutil

    return psutil.Process(backend).ppid()


@cache
def _forks() -> Any:
    name, value = MARK.split("=")
    os.environ[name] = value
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pipeline_assets.definitions",
            "pipeline_assets.models.registration",
            "pipeline_assets.news.digest",
            "pipeline_assets.resources.dagster_instance",
            "pipeline_assets_tests.reliability.jobs",
            "adbc_driver_postgresql.dbapi",
            "adbc_driver_manager",
            "dagster_mlflow",
            "mlflow.sklearn",
            "pandas",
            "pgpq",
            "pyarrow.parquet",
            "skops.io",
            "sklearn.ensemble",
            "sklearn.feature_extraction.text",
        ]
    )
    return context


def start(run: Callable[..., None], arguments: tuple[Any, ...], trap: Trap | None = None) -> Any:
    """Start a run in a forked process, with a trap or none."""
    process = _forks().Process(target=_child, args=(run, arguments, trap))
    process.start()
    return process


def ended(process: Any) -> int:
    """The exit code of a run, once it has ended: 0, minus a signal, `TRANSIENT`, or 1."""
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the run still ran after {LONGEST:g} s")
    code: int = process.exitcode
    process.close()
    return code


def _child(run: Callable[..., None], arguments: tuple[Any, ...], trap: Trap | None) -> None:
    from pipeline_assets.failures import is_transient

    if trap:
        trap.set()
    try:
        run(*arguments)
    except Exception as error:
        traceback.print_exc()  # pytest shows it if that wasn't expected
        sys.exit(TRANSIENT if is_transient(error) else 1)
