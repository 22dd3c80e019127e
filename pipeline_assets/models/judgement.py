"""Judging a registered version on the holdout: the figures come from the artifact that would be deployed.

The version is loaded from the registry, as deployment would load it, and scores the holdout beside the
baseline and the champion. The findings go to the warehouse, figures and plots to the MLflow run that
trained it. `gate` defines the rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from pipeline_assets.models import gate, plots, promotion, records, registry, snapshots
from pipeline_assets.models.baseline import baseline_scores
from pipeline_assets.models.evaluation import (
    Estimate,
    Evaluation,
    compare,
    evaluate,
    evaluate_slices,
)
from pipeline_assets.models.gate import Finding
from pipeline_assets.models.model_card import ModelCard, render
from pipeline_assets.models.plots import HistoryPoint
from pipeline_assets.models.registry import Registered, TrainingRecord
from pipeline_assets.models.rules import RULES, SMOKE
from pipeline_assets.models.settings import GateThresholds
from pipeline_assets.models.training import predict
from pipeline_assets.resources.local_files import temporary_folder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from mlflow import MlflowClient
    from numpy.typing import NDArray

SLICE_RESAMPLES = 200
"""Slices inform, and decide nothing: a fifth of the resamples is enough."""


@dataclass(frozen=True)
class Judgement:
    """The result of judging a version on the holdout; without scores if it couldn't be used."""

    version: Registered
    findings: Sequence[Finding]
    holdout: snapshots.Window
    training: TrainingRecord | None = None
    champion: Registered | None = None
    evaluation: Evaluation | None = None
    baseline: Evaluation | None = None
    difference: Mapping[str, Estimate] | None = None
    """The version's figures minus the champion's."""
    slices: Mapping[str, Evaluation] | None = None
    scores: "Mapping[str, NDArray[np.float64]] | None" = None
    """Who scored -> scores, this version first."""

    @property
    def accepted(self) -> bool:
        """Whether the version may be deployed."""
        return gate.accepts(self.findings)

    @property
    def metrics(self) -> dict[str, dict[str, Estimate]]:
        """Whose -> metric -> estimate, as far as there are scores."""
        found = {
            "model": self.evaluation and self.evaluation.metrics,
            "baseline": self.baseline and self.baseline.metrics,
            "difference": self.difference,
        }
        return {whose: dict(metrics) for whose, metrics in found.items() if metrics}


def judge(
    client: "MlflowClient",
    warehouse: psycopg.Connection,
    version: Registered,
    holdout: "pa.Table",
    thresholds: GateThresholds,
    *,
    decided_by: str,
) -> Judgement:
    """Judge a version on a snapshot with closed labels, and record the verdict.

    What it was trained on is read from its own files, which the verdict's artifact hash covers.

    The champion can't change between the comparison and the record of the verdict.

    Raises:
        registry.RegistryError, records.RefusedError: the champion can't be used, so that nothing can be
            compared with it.
    """
    with promotion.alone(warehouse, version.name):
        in_production = promotion.production(client, warehouse, version.name)
        judgement = _judge(version, in_production, holdout, thresholds)
        records.record_verdict(
            warehouse,
            version,
            judgement.findings,
            judgement.metrics,
            training_hash=judgement.training.window.content_hash if judgement.training else "",
            holdout_hash=judgement.holdout.content_hash,
            champion_version=in_production.version if in_production else None,
            decided_by=decided_by,
        )
    client.set_model_version_tag(
        version.name,
        str(version.version),
        "verdict",
        "passed" if judgement.accepted else "refused",
    )
    return judgement


def _judge(
    version: Registered,
    champion: Registered | None,
    holdout: "pa.Table",
    thresholds: GateThresholds,
) -> Judgement:
    window, labels = snapshots.describe(holdout), snapshots.labels(holdout)
    try:
        training = registry.training_record(version)
        scores = predict(registry.load(version), holdout)
        _check_scores(version, scores)
    except registry.RegistryError as error:
        return Judgement(version, _unusable(str(error)), window)
    yardstick = baseline_scores(holdout)
    by_whom = {"model": scores, "BG/NBD": yardstick}
    evaluation, baseline = evaluate(labels, scores), evaluate(labels, yardstick)
    difference = None
    if champion:
        by_whom["champion"] = predict(registry.load(champion), holdout)
        difference = compare(evaluation, evaluate(labels, by_whom["champion"])).metrics
    smoke = Finding(
        SMOKE,
        True,
        figures={"customers": len(scores), "artifact_hash": version.artifact_hash},
    )
    findings = gate.judge(
        thresholds,
        evaluation,
        baseline,
        difference,
        training_cutoffs=training.window.cutoffs,
        holdout_cutoff=window.cutoffs[-1],
    )
    return Judgement(
        version,
        [smoke, *findings],
        window,
        training,
        champion,
        evaluation,
        baseline,
        difference,
        evaluate_slices(holdout, scores, resamples=SLICE_RESAMPLES),
        by_whom,
    )


