"""The model's assets, materialized by Dagster on a real warehouse and a real MLflow registry."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.failures import PERMANENT
from pipeline_assets.models.assets import weeks
from pipeline_assets.models.automation import stored_weeks
from pipeline_assets_tests.model_world import (
    NEXT,
    WEEK,
    World,
    checks,
    failures,
    metadata,
    tick,
    with_settings,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Specifying a partitions_def on an AssetCheckSpec"),
]
GATE = ["training_snapshots", "trained_model", "deployed_model"]


def mlflow_run(world: World, run_id: Any) -> Any:
    return world.client().get_run(run_id)


def evaluated(world: World) -> dict[str, Any]:
    """The newest evaluation, as the graph shows it."""
    event = world.instance.get_latest_materialization_event(dg.AssetKey("model_evaluation"))
    assert event
    assert event.asset_materialization
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def test_a_week_is_trained_judged_and_deployed_once(trained_world: World) -> None:
    """The module's fixture has done it once; doing it again changes nothing."""
    world = trained_world
    before = world.production()
    result = world.run("train_model", WEEK)
    assert result.success, failures(result)
    about = metadata(result, "trained_model")
    assert about["replayed"] is True
    assert world.production() == before == (1, None, 1)
    assert len(world.client().search_model_versions(f"name = '{world.name}'")) == 1

    found = checks(result)
    gate = {name for name, check in found.items() if check.asset_key.to_user_string() == GATE[1]}
    assert gate == {
        "loads_and_scores",
        "auc_sufficient",
        "precision_over_base_rate",
        "precision_over_baseline",
        "not_worse_than_champion",
        "calibrated",
        "no_leakage",
    }
    assert all(found[name].blocking and found[name].passed for name in gate)
    assert found["auc_sufficient"].metadata["auc"].value > 0.75
    # The champion is compared with itself: no difference, to the last digit.
    assert found["not_worse_than_champion"].metadata["log_loss_difference"].value == 0
    assert found["champion_answers"].passed
    assert evaluated(world)["verdict"] == "passed"

    deployed = metadata(result, "deployed_model")
    assert deployed["model_version"] == 1
    assert deployed["holdout_auc"] == found["auc_sufficient"].metadata["auc"].value
    snapshot = metadata(result, "training_snapshots")
    assert snapshot["dagster/partition_row_count"] == len(world.snapshot(WEEK))
    assert len(snapshot["content_hash"]) == 64


def test_the_mlflow_run_has_all_that_a_reader_asks_for(trained_world: World) -> None:
    import mlflow

    client, name = trained_world.client(), trained_world.name
    (version,) = client.search_model_versions(f"name = '{name}'")
    run = mlflow_run(trained_world, version.run_id)
    assert run.info.status == "FINISHED"
    assert {"candidate", "training_hash", "training_cutoffs", "holdout_cutoff"} <= set(
        run.data.params
    )
    for metric in ("auc", "average_precision", "log_loss", "calibration"):
        value, lower, upper = (
            run.data.metrics[f"model_{metric}{bound}"] for bound in ("", "_lower", "_upper")
        )
        assert lower <= value <= upper
        assert f"baseline_{metric}" in run.data.metrics
    tags = run.data.tags
    assert tags["verdict"] == "passed"
    assert tags["week"] == WEEK
    assert tags["git_commit"]
    assert trained_world.instance.get_run_by_id(tags["dagster_run_id"])
    artifacts = {item.path for item in client.list_artifacts(str(version.run_id), "evaluation")}
    plots = ("precision_recall", "roc", "reliability", "lift", "history")
    assert artifacts >= {f"evaluation/{plot}.png" for plot in plots}
    card = mlflow.artifacts.load_text(f"runs:/{version.run_id}/evaluation/model_card.md")
    assert run.data.params["training_hash"] in card
    model = mlflow.models.get_model_info(f"models:/{name}/1")
    assert model.signature.inputs.input_names()[0] == "repeat_purchases"
    requirements = mlflow.artifacts.load_text(f"models:/{name}/1/requirements.txt")
    assert all("==" in line for line in requirements.split())

    # The password of the databases is nowhere that people look.
    assert trained_world.settings.warehouse_database_url
    url = trained_world.settings.warehouse_database_url.get_secret_value()
    password = url.split(":")[2].partition("@")[0]
    assert password not in f"{run.to_dictionary()} {version} {card}"
    for record in trained_world.instance.all_logs(tags["dagster_run_id"]):
        assert password not in str(record)
    assert password not in str(os.environ)


