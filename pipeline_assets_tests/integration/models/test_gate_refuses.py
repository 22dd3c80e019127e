"""The gate on real models and a real registry: what it refuses, what it accepts, and the registry after."""

import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from psycopg import sql

from pipeline_assets.models import judgement, promotion, records, registry
from pipeline_assets.models.judgement import Judgement
from pipeline_assets.models.registry import Registered
from pipeline_assets.models.snapshots import FEATURES, feature_frame, labels, read
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets_tests.model_world import NEXT, WEEK, World, failures
from pipeline_assets_tests.security.test_pickles import Poison

pytestmark = pytest.mark.slow
TRAINING = ("2026-08-17", "2026-09-14", "2026-10-12")


def logistic(columns: list[str] | None = None, **options: Any) -> Any:
    """A plain model on the logarithms of some features."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    steps = make_pipeline(
        SimpleImputer(strategy="constant", fill_value=0),
        FunctionTransformer(np.log1p),
        StandardScaler(),
    )
    return make_pipeline(
        make_column_transformer((steps, columns or list(FEATURES))),
        LogisticRegression(max_iter=500, **options),
    )


def training_table(world: World) -> pa.Table:
    return pa.concat_tables(world.snapshot(week) for week in TRAINING)


@pytest.fixture
def holdout(trained_world: World) -> pa.Table:
    """The snapshot of the week after the champion's."""
    if NEXT not in trained_world.instance.get_materialized_partitions(_key()):
        assert trained_world.run("build_snapshots", NEXT).success
    return trained_world.snapshot(NEXT)


def _key() -> Any:
    import dagster as dg

    return dg.AssetKey("training_snapshots")


def judge(world: World, version: Registered, holdout: pa.Table) -> Judgement:
    with world.warehouse() as connection:
        return judgement.judge(
            world.client(), connection, version, holdout, world.settings, decided_by="test"
        )


def deploy(world: World, version: Registered) -> records.Deployment:
    with world.warehouse() as connection:
        return promotion.deploy(world.client(), connection, version, actor="test", reason="a test")


def failed(judged: Judgement) -> set[str]:
    return {
        finding.name
        for finding in judged.findings
        if not finding.passed and finding.severity == "error"
    }


def assert_refused(world: World, version: Registered, judged: Judgement) -> None:
    """Assert that the version can't be deployed, and that the attempt leaves the registry as it was."""
    before = world.production()
    assert not judged.accepted
    with pytest.raises(records.RefusedError, match="refused by"):
        deploy(world, version)
    assert world.production() == before
    tags = world.client().get_model_version(version.name, str(version.version)).tags
    assert tags["verdict"] == "refused"


def test_a_model_of_shuffled_labels(trained_world: World, holdout: pa.Table) -> None:
    training = training_table(trained_world)
    shuffled = np.random.default_rng(0).permutation(labels(training))
    version = trained_world.register(logistic().fit(feature_frame(training), shuffled), training)
    judged = judge(trained_world, version, holdout)
    assert {"auc_sufficient", "precision_over_base_rate"} <= failed(judged)
    assert_refused(trained_world, version, judged)


def test_a_stale_model(trained_world: World, holdout: pa.Table) -> None:
    """Trained when nearly all customers were new: its ranking is still fair, its probabilities aren't."""
    assert trained_world.settings.warehouse_database_url
    url = trained_world.settings.warehouse_database_url.get_secret_value()
    old = read(url, date(2026, 3, 2), as_of=date(2026, 3, 30), timezone="UTC")
    version = trained_world.register(logistic().fit(feature_frame(old), labels(old)), old)
    judged = judge(trained_world, version, holdout)
    assert failed(judged) & {"calibrated", "not_worse_than_champion"}
    assert judged.evaluation
    assert judged.evaluation["auc"].value > 0.75  # by which alone it would pass
    assert_refused(trained_world, version, judged)


