"""One daily pipeline in this project, Airflow and Prefect: what a run costs, and what idling does.

    python -m benchmarks.orchestrators --help

The same three steps (`peers/daily_steps`: extract 10,000 rows, validate, upsert) run in each. The systems
take turns, round after round, one at a time, each from a copy of its database as its setup left it.
CPU is that of all of a system's processes and of PostgreSQL, less what the system takes at rest in the
same time. The benchmark reads the runs' ends from the systems' databases by SQL, so that its polling
doesn't load their APIs; after each round it compares the target with the source.
"""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import psycopg
import requests
import typer
from rich.console import Console

from benchmarks import data, report, systems_report
from benchmarks.measure import ToolError, server_cpu
from benchmarks.peers.daily_steps import SCHEDULED_DAY
from benchmarks.services import Services
from benchmarks.systems import Place, System, systems
from benchmarks.tools import PEERS, install
from pipeline_assets.resources.embedded_postgres import Server, connect_or_start, ensure_database
from pipeline_assets.settings import load_settings

ROWS = 10_000
FIRST_DAY = date(2026, 1, 1)
_days = [(FIRST_DAY + timedelta(days=number)).isoformat() for number in range(46)]
BACKFILL, TEN, QUEUED = _days[:30], _days[30:40], _days[40:43]
WARM_UP, SET_UP = _days[43], _days[45]  # the day between is SCHEDULED_DAY
SOURCE_DATABASE, TARGET_DATABASE = "bench_daily_source", "bench_daily_target"
SOURCE = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders AS
SELECT n AS order_id, n % 5000 AS customer_id,
    timestamptz '{first}' + n * (interval '1 day' / {rows}) AS ordered_at,
    ((CASE WHEN n % 1000 = 7 THEN -1 ELSE 1 + n % 10000 END) / 100.0)::numeric(14, 2) AS amount,
    ('{{USD,EUR,GBP,JPY,CHF}}'::text[])[1 + n % 5] AS currency, 1 + n % 9 AS quantity
FROM generate_series(0, {rows} * 46 - 1) AS n;
CREATE INDEX ON shop.orders (ordered_at);
"""
TARGET = """
CREATE SCHEMA analytics;
CREATE TABLE analytics.orders (
    order_id integer PRIMARY KEY, customer_id integer, ordered_at timestamptz,
    amount numeric(14, 2), currency text, quantity integer
);
"""
FOUND = """
SELECT count(*), sum(hashtextextended(orders::text, 0)) FROM analytics.orders
"""
WANTED = """
SELECT count(*), sum(hashtextextended(orders::text, 0)) FROM shop.orders
WHERE amount > 0 AND ordered_at::date = ANY(%s::date[])
"""
RESTS = 20.0
"""The least seconds for which a system is measured at rest, after SETTLES more."""
SETTLES = 5.0
"""Seconds after a run for its process to end and store its last events: they are its cost too."""
LEAD = 25.0
"""Seconds before its first due time that a schedule is switched on: Airflow runs the last minute at once."""
FETCHED = 11.0
"""Seconds before a run's due time from which its CPU is counted: Prefect's worker fetches it 10 s ahead."""
DEADLINE = 300.0
"""Seconds that anything may take; a system that needs longer is broken."""


@dataclass
class Window:
    """CPU seconds spent within `seconds` of wall time on a number of runs, the system's rest included."""

    cpu: float
    seconds: float
    runs: int

    def beyond(self, rest: float) -> float:
        """CPU seconds per run beyond those at rest; `rest` is in CPU seconds per second."""
        return (self.cpu - rest * self.seconds) / self.runs


