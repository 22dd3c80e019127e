"""The warehouse's records of models: the gate's verdicts and the deployments.

`pipeline.gate_verdicts` is to a model what `pipeline.batches` is to a partition: deployment reads it, not
MLflow, whose tags and aliases anybody can set. `pipeline.champion_deployments` is the audit, written before
the aliases move, so that a deployment that was killed half-way is found and finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Json

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import gate
from pipeline_assets.models.evaluation import Estimate
from pipeline_assets.models.registry import Registered
from pipeline_assets.models.rules import RULES, SMOKE
from pipeline_assets.quality.ddl import changing_tables, exist, wait_for_other_changes

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS pipeline;
CREATE TABLE IF NOT EXISTS pipeline.gate_verdicts (
    verdict_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name text NOT NULL,
    model_version bigint NOT NULL,
    week date NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('passed', 'refused')),
    findings json NOT NULL,
    metrics json NOT NULL,
    artifact_hash text NOT NULL,
    training_hash text NOT NULL,
    holdout_hash text NOT NULL,
    champion_version bigint,
    mlflow_run_id text NOT NULL,
    decided_by text NOT NULL,
    decided_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pipeline.gate_verdicts IS
    'What the gate found, each time it looked at a version; the newest decides about deploying it.';
COMMENT ON COLUMN pipeline.gate_verdicts.findings IS 'json, not jsonb, as that forgets the order.';
COMMENT ON COLUMN pipeline.gate_verdicts.champion_version IS
    'The champion that it was compared with; null if there was none.';
CREATE TABLE IF NOT EXISTS pipeline.champion_deployments (
    deployment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_name text NOT NULL,
    action text NOT NULL CHECK (action IN ('deploy', 'rollback', 'withdraw')),
    champion_before bigint,
    champion_after bigint,
    previous_after bigint,
    actor text NOT NULL,
    reason text NOT NULL,
    artifact_hash text NOT NULL,
    mlflow_run_id text NOT NULL,
    metrics json NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);
COMMENT ON TABLE pipeline.champion_deployments IS 'Every move of the alias champion.';
COMMENT ON COLUMN pipeline.champion_deployments.finished_at IS
    'Null while the aliases move: the next deployment or rollback finishes it first.';
COMMENT ON COLUMN pipeline.champion_deployments.champion_after IS
    'Null after a withdrawal: no model is in production.';
"""

WITHDRAWALS = """
ALTER TABLE pipeline.champion_deployments ALTER champion_after DROP NOT NULL,
    DROP CONSTRAINT champion_deployments_action_check,
    ADD CONSTRAINT champion_deployments_action_check
        CHECK (action IN ('deploy', 'rollback', 'withdraw'));
"""
"""Migrates a table that was created before there were withdrawals."""

Action = Literal["deploy", "rollback", "withdraw"]
Metrics = Mapping[str, Mapping[str, Estimate]]
"""Whose (`model`, `baseline`, `difference` to the champion) -> metric -> estimate."""


class RefusedError(PermanentError):
    """The gate or the audit refuses a model."""


@dataclass(frozen=True)
class Verdict:
    """The gate's verdict on a version, as stored in the warehouse."""

    model_name: str
    model_version: int
    week: date
    verdict: Literal["passed", "refused"]
    findings: list[dict[str, Any]]
    metrics: dict[str, dict[str, list[float]]]
    """Whose -> metric -> value, lower and upper bound."""
    artifact_hash: str
    holdout_hash: str
    champion_version: int | None
    decided_at: datetime


@dataclass(frozen=True)
class Deployment:
    """A move of the alias `champion`."""

    deployment_id: int
    model_name: str
    action: Action
    champion_before: int | None
    champion_after: int | None
    """None: no model is in production any more."""
    previous_after: int | None
    actor: str
    reason: str
    artifact_hash: str
    """The hash of the deployed files, which the gate had accepted; empty after a withdrawal."""
    mlflow_run_id: str
    metrics: dict[str, Any]
    started_at: datetime
    finished_at: datetime | None


def ensure_schema(connection: psycopg.Connection) -> None:
    """Create both tables where they are missing, and migrate those from before withdrawals."""
    tables = ["pipeline.gate_verdicts", "pipeline.champion_deployments"]
    if exist(connection, tables) and not _is_before_withdrawals(connection):
        return
    with changing_tables(), connection.transaction():
        wait_for_other_changes(connection)
        connection.execute(SCHEMA)
        if _is_before_withdrawals(connection):
            connection.execute(WITHDRAWALS)


def _is_before_withdrawals(connection: psycopg.Connection) -> bool:
    (is_required,) = connection.execute(
        "SELECT attnotnull FROM pg_attribute WHERE attname = 'champion_after'"
        " AND attrelid = 'pipeline.champion_deployments'::regclass"
    ).fetchone() or (False,)
    return bool(is_required)


