"""Where loads are attacked: a changing source, a warehouse, and the rerun of what isn't done."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import sleep
from typing import Any, ClassVar

import psutil
import psycopg

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import extract
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.load_steps import KEYS, Pipeline
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.kills import (
    MARK,
    TRANSIENT,
    Moment,
    Trap,
    Victim,
    ended,
    postmaster,
    start,
)
from pipeline_assets_tests.reliability.workload import change
from pipeline_assets_tests.waiting import until


def load_all(settings: Settings, keys: Sequence[str] = KEYS) -> None:
    """Load every day, in the attacked child, in batches so small that a day has more than one."""
    extract.BATCH_BYTES = 500
    pipeline = Pipeline(settings)
    for key in keys:
        pipeline.run(key)


@dataclass
class Site:
    """Where the kills happen, and how many there were."""

    settings: Settings
    server: embedded_postgres.Server
    random: Random
    kills: int = 0
    step: int = 0
    spoils: bool = True
    """Whether the source has orders that break the contract; in Dagster's runs they hold their day."""
    databases: ClassVar[tuple[str, ...]] = ("source", "warehouse")

    @property
    def root(self) -> Path:
        return self.settings.pipeline_data_dir / "partitions"

    def connect(self, role: str) -> psycopg.Connection:
        url = getattr(self.settings, f"{role}_database_url").get_secret_value()
        return psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC")

    def change(self) -> None:
        self.step += 1
        shop = Shop(self.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
        change(shop, self.random, self.step, spoils=self.spoils)
        shop.connection.close()

    def begin(self, trap: Trap | None = None) -> Any:
        """Start what is attacked, in a process of its own."""
        return start(load_all, (self.settings,), trap)

    def kill_at(self, moment: Moment, victim: Victim) -> None:
        self.change()
        trap = Trap(moment, victim, self.random.randint(1, moment.often))
        with self.connect("warehouse") as witness:
            run = self.begin(trap)
            if victim != "process":
                until(lambda: is_lost(witness), f"hit: {moment}, {victim}")
                # The server's supervisor would restart it: a job's steps wait for that, and go on.
                embedded_postgres.connect_or_start(self.server.folder)
        self.killed(f"{moment} ({victim})", victim, ended(run))

    def kill_at_random(self, victim: Victim, longest: float) -> None:
        """Kill at a random moment of a run; a run that was over by then doesn't count as a kill."""
        self.change()
        process = self.begin()
        sleep(self.random.uniform(0, longest))
        is_hit = self.hit(victim, process)
        code = ended(process)
        if not is_hit or (victim == "process" and code == 0):
            assert code == 0, f"nothing was killed, and the run ended with {code}"
            self.recover(f"over before {victim} was killed")
            return
        self.killed(f"random ({victim})", victim, code)

    def hit(self, victim: Victim, process: Any) -> bool:
        """Kill a run, a backend that serves it, or the postmaster; false if it was over by then."""
        if victim == "process":
            process.kill()
            return True
        with psycopg.connect(self.server.url(), autocommit=True) as looker:
            until(lambda: backends(looker, process.pid) or not process.is_alive(), "a backend")
            found = backends(looker, process.pid)
        is_hit = False
        if found:
            with suppress(psutil.Error, ProcessLookupError):  # it has ended its session
                backend = self.random.choice(found)
                os.kill(backend if victim == "backend" else postmaster(backend), signal.SIGKILL)
                is_hit = process.is_alive()
            embedded_postgres.connect_or_start(self.server.folder)
        return is_hit

    def killed(self, what: str, victim: Victim, code: int) -> None:
        # Code 0: a backend that outlived its postmaster may have done all that the run had left to do.
        expected = (-signal.SIGKILL,) if victim == "process" else (TRANSIENT, 0)
        assert code in expected, f"{what}: the run ended with {code}"
        self.kills += 1
        self.recover(what)

    def recover(self, what: str) -> None:
        """Rerun what isn't done; the oracle judges before and after."""
        self.restart_server()
        with self.connect("source") as source, self.connect("warehouse") as warehouse:
            assert oracle.torn(warehouse, self.root) == [], what
            pipeline = Pipeline(self.settings)
            assert pipeline.catch_up() == [], what
            pipeline.at_source.close()
            pipeline.at_warehouse.close()
            assert oracle.source_differences(source, warehouse) == [], what
            assert oracle.torn(warehouse, self.root) == [], what
            assert oracle.unloaded(warehouse, self.root) == [], what

    def restart_server(self) -> None:
        embedded_postgres.connect_or_start(self.server.folder)
        until(self.is_reachable, "reachable")

    def is_reachable(self) -> bool:
        self.connect("warehouse").close()
        return True

    def left_behind(self) -> list[str]:
        """What no run may leave: sessions and locks, processes, temporary files."""
        names = []
        for role in self.databases:
            with self.connect(role) as connection:
                names.append(connection.info.dbname)
        cluster = self.server.folder / "data"
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            found: list[str] = []

            def nothing_is_left() -> bool:
                postmaster_pid = postmaster(connection.info.backend_pid)
                found[:] = [
                    *oracle.left_behind(connection, names),
                    *oracle.left_processes(MARK, cluster, postmaster_pid),
                    *oracle.left_files(self.settings.pipeline_data_dir),
                ]
                return not found

            with suppress(AssertionError):  # the caller's assertion says what is left
                until(nothing_is_left, "free of what runs leave", longest=60)
            return found  # looked at again, a worker of autovacuum might have come meanwhile


def backends(connection: psycopg.Connection, process: int) -> list[int]:
    """The pids of the backends that serve a process, known by its ports."""
    ports: list[int] = []
    with suppress(psutil.Error):  # it has ended
        ports = [each.laddr.port for each in psutil.Process(process).net_connections("tcp")]
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE client_port = ANY (%s) ORDER BY 1", [ports]
    )
    return [pid for (pid,) in rows]


def is_lost(connection: psycopg.Connection) -> bool:
    """Whether the server has ended this session."""
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False
