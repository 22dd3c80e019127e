"""A week's training, from snapshots to a version in the registry, unless that version exists already.

Belongs here: what is read, what is recorded of it, and when nothing needs to be trained. `training` fits and
chooses candidates; `registry` defines what a version is.
"""

from datetime import date
from typing import TYPE_CHECKING

from pipeline_assets.models import registry, snapshots
from pipeline_assets.models.names import SNAPSHOTS
from pipeline_assets.models.registry import Registered
from pipeline_assets.models.training import train
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient


def training_weeks(settings: Settings, week: date) -> list[str]:
    """The partitions of `training_snapshots` that a week's model learns from, oldest first.

    Only those with at least four weeks of orders before their cutoff.
    """
    first = settings.warehouse_start_date + 4 * snapshots.WEEK
    mondays = snapshots.every_fourth_week(
        week, settings.models_training_snapshots, settings.models_start_date
    )
    return [str(monday) for monday in mondays if snapshots.holdout_cutoff(monday) >= first]


def training_table(files: PartitionFiles, settings: Settings, week: date) -> "pa.Table":
    """The snapshots that a week's model learns from, as one table; empty if the week is too early for any.

    Raises:
        MissingPartitionError: one was never built; the message says which to materialize.
    """
    import pyarrow as pa

    parts = [
        part for monday in training_weeks(settings, week) for part in files.read(SNAPSHOTS, monday)
    ]
    return pa.concat_tables([snapshots.schema().empty_table(), *parts])


def existing_version(client: "MlflowClient", name: str, fingerprint: str) -> Registered | None:
    """The version that is the result of exactly this training, if its files are undamaged."""
    version = registry.by_fingerprint(client, name, fingerprint)
    if version is None:
        return None
    try:
        registry.training_record(version)
    except registry.RegistryError:
        return None
    if client.get_run(version.run_id).info.status != "FINISHED":
        # The process was killed between the registration and the run's end.
        client.set_terminated(version.run_id, "FINISHED")
    if version.version > (registry.alias_target(client, name, registry.CHALLENGER) or 0):
        # Or between the version and its alias.
        client.set_registered_model_alias(name, registry.CHALLENGER, str(version.version))
    return version


def train_version(
    client: "MlflowClient",
    name: str,
    run_id: str,
    training: "pa.Table",
    window: snapshots.Window,
    week: date,
    fingerprint: str,
) -> Registered:
    """Train, log to the active MLflow run `run_id`, and register. Raises what `training.train` raises."""
    import mlflow

    cutoff = snapshots.holdout_cutoff(week)
    trained = train(training, cutoff)
    record = registry.TrainingRecord(window, trained.validation, registry.code_version())
    mlflow.set_tags({"mlflow.runName": f"{week} {trained.name}", "git_commit": record.code_version})
    mlflow.log_params(
        {
            "candidate": trained.name,
            **trained.parameters,
            "training_rows": window.rows,
            "training_hash": window.content_hash,
            "training_cutoffs": " ".join(map(str, window.cutoffs)),
            "holdout_cutoff": cutoff,
        }
    )
    for candidate, metrics in trained.validation.items():
        mlflow.log_metrics(
            {f"validation_{candidate}_{metric}": value for metric, value in metrics.items()}
        )
    return registry.register(
        client,
        name,
        registry.log_model(trained.pipeline, training, record),
        run_id,
        {
            "week": str(week),
            "candidate": trained.name,
            "fingerprint": fingerprint,
        },
    )
