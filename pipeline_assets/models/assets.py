"""The model's four weekly assets: snapshot, training, deployment, scores.

A partition is a week from Monday to Monday. Its snapshot has the cutoff four weeks before the week's
end, so that its labels are closed; its model learns from snapshots whose labels were closed at that
cutoff, and is judged on that snapshot; its scores are as of the week's end. Judging is a separate
step, the checks of `trained_model`: see `checks`.
"""

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets import __version__
from pipeline_assets.metadata import column_schema, image, preview
from pipeline_assets.models.checks import (
    RETRAINING,
    days_result,
    days_spec,
    deployed_spec,
    distribution_result,
    drift_result,
    prediction_specs,
    realised_result,
    trained_version,
)
from pipeline_assets.models.names import DEPLOYED, EVALUATED, PREDICTIONS, SNAPSHOTS, TRAINED
from pipeline_assets.partitions import partition_windows
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.resources.postgres import Database
from pipeline_assets.resources.progress import Progress
from pipeline_assets.running import RETRY, freshness, permanent_failures
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.assets import target_name
from pipeline_assets.warehouse.checks import log_partitions, rule_results, rule_specs
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

    from pipeline_assets.models.registry import Registered
    from pipeline_assets.models.snapshots import Window

WEEK = timedelta(weeks=1)
HISTORY_WEEKS = 260
"""How far back a week's upstream days reach in the graph; age and first amount look back without limit."""


def weeks(settings: Settings) -> dg.WeeklyPartitionsDefinition:
    """The model's partitions, named by their Monday."""
    return dg.WeeklyPartitionsDefinition(
        settings.models_start_date.isoformat(),
        day_offset=1,
        timezone=settings.pipeline_timezone,
    )


