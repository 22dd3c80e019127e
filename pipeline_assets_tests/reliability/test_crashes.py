"""`kill -9` at every stage of a load, and at random: the rerun of what isn't done leaves nothing wrong.

The process, its PostgreSQL backend (which restarts the server: each other session is lost too) and the
postmaster are hit. The source changes before each kill, so no load is a replay of the one before.
"""

from collections.abc import Callable, Sequence
from random import Random
from time import monotonic
from typing import get_args

import pytest

from pipeline_assets_tests.reliability.kills import Moment, Victim, ended, start
from pipeline_assets_tests.reliability.site import Site, load_all

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


def duration(site: Site) -> float:
    """Seconds that an undisturbed run takes, after one that starts what runs are forked from."""
    for _ in range(2):
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
