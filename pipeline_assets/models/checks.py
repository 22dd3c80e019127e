"""The asset checks of the model's assets: what the gate found, and how predictions fare.

Every spec carries the asset's partitions, or a good week would open the gate for a bad one. The gate's
checks on `trained_model` are a step of their own: the evaluation, between training and deployment.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.failures import PermanentError
from pipeline_assets.models.names import DEPLOYED, EVALUATED, PREDICTIONS, SNAPSHOTS, TRAINED
from pipeline_assets.models.rules import RULES
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import RETRY, permanent_failures
from pipeline_assets.settings import Settings

if TYPE_CHECKING:
    from pipeline_assets.models.gate import Finding
    from pipeline_assets.models.monitoring import Incomparable, Movement, Realised
    from pipeline_assets.models.registry import Registered

SCORE_DRIFT, REALISED = "score_drift", "realised_performance"
"""The checks whose failure triggers early retraining."""
RETRAINING = "retraining"
"""The tag of a run that those checks triggered: its snapshots are computed anew."""
MEASURED = "measured"
"""Metadata that is false where a check had nothing to compare: such a failure triggers no retraining."""
NAMED = 20


def days_spec(asset: str, partitions: dg.PartitionsDefinition[str]) -> dg.AssetCheckSpec:
    """Whether all days that an asset rests on are in the warehouse."""
    return dg.AssetCheckSpec(
        "days_complete",
        asset=asset,
        description=(
            "Every day of the warehouse that this rests on passed its gate and is loaded. A share above "
            "MODELS_MISSING_DAYS is an error, and nothing is computed."
        ),
        partitions_def=partitions,
    )


def days_result(incomplete: dict[str, str], days: int) -> dg.AssetCheckResult:
    """Name the held or missing days, whose share is within the allowed one."""
    return dg.AssetCheckResult(
        check_name="days_complete",
        passed=not incomplete,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "days": days,
            "incomplete": len(incomplete),
            "share": round(len(incomplete) / days, 4) if days else 0.0,
            "named": dict(list(incomplete.items())[:NAMED]),
        },
    )


def gate_specs(partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """A blocking check for each rule that a model must keep."""
    return [
        dg.AssetCheckSpec(
            name,
            asset=TRAINED,
            description=sentence,
            blocking=True,
            partitions_def=partitions,
        )
        for name, sentence in RULES.items()
    ]


def gate_results(findings: "Sequence[Finding]", version: "Registered") -> list[dg.AssetCheckResult]:
    """The findings as checks, each with its figures."""
    return [
        dg.AssetCheckResult(
            asset_key=TRAINED,
            check_name=finding.name,
            passed=finding.passed,
            severity=dg.AssetCheckSeverity.ERROR
            if finding.severity == "error"
            else dg.AssetCheckSeverity.WARN,
            description=finding.advice or "Kept.",
            metadata={
                **finding.figures,
                "model_version": version.version,
                "mlflow_run_id": version.run_id,
            },
        )
        for finding in findings
    ]


def evaluation(
    settings: Settings, partitions: dg.PartitionsDefinition[str]
) -> dg.AssetChecksDefinition:
    """The step that judges the week's version on the holdout: registry in, verdict and checks out."""

    @dg.multi_asset_check(
        name=EVALUATED,
        specs=gate_specs(partitions),
        retry_policy=RETRY,
        description=(
            "Loads the registered version, scores the holdout beside the baseline and the champion, and "
            "records the verdict: the asset `model_evaluation`. Figures, plots and the model card go to its "
            "MLflow run."
        ),
    )
    def model_evaluation(
        context: dg.AssetCheckExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        mlflow: dg.ResourceParam[Mlflow],
    ) -> Iterator[dg.AssetCheckResult]:
        import pyarrow as pa

        from pipeline_assets.models import judgement, records, registry

        name = registry.model_name(settings.pipeline_env)
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            client = mlflow.client()
            records.ensure_schema(connection)
            number = trained_version(context.instance, context.partition_key)
            version = registry.by_version(client, name, number)
            holdout = pa.concat_tables(files.read(SNAPSHOTS, context.partition_key))
            judged = judgement.judge(
                client, connection, version, holdout, settings, decided_by=context.run.run_id
            )
            judgement.log(client, connection, judged, holdout, settings)
        verdict = "passed" if judged.accepted else "refused"
        context.log.info(f"{version}: {verdict}")
        context.op_execution_context.log_event(
            dg.AssetMaterialization(
                EVALUATED,
                partition=context.partition_key,
                metadata={
                    "verdict": verdict,
                    "model_version": version.version,
                    "champion": judged.champion.version if judged.champion else "none yet",
                    "holdout_hash": judged.holdout.content_hash,
                    **{
                        f"{whose}_{name}": estimate.value
                        for whose, estimates in judged.metrics.items()
                        for name, estimate in estimates.items()
                    },
                },
            )
        )
        yield from gate_results(judged.findings, version)

    return model_evaluation