def model_assets(
    settings: Settings, table: Table, partitions: dg.WeeklyPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """`training_snapshots`, `trained_model`, `deployed_model` and `purchase_predictions`.

    `evaluated_asset` comes between the second and the third. `table` is that of the orders.
    """
    return [
        snapshots_asset(settings, table, partitions),
        trained_asset(settings, partitions),
        deployed_asset(settings, partitions),
        predictions_asset(settings, table, partitions),
    ]


def snapshots_asset(
    settings: Settings, table: Table, partitions: dg.WeeklyPartitionsDefinition
) -> dg.AssetsDefinition:
    """`training_snapshots`: one per week; a range of weeks takes a run each, or a single run on request."""

    @dg.asset(
        name=SNAPSHOTS,
        deps=[_daily(table)],
        kinds={"postgres", "parquet"},
        description=(
            "What the warehouse knew of each customer at a cutoff, and whether he bought within the 28 "
            "days after it. The cutoff lies 28 days before the week's end. A run of `early_retraining` "
            "computes those that the week's model learns from anew, too."
        ),
        check_specs=[days_spec(SNAPSHOTS, partitions)],
        **_common(settings, partitions, "models_training"),
    )
    def training_snapshots(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        from pipeline_assets.models import registration, snapshots

        keys, learnt_from = list(context.partition_keys), []
        if context.run.tags.get(RETRAINING):
            # Training on unchanged snapshots would only find the existing model: compute them anew.
            learnt_from = registration.training_weeks(settings, date.fromisoformat(keys[0]))
        results = {}
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            for key in progress([*learnt_from, *keys], SNAPSHOTS):
                week = date.fromisoformat(key)
                cutoff, end = snapshots.holdout_cutoff(week), week + WEEK
                results[key] = _require_days(connection, settings, table, end, f"{SNAPSHOTS} {key}")
                snapshot = snapshots.read(
                    warehouse.url(), cutoff, as_of=end, timezone=settings.pipeline_timezone
                )
                window = snapshots.describe(snapshot)
                files.write(SNAPSHOTS, key, [snapshot])
                about = {
                    "dagster/column_schema": _columns(snapshot),
                    **_window(window),
                    "base_rate": (window.buyers or 0) / window.rows,
                    "path": files.path(SNAPSHOTS, key),
                    "preview": preview(snapshot.slice(0, 10)),
                }
                if key in keys:
                    context.add_asset_metadata(about, partition_key=key)
                else:
                    context.log_event(
                        dg.AssetMaterialization(SNAPSHOTS, partition=key, metadata=about)
                    )
        if len(results) > 1:
            by_week = ((key, [result]) for key, result in results.items())
            log_partitions(context, SNAPSHOTS, by_week)
        # The newest week rests on all days that the others rest on.
        return dg.MaterializeResult(check_results=[results[keys[-1]]])

    return training_snapshots


def trained_asset(
    settings: Settings, partitions: dg.WeeklyPartitionsDefinition
) -> dg.AssetsDefinition:
    """`trained_model`: an MLflow run and a version, alias `challenger`."""

    @dg.asset(
        name=TRAINED,
        deps=[
            dg.AssetDep(
                SNAPSHOTS,
                # Of these weeks every fourth is read; the holdout is the week's own snapshot.
                partition_mapping=dg.TimeWindowPartitionMapping(
                    start_offset=-4 * settings.models_training_snapshots,
                    allow_nonexistent_upstream_partitions=True,
                ),
            )
        ],
        kinds={"mlflow", "scikitlearn"},
        description=(
            f"The week's version of `{settings.pipeline_env}.purchase_propensity`: the best of the "
            "candidates, chosen inside the training snapshots, with alias `challenger`. Its checks are "
            "the gate. A replay on the same data, code and libraries finds the version that there is."
        ),
        **_common(settings, partitions, "models_training"),
    )
    def trained_model(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        mlflow: dg.ResourceParam[Mlflow],
    ) -> dg.MaterializeResult:
        from pipeline_assets.models import promotion, registration, registry, snapshots

        week, name = date.fromisoformat(context.partition_key), _name(settings)
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            training = registration.training_table(files, settings, week)
            window = snapshots.describe(training)
            cutoff = snapshots.holdout_cutoff(week)
            mark = registry.fingerprint(window.content_hash, cutoff)
            client = mlflow.client()
            # Two runs of one week would each find that there is no such version yet.
            with promotion.alone(connection, f"{name} {week}"):
                version = registration.existing_version(client, name, mark)
                replayed = version is not None
                if version is None:
                    tags = {
                        "week": str(week),
                        "training_hash": window.content_hash,
                        "fingerprint": mark,
                    }
                    with mlflow.run(context, connection, tags) as (client, run_id):
                        version = registration.train_version(
                            client, name, run_id, training, window, week, mark
                        )
            record = registry.training_record(version)
        chosen = record.validation[version.candidate]
        return dg.MaterializeResult(
            metadata={
                **_window(window),
                **_version(version, mlflow),
                "candidate": version.candidate,
                "replayed": replayed,
                "holdout_cutoff": str(cutoff),
                **{f"validation_{metric}": value for metric, value in chosen.items()},
                "candidates": _candidates(record.validation),
                "code_version": record.code_version,
            },
            data_version=dg.DataVersion(version.artifact_hash),
        )

    return trained_model


def evaluated_asset(partitions: dg.WeeklyPartitionsDefinition) -> dg.AssetSpec:
    """`model_evaluation`: the gate's verdict, which the checks of `trained_model` write.

    Can't be materialized by itself: as an asset after the checks it would exist for accepted models only.
    """
    return dg.AssetSpec(
        EVALUATED,
        deps=[TRAINED, SNAPSHOTS],
        description=(
            "What the gate found of the week's version on the holdout, accepted or refused: its verdict in "
            "`pipeline.gate_verdicts`, its figures, plots and model card in the MLflow run. The checks of "
            "`trained_model` make it."
        ),
        kinds={"postgres", "mlflow"},
        group_name="models_evaluation",
        partitions_def=partitions,
        owners=["team:data-science"],
        code_version=__version__,
    )


def deployed_asset(
    settings: Settings, partitions: dg.WeeklyPartitionsDefinition
) -> dg.AssetsDefinition:
    """`deployed_model`: the alias `champion`."""

    @dg.asset(
        name=DEPLOYED,
        deps=[TRAINED, EVALUATED],
        kinds={"mlflow"},
        description=(
            "The model in production, alias `champion`. It moves to the week's version if the gate let "
            "that through, which is verified again here; every move is a row of "
            "`pipeline.champion_deployments`. A refusal leaves production as it was."
        ),
        check_specs=[deployed_spec(partitions)],
        **_common(settings, partitions, "models_deployment"),
    )
    def deployed_model(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        mlflow: dg.ResourceParam[Mlflow],
    ) -> dg.MaterializeResult:
        from pipeline_assets.models import promotion, records, registry
        from pipeline_assets.models.training import predict

        name = _name(settings)
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            client = mlflow.client()
            records.ensure_schema(connection)
            number = trained_version(context.instance, context.partition_key)
            version = registry.by_version(client, name, number)
            deployment = promotion.deploy(
                client,
                connection,
                version,
                actor=f"dagster run {context.run.run_id}",
                reason=f"the week of {context.partition_key} passed the gate",
            )
            champion = promotion.champion(client, connection, name)
            few = next(iter(files.read(SNAPSHOTS, context.partition_key))).slice(0, 100)
            scores = predict(registry.load(champion), few)
        return dg.MaterializeResult(
            metadata={
                **_version(version, mlflow),
                "champion_before": deployment.champion_before or 0,
                "deployment_id": deployment.deployment_id,
                **{
                    f"holdout_{metric}": value
                    for metric, (value, *_) in deployment.metrics["model"].items()
                },
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="champion_answers",
                    passed=champion.version == deployment.champion_after
                    and bool(((scores >= 0) & (scores <= 1)).all()),
                    metadata={"champion": champion.version, "customers": len(scores)},
                )
            ],
        )

    return deployed_model


def predictions_asset(
    settings: Settings, table: Table, partitions: dg.WeeklyPartitionsDefinition
) -> dg.AssetsDefinition:
    """`purchase_predictions`: every customer's score at the week's end, through the table's gate."""
    predictions = Table(load_contract(PREDICTIONS))
    contract = predictions.contract

    @dg.asset(
        name=PREDICTIONS,
        deps=[DEPLOYED, _daily(table)],
        kinds={"scikitlearn", "postgres"},
        description=contract.description,
        metadata={
            "dagster/column_schema": column_schema(contract.columns),
            "dagster/table_name": contract.target_relation,
        },
        check_specs=[
            *rule_specs(contract, PREDICTIONS, partitions),
            days_spec(PREDICTIONS, partitions),
            *prediction_specs(partitions),
        ],
        **{
            **_common(settings, partitions, "models_scoring"),
            "owners": [f"team:{contract.owner}"],
            "freshness_policy": freshness(contract),
            "code_version": f"{__version__}/{contract.version}",
        },
    )
    def purchase_predictions(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        mlflow: dg.ResourceParam[Mlflow],
    ) -> dg.MaterializeResult:
        from pipeline_assets.models import monitoring, promotion, records, scoring

        key = context.partition_key
        ((_, window),) = partition_windows(partitions, [key]).items()
        end = date.fromisoformat(key) + WEEK
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            days = _require_days(connection, settings, table, end, f"{PREDICTIONS} {key}")
            client = mlflow.client()
            records.ensure_schema(connection)
            champion = promotion.champion(client, connection, _name(settings))
            scored = scoring.score_week(
                predictions,
                champion,
                (key, window),
                files,
                warehouse.url(),
                connection,
                context.run.run_id,
                timezone=settings.pipeline_timezone,
            )
            found = monitoring.look_back(
                client, champion, scored, end, files, warehouse.url(), settings
            )
        verdict = scored.judgement.verdict
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": verdict.rows - verdict.rejected,
                "quarantined": verdict.rejected,
                **_version(champion, mlflow),
                "cutoff": str(end),
                "mean_probability": found.mean,
                "expected_buyers": round(found.mean * verdict.rows),
                **found.drift_figures,
                **{f"realised_{name}": value for name, value in found.realised_figures.items()},
                **{name: image(png) for name, png in found.images.items()},
                "preview": preview(scored.judgement.preview),
            },
            check_results=[
                *rule_results(contract, {key: scored.judgement}),
                days,
                distribution_result(found.mean, found.shares, len(scored.sample)),
                drift_result(found.moved, settings.models_max_score_drift),
                realised_result(found.came_true, settings),
            ],
        )

    return purchase_predictions


