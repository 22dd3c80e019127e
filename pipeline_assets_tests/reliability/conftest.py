"""A PostgreSQL server of the suite's own, which its tests kill; seeds, printed."""

import os
import random
import sys
from collections.abc import Callable, Iterator

import pytest

from pipeline_assets.resources import embedded_postgres


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded_postgres.Server]:
    """In place of the session's server: other tests' connections must outlive this one's death."""
    folder = tmp_path_factory.mktemp("killed")
    yield embedded_postgres.connect_or_start(folder)
    embedded_postgres.release(folder)
    embedded_postgres.stop(folder)


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> int:
    """What the test's randomness begins with, printed; RELIABILITY_SEED repeats a run."""
    found = int(os.environ.get("RELIABILITY_SEED") or random.SystemRandom().randrange(2**31))
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