def trained_version(instance: dg.DagsterInstance, week: str) -> int:
    """The number of the version that the week's newest training made or found.

    It needn't be the week's highest: after a change is reverted, a replay finds the version from before it.

    Raises:
        PermanentError: the week wasn't trained.
    """
    of_week = dg.AssetRecordsFilter(dg.AssetKey(TRAINED), asset_partitions=[week])
    found = instance.fetch_materializations(of_week, limit=1).records
    event = found[0].asset_materialization if found else None
    number = event and event.metadata.get("model_version")  # one reported by hand has none
    if number is None:
        raise PermanentError(f"no version of week {week} is known: materialize {TRAINED}")
    return int(str(number.value))


def deployed_spec(partitions: dg.PartitionsDefinition[str]) -> dg.AssetCheckSpec:
    """Whether production is what was deployed."""
    return dg.AssetCheckSpec(
        "champion_answers",
        asset=DEPLOYED,
        description="The alias `champion` points to the version of the audit, and that loads and scores.",
        partitions_def=partitions,
    )


def prediction_specs(partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """What is checked of the predictions, apart from their contract."""
    sentences = {
        "distribution": (
            "The predicted share of buyers is one that the training snapshots have seen: between half of "
            "the smallest and twice the largest."
        ),
        SCORE_DRIFT: (
            "The scores are distributed as they are on the newest snapshot that the model learnt from "
            "(population stability index under MODELS_MAX_SCORE_DRIFT). The features' is shown beside."
        ),
        REALISED: (
            "The predictions of four weeks ago came true: their AUC is at least MODELS_MIN_AUC and "
            "predicted over actual buyers inside MODELS_CALIBRATION_FAIL. Left out are those of a model "
            "that had learnt from days after them."
        ),
    }
    return [
        dg.AssetCheckSpec(name, asset=PREDICTIONS, description=sentence, partitions_def=partitions)
        for name, sentence in sentences.items()
    ]


def distribution_result(
    mean: float, shares: "list[float] | Incomparable", sample: int
) -> dg.AssetCheckResult:
    """Compare the mean score with the shares of buyers in the training snapshots."""
    if not isinstance(shares, list):
        return _incomparable_result("distribution", shares)
    low, high = min(shares) / 2, max(shares) * 2
    return dg.AssetCheckResult(
        check_name="distribution",
        passed=low <= mean <= high,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"mean": mean, "at_least": low, "at_most": high, "sample": sample},
    )


def drift_result(moved: "Movement | Incomparable", bound: float) -> dg.AssetCheckResult:
    """The drift of the scores, with the features' drift as what may explain it."""
    from pipeline_assets.models.monitoring import Incomparable

    if isinstance(moved, Incomparable):
        return _incomparable_result(SCORE_DRIFT, moved)
    by_psi = sorted(moved.features.items(), key=lambda item: -item[1].psi)
    return dg.AssetCheckResult(
        check_name=SCORE_DRIFT,
        passed=moved.score.psi <= bound,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "psi": moved.score.psi,
            "ks": moved.score.ks,
            "at_most": bound,
            "features_psi": {name: round(found.psi, 4) for name, found in by_psi},
        },
    )


def _incomparable_result(check_name: str, found: "Incomparable") -> dg.AssetCheckResult:
    """The result of a check that had nothing to measure, with the reason."""
    return dg.AssetCheckResult(
        check_name=check_name,
        passed=found.as_usual,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.reason,
        metadata={MEASURED: False, "customers": 0, "left_out": found.left_out},
    )


def realised_result(found: "Realised | Incomparable", settings: Settings) -> dg.AssetCheckResult:
    """How the forecasts of four weeks ago came true, if there were any."""
    from pipeline_assets.models.monitoring import Incomparable

    if isinstance(found, Incomparable):
        return _incomparable_result(REALISED, found)
    auc, calibration = found.evaluation["auc"].value, found.evaluation["calibration"].value
    low, high = settings.models_calibration_fail
    return dg.AssetCheckResult(
        check_name=REALISED,
        passed=auc >= settings.models_min_auc and low <= calibration <= high,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "cutoff": found.cutoff.isoformat(),
            "model_version": found.model_version,
            "customers": found.evaluation.customers,
            "left_out": found.left_out,
            "buyers": found.evaluation.buyers,
            "auc": auc,
            "auc_at_least": settings.models_min_auc,
            "calibration": calibration,
            "calibration_between": f"{low} and {high}",
            "average_precision": found.evaluation["average_precision"].value,
            "log_loss": found.evaluation["log_loss"].value,
        },
    )