def _common(
    settings: Settings, partitions: dg.WeeklyPartitionsDefinition, group: str
) -> dict[str, Any]:
    return {
        "group_name": group,
        "partitions_def": partitions,
        "retry_policy": RETRY,
        "pool": "warehouse",
        "owners": ["team:data-science"],
        "code_version": f"{__version__}/{settings.models_training_snapshots}",
    }


def _name(settings: Settings) -> str:
    from pipeline_assets.models.registry import model_name

    return model_name(settings.pipeline_env)


def _daily(table: Table) -> dg.AssetDep:
    """The days of orders that a week depends on: all before its end, of which the graph shows five years."""
    return dg.AssetDep(
        target_name(table.contract),
        partition_mapping=dg.TimeWindowPartitionMapping(
            start_offset=-HISTORY_WEEKS, allow_nonexistent_upstream_partitions=True
        ),
    )


def _require_days(
    connection: "psycopg.Connection", settings: Settings, table: Table, end: date, what: str
) -> dg.AssetCheckResult:
    """Check the warehouse's days before `end`; raises if more are held or missing than allowed."""
    from pipeline_assets.models.completeness import days_before, incomplete_days, require_days

    days = days_before(end, settings)
    incomplete = incomplete_days(connection, table.contract, days)
    require_days(incomplete, len(days), settings.models_missing_days, what)
    return days_result(incomplete, len(days))


def _window(window: "Window") -> dict[str, Any]:
    return {
        "dagster/partition_row_count": window.rows,
        "buyers": window.buyers,
        "first_purchase": str(window.first_purchase),
        "cutoffs": ", ".join(map(str, window.cutoffs)),
        "labels_close": str(window.closes),
        "content_hash": window.content_hash,
    }


def _version(version: "Registered", mlflow: Mlflow) -> dict[str, Any]:
    link = mlflow.run_url(version.run_id)
    return {
        "model": version.name,
        "model_version": version.version,
        "artifact_hash": version.artifact_hash,
        "mlflow_run_id": version.run_id,
        **({"mlflow_run": dg.MetadataValue.url(link)} if link else {}),
    }


def _columns(snapshot: "pa.Table") -> dg.TableSchema:
    from pipeline_assets.models.snapshots import FEATURES

    return dg.TableSchema(
        [
            dg.TableColumn(field.name, str(field.type), FEATURES.get(field.name))
            for field in snapshot.schema
        ]
    )


def _candidates(validation: dict[str, dict[str, float]]) -> dg.MarkdownMetadataValue:
    import pyarrow as pa

    rows = [
        {"candidate": name, **{metric: f"{value:.4f}" for metric, value in metrics.items()}}
        for name, metrics in validation.items()
    ]
    return preview(pa.Table.from_pylist(rows))