def test_a_refused_model_stops_before_deployment_and_the_champion_scores_on(
    trained_world: World,
) -> None:
    world = trained_world
    before = world.production()
    strict = with_settings(world, models_min_auc=0.95)

    result = world.run("train_model", NEXT, settings=strict)

    assert not result.success
    found = checks(result)
    assert not found["auc_sufficient"].passed
    assert found["auc_sufficient"].severity == dg.AssetCheckSeverity.ERROR
    assert "below 0.95 (MODELS_MIN_AUC)" in found["auc_sufficient"].description
    assert found["no_leakage"].passed
    materialized = world.instance.get_materialized_partitions
    assert NEXT in materialized(dg.AssetKey("trained_model"))
    assert evaluated(world)["verdict"] == "refused"
    assert evaluated(world)["model_auc"] == found["auc_sufficient"].metadata["auc"].value
    assert NEXT not in materialized(dg.AssetKey("deployed_model"))
    assert world.production() == before

    # A run of the asset alone has no blocking check; the asset reads the verdict itself.
    alone = world.run("train_model", NEXT, settings=strict, selection=["deployed_model"])
    assert "refused by auc_sufficient" in failures(alone)
    assert NEXT not in materialized(dg.AssetKey("deployed_model"))
    assert world.production() == before

    scored = world.run("score_customers", NEXT)
    assert scored.success, failures(scored)
    assert world.rows("SELECT DISTINCT model_version FROM analytics.purchase_predictions") == [(1,)]


def test_what_a_replay_found_is_judged_and_deployed_whichever_version_came_later(
    trained_world: World,
) -> None:
    """A change was reverted: the gate used to judge and deploy the version that the change had produced."""
    world = trained_world
    before = world.production()
    changed = with_settings(world, models_training_snapshots=2, models_min_auc=0.95)
    refused = world.run("train_model", WEEK, settings=changed)
    later = metadata(refused, "trained_model")["model_version"]
    assert later == evaluated(world)["model_version"] > 1

    result = world.run("train_model", WEEK)
    assert result.success, failures(result)
    about = metadata(result, "trained_model")
    assert (about["model_version"], about["replayed"]) == (1, True)
    assert evaluated(world)["model_version"] == 1
    assert metadata(result, "deployed_model")["model_version"] == 1
    assert world.production() == before


def test_a_range_of_snapshots_may_be_one_run(trained_world: World) -> None:
    """Dagster's UI offers one run for a range."""
    weeks_of_it = ["2026-06-29", "2026-07-06", "2026-07-13"]
    ends = zip(("start", "end"), (weeks_of_it[0], weeks_of_it[-1]), strict=True)
    result = (
        build_definitions(trained_world.settings)
        .resolve_job_def("build_snapshots")
        .execute_in_process(
            instance=trained_world.instance,
            tags={f"dagster/asset_partition_range_{end}": week for end, week in ends},
            raise_on_error=False,
        )
    )
    assert result.success, failures(result)
    made = result.asset_materializations_for_node("training_snapshots")
    assert [event.partition for event in made] == weeks_of_it
    for event in made:
        holds = trained_world.snapshot(str(event.partition))
        assert event.metadata["dagster/partition_row_count"].value == len(holds)
    key = dg.AssetCheckKey(dg.AssetKey("training_snapshots"), "days_complete")
    stored = trained_world.instance.event_log_storage.get_asset_check_execution_history(key, 20)
    checked = {
        found.partition: found.status.value for found in stored if found.run_id == result.run_id
    }
    assert {week: checked[week] for week in weeks_of_it} == dict.fromkeys(weeks_of_it, "SUCCEEDED")


