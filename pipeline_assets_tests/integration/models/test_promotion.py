"""Deployment and rollback on a real registry: what moves, what is refused, and what a crash leaves."""

import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from pipeline_assets.failures import is_transient
from pipeline_assets.models import judgement, promotion, records, registration, registry, status
from pipeline_assets.models.evaluation import Estimate
from pipeline_assets.models.gate import Finding
from pipeline_assets.models.records import Deployment, RefusedError
from pipeline_assets.models.registry import Registered
from pipeline_assets.models.rules import RULES
from pipeline_assets.models.snapshots import FEATURES, HORIZON, feature_frame, labels, schema
from pipeline_assets_tests.model_world import NEXT, WEEK, World

PASSED = [Finding(name, True) for name in RULES]


@pytest.fixture(scope="module")
def training() -> pa.Table:
    """A small snapshot of made-up customers; those whose last purchase is recent buy."""
    random = np.random.default_rng(0)
    features = {name: random.random(200) for name in FEATURES}
    return pa.table(
        {
            "customer_id": np.arange(200),
            "cutoff": pa.array([date(2026, 9, 1) - HORIZON] * 200, pa.date32()),
            **features,
            "bought": features["days_since_last"] < 0.3,
        },
        schema(),
    )


@pytest.fixture(scope="module")
def pipeline(training: pa.Table) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(LogisticRegression()).fit(feature_frame(training), labels(training))


class Production:
    """Versions of a world's model, with the verdicts that a test gives them, and their deployments."""

    def __init__(self, world: World, pipeline: Any, training: pa.Table) -> None:
        self.world, self.pipeline, self.training = world, pipeline, training
        self.client, self.connection = world.client(), world.warehouse()
        records.ensure_schema(self.connection)

    def version(
        self,
        week: str = WEEK,
        findings: list[Finding] = PASSED,
        champion: int | None = None,
        judged: bool = True,
    ) -> Registered:
        registered = self.world.register(self.pipeline, self.training, week)
        if judged:
            self.judged(registered, findings, champion)
        return registered

    def judged(
        self,
        version: Registered,
        findings: list[Finding],
        champion: int | None,
        auc: float = 0.8,
    ) -> None:
        records.record_verdict(
            self.connection,
            version,
            findings,
            {"model": {"auc": Estimate(auc, 0.79, 0.81)}},
            training_hash="training",
            holdout_hash="holdout",
            champion_version=champion,
            decided_by="test",
        )

    def deploy(self, version: Registered) -> Deployment:
        return promotion.deploy(
            self.client, self.connection, version, actor="somebody", reason="a test"
        )

    def rollback(self) -> Deployment:
        return promotion.rollback(
            self.client, self.connection, self.world.name, actor="somebody", reason="it failed"
        )

    def deployed(self, count: int) -> list[Registered]:
        """Versions deployed one after another."""
        versions: list[Registered] = []
        for number in range(count):
            week = date.fromisoformat(WEEK) + timedelta(weeks=number)
            before = versions[-1].version if versions else None
            versions.append(self.version(str(week), champion=before))
            self.deploy(versions[-1])
        return versions


@pytest.fixture
def production(world: World, pipeline: Any, training: pa.Table) -> Any:
    found = Production(world, pipeline, training)
    yield found
    found.connection.close()


@pytest.mark.slow
def test_each_deployment_keeps_the_way_back_and_is_written_down(production: Production) -> None:
    first, second = production.deployed(2)
    assert production.world.production() == (second.version, first.version, 2)
    audit = records.deployments(production.connection, production.world.name)
    assert [(found.action, found.champion_before, found.champion_after) for found in audit] == [
        ("deploy", None, first.version),
        ("deploy", first.version, second.version),
    ]
    assert all(found.finished_at for found in audit)
    assert {(found.actor, found.reason) for found in audit} == {("somebody", "a test")}
    assert (audit[-1].mlflow_run_id, audit[-1].artifact_hash) == (
        second.run_id,
        second.artifact_hash,
    )
    assert audit[-1].metrics == {"model": {"auc": [0.8, 0.79, 0.81]}}

    assert production.deploy(second) == audit[-1]  # again: nothing happens
    assert production.world.production() == (second.version, first.version, 2)