def main(
    rounds: Annotated[int, typer.Option(help="Rounds: each system once.", min=1)] = 5,
    system: Annotated[
        list[str] | None,
        typer.Option(help="Only: " + ", ".join(each.key for each in systems()) + "."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Databases and environments; 3 GB.")] = None,
) -> None:
    """Compare this project's runs with Airflow's and Prefect's; three minutes a system and round."""
    # A background job's children would ignore SIGINT; both signals must leave nothing running.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform != "linux":
        raise SystemExit("the comparison reads the memory of processes from /proc: it needs Linux")
    console = Console(width=None if sys.stdout.isatty() else 150)
    folder = (folder or load_settings().pipeline_data_dir / "benchmarks").resolve()
    server = connect_or_start(folder / "postgres")
    make_data(server)
    chosen = [each for each in systems() if not system or each.key in system]
    with console.status("Setting up") as status:
        for each in chosen:
            status.update(f"Setting up {each.name}")
            set_up(server, each, folder)
    measured: dict[str, list[dict[str, float]]] = {each.key: [] for each in chosen}
    for number in range(rounds):
        for each in chosen:
            with console.status(f"Round {number + 1} of {rounds}: {each.name}") as status:
                measured[each.key].append(measure(server, each, folder, status.update))
        systems_report.merge_systems(
            [
                {
                    "name": each.name,
                    "version": each.version,
                    "configuration": each.configuration,
                    "rounds": measured[each.key],
                }
                for each in chosen
            ]
        )
    for table in systems_report.system_tables():
        console.print(table)
    report.write_page()


def make_data(server: Server) -> None:
    """The days in the source, and an empty target."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        for name in (SOURCE_DATABASE, TARGET_DATABASE):
            data.drop(admin, name)
    with data.connect(server, SOURCE_DATABASE) as source:
        source.execute(SOURCE.format(first=FIRST_DAY, rows=ROWS))
        source.execute("VACUUM ANALYZE shop.orders")
    with data.connect(server, TARGET_DATABASE) as target:
        target.execute(TARGET)


def set_up(server: Server, system: System, folder: Path) -> None:
    """Install a system, make its database and register the pipeline; the database becomes a template."""
    place = _place(server, system, folder, f"bench_{system.key}_made")
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    with psycopg.connect(server.url(), autocommit=True) as admin:
        data.drop(admin, f"bench_{system.key}_made")
    ensure_database(server, f"bench_{system.key}_made")
    environment = _environment(server, system, place)
    _run(system.prepare(place), place, environment)
    with Services(place.folder, environment) as services:
        _open(system, place, services)
        _run(system.register(place), place, environment)
        with psycopg.connect(place.database, autocommit=True) as history:
            _queued(system, place, services, history, [SET_UP])


def measure(
    server: Server, system: System, folder: Path, say: Callable[[str], None]
) -> dict[str, float]:
    """One round of a system, from its start to its stop; seconds, CPU seconds, megabytes by name.

    Raises:
        ToolError: it didn't start, a run failed, or the target isn't what the source says.
    """
    database = f"bench_{system.key}"
    place = _place(server, system, folder, database)
    data.fresh_copy(server, f"{system.key}_made", database)
    with data.connect(server, TARGET_DATABASE) as target:
        target.execute("TRUNCATE analytics.orders")
        target.execute("CHECKPOINT")
    environment = _environment(server, system, place)
    with (
        Services(place.folder, environment) as services,
        psycopg.connect(place.database, autocommit=True) as history,
    ):

        def cpu() -> float:
            return services.cpu_seconds() + server_cpu(server.pid)

        def timed(ask: Callable[[], int]) -> tuple[float, Window]:
            """Seconds until all the runs that were asked for have ended, and their CPU."""
            before, runs = cpu(), len(_runs(system, history))
            begun = time.time()
            asked = ask()
            seconds = _all_ended(system, services, history, runs + asked) - begun
            time.sleep(SETTLES)
            return seconds, Window(cpu() - before, time.time() - begun, asked)

        figures = {"start": _open(system, place, services)}
        say(f"{system.name}: one after another")
        _queued(system, place, services, history, [WARM_UP])  # a start's first run isn't counted
        waits: list[float] = []

        def one_by_one() -> int:
            waits.extend(_queued(system, place, services, history, QUEUED))
            return len(QUEUED)

        _, queued = timed(one_by_one)
        say(f"{system.name}: ten at once")

        def at_once() -> int:
            system.request_all(place, TEN)
            return len(TEN)

        figures["ten"], ten = timed(at_once)
        say(f"{system.name}: backfill")
        asked = time.time()
        figures["backfill"], backfill = timed(lambda: system.backfill(place, BACKFILL))
        figures["backfill_begins"] = _first_start(system, history, asked) - asked
        backfill.runs = len(BACKFILL)  # CPU is per day, even if one run loads them all
        say(f"{system.name}: at rest, then by schedule")
        due = 60 * (1 + (time.time() + RESTS + LEAD) // 60)
        before, begun = cpu(), time.time()
        time.sleep(due - LEAD - time.time())
        rest = (cpu() - before) / (time.time() - begun)
        figures["pss_mb"], figures["rss_mb"] = services.memory_mb()
        figures["processes"] = len(services.processes())
        system.switch_on(place)
        _scheduled_end(system, services, history, due)  # nor is the first one by schedule
        due += 60
        time.sleep(max(0.0, due - FETCHED - time.time()))
        before, begun = cpu(), time.time()
        figures["scheduled"] = _scheduled_end(system, services, history, due) - due
        time.sleep(SETTLES)
        scheduled = Window(cpu() - before, time.time() - begun, 1)
        figures |= {
            "queued": median(waits),
            "scheduled_cpu": scheduled.beyond(rest),
            "queued_cpu": queued.beyond(rest),
            "ten_cpu": ten.beyond(rest),
            "backfill_cpu": backfill.beyond(rest),
            "rest_cpu": 60 * rest,
        }
    _compare(server)
    return {name: round(value, 3) for name, value in figures.items()}


def _place(server: Server, system: System, folder: Path, database: str) -> Place:
    home = install(system.packages, folder / "environments")
    return Place(home, folder / "systems" / system.key, _free_ports(), server.url(database))


def _free_ports() -> int:
    """The first of two ports side by side that nothing listens on."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _environment(server: Server, system: System, place: Place) -> dict[str, str]:
    return {
        "PATH": f"{place.home / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(place.folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(PEERS),
        "SOURCE_URL": server.url(SOURCE_DATABASE),
        "TARGET_URL": server.url(TARGET_DATABASE),
        "STEPS_FOLDER": str(place.folder),
        **system.environment(place),
    }


def _run(commands: Sequence[Sequence[str]], place: Place, environment: dict[str, str]) -> None:
    for command in commands:
        done = subprocess.run(
            command,
            cwd=place.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ToolError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def _open(system: System, place: Place, services: Services) -> float:
    """Start everything; returns the seconds until the UI's page was served."""
    begun = time.perf_counter()
    services.start(system.services(place))
    while True:
        try:
            requests.get(place.address, timeout=5).raise_for_status()
            break
        except requests.RequestException:
            if services.has_ended() or time.perf_counter() - begun > DEADLINE:
                raise _broken(system, services, "has no UI") from None
            time.sleep(0.02)
    seconds = time.perf_counter() - begun
    services.start(system.workers(place))
    return seconds


def _queued(
    system: System,
    place: Place,
    services: Services,
    history: psycopg.Connection,
    days: Sequence[str],
) -> list[float]:
    """Run days one after another; the seconds from the request of each to its end."""
    found = []
    for day in days:
        runs, begun = len(_runs(system, history)), time.time()
        system.request(place, day)
        found.append(_all_ended(system, services, history, runs + 1) - begun)
    return found


class Run(NamedTuple):
    """What a system has on record of a run, in seconds since 1970."""

    due: float | None
    began: float | None
    ended: float | None
    succeeded: bool | None


def _runs(system: System, history: psycopg.Connection) -> list[Run]:
    return [Run(*row) for row in history.execute(system.runs)]


def _first_start(system: System, history: psycopg.Connection, since: float) -> float:
    """The start of the first run that began after a moment."""
    return min(run.began for run in _runs(system, history) if run.began and run.began > since)


def _all_ended(
    system: System, services: Services, history: psycopg.Connection, count: int
) -> float:
    """Wait until exactly `count` runs are on record and all have ended; returns the last end."""

    def all_ended(runs: list[Run]) -> list[Run]:
        return runs if len(runs) == count and all(run.ended for run in runs) else []

    return _end(system, services, history, all_ended)


def _scheduled_end(
    system: System, services: Services, history: psycopg.Connection, due: float
) -> float:
    """Wait for the run that was due at a moment to end; returns its end."""
    return _end(
        system,
        services,
        history,
        lambda runs: [run for run in runs if run.due == due and run.ended],
    )


def _end(
    system: System,
    services: Services,
    history: psycopg.Connection,
    wanted: Callable[[list[Run]], list[Run]],
) -> float:
    deadline = time.monotonic() + DEADLINE
    while not (found := wanted(_runs(system, history))):
        if services.has_ended() or time.monotonic() > deadline:
            raise _broken(system, services, "doesn't run what it was asked for")
        time.sleep(0.1)
    if not all(run.succeeded for run in found):
        raise _broken(system, services, "has runs that failed")
    return max(run.ended or 0.0 for run in found)


def _broken(system: System, services: Services, how: str) -> ToolError:
    tail = services.log.read_text(errors="replace")[-3000:]
    return ToolError(f"{system.name} {how}. The end of {services.log}:\n{tail}")


def _compare(server: Server) -> None:
    """Compare the target with the source, by SQL that no pipeline uses."""
    days = [*BACKFILL, *TEN, *QUEUED, WARM_UP, SCHEDULED_DAY]
    with data.connect(server, SOURCE_DATABASE) as source:
        wanted = source.execute(WANTED, [days]).fetchone()
    with data.connect(server, TARGET_DATABASE) as target:
        found = target.execute(FOUND).fetchone()
    if found != wanted:
        raise ToolError(f"the target holds {found} (rows, digest), and the source says {wanted}")


if __name__ == "__main__":
    typer.run(main)
