"""Deployment: which version the alias `champion` points to, and how that changes.

Every move holds a lock in the warehouse, is verified first, is recorded in the audit before anything
changes, and then goes in one order: `previous_champion`, `champion`, the audit's `finished_at`. A process
that dies in between leaves production in its old or its new state, and the next one finishes the move.
"""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import records, registry
from pipeline_assets.models.names import SNAPSHOTS
from pipeline_assets.models.records import Deployment, RefusedError
from pipeline_assets.models.registry import CHAMPION, PREVIOUS, Registered
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline_assets.models.judgement import Judgement


class NoChampionError(PermanentError):
    """No model has been deployed yet, or none before this one."""


def deploy(
    client: "MlflowClient",
    warehouse: psycopg.Connection,
    version: Registered,
    *,
    actor: str,
    reason: str,
) -> Deployment:
    """Make a version the champion if the gate accepted it; no change if it is the champion already.

    Raises:
        RefusedError: the gate refused it or never judged this artifact; it was compared with another
            champion than today's; it is older than the champion, or was rolled back.
        registry.RegistryError: its files aren't those that were registered.
    """
    name = version.name
    with alone(warehouse, name):
        champion = production(client, warehouse, name)
        verdict = records.passed_verdict(warehouse, version)
        with registry.verified_files(version):
            pass
        history = records.deployments(warehouse, name)
        if champion == version:
            return history[-1]
        _refuse_steps_back(version, champion, verdict, history)
        before = champion.version if champion else None
        return _move(
            client,
            warehouse,
            records.start_deployment(
                warehouse,
                name,
                version,
                "deploy",
                before=before,
                previous_after=before,
                actor=actor,
                reason=reason,
                metrics=verdict.metrics,
            ),
        )


def rollback(
    client: "MlflowClient",
    warehouse: psycopg.Connection,
    name: str,
    *,
    actor: str,
    reason: str,
) -> Deployment:
    """Make the champion before today's the champion again.

    The audit says which version that is, so aliases that were moved by hand are repaired. The verdict under
    which a version was deployed counts, whatever later ones say. A version that was deleted or changed in
    MLflow since is skipped, for the one before it. If none is left and today's champion can't be used
    either, it is withdrawn: no model is in production, and the next one is judged as the first one was.
    The version that is rolled back is never deployed again: a new one has to be trained.

    Raises:
        NoChampionError: there is no champion, or only today's can be used.
    """
    with alone(warehouse, name):
        last = _last_move(client, warehouse, name)
        if last is None or last.champion_after is None:
            raise NoChampionError(f"{name} has no champion to roll back")
        return _go_back(client, warehouse, last, last.champion_after, actor=actor, reason=reason)


def promote(
    client: "MlflowClient",
    warehouse: psycopg.Connection,
    files: PartitionFiles,
    settings: Settings,
    *,
    actor: str,
    source: str = "staging",
) -> "tuple[Judgement, Deployment | None]":
    """Bring another environment's champion here: the same artifact, judged on this environment's data.

    The holdout is this environment's snapshot of the version's week. The deployment is None after a refusal.

    Raises:
        NoChampionError: the other environment has none.
        PermanentError: this environment is the source itself, or has no snapshot yet.
    """
    import pyarrow as pa

    from pipeline_assets.models import judgement

    name = registry.model_name(settings.pipeline_env)
    if settings.pipeline_env == source:
        raise PermanentError(
            f"PIPELINE_ENV is {source}: promote from the environment that receives"
        )
    tested = registry.by_alias(client, registry.model_name(source), CHAMPION)
    if tested is None:
        raise NoChampionError(f"{registry.model_name(source)} has no champion to promote")
    records.ensure_schema(warehouse)
    version = registry.copy_version(client, tested, name)
    holdout = pa.concat_tables(files.read(SNAPSHOTS, str(version.week)))
    judged = judgement.judge(client, warehouse, version, holdout, settings, decided_by=actor)
    if not judged.accepted:
        return judged, None
    reason = f"promoted from {tested}"
    return judged, deploy(client, warehouse, version, actor=actor, reason=reason)