def test_a_model_that_has_seen_the_holdout(trained_world: World, holdout: pa.Table) -> None:
    seen = pa.concat_tables([training_table(trained_world), holdout])
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline

    cheat = make_pipeline(HistGradientBoostingClassifier(max_iter=300, random_state=0))
    version = trained_world.register(cheat.fit(feature_frame(seen), labels(seen)), seen)
    judged = judge(trained_world, version, holdout)
    assert judged.evaluation
    assert judged.evaluation["average_precision"].value > 0.4  # by its figures the best of all
    assert failed(judged) == {"no_leakage"}
    assert_refused(trained_world, version, judged)


def test_where_the_training_ended_says_no_tag_and_no_artifact_of_the_run(
    trained_world: World, holdout: pa.Table
) -> None:
    """Anybody can edit tags and artifacts; the model's own files are protected by their hash."""
    client = trained_world.client()
    seen = pa.concat_tables([training_table(trained_world), holdout])
    version = trained_world.register(logistic().fit(feature_frame(seen), labels(seen)), seen)
    for name in ("training_cutoffs", "training_hash"):
        client.set_model_version_tag(version.name, str(version.version), name, "2026-08-24")
        client.set_tag(version.run_id, name, "2026-08-24")
    record = registry.training_record(version)
    honest = {"window": {"cutoffs": ["2026-08-24"]}, "validation": {}, "code_version": "1"}
    client.log_dict(version.run_id, honest, "training.json")
    judged = judge(trained_world, version, holdout)
    assert failed(judged) == {"no_leakage"}
    ((hashed,),) = trained_world.rows(
        f"SELECT training_hash FROM pipeline.gate_verdicts WHERE model_version = {version.version}"
    )
    assert hashed == record.window.content_hash

    file = damaged(trained_world, version).file.with_name("MLmodel")
    before = file.read_text()
    newest = f"'{record.window.cutoffs[-1]}'" if "'" in before else str(record.window.cutoffs[-1])
    assert newest in before
    file.write_text(before.replace(newest, newest.replace("2026-10", "2026-08")))
    judged = judge(trained_world, version, holdout)
    assert "loads_and_scores" in failed(judged)
    assert_refused(trained_world, version, judged)


def test_a_miscalibrated_model(trained_world: World, holdout: pa.Table) -> None:
    training = training_table(trained_world)
    balanced = logistic(class_weight="balanced").fit(feature_frame(training), labels(training))
    version = trained_world.register(balanced, training)
    judged = judge(trained_world, version, holdout)
    assert "calibrated" in failed(judged)
    assert not failed(judged) & {"auc_sufficient", "precision_over_base_rate"}
    assert_refused(trained_world, version, judged)


def test_a_model_that_is_a_little_worse_than_the_champion(
    trained_world: World, holdout: pa.Table
) -> None:
    training = training_table(trained_world)
    few = ["repeat_purchases", "days_since_last", "age_days", "purchases_26w"]
    version = trained_world.register(
        logistic(few).fit(feature_frame(training), labels(training)), training
    )
    judged = judge(trained_world, version, holdout)
    assert judged.difference
    assert -0.03 < judged.difference["average_precision"].value < 0.005
    assert failed(judged) == {"not_worse_than_champion"}
    assert_refused(trained_world, version, judged)


@pytest.mark.security
def test_a_model_whose_files_are_damaged_before_it_is_judged(
    trained_world: World, holdout: pa.Table
) -> None:
    training = training_table(trained_world)
    version = trained_world.register(
        logistic().fit(feature_frame(training), labels(training)), training
    )
    with damaged(trained_world, version):
        judged = judge(trained_world, version, holdout)
    assert "loads_and_scores" in failed(judged)
    assert_refused(trained_world, version, judged)