def test_predictions_are_the_champions_scores_and_a_replay_writes_nothing(
    trained_world: World,
) -> None:
    from pipeline_assets.models import promotion, registry
    from pipeline_assets.models.snapshots import read
    from pipeline_assets.models.training import predict

    world = trained_world
    result = world.run("score_customers", WEEK)
    assert result.success, failures(result)
    assert world.settings.warehouse_database_url
    url = world.settings.warehouse_database_url.get_secret_value()
    cutoff = datetime(2026, 11, 9).date()  # noqa: DTZ001 - a day
    with world.warehouse() as connection:
        champion = promotion.champion(world.client(), connection, world.name)
    expected = read(url, cutoff, as_of=cutoff, timezone="UTC")
    scores = predict(registry.load(champion), expected)
    rows = f"""SELECT customer_id, probability, model_version, week, xmin::text
               FROM analytics.purchase_predictions WHERE cutoff = '{cutoff}' ORDER BY 1"""
    stored = world.rows(rows)
    assert [(row[0], row[1]) for row in stored] == list(
        zip(expected["customer_id"].to_pylist(), scores.tolist(), strict=True)
    )
    assert {row[2:4] for row in stored} == {(1, datetime(2026, 11, 2, tzinfo=UTC))}
    batch = (
        "SELECT verdict, rows_valid FROM pipeline.batches WHERE table_name = 'purchase_predictions'"
    )
    assert ("passed", len(stored)) in world.rows(batch)

    assert world.run("score_customers", WEEK).success
    assert world.rows(rows) == stored

    about, found = metadata(result, "purchase_predictions"), checks(result)
    assert about["dagster/partition_row_count"] == len(stored)
    assert about["drift"].startswith("![plot](data:image/png;base64,")
    assert {"score_drift", "realised_performance", "distribution", "days_complete"} <= set(found)
    assert found["score_drift"].metadata["psi"].value == about["score_psi"]


def test_what_was_predicted_four_weeks_ago_is_held_against_what_happened(
    trained_world: World,
) -> None:
    from pipeline_assets.models.evaluation import evaluate
    from pipeline_assets.models.snapshots import labels, read

    world = trained_world
    for week in ("2026-10-12", NEXT):
        result = world.run("score_customers", week)
        assert result.success, failures(result)
    found = checks(result)["realised_performance"].metadata
    assert found["cutoff"].value == "2026-10-19"
    predicted = dict(
        world.rows(
            "SELECT customer_id, probability FROM analytics.purchase_predictions"
            " WHERE cutoff = '2026-10-19'"
        )
    )
    assert world.settings.warehouse_database_url
    happened = read(
        world.settings.warehouse_database_url.get_secret_value(),
        datetime(2026, 10, 19).date(),  # noqa: DTZ001 - a day
        as_of=datetime(2026, 11, 16).date(),  # noqa: DTZ001 - a day
        timezone="UTC",
    )
    scores = pa.array([predicted[key] for key in happened["customer_id"].to_pylist()]).to_numpy()
    expected = evaluate(labels(happened), scores, resamples=1)
    assert found["auc"].value == expected["auc"].value
    assert found["calibration"].value == expected["calibration"].value
    assert found["customers"].value == len(predicted)
    version = world.client().get_model_version(world.name, "1")
    run = mlflow_run(world, version.run_id)
    assert run.data.metrics["realised_auc"] == expected["auc"].value


def test_predictions_of_a_model_that_knew_the_outcome_arent_counted(trained_world: World) -> None:
    """The champion learnt from labels up to October 12: scores of October 5 are no forecast."""
    world = trained_world
    for week in ("2026-09-28", "2026-10-26"):
        result = world.run("score_customers", week)
        assert result.success, failures(result)
    found = checks(result)["realised_performance"]
    assert found.metadata["customers"].value == 0
    ((predicted,),) = world.rows(
        "SELECT count(*) FROM analytics.purchase_predictions WHERE cutoff = '2026-10-05'"
    )
    assert found.metadata["left_out"].value == predicted > 0
    assert "aren't forecasts" in found.description
    assert not [
        name for name in metadata(result, "purchase_predictions") if name.startswith("realised")
    ]


@pytest.mark.usefixtures("snapshots")
def test_predictions_of_a_version_that_was_deleted_since_arent_counted(world: World) -> None:
    """This was found only after the load, and used to fail it."""
    assert world.run("train_model", WEEK).success
    assert world.run("score_customers", "2026-10-12").success
    world.rows("UPDATE analytics.purchase_predictions SET model_version = 7 RETURNING 1")
    result = world.run("score_customers", NEXT)
    assert result.success, failures(result)
    found = checks(result)["realised_performance"]
    assert found.metadata["customers"].value == 0
    assert found.metadata["left_out"].value > 20_000
    assert "was deleted or changed in MLflow" in found.description


