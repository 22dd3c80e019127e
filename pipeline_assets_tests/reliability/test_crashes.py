"""`kill -9` at every stage of a load, and at random: the rerun of what isn't done leaves nothing wrong.

The process, its PostgreSQL backend (which restarts the server: each other session is lost too) and the
postmaster are hit. The source changes before each kill, so no load is a replay of the one before.
"""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import get_args

import psycopg
import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import extract
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.load_steps import DAYS, KEYS, Pipeline
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.kills import (
    TRANSIENT,
    Moment,
    Trap,
    Victim,
    ended,
    postmaster,
    start,
    until,
)
from pipeline_assets_tests.reliability.workload import change

VICTIMS: tuple[Victim, ...] = get_args(Victim)
SWAP = "fsspec.implementations.local:LocalFileSystem.mv"
LOAD = "pipeline_assets.warehouse.load"
MOMENTS = [
    Moment("extract", "after", "pipeline_assets.warehouse.extract:_plain"),
    Moment("extract", "before", "pipeline_assets.resources.files:PartitionFiles.write"),
    Moment("file swap", "before", SWAP),
    Moment("file swap", "after", SWAP),
    Moment("validate", "before", "pipeline_assets.quality.validation:validate"),
    Moment("validate", "after", "pipeline_assets.quality.validation:validate"),
    Moment("quarantine", "before", 'DELETE FROM "quarantine"'),
    Moment("quarantine", "after", 'DELETE FROM "quarantine"'),
    Moment("quarantine", "before", 'COPY "quarantine"'),
    Moment("quarantine", "after", "pipeline_assets.warehouse.ledger:QuarantineWriter.write"),
    Moment("verdict", "before", "INSERT INTO pipeline.batches"),
    Moment("verdict", "after", "INSERT INTO pipeline.batches"),
    Moment("verdict", "after", "pipeline_assets.warehouse.gate:judge"),
    Moment("load", "before", "CREATE TEMP TABLE staged"),
    Moment("load", "before", "COPY staged"),
    Moment("load", "after", f"{LOAD}:_stage"),
    Moment("load", "after", f"{LOAD}:_delete_gone"),
    Moment("load", "after", f"{LOAD}:_insert_and_update"),
    Moment("mart", "before", "pipeline_assets.warehouse.marts:refresh"),
    Moment("mart", "before", 'INSERT INTO "analytics"."dim_customers"'),
    Moment("mart", "after", "pipeline_assets.warehouse.marts:refresh"),
    Moment("ledger", "before", "UPDATE pipeline.batches"),
    Moment("ledger", "after", "UPDATE pipeline.batches"),
    Moment("ledger", "after", f"{LOAD}:load"),
]


def load_all(settings: Settings) -> None:
    """What a killed child does: every day, in small batches, so that there is a second one."""
    extract.BATCH_BYTES = 500
    pipeline = Pipeline(settings)
    for key in KEYS:
        pipeline.run(key)