def record_verdict(
    connection: psycopg.Connection,
    version: Registered,
    findings: Sequence[gate.Finding],
    metrics: Metrics,
    *,
    training_hash: str,
    holdout_hash: str,
    champion_version: int | None,
    decided_by: str,
) -> None:
    """Record a verdict of the gate; earlier verdicts stay.

    `training_hash` is empty if the version's files couldn't be read.
    """
    connection.execute(
        """INSERT INTO pipeline.gate_verdicts (model_name, model_version, week, verdict, findings,
               metrics, artifact_hash, training_hash, holdout_hash, champion_version, mlflow_run_id,
               decided_by)
           VALUES (%(name)s, %(version)s, %(week)s, %(verdict)s, %(findings)s, %(metrics)s,
               %(artifact)s, %(training)s, %(holdout)s, %(champion)s, %(run)s, %(by)s)""",
        {
            "name": version.name,
            "version": version.version,
            "week": version.week,
            "verdict": "passed"
            if _passes([asdict(finding) for finding in findings], set(RULES))
            else "refused",
            "findings": Json([asdict(finding) for finding in findings]),
            "metrics": Json(
                {
                    whose: {name: [e.value, e.lower, e.upper] for name, e in estimates.items()}
                    for whose, estimates in metrics.items()
                }
            ),
            "artifact": version.artifact_hash,
            "training": training_hash,
            "holdout": holdout_hash,
            "champion": champion_version,
            "run": version.run_id,
            "by": decided_by,
        },
    )


def verdicts(connection: psycopg.Connection, name: str) -> list[Verdict]:
    """Every verdict on a model's versions, oldest week first, and oldest verdict first within a week."""
    query = sql.SQL(
        "SELECT {} FROM pipeline.gate_verdicts WHERE model_name = %s ORDER BY week, verdict_id"
    ).format(sql.SQL(", ").join(map(sql.Identifier, Verdict.__dataclass_fields__)))
    with connection.cursor(row_factory=class_row(Verdict)) as cursor:
        return cursor.execute(query, [name]).fetchall()


def passed_verdict(
    connection: psycopg.Connection, version: Registered, *, at: datetime | None = None
) -> Verdict:
    """The newest verdict on a version, which must have passed; with `at`, the newest at that time.

    The stored `passed` isn't enough: the findings must cover every rule, none may refuse the model, and
    the judged artifact must be the registered one. A verdict of an earlier time must cover at least `SMOKE`:
    other rules may have come since.

    Raises:
        RefusedError: the gate refused it, or never judged the registered artifact.
    """
    found = [
        found
        for found in verdicts(connection, version.name)
        if found.model_version == version.version and (at is None or found.decided_at <= at)
    ]
    verdict = found[-1] if found else None
    if verdict is None:
        raise RefusedError(
            f"{version}: the gate has not judged it; materialize trained_model for {version.week}"
        )
    rules = {SMOKE} if at else set(RULES)
    if verdict.verdict != "passed" or not _passes(verdict.findings, rules):
        failed = [finding["name"] for finding in verdict.findings if not finding["passed"]]
        raise RefusedError(
            f"{version}: refused by {', '.join(failed) or 'missing findings'}; production stays as it "
            "was. The checks of trained_model have the figures"
        )
    if verdict.artifact_hash != version.artifact_hash:
        raise RefusedError(
            f"{version}: artifact {verdict.artifact_hash[:12]} was judged, but "
            f"{version.artifact_hash[:12]} is registered; materialize trained_model again"
        )
    return verdict


def _passes(findings: list[dict[str, Any]], rules: set[str]) -> bool:
    judged = {finding["name"] for finding in findings}
    return rules <= judged and gate.accepts(gate.Finding(**finding) for finding in findings)


def start_deployment(
    connection: psycopg.Connection,
    name: str,
    version: Registered | None,
    action: Action,
    *,
    before: int | None,
    previous_after: int | None,
    actor: str,
    reason: str,
    metrics: Mapping[str, Any],
) -> Deployment:
    """Record a move before it happens: to the version that becomes champion, or to none."""
    row = connection.execute(
        """INSERT INTO pipeline.champion_deployments (model_name, action, champion_before, champion_after,
               previous_after, actor, reason, artifact_hash, mlflow_run_id, metrics)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING deployment_id""",
        [
            name,
            action,
            before,
            version.version if version else None,
            previous_after,
            actor,
            reason,
            version.artifact_hash if version else "",
            version.run_id if version else "",
            Json(metrics),
        ],
    ).fetchone()
    return next(
        found for found in deployments(connection, name) if row and found.deployment_id == row[0]
    )


def finish_deployment(connection: psycopg.Connection, deployment: Deployment) -> None:
    """Record that the aliases have moved."""
    connection.execute(
        "UPDATE pipeline.champion_deployments SET finished_at = clock_timestamp() WHERE deployment_id = %s",
        [deployment.deployment_id],
    )


def deployments(connection: psycopg.Connection, name: str) -> list[Deployment]:
    """Every move of a model's champion, oldest first."""
    query = sql.SQL(
        "SELECT {} FROM pipeline.champion_deployments WHERE model_name = %s ORDER BY deployment_id"
    ).format(sql.SQL(", ").join(map(sql.Identifier, Deployment.__dataclass_fields__)))
    with connection.cursor(row_factory=class_row(Deployment)) as cursor:
        return cursor.execute(query, [name]).fetchall()


def scored_weeks(connection: psycopg.Connection) -> dict[str, int]:
    """Week (its Monday) -> the version that last scored it, of the weeks that were loaded."""
    if not exist(connection, ["analytics.purchase_predictions"]):
        return {}
    rows = connection.execute(
        """SELECT partition_key, (SELECT max(model_version) FROM analytics.purchase_predictions
               WHERE week >= window_start AND week < window_end)
           FROM pipeline.batches
           WHERE table_name = 'purchase_predictions' AND loaded_hash = content_hash"""
    )
    return {key: version for key, version in rows if version is not None}