def production(
    client: "MlflowClient", warehouse: psycopg.Connection, name: str
) -> Registered | None:
    """The champion by the last row of the audit, once pending moves are finished; to be called under `alone`.

    The alias must agree with the audit, but doesn't decide: while it was missing, a model that the
    comparison with the champion had refused would be judged without one, accepted and deployed. For the
    same reason a champion that was deleted in MLflow remains the champion until a rollback.

    Raises:
        RefusedError: the alias is missing or was set by hand, or the version's artifact isn't the one
            that was deployed.
        registry.RegistryError: the champion was deleted in MLflow.
    """
    last = _last_move(client, warehouse, name)
    audited = last and last.champion_after
    deployed = _as_deployed(client, last, audited) if last and audited else None
    alias = registry.alias_target(client, name, CHAMPION)
    if audited == alias:
        return deployed
    found = f"points to version {alias}" if alias else "is missing"
    if audited is None:
        raise RefusedError(
            f"{name}: the alias {CHAMPION} {found}, but no deployment is known; delete the alias in "
            "MLflow, and let deployed_model set it"
        )
    raise RefusedError(
        f"{name}: version {audited} was deployed, but the alias {CHAMPION} {found}: it was changed by "
        f"hand. Set it back to version {audited} in MLflow (`pipeline-assets mlflow ui`), or go back to "
        "the champion before it (`pipeline-assets rollback`)"
    )


def champion(client: "MlflowClient", warehouse: psycopg.Connection, name: str) -> Registered:
    """The version in production. The verdict that it was deployed under holds, whatever came later.

    Raises:
        NoChampionError: there is none.
        RefusedError, registry.RegistryError: see `production`.
    """
    with alone(warehouse, name):
        found = production(client, warehouse, name)
    if found is None:
        raise NoChampionError(
            f"{name} has no champion yet: materialize training_snapshots, trained_model and "
            "deployed_model for a closed week"
        )
    return found


@contextmanager
def champion_files(
    client: "MlflowClient", warehouse: psycopg.Connection, name: str
) -> Iterator[tuple[Registered, Path]]:
    """The champion and a copy of its files, verified as for scoring, for a server that reads no audit.

    As they are a copy, later changes in the registry don't reach the server.

    Raises:
        NoChampionError, RefusedError, registry.RegistryError: see `champion`; or its files aren't those that
            the gate let through, have types that aren't trusted, or would be loaded in another way.
    """
    version = champion(client, warehouse, name)
    _verdict_at_deployment(warehouse, version)
    with registry.verified_files(version) as files:
        registry.check_types(files / registry.MODEL_FILE)
        registry.check_loader(files)
        yield version, files


@contextmanager
def alone(warehouse: psycopg.Connection, name: str) -> Iterator[None]:
    """Keep other processes from deploying, rolling back or judging a version of this model meanwhile.

    The lock is the session's, not a transaction's: the audit must be committed whatever happens next.
    """
    lock = "hashtext('pipeline_assets.champion'), hashtext(%s)"
    warehouse.execute(f"SELECT pg_advisory_lock({lock})", [name])
    try:
        yield
    finally:
        if not warehouse.broken:
            warehouse.execute(f"SELECT pg_advisory_unlock({lock})", [name])


