"""Faults under Dagster's own runs and its own database: the network, connections and the disk."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from time import monotonic, sleep

import psycopg
import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests.load_steps import KEYS
from pipeline_assets_tests.reliability.jobs import JobSite, ModelSite
from pipeline_assets_tests.reliability.kills import TRANSIENT, ended
from pipeline_assets_tests.reliability.proxy import Fault
from pipeline_assets_tests.reliability.services import JOBS, LOAD, PATIENCE, ServicesSite
from pipeline_assets_tests.reliability.site import Site
from pipeline_assets_tests.reliability.test_faults import (
    PAGE,
    ROLES,
    all_connections,
    behind,
    small_disk,
)
from pipeline_assets_tests.reliability.test_together import JOB, deployed, wrong
from pipeline_assets_tests.waiting import until

pytestmark = pytest.mark.reliability
LIMIT = 90
"""Seconds that a run may take here, in place of the four hours of dagster.yaml."""


@pytest.mark.parametrize("role", ROLES)
def test_a_run_whose_database_falls_mute_is_ended_by_its_limit_and_run_again(
    site: Site,
    role: str,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """TCP acknowledges all that is sent, so neither keepalives nor a timeout can tell that nobody answers."""
    site.spoils = False
    fates: Counter[str] = Counter()
    for number in range(2):
        site.change()
        # After the login, which takes less, and before the most talkative of the first connections ends.
        fault = Fault("mute", site.random.randrange(600, 1_500), mute=True, connections=4)
        with (
            behind(site.settings, role, fault) as settings,
            deployed(site, tmp_path_factory, settings=urls(settings, role)) as place,
        ):
            for key in KEYS:
                place.launch(JOB, key, {"dagster/max_runtime": str(LIMIT)})
            what = f"loaded, {fault}, round {number}"
            until(lambda: place.is_idle() and not wrong(site), what, PATIENCE)
            until(lambda: not place.processes().get("runs"), "free of runs' processes")
            fates += Counter(record.dagster_run.status.value for record in place.runs())
    assert fates.total() > fates["SUCCESS"], f"no run was hit: {fates}"
    tell(f"2 databases that fell mute: {dict(fates)}; all exact")


def urls(settings: Settings, role: str) -> dict[str, str]:
    """The environment variable that leads to a role's database."""
    name = f"{role}_database_url"
    return {name.upper(): getattr(settings, name).get_secret_value()}


@pytest.mark.parametrize("role", ROLES)
def test_a_server_that_falls_mute_during_a_login_is_given_up(site: Site, role: str) -> None:
    for _ in range(3):
        site.change()
        fault = Fault("mute", site.random.randrange(150), mute=True)
        with behind(site.settings, role, fault) as settings:
            assert ended(replace(site, settings=settings).begin()) == TRANSIENT, fault
        site.recover(f"{fault}")


@pytest.mark.parametrize("role", ["dagster", "mlflow"])
def test_a_training_over_a_bad_network_loses_and_doubles_nothing(
    model_site: ModelSite, role: str, tell: Callable[[str], None]
) -> None:
    site = model_site
    site.change()
    assert ended(site.begin()) == 0  # makes MLflow's tables, which the oracle looks into
    codes: Counter[int] = Counter()
    for number in range(3):
        for fault in (
            Fault("reset", resets_after=site.random.randrange(50_000)),
            Fault("latency", delays=0.002),
            Fault("partial reads", piece=site.random.randrange(7, 99)),
        ):
            site.change()
            with behind(site.settings, role, fault) as settings:
                code = ended(replace(site, settings=settings).begin())
            what = f"{fault} before {role}, round {number}"
            assert code == 0 or (code == TRANSIENT and fault.resets_after is not None), what
            codes[code] += 1
            site.recover(what)
    assert codes[TRANSIENT], "no connection was ever reset under a training"
    tell(f"{codes.total()} trainings over a bad network to {role}: {codes[TRANSIENT]} failed")


def test_runs_without_a_free_connection_come_to_their_end(
    job_settings: Settings,
    server: embedded_postgres.Server,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """Neither the run nor Dagster's storage gets a new connection for a while."""
    site = ServicesSite(job_settings, server, Random(seed))
    with site.deployed(tmp_path_factory.mktemp("h")):
        for number in range(5):
            site.change()
            runs = site.launch(site.out_of_step())
            stage = site.random.choice(JOBS[LOAD])
            until(partial(site.has_reached, stage, runs), stage)
            taken: list[psycopg.Connection] = []
            until_then = monotonic() + site.random.randrange(1, 15)
            while monotonic() < until_then:
                taken += all_connections(site)  # and those that the others give back
                sleep(0.1)
            for connection in taken:
                connection.close()
            site.finish(runs, f"out of connections when {stage}, round {number}")
        fates = Counter(run.status.value for run in site.instance.get_runs())
        assert site.executed_twice() == []
    assert site.left_behind() == []
    tell(f"5 times without connections, runs: {dict(fates)}; all days agree")


@pytest.mark.parametrize(("kind", "rounds"), [("digest", 4), ("model", 2)])
def test_a_full_disk_under_a_digest_or_a_training_leaves_nothing_half_written(
    request: pytest.FixtureRequest, kind: str, rounds: int, tell: Callable[[str], None]
) -> None:
    codes: Counter[int] = Counter()
    site: JobSite = request.getfixturevalue(f"{kind}_site")
    with small_disk(site.settings.pipeline_data_dir) as fill:
        for _ in range(rounds):  # a minute each, until all retries have failed
            site.change()
            room = PAGE * 2 ** site.random.randrange(8)
            with fill(room):
                code = ended(site.begin())
            assert code in (0, TRANSIENT), room
            codes[code] += 1
            site.recover(f"there is space again, after {room} bytes")
    assert codes[TRANSIENT], "the disk was never full"
    tell(f"{codes[TRANSIENT]} of {rounds} runs found the disk full; nothing is left of them")
