"""`kill -9` at every stage of a load, a digest, a training and a deployment, and at random moments.

The victims are the process, its PostgreSQL backend (the server then restarts, so every other session is
lost too) and the postmaster. There is new work before each kill, so no run is a mere replay. After the
rerun of what isn't done nothing is wrong.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from time import monotonic
from typing import Any, get_args
from uuid import uuid4

import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests.load_steps import DAYS
from pipeline_assets_tests.reliability.jobs import DigestSite, ModelSite, contents, with_changes
from pipeline_assets_tests.reliability.kills import Moment, Victim, ended
from pipeline_assets_tests.reliability.numbered import NumberedSite
from pipeline_assets_tests.reliability.site import Site

VICTIMS: tuple[Victim, ...] = get_args(Victim)
SWAP = "pathlib:Path.replace"
LOAD = "pipeline_assets.warehouse.load"
each_day = partial(Moment, often=DAYS)
MOMENTS = [
    each_day("extract", "after", "pipeline_assets.warehouse.extract:_plain"),
    each_day("extract", "before", "pipeline_assets.resources.files:PartitionFiles.write"),
    each_day("file swap", "before", SWAP),
    each_day("file swap", "after", SWAP),
    each_day("validate", "before", "pipeline_assets.quality.validation:validate"),
    each_day("validate", "after", "pipeline_assets.quality.validation:validate"),
    each_day("quarantine", "before", 'DELETE FROM "quarantine"'),
    each_day("quarantine", "after", 'DELETE FROM "quarantine"'),
    each_day("quarantine", "before", 'COPY "quarantine"'),
    each_day("quarantine", "after", "pipeline_assets.warehouse.ledger:QuarantineWriter.write"),
    each_day("verdict", "before", "INSERT INTO pipeline.batches"),
    each_day("verdict", "after", "INSERT INTO pipeline.batches"),
    each_day("verdict", "after", "pipeline_assets.warehouse.gate:judge"),
    each_day("load", "before", "CREATE TEMP TABLE staged"),
    each_day("load", "before", 'COPY "staged"'),
    each_day("load", "after", f"{LOAD}:_append_or_stage"),
    each_day("load", "after", f"{LOAD}:_delete_gone"),
    each_day("load", "after", f"{LOAD}:_upsert"),
    each_day("mart", "before", "pipeline_assets.warehouse.marts:refresh"),
    each_day("mart", "before", 'INSERT INTO "analytics"."dim_customers"'),
    each_day("mart", "after", "pipeline_assets.warehouse.marts:refresh"),
    each_day("ledger", "before", "UPDATE pipeline.batches"),
    each_day("ledger", "after", "UPDATE pipeline.batches"),
    each_day("ledger", "after", f"{LOAD}:load"),
]
APPEND_MOMENTS = [
    each_day("append", "before", 'COPY "analytics"."fct_transactions"'),
    each_day("append", "after", f"{LOAD}:_append_or_stage"),
]

DIGEST = "pipeline_assets.news.digest"
DIGEST_MOMENTS = [
    Moment("archive", "before", "pipeline_assets.news.feeds:_write_day"),
    Moment("archive", "after", "pipeline_assets.news.feeds:_write_day"),
    Moment("articles", "before", "INSERT INTO pipeline.batches"),
    Moment("articles", "after", f"{LOAD}:load"),
    Moment("digest write", "before", f"{DIGEST}:publish"),
    Moment("digest write", "before", f"{DIGEST}:to_csv"),
    Moment("digest write", "before", f"{DIGEST}:to_text"),
    Moment("digest write", "before", f"{DIGEST}:to_page"),
    Moment("digest write", "before", f"{DIGEST}:to_index"),
    Moment("digest write", "before", f"{DIGEST}:to_feed"),
    Moment("digest write", "after", f"{DIGEST}:publish"),
    # Twenty-odd files of the archive, three between assets, seven to nine of the digest.
    Moment("digest swap", "before", SWAP, often=32),
    Moment("digest swap", "after", SWAP, often=32),
]
CLIENT = "mlflow.tracking.client:MlflowClient"
MODELS = "pipeline_assets.models"
MODEL_MOMENTS = [
    Moment("training", "after", f"{CLIENT}.create_run"),
    Moment("training", "before", f"{MODELS}.training:train"),
    Moment("training", "after", f"{MODELS}.training:train"),
    Moment("registration", "after", f"{MODELS}.registry:log_model"),
    Moment("registration", "before", f"{MODELS}.registry:hash_files"),
    Moment("registration", "before", f"{CLIENT}.create_model_version"),
    Moment("registration", "after", f"{CLIENT}.create_model_version"),
    Moment("registration", "after", f"{MODELS}.registry:register"),
    Moment("evaluation", "before", "INSERT INTO pipeline.gate_verdicts"),
    Moment("evaluation", "after", "INSERT INTO pipeline.gate_verdicts"),
    Moment("evaluation", "before", f"{MODELS}.judgement:log"),
    Moment("deployment", "before", "INSERT INTO pipeline.champion_deployments"),
    Moment("deployment", "after", "INSERT INTO pipeline.champion_deployments"),
    # The aliases of the challenger, the previous champion and the champion.
    Moment("alias move", "before", f"{CLIENT}.set_registered_model_alias", often=3),
    Moment("alias move", "after", f"{CLIENT}.set_registered_model_alias", often=3),
    Moment("deployment", "before", "UPDATE pipeline.champion_deployments"),
    Moment("deployment", "after", "UPDATE pipeline.champion_deployments"),
]


def duration(site: Site) -> float:
    """Seconds that an undisturbed run takes, after a first one that starts the fork server."""
    for _ in range(2):
        site.change()
        begun = monotonic()
        assert ended(site.begin()) == 0
        taken = monotonic() - begun
        site.recover("nothing was killed")
    return taken


@pytest.fixture
def numbered_site(settings: Settings, server: embedded_postgres.Server, seed: int) -> NumberedSite:
    """A site with empty databases and integer keys."""
    return NumberedSite(settings, server, Random(seed))


SHORT = pytest.param(VICTIMS, 0, 0, id="short", marks=pytest.mark.slow)


def each_victim(rounds: int, random_kills: int, *short: Any) -> pytest.MarkDecorator:
    """A case for each victim in `make test-reliability`, and perhaps a short one for `make test`."""
    return pytest.mark.parametrize(
        ("victims", "rounds", "random_kills"),
        [
            *short,
            *(
                pytest.param(
                    [victim], rounds, random_kills, id=victim, marks=pytest.mark.reliability
                )
                for victim in VICTIMS
            ),
        ],
    )


def attack(
    site: Site,
    moments: Sequence[Moment],
    victims: Sequence[Victim],
    rounds: int,
    random_kills: int,
) -> str:
    """Kill each victim at each moment, `rounds` times, then at random moments; returns a summary.

    Without rounds there is one kill per stage, with the victims in turn.
    """
    cases = [(moment, victim) for moment in moments for victim in victims] * rounds
    for moment, victim in cases or _one_a_stage(moments, site.random):
        site.kill_at(moment, victim)
    named = site.kills
    if random_kills:
        longest = duration(site)
        while site.kills < named + random_kills:
            site.kill_at_random(victims[site.kills % len(victims)], longest)
    assert site.left_behind() == []
    return f"{named} kills at named moments, {site.kills - named} at random ones"


def _one_a_stage(moments: Sequence[Moment], random: Random) -> list[tuple[Moment, Victim]]:
    shuffled = random.sample(moments, len(moments))
    stages = {moment.stage: moment for moment in shuffled}
    return [(moment, VICTIMS[number % 3]) for number, moment in enumerate(stages.values())]


@each_victim(2, 22, SHORT)
def test_a_load_killed_at_any_moment_loses_and_doubles_nothing(
    site: Site,
    victims: Sequence[Victim],
    rounds: int,
    random_kills: int,
    tell: Callable[[str], None],
) -> None:
    tell(attack(site, MOMENTS, victims, rounds, random_kills) + "; all days agree")


@each_victim(4, 0, SHORT)
def test_a_load_killed_while_it_appends_loses_and_doubles_nothing(
    numbered_site: NumberedSite,
    victims: Sequence[Victim],
    rounds: int,
    random_kills: int,
    tell: Callable[[str], None],
) -> None:
    told = attack(numbered_site, APPEND_MOMENTS, victims, rounds, random_kills)
    tell(f"{told}; all days agree")


@each_victim(1, 5)
def test_a_digest_killed_at_any_moment_is_whole_and_ends_as_if_nothing_was(
    digest_site: DigestSite,
    server: embedded_postgres.Server,
    victims: Sequence[Victim],
    rounds: int,
    random_kills: int,
    tell: Callable[[str], None],
) -> None:
    told = attack(digest_site, DIGEST_MOMENTS, victims, rounds, random_kills)
    database = f"undisturbed_{uuid4().hex}"
    undisturbed = with_changes(
        digest_site.settings,
        pipeline_data_dir=digest_site.settings.pipeline_data_dir / "undisturbed",
        warehouse_database_url=embedded_postgres.ensure_database(server, database),
    )
    assert contents(digest_site.folder) == digest_site.undisturbed(undisturbed)
    tell(f"{told}; {len(digest_site.mornings)} editions have the bytes of undisturbed ones")


@each_victim(1, 4)
def test_a_model_killed_at_any_moment_leaves_the_registry_consistent(
    model_site: ModelSite,
    victims: Sequence[Victim],
    rounds: int,
    random_kills: int,
    tell: Callable[[str], None],
) -> None:
    told = attack(model_site, MODEL_MOMENTS, victims, rounds, random_kills)
    model_site.refused = 1.0
    model_site.change()
    model_site.recover("the gate refuses it")
    tell(f"{told}; {model_site.trained} versions, each judged, the last refused")
