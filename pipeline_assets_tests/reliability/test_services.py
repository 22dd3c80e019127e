"""`kill -9` of the daemon, the code server, the warm process and the database while runs are under way.

Their supervisors restart them, nothing else intervenes, and each run comes to its end once.
"""

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import get_args

import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests.reliability.services import JOBS, LOAD, STEPS, Service, ServicesSite

SERVICES: tuple[Service, ...] = get_args(Service)


@pytest.fixture
def services_site(
    job_settings: Settings, server: embedded_postgres.Server, seed: int
) -> ServicesSite:
    """A deployment that isn't started yet."""
    return ServicesSite(job_settings, server, Random(seed))


@pytest.mark.parametrize(
    ("services", "job"),
    [
        pytest.param(("daemon", "code server"), LOAD, id="short", marks=pytest.mark.slow),
        *(
            pytest.param((service,), job, id=f"{service} in {job}", marks=pytest.mark.reliability)
            for service in SERVICES
            for job in JOBS
        ),
    ],
)
def test_whatever_dies_under_a_run_it_comes_to_its_end_once(
    services_site: ServicesSite,
    services: Sequence[Service],
    job: str,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    """The long form kills each service at each stage, the short form two services at a step each.

    A daemon that dies earlier may have dequeued a run without starting it: that is found after five minutes.
    """
    site = services_site
    cases = [
        (service, stage)
        for service in services
        for stage in JOBS[job]
        if (service, stage) != ("run", "queued")  # it has no process then
    ]
    if len(services) > 1:
        cases = [(service, site.random.choice(STEPS)) for service in services]
    with site.deployed(tmp_path_factory.mktemp("h")):
        for service, stage in cases:
            site.kill(service, job, stage)
        assert site.executed_twice() == []
    assert site.left_behind() == []
    tell(
        f"{site.kills} kills of {', '.join(services)} in {job}; all agrees, each was executed once"
    )


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
