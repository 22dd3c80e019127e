"""A week's model on two worker hosts: a training is one MLflow run, even if its host is lost meanwhile."""

from collections import Counter
from collections.abc import Callable

import pytest

from pipeline_assets_tests import model_world
from pipeline_assets_tests.cluster.hosts import Host, until
from pipeline_assets_tests.cluster.services import POOL_LIMIT, Cluster
from pipeline_assets_tests.conftest import SOURCE_SCHEMA

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
WEEK = model_world.WEEK
SNAPSHOTS = ("2026-08-10", "2026-09-07", "2026-10-05")
SETTINGS = {
    "MODELS_TRAINING_SNAPSHOTS": str(len(SNAPSHOTS)),
    # Models of so few snapshots don't reach BG/NBD on this week.
    "MODELS_MIN_PRECISION_OVER_BASELINE": "-0.03",
}


@pytest.mark.parametrize("empty_cluster", [SETTINGS], indirect=True, ids=[""])
@pytest.mark.parametrize("cut", [False, True], ids=["killed", "cut off"])
def test_a_training_is_one_mlflow_run_whoever_ends_it(
    empty_cluster: Cluster, tell: Callable[[str], None], *, cut: bool
) -> None:
    cluster = empty_cluster
    cluster.prepare()
    model_world.fill(cluster.address("warehouse"))
    with cluster.connect("source") as source:
        source.execute(SOURCE_SCHEMA)
    cluster.start_mlflow()
    for host in cluster.workers:
        cluster.start_worker(host, concurrency=2)
    cluster.start_daemon()
    cluster.launch("build_snapshots", SNAPSHOTS)
    until(lambda: cluster.runs() == {"SUCCESS": len(SNAPSHOTS)}, "the snapshots")

    cluster.launch("train_model", [WEEK])
    until(lambda: mlflow_runs(cluster) == [("RUNNING",)], "the training")
    trained = training_hosts(cluster)[-1]
    (trained.cut if cut else trained.kill)()
    until(lambda: cluster.runs() == {"SUCCESS": len(SNAPSHOTS) + 1}, "the model")

    assert mlflow_runs(cluster) == [("FINISHED",)]
    began = training_hosts(cluster)
    assert len(began) == 2
    assert began[0] is not began[1]
    with cluster.connect("mlflow") as mlflow:
        query = "SELECT name, version FROM model_versions"
        assert mlflow.execute(query).fetchall() == [("dev.purchase_propensity", 1)]
        query = "SELECT alias, version FROM registered_model_aliases ORDER BY alias"
        assert mlflow.execute(query).fetchall() == [("challenger", 1), ("champion", 1)]
    assert cluster.most_at_once() <= POOL_LIMIT
    tell(f"steps: {dict(Counter((host, step) for host, step, _ in cluster.executions()))}")


def mlflow_runs(cluster: Cluster) -> list[tuple[str]]:
    """The states of all runs that MLflow has."""
    with cluster.connect("mlflow") as mlflow:
        return mlflow.execute("SELECT status FROM runs").fetchall()


def training_hosts(cluster: Cluster) -> list[Host]:
    """The hosts that began the training, in that order."""
    by_name = {host.name: host for host in cluster.workers}
    return [by_name[name] for name, step, _ in cluster.executions() if step == "trained_model"]
