"""The oracles of registry and digest report every defect that is made here on purpose."""

import shutil
from pathlib import Path

import pytest

from pipeline_assets_tests.reliability import digest_oracle, registry_oracle
from pipeline_assets_tests.reliability.jobs import MODEL, DigestSite, JobSite, ModelSite
from pipeline_assets_tests.reliability.kills import ended

IN_MLFLOW = [
    "DELETE FROM registered_model_aliases WHERE alias = 'champion'",
    "DELETE FROM registered_model_aliases WHERE alias = 'challenger'",
    "UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'",
    "UPDATE registered_model_aliases SET version = 9 WHERE alias = 'previous_champion'",
    "UPDATE runs SET status = 'RUNNING'",
    "UPDATE runs SET lifecycle_stage = 'deleted'",
    "UPDATE logged_models SET status = 1",
    "UPDATE model_version_tags SET value = 'another' WHERE key = 'artifact_hash'",
    "UPDATE model_version_tags SET value = 'the same' WHERE key = 'fingerprint'",
]
IN_WAREHOUSE = [
    "DELETE FROM pipeline.gate_verdicts WHERE model_version = 2",
    "UPDATE pipeline.gate_verdicts SET verdict = 'refused' WHERE model_version = 2",
    "UPDATE pipeline.gate_verdicts SET artifact_hash = 'another'",
    "UPDATE pipeline.champion_deployments SET finished_at = NULL",
    "DELETE FROM pipeline.champion_deployments WHERE champion_after = 2",
]


def run(site: JobSite) -> None:
    site.change()
    assert ended(site.begin()) == 0
    assert site.check(finished=True) == []


@pytest.mark.slow
def test_whatever_is_wrong_with_the_registry_is_told(model_site: ModelSite) -> None:
    for _ in range(2):
        run(model_site)
    with model_site.connect("mlflow") as mlflow, model_site.connect("warehouse") as warehouse:

        def wrong() -> list[str]:
            return registry_oracle.torn(mlflow, warehouse, MODEL) + registry_oracle.unfinished(
                mlflow, warehouse, MODEL, 2
            )

        for connection, statements in ((mlflow, IN_MLFLOW), (warehouse, IN_WAREHOUSE)):
            for statement in statements:
                with connection.transaction(force_rollback=True):
                    assert connection.execute(statement).rowcount, statement
                    assert wrong(), statement
        assert wrong() == []
        model = next((model_site.settings.pipeline_data_dir / "mlflow").rglob("model.skops"))
        model.write_bytes(model.read_bytes()[:-1])
        assert wrong()


@pytest.mark.slow
def test_whatever_is_wrong_with_the_digest_is_told(digest_site: DigestSite, tmp_path: Path) -> None:
    for _ in range(2):
        run(digest_site)
    files = sorted(digest_site.folder.iterdir())
    assert len(files) == 2 * len(digest_oracle.KINDS) + 2
    for number, file in enumerate(files):
        half, without = (
            shutil.copytree(digest_site.folder, tmp_path / f"{what}_{number}")
            for what in ("half", "without")
        )
        content = file.read_bytes()
        (half / file.name).write_bytes(content[: len(content) // 2])
        assert digest_oracle.torn(half), file.name
        (without / file.name).unlink()
        assert digest_oracle.unfinished(without, 2), file.name