def _check_scores(version: Registered, scores: "NDArray[np.float64]") -> None:
    # Written so that NaN fails too.
    if wrong := int((~((scores >= 0) & (scores <= 1))).sum()):
        raise registry.RegistryError(
            f"{version} gives {wrong} of {len(scores)} customers no probability"
        )


def _unusable(reason: str) -> list[Finding]:
    """The findings on a version that can't be loaded: nothing else could be looked at."""
    return [
        Finding(name, False, advice=reason if name == SMOKE else "Not judged: there are no scores.")
        for name in RULES
    ]


def log(
    client: "MlflowClient",
    warehouse: psycopg.Connection,
    judgement: Judgement,
    holdout: "pa.Table",
    thresholds: GateThresholds,
) -> None:
    """Add figures, plots and the model card to the MLflow run that trained the version."""
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    version, evaluation, baseline = judgement.version, judgement.evaluation, judgement.baseline
    training = judgement.training
    if evaluation is None or baseline is None or training is None:
        client.set_tag(version.run_id, "verdict", "refused")
        return
    now = get_current_time_millis()
    figures = [
        Metric(f"{whose}_{name}{suffix}", figure, now, step=0)
        for whose, estimates in judgement.metrics.items()
        for name, estimate in estimates.items()
        for suffix, figure in (
            ("", estimate.value),
            ("_lower", estimate.lower),
            ("_upper", estimate.upper),
        )
    ]
    # Logged one by one, each of the dozens of figures would be a transaction.
    client.log_batch(version.run_id, metrics=figures)
    client.set_tag(version.run_id, "verdict", "passed" if judgement.accepted else "refused")
    card = render(
        ModelCard(
            name=version.name,
            candidate=version.candidate,
            week=version.week,
            training=training.window,
            holdout=judgement.holdout,
            evaluation=evaluation,
            baseline=baseline,
            slices=judgement.slices or {},
            validation=training.validation,
            findings=judgement.findings,
            code_version=training.code_version,
        )
    )
    client.update_model_version(
        version.name,
        str(version.version),
        # MLflow's database limits a description to 5,000 characters; the card has more.
        f"{version.candidate} of the week of {version.week}. Its card is evaluation/model_card.md of "
        "the run.",
    )
    with temporary_folder() as folder:
        (folder / "model_card.md").write_text(card, encoding="utf-8")
        for name, image in images(warehouse, judgement, holdout, thresholds).items():
            (folder / f"{name}.png").write_bytes(image)
        client.log_artifacts(version.run_id, str(folder), "evaluation")


def images(
    warehouse: psycopg.Connection,
    judgement: Judgement,
    holdout: "pa.Table",
    thresholds: GateThresholds,
) -> dict[str, bytes]:
    """Plot -> PNG."""
    labels, scores = snapshots.labels(holdout), judgement.scores or {}
    figures = {
        "precision_recall": plots.precision_recall(labels, scores),
        "roc": plots.roc(labels, scores),
        "reliability": plots.reliability(labels, scores),
        "lift": plots.lift(labels, scores),
    }
    points = history(warehouse, judgement.version.name)
    figures["history"] = plots.history(points, metric="auc", threshold=thresholds.models_min_auc)
    if judgement.difference:
        figures["champion_comparison"] = plots.champion_comparison(
            judgement.difference,
            {
                "average_precision": -thresholds.models_champion_precision_margin,
                "log_loss": thresholds.models_champion_log_loss_margin,
            },
        )
    return {name: plots.png(figure) for name, figure in figures.items()}


def history(warehouse: psycopg.Connection, name: str) -> list[HistoryPoint]:
    """The latest AUC of every version that could be judged, and its outcome; oldest first."""
    deployed = {
        found.champion_after
        for found in records.deployments(warehouse, name)
        if found.action == "deploy"
    }
    newest = {
        verdict.model_version: verdict
        for verdict in records.verdicts(warehouse, name)
        if "model" in verdict.metrics
    }
    return [
        HistoryPoint(
            week=verdict.week,
            version=str(version),
            estimate=Estimate(*verdict.metrics["model"]["auc"]),
            outcome="promoted"
            if version in deployed
            else "refused"
            if verdict.verdict == "refused"
            else "kept",
        )
        for version, verdict in newest.items()
    ]
