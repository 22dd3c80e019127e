"""The documented command serves the champion over HTTP with the batch scores; MLflow's own UI opens."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from pipeline_assets.models import promotion
from pipeline_assets.models.snapshots import feature_frame
from pipeline_assets_tests.integration.models.test_gate_refuses import damaged
from pipeline_assets_tests.model_world import NEXT, World, failures

pytestmark = pytest.mark.slow
COMMAND = [str(Path(sys.executable).parent / "pipeline-assets"), "mlflow"]


def environment(world: World) -> dict[str, str]:
    """The variables by which a command finds the world's databases and files."""
    settings = world.settings
    assert settings.warehouse_database_url
    assert settings.mlflow_tracking_uri
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "PIPELINE_DATA_DIR": str(settings.pipeline_data_dir),
        "WAREHOUSE_DATABASE_URL": settings.warehouse_database_url.get_secret_value(),
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri.get_secret_value(),
    }


@contextmanager
def mlflow_command(world: World, log: Path, *arguments: str, health: str) -> Iterator[str]:
    """Run `pipeline-assets mlflow ...` on a free port until the block ends; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*COMMAND, *arguments, "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            env=environment(world),
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    requests.get(f"{address}{health}", timeout=2).raise_for_status()
                    break
                except requests.RequestException:
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(60)
            with pytest.raises(requests.ConnectionError):  # its server has ended too
                requests.get(f"{address}{health}", timeout=2)


def test_the_served_champion_answers_as_the_batch_scores_do(
    trained_world: World, tmp_path: Path
) -> None:
    scored = trained_world.run("score_customers", NEXT)
    assert scored.success, failures(scored)
    batch = dict(
        trained_world.rows("SELECT customer_id, probability FROM analytics.purchase_predictions")
    )
    assert trained_world.settings.warehouse_database_url
    from datetime import date

    from pipeline_assets.models.snapshots import read

    cutoff = date(2026, 11, 16)
    url = trained_world.settings.warehouse_database_url.get_secret_value()
    customers = read(url, cutoff, as_of=cutoff, timezone="UTC").slice(0, 500)
    # A model on the command line isn't served in the champion's place.
    serve = ("serve", "-m", "models:/unverified/1")
    with mlflow_command(trained_world, tmp_path / "log", *serve, health="/health") as address:
        body = feature_frame(customers).to_json(orient="split", double_precision=15)
        answer = requests.post(
            f"{address}/invocations",
            data=f'{{"dataframe_split": {body}}}',
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
    answer.raise_for_status()
    served = [row[1] for row in answer.json()["predictions"]]
    expected = [batch[key] for key in customers["customer_id"].to_pylist()]
    assert served == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("how", ["its files", "its verdict"])
def test_a_champion_that_isnt_what_was_deployed_is_not_served(
    trained_world: World, how: str
) -> None:
    with trained_world.warehouse() as connection, ExitStack() as changed:
        champion = promotion.champion(trained_world.client(), connection, trained_world.name)
        if how == "its files":
            changed.enter_context(damaged(trained_world, champion))
        else:
            connection.execute("UPDATE pipeline.gate_verdicts SET artifact_hash = 'another'")
            changed.callback(
                lambda: trained_world.rows(
                    "UPDATE pipeline.gate_verdicts SET artifact_hash ="
                    f" '{champion.artifact_hash}' RETURNING 1"
                )
            )
        ended = subprocess.run(
            [*COMMAND, "serve", "--port", "0"],
            env=environment(trained_world),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert ended.returncode == 2
    said = " ".join((ended.stdout + ended.stderr).split())
    assert ("changed or damaged" if how == "its files" else "was judged, but") in said
    assert "Serving" not in said


def test_mlflows_ui_opens_on_the_projects_runs(trained_world: World, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with mlflow_command(trained_world, log, "ui", health="/health") as address:
        assert "MLflow" in requests.get(address, timeout=30).text
        found = requests.get(
            f"{address}/api/2.0/mlflow/registered-models/get",
            params={"name": trained_world.name},
            timeout=30,
        ).json()
        (alias,) = (
            alias for alias in found["registered_model"]["aliases"] if alias["alias"] == "champion"
        )
        run_id = (
            trained_world.client().get_model_version(trained_world.name, alias["version"]).run_id
        )
        plot = requests.get(
            f"{address}/get-artifact",
            params={"run_uuid": run_id, "path": "evaluation/roc.png"},
            timeout=30,
        )
        assert plot.content.startswith(b"\x89PNG")
    assert trained_world.settings.mlflow_tracking_uri
    password = (
        trained_world.settings.mlflow_tracking_uri.get_secret_value().split(":")[2].split("@")[0]
    )
    assert password not in log.read_text()
