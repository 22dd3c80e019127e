"""A PostgreSQL server of the suite's own, which its tests kill, and printed seeds."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from uuid import uuid4
from zlib import crc32

import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests import databases
from pipeline_assets_tests.reliability.jobs import FIRST_MORNING, DigestSite, ModelSite
from pipeline_assets_tests.reliability.site import Site


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded_postgres.Server]:
    """In place of the session's server: other tests' connections must outlive this one's death."""
    folder = tmp_path_factory.mktemp("killed")
    found = embedded_postgres.connect_or_start(folder)
    # A killed server also restarts in a fifth of the time if it needn't sync each of its files first.
    databases.without_sync(found)
    yield found
    embedded_postgres.release(folder)
    embedded_postgres.stop(folder)


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> int:
    """The test's random seed, printed; RELIABILITY_SEED repeats a run.

    The short forms in `make test` have the same seed each time: no merge depends on luck.
    """
    is_long = request.node.get_closest_marker("reliability")
    own = random.SystemRandom().randrange(2**31) if is_long else crc32(request.node.name.encode())
    found = int(os.environ.get("RELIABILITY_SEED") or own)
    with capsys.disabled():
        sys.stdout.write(f"\n{request.node.name}: RELIABILITY_SEED={found}\n")
    return found


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line of what the suite did, whatever pytest captures."""

    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"  {line}\n")

    return tell


@pytest.fixture
def site(settings: Settings, server: embedded_postgres.Server, seed: int) -> Iterator[Site]:
    """A site with empty databases, and with the seed's changes to come; after the test nothing is left."""
    found = Site(settings, server, random.Random(seed))
    yield found
    assert found.left_behind() == []


@pytest.fixture
def job_settings(settings: Settings, server: embedded_postgres.Server) -> Iterator[Settings]:
    """Settings with Dagster's and MLflow's databases too; no comparison with baseline or champion refuses."""
    names = {role: f"{role}_{uuid4().hex}" for role in ("dagster", "mlflow")}
    urls = {role: embedded_postgres.ensure_database(server, name) for role, name in names.items()}
    yield Settings.model_validate(
        {
            **dict(settings),
            "dagster_database_url": urls["dagster"],
            "mlflow_tracking_uri": urls["mlflow"],
            "news_start_date": FIRST_MORNING,
            "models_training_snapshots": 2,
            "models_min_auc": 0.6,
            "models_min_precision_over_base_rate": 1,
            "models_min_precision_over_baseline": -1,
            "models_champion_precision_margin": 1,
            "models_champion_log_loss_margin": 9,
            "models_calibration_fail": (0.01, 100),
        }
    )
    databases.drop(server, *names.values())


@pytest.fixture
def model_site(job_settings: Settings, server: embedded_postgres.Server, seed: int) -> ModelSite:
    """A site with an empty registry."""
    return ModelSite(job_settings, server, random.Random(seed))


@pytest.fixture
def digest_site(job_settings: Settings, server: embedded_postgres.Server, seed: int) -> DigestSite:
    """A site without editions."""
    return DigestSite(job_settings, server, random.Random(seed))