@pytest.mark.security
def test_a_model_whose_files_are_changed_after_it_passed(
    trained_world: World, holdout: pa.Table
) -> None:
    before = trained_world.production()
    with trained_world.warehouse() as connection:
        champion = promotion.champion(trained_world.client(), connection, trained_world.name)
    judged = judge(trained_world, champion, trained_world.snapshot(WEEK))
    assert judged.accepted
    with damaged(trained_world, champion):
        with pytest.raises(registry.RegistryError, match="were changed or damaged"):
            deploy(trained_world, champion)
        result = trained_world.run("score_customers", NEXT)
        assert not result.success
    assert trained_world.production() == before
    assert trained_world.rows("SELECT to_regclass('analytics.purchase_predictions')") == [(None,)]


class damaged:  # noqa: N801 - reads as what it does
    """Inside the block, one byte of the version's model file is changed."""

    def __init__(self, world: World, version: Registered) -> None:
        source = world.client().get_model_version_download_uri(version.name, str(version.version))
        folder = (
            world.client().get_logged_model(source.removeprefix("models:/")).artifact_location
            if source.startswith("models:/")
            else source
        )
        self.file = Path(folder.removeprefix("file://")) / registry.MODEL_FILE
        self.kept = self.file.with_suffix(".kept")

    def __enter__(self) -> None:
        shutil.copy(self.file, self.kept)
        content = bytearray(self.file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        self.file.write_bytes(content)

    def __exit__(self, *error: object) -> None:
        self.kept.replace(self.file)


def record_hash(world: World, version: Registered, before: str, after: str) -> None:
    """Replace the hash of a version's files wherever it is recorded."""
    world.client().set_model_version_tag(version.name, str(version.version), "artifact_hash", after)
    with world.warehouse() as connection:
        for table in ("gate_verdicts", "champion_deployments"):
            connection.execute(
                sql.SQL(
                    "UPDATE pipeline.{} SET artifact_hash = %s WHERE artifact_hash = %s"
                ).format(sql.Identifier(table)),
                [after, before],
            )


@contextmanager
def champion_with(world: World, files: dict[str, bytes], *, recorded: bool) -> Iterator[Path]:
    """Inside the block, the champion has these files, their hash recorded or not; yields its folder."""
    with world.warehouse() as connection:
        champion = promotion.champion(world.client(), connection, world.name)
    folder = damaged(world, champion).file.parent
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    changed = registry.hash_files(folder) if recorded else champion.artifact_hash
    record_hash(world, champion, champion.artifact_hash, changed)
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
        record_hash(world, champion, changed, champion.artifact_hash)


@pytest.mark.security
@pytest.mark.parametrize(
    ("recorded", "told"), [(False, "were changed or damaged"), (True, "is no skops model")]
)
def test_a_pickle_in_the_place_of_the_champion_is_not_unpickled(
    trained_world: World, tmp_path: Path, recorded: bool, told: str
) -> None:
    poison = pickle.dumps(Poison(tmp_path / "pwned"))
    with champion_with(trained_world, {registry.MODEL_FILE: poison}, recorded=recorded):
        result = trained_world.run("score_customers", NEXT)
        with pytest.raises(registry.RegistryError, match=told):
            serve(trained_world)
    assert told in failures(result)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.security
def test_a_champion_whose_pickle_mlflow_would_load_is_not_served(
    trained_world: World, tmp_path: Path
) -> None:
    """Its skops file is good, so the gate would let it through; which file is served, MLmodel says."""
    import mlflow

    pwned = tmp_path / "pwned"
    with trained_world.warehouse() as connection:
        champion = promotion.champion(trained_world.client(), connection, trained_world.name)
    honest = damaged(trained_world, champion).file.with_name("MLmodel").read_text()
    hostile = honest.replace("model_path: model.skops", "model_path: model.pkl")
    hostile = hostile.replace("serialization_format: skops", "serialization_format: pickle")
    files = {"MLmodel": hostile.encode(), "model.pkl": pickle.dumps(Poison(pwned))}
    with champion_with(trained_world, files, recorded=True) as folder:
        with pytest.raises(
            registry.RegistryError, match="MLmodel would have MLflow load other files"
        ):
            serve(trained_world)
        assert not pwned.exists()
        with suppress(Exception):
            mlflow.pyfunc.load_model(str(folder))
        assert pwned.exists(), "that is what would be served"


def serve(world: World) -> None:
    """Verify the champion as `pipeline-assets mlflow serve` does, before MLflow loads it."""
    with (
        world.warehouse() as connection,
        promotion.champion_files(world.client(), connection, world.name),
    ):
        pass


@pytest.mark.security
def test_a_pickle_in_the_place_of_a_training_snapshot_is_not_unpickled(
    trained_world: World, tmp_path: Path
) -> None:
    folder = trained_world.settings.pipeline_data_dir / "partitions" / "training_snapshots"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for path in kept:
        path.write_bytes(pickle.dumps(Poison(tmp_path / "pwned")))
    result = trained_world.run("train_model", NEXT)
    for path, content in kept.items():
        path.write_bytes(content)
    assert "is no Parquet file: materialize partition 2026-08-17 of" in failures(result)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.security
def test_a_model_of_types_that_are_not_trusted_is_not_even_loaded(tmp_path: Path) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    file = tmp_path / registry.MODEL_FILE
    skops.io.dump(FunctionTransformer(shutil.rmtree), file)
    with pytest.raises(registry.RegistryError, match=r"aren't trusted: shutil\.rmtree"):
        registry.check_types(file)
    file.write_bytes(b"no archive")
    with pytest.raises(registry.RegistryError, match="is no skops model"):
        registry.check_types(file)


def test_promotion_copies_the_tested_version_and_judges_it_on_its_own_data(
    trained_world: World,
) -> None:
    settings = trained_world.settings
    strict = {"models_min_auc": 0.99}
    production = {
        **dict(settings),
        "pipeline_env": "production",
        "news_provider": "rss",
        "dagster_database_url": settings.source_database_url,
    }

    def promote(**changes: Any) -> Any:
        receiving = Settings.model_validate({**production, **changes})
        with trained_world.warehouse() as connection:
            return promotion.promote(
                trained_world.client(),
                connection,
                PartitionFiles(receiving.files_url),
                receiving,
                actor="test",
                source="dev",
            )

    client, name = trained_world.client(), "production.purchase_propensity"
    judged, deployment = promote(**strict)
    assert (failed(judged), deployment) == ({"auc_sufficient"}, None)
    assert registry.by_alias(client, name, registry.CHAMPION) is None

    judged, deployment = promote()
    assert deployment.reason == f"promoted from {trained_world.name} version 1"
    found = registry.by_alias(client, name, registry.CHAMPION)
    tested = registry.by_alias(client, trained_world.name, registry.CHAMPION)
    assert found
    assert tested
    assert (found.artifact_hash, found.run_id) == (tested.artifact_hash, tested.run_id)
    assert len(client.search_model_versions(f"name = '{name}'")) == 1  # copied once
    assert trained_world.production()[0] == 1


def test_a_better_model_replaces_the_champion(world: World) -> None:
    for week in (*TRAINING, NEXT):
        assert world.run("build_snapshots", week).success
    training, holdout = training_table(world), world.snapshot(NEXT)
    weak = logistic(["repeat_purchases", "days_since_last"])
    first = world.register(weak.fit(feature_frame(training), labels(training)), training)
    with world.warehouse() as connection:
        records.ensure_schema(connection)
    assert judge(world, first, holdout).accepted
    deploy(world, first)

    better = world.register(logistic().fit(feature_frame(training), labels(training)), training)
    judged = judge(world, better, holdout)
    assert judged.difference
    assert judged.difference["average_precision"].lower > 0
    moved = deploy(world, better)

    assert (moved.champion_before, moved.champion_after) == (first.version, better.version)
    assert world.production() == (better.version, first.version, 2)
    assert deploy(world, better) == moved  # again: nothing happens
    assert world.production() == (better.version, first.version, 2)
