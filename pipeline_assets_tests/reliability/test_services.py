"""`kill -9` of the daemon, the code server, the warm process and the database while runs are under way.

Their supervisors restart them, nothing else intervenes, and each run comes to its end once.
"""

import time
from collections.abc import Callable
from random import Random
from typing import get_args

import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests.reliability.services import JOBS, Service, ServicesSite

SERVICES: tuple[Service, ...] = get_args(Service)


@pytest.fixture
def services_site(
    job_settings: Settings, server: embedded_postgres.Server, seed: int
) -> ServicesSite:
    """A deployment that isn't started yet."""
    return ServicesSite(job_settings, server, Random(seed))


@pytest.mark.reliability
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("service", SERVICES)
def test_whatever_dies_under_a_run_it_comes_to_its_end_once(
    services_site: ServicesSite,
    service: Service,
    job: str,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """A daemon that dies early may have dequeued a run without starting it: found after five minutes."""
    site = services_site
    with site.deployed(tmp_path_factory.mktemp("h")):
        for stage in JOBS[job]:
            if (service, stage) != ("run", "queued"):  # it has no process then
                site.kill(service, job, stage)
        assert site.executed_twice() == []
    assert site.left_behind() == []
    tell(f"{site.kills} kills of the {service} in {job}; all agrees, each was executed once")


@pytest.mark.reliability
def test_a_daemon_that_dies_before_it_starts_the_run_it_took_has_it_run_again(
    services_site: ServicesSite,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    site = services_site
    with site.deployed(tmp_path_factory.mktemp("h")):
        begun = time.monotonic()
        assert site.abandon() == ["FAILURE", "SUCCESS"]
        took = time.monotonic() - begun
    assert site.left_behind() == []
    tell(f"found, failed and run again by run monitoring, after {took:.0f} s")