@pytest.mark.slow
def test_nothing_that_the_gate_did_not_let_through_is_deployed(production: Production) -> None:
    (champion,) = production.deployed(1)
    before = production.world.production()

    def refused(version: Registered, why: str) -> None:
        with pytest.raises(RefusedError, match=why):
            production.deploy(version)
        assert production.world.production() == before

    failing = [Finding(name, name != "calibrated") for name in RULES]
    bad = production.version(NEXT, failing, champion.version)
    refused(bad, "refused by calibrated")
    refused(production.version(NEXT, judged=False), "the gate has not judged it")
    refused(production.version(NEXT, PASSED[1:], champion.version), "missing findings")
    refused(
        production.version("2026-10-26", champion=champion.version), "older model doesn't replace"
    )
    refused(production.version(NEXT, champion=None), "compared with champion version none")

    # Neither a changed verdict nor a changed tag makes it deployable.
    production.connection.execute("UPDATE pipeline.gate_verdicts SET verdict = 'passed'")
    production.client.set_model_version_tag(bad.name, str(bad.version), "verdict", "passed")
    refused(bad, "refused by calibrated")
    other = production.version(NEXT, champion=champion.version)
    production.client.set_model_version_tag(
        other.name, str(other.version), "artifact_hash", champion.artifact_hash
    )
    refused(registry.by_version(production.client, other.name, other.version), "was judged, but")

    # Nor does an alias set by hand: code that uses the champion checks the audit.
    production.client.set_registered_model_alias(bad.name, registry.CHAMPION, str(bad.version))
    with pytest.raises(RefusedError, match=r"version 1 was deployed, but .* points to version 2"):
        promotion.champion(production.client, production.connection, bad.name)


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", ["deleted", "moved"])
def test_who_the_champion_is_says_the_audit_whatever_the_alias_says(
    production: Production, by_hand: str
) -> None:
    first, second = production.deployed(2)
    # Judged as if there were no champion; a comparison with the champion would have refused it.
    unchallenged = production.version("2026-11-16", champion=None)
    name = production.world.name
    if by_hand == "deleted":
        production.client.delete_registered_model_alias(name, registry.CHAMPION)
    else:
        production.client.set_registered_model_alias(name, registry.CHAMPION, str(first.version))
    before = production.world.production()

    for attempt in (
        lambda: production.deploy(unchallenged),
        lambda: promotion.champion(production.client, production.connection, name),
        lambda: judgement.judge(
            production.client,
            production.connection,
            unchallenged,
            production.training,
            production.world.settings,
            decided_by="test",
        ),
    ):
        with pytest.raises(RefusedError, match=r"version 2 was deployed, but .* rollback"):
            attempt()
    assert production.world.production() == before
    assert len(records.verdicts(production.connection, name)) == 3

    # Both remedies that the message names work.
    production.client.set_registered_model_alias(name, registry.CHAMPION, str(second.version))
    assert promotion.champion(production.client, production.connection, name) == second
    production.client.delete_registered_model_alias(name, registry.CHAMPION)
    assert production.rollback().champion_before == second.version
    assert production.world.production() == (first.version, None, 3)
    assert promotion.champion(production.client, production.connection, name) == first


@pytest.mark.slow
def test_an_alias_without_a_deployment_is_no_champion(production: Production) -> None:
    version = production.version()
    production.client.set_registered_model_alias(version.name, registry.CHAMPION, "1")
    with pytest.raises(RefusedError, match="no deployment is known; delete the alias"):
        production.deploy(version)
    production.client.delete_registered_model_alias(version.name, registry.CHAMPION)
    assert production.deploy(version).champion_after == 1


