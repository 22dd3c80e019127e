"""A failover to a replica that lacks the last transactions: what was lost is found and loaded again.

The settings stay as they are: their URL names both servers, and libpq finds the one that takes writes.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import cycle

import dagster as dg
import psycopg
import pytest

from pipeline_assets.definitions import build_definitions
from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import FIRST_DAY, SOURCE_SCHEMA
from pipeline_assets_tests.integration.operations.test_catch_up import JOB, SENSOR, Daemon
from pipeline_assets_tests.integration.operations.watch import QUIET
from pipeline_assets_tests.load_steps import DAYS
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.kills import TRANSIENT, ended, start
from pipeline_assets_tests.reliability.replication import Replicated, replicated
from pipeline_assets_tests.reliability.site import Site, load_all
from pipeline_assets_tests.reliability.test_faults import ROLES
from pipeline_assets_tests.reliability.test_together import wrong
from pipeline_assets_tests.waiting import until

ROUNDS = 5


def moved(site: Site, role: str, servers: Replicated) -> Site:
    """The site with one of its databases, empty, on the pair of servers."""
    with servers.connect(0) as primary:
        primary.execute(f"CREATE DATABASE {role}")
    if role == "source":
        with psycopg.connect(servers.url(role), autocommit=True) as source:
            source.execute(SOURCE_SCHEMA)
    url = {f"{role}_database_url": servers.url(role)}
    return replace(site, settings=Settings.model_validate({**dict(site.settings), **url}))


@pytest.mark.reliability
@pytest.mark.parametrize("role", ROLES)
def test_what_a_replica_lacks_is_loaded_again(
    site: Site,
    role: str,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """Successful loads are lost with their ledger, while Dagster and the days' files have them as done."""
    site.spoils = False
    runs = 0
    with (
        replicated(tmp_path_factory.mktemp("replicated")) as servers,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        site = moved(site, role, servers)
        # Only the daily reconciliation compares days before the newest.
        settings = site.settings.model_copy(update={"warehouse_lateness_days": 1})
        daemon = Daemon(settings, instance, SENSOR, JOB)
        reconcile = build_definitions(settings).resolve_job_def("reconcile_transactions")
        hours = cycle(range(1, 23))

        def catch_up() -> None:
            for _ in range(4):
                daemon.tick(FIRST_DAY + timedelta(days=DAYS, hours=next(hours)))
                if not wrong(site):
                    return
                reconcile.execute_in_process(instance=instance, run_config=QUIET)

        for number in range(ROUNDS):
            site.change()
            catch_up()
            assert wrong(site) == [], f"{role}, round {number}, before"
            servers.wait_for_replica()
            servers.cut_off()
            site.change()
            catch_up()
            assert wrong(site) == [], f"{role}, round {number}, to be lost"

            servers.kill_primary()
            away = ended(start(load_all, (site.settings,)))
            assert away == TRANSIENT, "a replica that isn't promoted yet takes no writes"
            servers.promote()
            assert wrong(site) != [], "the replica has everything"
            with site.connect("warehouse") as warehouse:
                assert oracle.torn(warehouse, site.root) == []
            before = len(daemon.loaded)
            catch_up()
            runs += len(daemon.loaded) - before
            assert wrong(site) == [], f"{role}, round {number}, after"
            servers.rebuild()
        with servers.connect(0) as primary:
            until(lambda: oracle.left_behind(primary, [role]) == [])
    tell(
        f"{ROUNDS} failovers of the {role} to a replica without its last transactions: {runs} days loaded "
        "again; all exact"
    )