@pytest.mark.usefixtures("snapshots")
def test_what_cant_be_compared_is_a_warning_and_no_failure(world: World) -> None:
    """Nobody bought after October 19, which is found only after the rows are loaded."""
    assert world.run("train_model", WEEK).success
    assert world.run("score_customers", "2026-10-12").success
    with world.warehouse() as connection:
        connection.execute(
            "DELETE FROM analytics.fct_transactions WHERE ordered_at >= '2026-10-19'"
        )
    result = world.run("score_customers", NEXT)
    assert result.success, failures(result)
    found = checks(result)["realised_performance"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description.startswith("0 of the ")

    # A promoted champion was trained elsewhere; its snapshots weren't built in this environment.
    Path(world.settings.files_url, "training_snapshots", "2026-10-05.parquet").unlink()
    result = world.run("score_customers", NEXT)
    assert result.success, failures(result)
    for name in ("score_drift", "distribution"):
        found = checks(result)[name]
        assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert "materialize partition 2026-10-05 of training_snapshots" in found.description
    asked = tick(world, "early_retraining", datetime.now(UTC))
    assert asked == "The scores haven't drifted, and the predictions came true."


@pytest.fixture
def day_held(trained_world: World) -> Any:
    """A day of the year that breaks its contract, for the duration of a test."""
    change = "UPDATE pipeline.batches SET {} WHERE partition_key = '2026-07-04'"
    with trained_world.warehouse() as connection:
        connection.execute(change.format("verdict = 'failed', broken_rules = '{currency_known}'"))
        yield
        connection.execute(change.format("verdict = 'passed', broken_rules = '{}'"))


@pytest.mark.usefixtures("day_held")
def test_a_held_day_is_named_and_only_a_share_may_be_allowed(trained_world: World) -> None:
    world, week = trained_world, "2026-10-19"
    refused = world.run("build_snapshots", week)
    assert not refused.success
    assert "2026-07-04 held by currency_known" in failures(refused)
    assert "MODELS_MISSING_DAYS" in failures(refused)
    assert week not in world.instance.get_materialized_partitions(dg.AssetKey("training_snapshots"))
    # The sensor tries the week again by itself once the day is loaded, and sees that it isn't yet.
    run = world.instance.get_run_by_id(refused.run_id)
    assert run
    assert PERMANENT not in run.tags
    assert {"2026-06-22", "2026-06-29", week} & incomplete(world) == {"2026-06-29", week}
    assert incomplete(world, models_missing_days=0.01) == set()
    assert "2026-07-04 held by" in failures(world.run("score_customers", week))

    allowed = world.run(
        "build_snapshots", week, settings=with_settings(world, models_missing_days=0.01)
    )
    assert allowed.success
    found = checks(allowed)["days_complete"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.metadata["incomplete"].value == 1


def incomplete(world: World, **changes: Any) -> set[str]:
    settings = with_settings(world, **changes)
    warehouse = build_resources(settings)["warehouse"]
    now = datetime(2026, 11, 16, tzinfo=UTC)
    return stored_weeks(world.instance, warehouse, settings, weeks(settings), now).incomplete


def test_a_snapshot_that_nobody_built_is_named(world: World) -> None:
    result = world.run("train_model", WEEK)
    assert "materialize partition 2026-08-10 of training_snapshots first" in failures(result)
    assert not result.asset_materializations_for_node("deployed_model")
    # No MLflow run either: nothing was trained.
    client = world.client()
    found = client.get_experiment_by_name(world.name)
    assert found
    assert client.search_runs([found.experiment_id]) == []


def runs(world: World) -> dict[str, str]:
    """MLflow run id -> status, of all runs."""
    client = world.client()
    found = client.get_experiment_by_name(world.name)
    if found is None:
        return {}
    return {run.info.run_id: run.info.status for run in client.search_runs([found.experiment_id])}


CHILD = """
import sys
from pathlib import Path
import dagster as dg
from pipeline_assets.definitions import build_definitions
from pipeline_assets.settings import Settings
settings = Settings.model_validate_json(sys.stdin.read())
build_definitions(settings).resolve_job_def("train_model").execute_in_process(
    instance=dg.DagsterInstance.local_temp(sys.argv[2]), partition_key=sys.argv[1]
)
"""


def start_training(world: World, week: str, folder: str) -> subprocess.Popen[str]:
    """Start a process that trains; its settings go by standard input, as they contain passwords."""
    fields = world.settings.model_dump(mode="json", exclude={"news_feeds"}, exclude_unset=True)
    for name in ("source_database_url", "warehouse_database_url", "mlflow_tracking_uri"):
        fields[name] = getattr(world.settings, name).get_secret_value()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, week, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    import json

    assert child.stdin
    child.stdin.write(json.dumps(fields))
    child.stdin.close()
    return child


@pytest.mark.usefixtures("snapshots")
def test_a_training_that_is_killed_is_continued_by_its_retry_or_ended_by_another(
    world: World, tmp_path: Any
) -> None:
    folder = tmp_path / "dagster"
    folder.mkdir()
    with start_training(world, WEEK, str(folder)) as child:
        deadline = time.monotonic() + 120
        while "RUNNING" not in runs(world).values():
            assert child.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
        child.send_signal(signal.SIGKILL)
    ((killed, status),) = runs(world).items()
    assert status == "RUNNING"
    assert world.production() == (None, None, 0)

    root = mlflow_run(world, killed).data.tags["dagster_root_run_id"]
    world.instance = dg.DagsterInstance.local_temp(str(folder))
    other = world.run("train_model", NEXT)  # another run finds that no process continues it
    assert other.success, failures(other)
    assert runs(world)[killed] == "KILLED"

    retry = {"dagster/root_run_id": root, "dagster/parent_run_id": root}
    job = build_definitions(world.settings).resolve_job_def("train_model")
    retried = job.execute_in_process(
        instance=world.instance, partition_key=WEEK, tags=retry, raise_on_error=False
    )
    about = metadata(retried, "trained_model")
    assert about["mlflow_run_id"] == killed
    assert runs(world)[killed] == "FINISHED"
    assert len(runs(world)) == 2
    # The newer week's model was deployed meanwhile: the older one doesn't take its place.
    assert "older model doesn't replace a newer one" in failures(retried)
    assert world.production() == (1, None, 1)


@pytest.mark.usefixtures("snapshots")
def test_a_failed_training_ends_its_mlflow_run_and_the_retry_continues_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_assets.models import registry

    attempts = []
    log_model = registry.log_model

    def fail_once(*arguments: Any) -> str:
        attempts.append(dict(runs(world)))
        if len(attempts) == 1:
            raise ConnectionError("the artifact store went away")
        return log_model(*arguments)

    monkeypatch.setattr(registry, "log_model", fail_once)
    result = world.run("train_model", WEEK)
    assert result.success, failures(result)
    (first,) = attempts[0]
    assert list(runs(world).items()) == [(first, "FINISHED")]
    assert len(attempts) == 2
    verdicts = world.rows("SELECT metrics::text, findings::text FROM pipeline.gate_verdicts")

    # A new registry, the same data: the same figures to the last digit.
    monkeypatch.setattr(registry, "log_model", lambda *_: (_ for _ in ()).throw(ValueError("no")))
    client = world.client()
    client.delete_registered_model(world.name)
    world.rows("DELETE FROM pipeline.champion_deployments RETURNING 1")
    failed = world.run("train_model", WEEK)
    assert not failed.success
    assert sorted(runs(world).values()) == ["FAILED", "FINISHED"]
    monkeypatch.setattr(registry, "log_model", log_model)
    again = world.run("train_model", WEEK)
    assert again.success, failures(again)
    figures = world.rows("SELECT metrics::text, findings::text FROM pipeline.gate_verdicts")
    assert [row[0] for row in figures] == 2 * [row[0] for row in verdicts]


@pytest.mark.usefixtures("snapshots")
def test_a_re_execution_on_other_data_has_an_mlflow_run_of_its_own(world: World) -> None:
    refused = world.run("train_model", WEEK, settings=with_settings(world, models_min_auc=0.99))
    assert not refused.success
    (first,) = runs(world)

    fewer = with_settings(world, models_training_snapshots=2)
    root = mlflow_run(world, first).data.tags["dagster_root_run_id"]
    again = (
        build_definitions(fewer)
        .resolve_job_def("train_model")
        .execute_in_process(
            instance=world.instance,
            partition_key=WEEK,
            tags={"dagster/root_run_id": root, "dagster/parent_run_id": root},
            raise_on_error=False,
        )
    )
    about = metadata(again, "trained_model")
    assert about["mlflow_run_id"] != first
    assert set(runs(world).values()) == {"FINISHED"}
    assert len(runs(world)) == 2