@pytest.mark.slow
def test_a_rule_that_came_later_is_for_later_versions(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the next release's rules, no version of before could be served or gone back to."""
    first, second = production.deployed(2)
    monkeypatch.setattr(records, "RULES", RULES | {"fair": "A rule of the next release."})
    with promotion.champion_files(
        production.client, production.connection, production.world.name
    ) as (served, _):
        assert served == second
    moved = production.rollback()
    assert (moved.action, moved.champion_after) == ("rollback", first.version)
    third = production.version(str(date.fromisoformat(WEEK) + timedelta(weeks=2)), champion=1)
    with pytest.raises(RefusedError, match="missing findings"):
        production.deploy(third)


@pytest.mark.slow
def test_rolling_back_goes_one_champion_back_each_time_and_never_forward(
    production: Production,
) -> None:
    first, second, third = production.deployed(3)
    moved = production.rollback()
    assert (moved.action, moved.champion_before, moved.champion_after, moved.reason) == (
        "rollback",
        third.version,
        second.version,
        "it failed",
    )
    assert production.world.production() == (second.version, first.version, 4)
    with pytest.raises(RefusedError, match=r"was rolled back on .* by somebody"):
        production.deploy(third)

    production.rollback()
    assert production.world.production() == (first.version, None, 5)
    with pytest.raises(promotion.NoChampionError, match="no previous champion"):
        production.rollback()
    assert production.world.production() == (first.version, None, 5)


@pytest.mark.slow
def test_judging_the_champion_again_forgets_nothing_and_leaves_it_in_production(
    production: Production,
) -> None:
    (champion,) = production.deployed(1)
    failing = [Finding(name, name != "auc_sufficient") for name in RULES]
    production.judged(champion, failing, champion.version)

    name, connection = champion.name, production.connection
    assert [found.verdict for found in records.verdicts(connection, name)] == ["passed", "refused"]
    assert promotion.champion(production.client, connection, name) == champion
    # The newest verdict decides about deploying.
    with pytest.raises(RefusedError, match="refused by auc_sufficient"):
        production.deploy(champion)
    # The deployment covers these files and no others.
    production.client.set_model_version_tag(name, "1", "artifact_hash", "0" * 64)
    with pytest.raises(RefusedError, match="was deployed, but 000000000000 is registered"):
        promotion.champion(production.client, connection, name)


@pytest.mark.slow
def test_a_version_that_was_deleted_in_mlflow_blocks_no_move(production: Production) -> None:
    first, second, third = production.deployed(3)
    name = production.world.name
    production.client.delete_model_version(name, str(first.version))
    moved = production.rollback()
    assert (moved.champion_after, moved.previous_after) == (second.version, None)
    assert production.world.production() == (second.version, None, 4)

    # Deleted after a process wrote the audit and died.
    fourth = production.version("2026-11-23", champion=second.version)
    records.start_deployment(
        production.connection,
        fourth.name,
        fourth,
        "deploy",
        before=second.version,
        previous_after=third.version,
        actor="killed",
        reason="a test",
        metrics={},
    )
    production.client.delete_model_version(name, str(third.version))
    champion = promotion.champion(production.client, production.connection, name)
    assert champion == fourth
    assert production.world.production() == (fourth.version, None, 5)


@pytest.mark.slow
def test_a_champion_that_was_deleted_in_mlflow_stops_everything_but_the_rollback(
    production: Production,
) -> None:
    first, second, third = production.deployed(3)
    name, client = production.world.name, production.client
    for version in (second, third):
        client.delete_model_version(name, str(version.version))
    with pytest.raises(
        registry.RegistryError, match=r"version 3 is in production, but .* rollback"
    ):
        promotion.champion(client, production.connection, name)

    moved = production.rollback()
    assert (moved.action, moved.champion_before, moved.champion_after) == ("rollback", 3, 1)
    assert moved.reason == "it failed; can't be used any more: version 2"
    assert production.world.production() == (first.version, None, 4)


@pytest.mark.slow
def test_when_no_champion_is_left_the_rollback_withdraws_and_a_new_one_starts_as_the_first(
    production: Production,
) -> None:
    first, second = production.deployed(2)
    name, client = production.world.name, production.client
    client.delete_model_version(name, str(first.version))
    # As long as the current champion can be used, it stays.
    with pytest.raises(promotion.NoChampionError, match="no previous champion"):
        production.rollback()
    client.delete_model_version(name, str(second.version))
    waiting = production.version("2026-11-16", champion=None)
    with pytest.raises(registry.RegistryError, match="was deleted in MLflow"):
        production.deploy(waiting)

    moved = production.rollback()
    assert (moved.action, moved.champion_before, moved.champion_after) == ("withdraw", 2, None)
    assert moved.finished_at
    assert production.world.production() == (None, None, 3)
    with pytest.raises(promotion.NoChampionError, match="no champion yet"):
        promotion.champion(client, production.connection, name)
    with pytest.raises(promotion.NoChampionError, match="no champion to roll back"):
        production.rollback()
    assert status.model_status(production.world.settings).deployment is None

    assert production.deploy(waiting).champion_before is None
    assert production.world.production() == (waiting.version, None, 4)


@pytest.mark.slow
def test_a_pending_move_to_a_version_that_was_deleted_ends_as_a_rollback(
    production: Production,
) -> None:
    first, second = production.deployed(2)
    name, client = production.world.name, production.client
    third = production.version("2026-11-16", champion=second.version)
    records.start_deployment(
        production.connection,
        name,
        third,
        "deploy",
        before=second.version,
        previous_after=second.version,
        actor="killed",
        reason="a test",
        metrics={},
    )
    client.delete_model_version(name, str(third.version))
    assert promotion.champion(client, production.connection, name) == second
    assert production.world.production() == (second.version, first.version, 4)
    pending, ended = records.deployments(production.connection, name)[-2:]
    assert pending.finished_at
    assert (ended.action, ended.actor, ended.champion_before) == ("rollback", "killed", 3)
    assert ended.reason == "version 3 was deleted in MLflow before its deployment was finished"


@pytest.mark.slow
def test_what_the_gate_found_when_it_was_deployed_decides_about_rolling_back(
    production: Production,
) -> None:
    first, second = production.deployed(2)
    failing = [Finding(name, name != "auc_sufficient") for name in RULES]
    # Judged again against its successor, it is refused; its verdict at the deployment still counts.
    production.judged(first, failing, second.version)
    assert production.rollback().champion_after == first.version
    assert promotion.champion(production.client, production.connection, first.name) == first


@pytest.mark.slow
def test_the_history_has_a_point_a_version_however_often_it_was_judged(
    production: Production,
) -> None:
    first, second = production.deployed(2)
    failing = [Finding(name, name != "auc_sufficient") for name in RULES]
    # Judged again against its successor, it is refused, but it had been promoted.
    production.judged(first, failing, second.version, auc=0.79)
    third = production.version("2026-11-16", champion=second.version)
    production.judged(third, failing, second.version, auc=0.795)
    kept = production.version("2026-11-23", champion=second.version)
    points = judgement.history(production.connection, production.world.name)
    assert [(point.version, point.estimate.value, point.outcome) for point in points] == [
        (str(first.version), 0.79, "promoted"),
        (str(second.version), 0.8, "promoted"),
        (str(third.version), 0.795, "refused"),
        (str(kept.version), 0.8, "kept"),
    ]


@pytest.mark.slow
def test_an_audit_of_before_there_were_withdrawals_is_brought_up_to_date(
    production: Production,
) -> None:
    connection = production.connection
    (version,) = production.deployed(1)
    connection.execute(
        """ALTER TABLE pipeline.champion_deployments ALTER champion_after SET NOT NULL,
               DROP CONSTRAINT champion_deployments_action_check,
               ADD CONSTRAINT champion_deployments_action_check
                   CHECK (action IN ('deploy', 'rollback'))"""
    )
    records.ensure_schema(connection)
    records.ensure_schema(connection)
    production.client.delete_model_version(version.name, str(version.version))
    assert production.rollback().action == "withdraw"


@pytest.mark.slow
def test_an_outage_of_the_artifact_store_is_no_verdict(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    good = production.version(judged=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens: connections are refused
        away = production.client.create_model_version(
            good.name,
            f"http://127.0.0.1:{closed.getsockname()[1]}/api/2.0/mlflow-artifacts/artifacts/model",
            good.run_id,
            tags=production.client.get_model_version(good.name, str(good.version)).tags
            | {"fingerprint": "stored away"},
        )
        version = registry.by_version(production.client, good.name, int(away.version))
        for attempt in (
            lambda: judgement.judge(
                production.client,
                production.connection,
                version,
                production.training,
                production.world.settings,
                decided_by="test",
            ),
            lambda: registration.existing_version(production.client, good.name, "stored away"),
        ):
            with pytest.raises(Exception, match="refused") as failed:
                attempt()
            assert is_transient(failed.value)
    assert records.verdicts(production.connection, good.name) == []

    # Files that are gone are a finding.
    files = production.client.get_model_version_download_uri(good.name, str(good.version))
    shutil.rmtree(files.removeprefix("file://"))
    assert registration.existing_version(production.client, good.name, good.fingerprint) is None


@pytest.mark.slow
def test_a_replay_finishes_a_registration_that_was_killed_before_its_alias(
    production: Production,
) -> None:
    first, second = production.version(), production.version(NEXT)
    name, client = production.world.name, production.client
    client.set_registered_model_alias(name, registry.CHALLENGER, str(first.version))
    registration.existing_version(client, name, second.fingerprint)
    assert registry.by_alias(client, name, registry.CHALLENGER) == second
    registration.existing_version(client, name, first.fingerprint)  # doesn't take the alias
    assert registry.by_alias(client, name, registry.CHALLENGER) == second


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from pipeline_assets.models import promotion, registry
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.settings import Settings
import psycopg

warehouse, uri, name, version, alias = sys.argv[1:]
move = MlflowClient.set_registered_model_alias
def die(self, name, which, version):
    if which == alias:
        os.kill(os.getpid(), signal.SIGKILL)
    move(self, name, which, version)
MlflowClient.set_registered_model_alias = die
client = Mlflow(Settings(mlflow_tracking_uri=uri)).client()
with psycopg.connect(warehouse, autocommit=True) as connection:
    found = registry.by_version(client, name, int(version))
    promotion.deploy(client, connection, found, actor="killed", reason="a test")
"""


@pytest.mark.slow
@pytest.mark.parametrize("alias", [registry.PREVIOUS, registry.CHAMPION])
def test_a_deployment_killed_between_the_aliases_is_finished_by_the_next(
    production: Production, alias: str
) -> None:
    first, second = production.deployed(2)
    third = production.version("2026-11-16", champion=second.version)
    settings = production.world.settings
    assert settings.warehouse_database_url
    assert settings.mlflow_tracking_uri
    died = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            settings.warehouse_database_url.get_secret_value(),
            settings.mlflow_tracking_uri.get_secret_value(),
            production.world.name,
            str(third.version),
            alias,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    # Production is as it was; the audit says what was about to happen.
    assert production.world.production()[0] == second.version
    pending = records.deployments(production.connection, third.name)[-1]
    assert (pending.champion_after, pending.finished_at) == (third.version, None)

    finished = production.deploy(third)
    assert (finished.deployment_id, finished.actor) == (pending.deployment_id, "killed")
    assert finished.finished_at
    assert production.world.production() == (third.version, second.version, 3)
    assert production.rollback().champion_after == second.version
    assert production.world.production()[:2] == (second.version, first.version)


@pytest.mark.slow
def test_two_deployments_at_once_are_one(production: Production) -> None:
    (first,) = production.deployed(1)
    second = production.version(NEXT, champion=first.version)

    def deploy(_: int) -> int:
        with production.world.warehouse() as connection:
            return promotion.deploy(
                production.client, connection, second, actor="one of two", reason="a test"
            ).deployment_id

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(deploy, range(2)))) == 1
    assert production.world.production() == (second.version, first.version, 2)


def test_the_tables_are_made_by_any_number_of_processes_at_once(server: Any) -> None:
    from pipeline_assets.resources import embedded_postgres

    url = embedded_postgres.ensure_database(server, "records")

    def make(_: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            records.ensure_schema(connection)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make, range(4)))


def test_only_the_modules_that_decide_the_model_make_it_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(Path(registry.__file__).parent, tmp_path / "models")
    monkeypatch.setattr(registry, "__file__", str(copy / "registry.py"))

    def mark() -> str:
        registry._code_hash.cache_clear()
        return registry.fingerprint("data", date(2026, 11, 2))

    before = mark()
    with (copy / "plots.py").open("a") as plots:
        plots.write("# another colour")
    assert mark() == before
    with (copy / "training.py").open("a") as training:
        training.write("# another candidate")
    assert mark() != before
    registry._code_hash.cache_clear()
