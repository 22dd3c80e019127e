"""The smoke test on a real `dagster dev`: what it runs, and that it fails when the deployment does."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline_assets.ci.smoke import SmokeTestError, pipelines, smoke_test
from pipeline_assets_tests.integration.test_command import (
    ROOT,
    command,
    dagster_dev,
    environment,
    graphql,
)

__all__ = ["environment"]  # a fixture

RUNS = """{ runsOrError(filter: {tags: [{key: "smoke_test", value: "true"}]}) {
  ... on Runs { results { jobName status } } } }"""


LOAD = """
import sys, dagster as dg
from pipeline_assets.definitions import defs
tags = {f"dagster/asset_partition_range_{end}": day for end, day in zip(("start", "end"), sys.argv[1:])}
defs.resolve_job_def("load_transactions").execute_in_process(instance=dg.DagsterInstance.get(), tags=tags)
"""


@pytest.mark.slow
def test_it_materializes_a_partition_of_each_pipeline_through_the_api(
    environment: dict[str, str], tmp_path: Path
) -> None:
    today = datetime.now(UTC).date()
    first, last = today - timedelta(days=60), today - timedelta(days=50)
    # The model's snapshot is built from the days that are loaded below, and no others.
    environment |= {"MODELS_MISSING_DAYS": "1", "WAREHOUSE_START_DATE": str(first)}
    with dagster_dev(environment, tmp_path / "dev.log") as address:
        with pytest.raises(SmokeTestError, match=rf"_snapshots \S+: FAILURE; see {address}/runs/"):
            list(smoke_test(address, 300, ("build_snapshots",)))
        with pytest.raises(SmokeTestError, match=r"load_transactions \S+: still \w+ after 0 s"):
            list(smoke_test(address, 0, ("load_transactions",)))
        with pytest.raises(SmokeTestError, match="has no job nonsense: did its code load"):
            list(smoke_test(address, 0, ("nonsense",)))

        subprocess.run(
            [sys.executable, "-c", LOAD, str(first), str(last)],
            env=environment | {"DAGSTER_HOME": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        ran = command(environment | {"COLUMNS": "300"}, "ci", "smoke", "--url", f"{address}/")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        loaded, published, built = ran.stdout.splitlines()
        yesterday = today - timedelta(days=1)
        assert re.match(rf"load_transactions {yesterday}: raw_transactions, .*fct_tr", loaded)
        assert re.match(r"publish_digest \S+: news_articles, news_digest", published)
        assert re.match(r"build_snapshots \S+: training_snapshots", built)
        found = graphql(address, RUNS)["runsOrError"]
        assert isinstance(found, dict)
        newest = [(run["jobName"], run["status"]) for run in found["results"]][:3]
        assert newest == [(job, "SUCCESS") for job in reversed(pipelines())]


def test_a_deployment_that_is_not_there_fails_it(environment: dict[str, str]) -> None:
    failed = command(environment, "ci", "smoke", "--url", "http://127.0.0.1:1")
    assert failed.returncode == 2
    assert "http://127.0.0.1:1 doesn't answer as Dagster does" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