@dataclass
class Site:
    """Where the kills happen, and how many have."""

    settings: Settings
    server: embedded_postgres.Server
    random: Random
    kills: int = 0
    step: int = 0

    @property
    def root(self) -> Path:
        return self.settings.pipeline_data_dir / "partitions"

    def connect(self, role: str) -> psycopg.Connection:
        url = getattr(self.settings, f"{role}_database_url").get_secret_value()
        return psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC")

    def change(self) -> None:
        self.step += 1
        shop = Shop(self.settings.source_database_url.get_secret_value())  # type: ignore[union-attr]  # set
        change(shop, self.random, self.step)
        shop.connection.close()

    def kill_at(self, moment: Moment, victim: Victim) -> None:
        self.change()
        trap = Trap(moment, victim, self.random.randint(1, DAYS))
        with self.connect("warehouse") as witness:
            code = ended(start(load_all, (self.settings,), trap))
            if victim == "process":
                assert code == -signal.SIGKILL, f"{moment}: the run ended with {code}"
            else:
                # All it had left to do may have been done already, by a backend that outlived its postmaster.
                assert code in (TRANSIENT, 0), f"{moment}, {victim}: the run ended with {code}"
                until(lambda: is_lost(witness), f"hit: {moment}, {victim}")
        self.killed(f"{moment} ({victim})")

    def kill_at_random(self, victim: Victim, longest: float) -> None:
        """At a moment of the run's duration; one that was over by then is no kill."""
        self.change()
        with self.connect("warehouse") as looker:
            process = start(load_all, (self.settings,))
            sleep(self.random.uniform(0, longest))
            backend = looker.info.backend_pid
            if victim == "process":
                process.kill()
            else:
                os.kill(backend if victim == "backend" else postmaster(backend), signal.SIGKILL)
        if ended(process) == 0:
            self.recover(f"over before {victim} was killed")
            return
        self.killed(f"random ({victim})")

    def killed(self, what: str) -> None:
        self.kills += 1
        self.recover(what)

    def recover(self, what: str) -> None:
        """What isn't done is run again; then the oracle is asked."""
        embedded_postgres.connect_or_start(self.server.folder)
        until(lambda: not self.connect("warehouse").close(), "reachable")
        with self.connect("source") as source, self.connect("warehouse") as warehouse:
            assert oracle.torn(warehouse, self.root) == [], what
            pipeline = Pipeline(self.settings)
            assert pipeline.catch_up() == [], what
            pipeline.at_source.close()
            pipeline.at_warehouse.close()
            assert oracle.source_differences(source, warehouse) == [], what
            assert oracle.torn(warehouse, self.root) == [], what
            assert oracle.unloaded(warehouse, self.root) == [], what

    def left_behind(self) -> list[str]:
        names = [psycopg.conninfo.conninfo_to_dict(str(url.get_secret_value()))["dbname"]
                 for url in (self.settings.source_database_url, self.settings.warehouse_database_url) if url]
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            until(lambda: not oracle.left_behind(connection, names), "free of sessions and locks")
            return oracle.left_behind(connection, names)


def is_lost(connection: psycopg.Connection) -> bool:
    """Whether the server has ended this session."""
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


@pytest.fixture
def site(settings: Settings, server: embedded_postgres.Server, seed: int) -> Site:
    return Site(settings, server, Random(seed))


def duration(site: Site) -> float:
    """Seconds that an undisturbed run takes."""
    site.change()
    begun = monotonic()
    assert ended(start(load_all, (site.settings,))) == 0
    taken = monotonic() - begun
    site.recover("nothing was killed")
    return taken


@pytest.mark.parametrize(
    ("victims", "rounds", "random_kills"),
    [
        pytest.param(VICTIMS, 0, 3, id="short", marks=pytest.mark.slow),
        *(pytest.param([each], 2, 22, id=each, marks=pytest.mark.reliability) for each in VICTIMS),
    ],
)
def test_a_load_killed_at_any_moment_loses_and_doubles_nothing(
    site: Site,
    victims: Sequence[Victim],
    rounds: int,
    random_kills: int,
    tell: Callable[[str], None],
) -> None:
    """Long: each victim 48 times at the named moments, 22 times at random. Short: 12 and 3."""
    longest = duration(site)
    cases = [(moment, victim) for moment in MOMENTS for victim in victims] * rounds
    for moment, victim in cases or _some(site.random):
        site.kill_at(moment, victim)
    named = site.kills
    while site.kills < named + random_kills:
        site.kill_at_random(victims[site.kills % len(victims)], longest)
    assert site.left_behind() == []
    tell(f"{named} kills at named moments, {site.kills - named} at random ones; all days agree")


def _some(random: Random) -> list[tuple[Moment, Victim]]:
    """One moment of each stage and some more, each victim in turn."""
    moments = [*{moment.stage: moment for moment in random.sample(MOMENTS, len(MOMENTS))}.values()]
    moments += random.sample(MOMENTS, 4)
    return [(moment, VICTIMS[number % 3]) for number, moment in enumerate(moments)]
