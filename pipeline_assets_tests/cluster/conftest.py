"""A cluster for each test, and lines for the report."""

import sys
from collections.abc import Callable, Iterator

import pytest

from pipeline_assets_tests.cluster import services
from pipeline_assets_tests.cluster.services import Cluster


@pytest.fixture
def empty_cluster(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """Services and two worker hosts on which nothing runs yet; settings by indirect parametrization."""
    if reason := services.missing():
        pytest.skip(reason)
    settings = getattr(request, "param", {})
    with services.cluster(tmp_path_factory.mktemp("cluster") / "c", settings) as found:
        yield found


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure, whatever pytest captures."""

    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n  {line}")

    return tell