def person() -> str:
    """The user at the terminal, for the audit."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "a user without a name"


def _refuse_steps_back(
    version: Registered,
    champion: Registered | None,
    verdict: records.Verdict,
    history: list[Deployment],
) -> None:
    for found in history:
        if found.action == "rollback" and found.champion_before == version.version:
            raise RefusedError(
                f"{version} was rolled back on {found.started_at:%Y-%m-%d} by {found.actor} "
                f"({found.reason}); train a new one"
            )
    if champion and champion.week > version.week:
        raise RefusedError(
            f"{version} is of the week of {version.week}, the champion (version {champion.version}) of "
            f"{champion.week}: an older model doesn't replace a newer one; roll back instead"
        )
    if verdict.champion_version != (champion.version if champion else None):
        raise RefusedError(
            f"{version} was compared with champion version {verdict.champion_version or 'none'}, but "
            f"today's is {champion.version if champion else 'none'}; materialize trained_model again"
        )


def _last_move(
    client: "MlflowClient", warehouse: psycopg.Connection, name: str
) -> Deployment | None:
    """The audit's last row, once the moves that a killed process began are finished.

    They were verified before they were recorded. One whose version was deleted since can't be finished:
    it is rolled back.
    """
    for deployment in records.deployments(warehouse, name):
        if deployment.finished_at is None:
            target = deployment.champion_after
            if target is None or _existing(client, name, target):
                _move(client, warehouse, deployment)
                continue
            records.finish_deployment(warehouse, deployment)
            reason = f"version {target} was deleted in MLflow before its deployment was finished"
            _go_back(client, warehouse, deployment, target, actor=deployment.actor, reason=reason)
    history = records.deployments(warehouse, name)
    return history[-1] if history else None


def _go_back(
    client: "MlflowClient",
    warehouse: psycopg.Connection,
    last: Deployment,
    champion: int,
    *,
    actor: str,
    reason: str,
) -> Deployment:
    name = last.model_name
    earlier = _champions_before(records.deployments(warehouse, name), champion)
    usable = [found for number in earlier if (found := _usable(client, warehouse, name, number))]
    if not usable and _usable(client, warehouse, name, champion):
        raise NoChampionError(f"{name} has no previous champion to go back to")
    target, verdict = usable[0] if usable else (None, None)
    lost = earlier[: earlier.index(target.version)] if target else earlier
    if lost:
        reason += f"; can't be used any more: version {', '.join(map(str, lost))}"
    return _move(
        client,
        warehouse,
        records.start_deployment(
            warehouse,
            name,
            target,
            "rollback" if target else "withdraw",
            before=champion,
            previous_after=usable[1][0].version if len(usable) > 1 else None,
            actor=actor,
            reason=reason,
            metrics=verdict.metrics if verdict else {},
        ),
    )


def _champions_before(history: list[Deployment], version: int) -> list[int]:
    """The champion that a version replaced, the one that this had replaced, and so on, the newest first."""
    replaced = {
        move.champion_after: move.champion_before for move in history if move.action == "deploy"
    }
    found: list[int] = []
    before = replaced.get(version)
    while before and before not in (version, *found):
        found.append(before)
        before = replaced.get(before)
    return found


def _usable(
    client: "MlflowClient", warehouse: psycopg.Connection, name: str, number: int
) -> tuple[Registered, records.Verdict] | None:
    """A version with the verdict that it was deployed under; None if its files are missing or changed."""
    try:
        version = registry.by_version(client, name, number)
        verdict = _verdict_at_deployment(warehouse, version)
        with registry.verified_files(version):
            return version, verdict
    except (RefusedError, registry.RegistryError):
        return None


def _verdict_at_deployment(warehouse: psycopg.Connection, version: Registered) -> records.Verdict:
    deployed = [
        move.started_at
        for move in records.deployments(warehouse, version.name)
        if move.action == "deploy" and move.champion_after == version.version
    ]
    return records.passed_verdict(warehouse, version, at=max(deployed))


def _as_deployed(client: "MlflowClient", last: Deployment, number: int) -> Registered:
    if _existing(client, last.model_name, number) is None:
        raise registry.RegistryError(
            f"{last.model_name}: version {number} is in production, but was deleted in MLflow; go back to "
            "the newest champion that is left (`pipeline-assets rollback`)"
        )
    found = registry.by_version(client, last.model_name, number)
    if found.artifact_hash != last.artifact_hash:
        raise RefusedError(
            f"{found}: artifact {last.artifact_hash[:12]} was deployed, but {found.artifact_hash[:12]} is "
            "registered; restore the version's tag artifact_hash, or go back to the champion before it "
            "(`pipeline-assets rollback`)"
        )
    return found


def _existing(client: "MlflowClient", name: str, version: int | None) -> int | None:
    """The version, or None if it was deleted in MLflow."""
    try:
        return registry.by_version(client, name, version).version if version else None
    except registry.RegistryError:
        return None


def _move(
    client: "MlflowClient", warehouse: psycopg.Connection, deployment: Deployment
) -> Deployment:
    name = deployment.model_name
    # The previous champion may have been deleted since; that mustn't stop the new one.
    previous = _existing(client, name, deployment.previous_after)
    for alias, number in ((PREVIOUS, previous), (CHAMPION, deployment.champion_after)):
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, str(number))
    records.finish_deployment(warehouse, deployment)
    return records.deployments(warehouse, name)[-1]
