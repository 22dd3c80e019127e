"""The gate's rules one by one, at their bounds and beyond."""

from datetime import date, timedelta
from math import nan
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline_assets.models.evaluation import Estimate, Evaluation
from pipeline_assets.models.gate import Finding, accepts, judge
from pipeline_assets.models.rules import GATE_RULES
from pipeline_assets.models.settings import GateThresholds
from pipeline_assets_tests.unit.models.builders import differences, evaluation

HOLDOUT = date(2026, 10, 26)
TRAINING = [HOLDOUT - timedelta(weeks=weeks) for weeks in (12, 8, 4)]
EQUAL = differences((-0.001, 0.001), (-0.0001, 0.0001))


def judged(
    found: Evaluation | None = None,
    *,
    baseline: Evaluation | None = None,
    against: dict[str, Estimate] | None = EQUAL,
    cutoffs: list[date] = TRAINING,
    **thresholds: Any,
) -> list[Finding]:
    return judge(
        GateThresholds.model_validate(thresholds),
        found or evaluation(),
        baseline or evaluation(average_precision=0.33),
        against,
        training_cutoffs=cutoffs,
        holdout_cutoff=HOLDOUT,
    )


def failed(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if not finding.passed]


def test_a_good_model_passes_every_rule() -> None:
    findings = judged()
    assert [finding.name for finding in findings] == list(GATE_RULES)
    assert failed(findings) == []
    assert accepts(findings)
    assert all(finding.advice == "" for finding in findings)


def test_the_first_model_needs_no_champion_but_all_the_rest() -> None:
    assert accepts(judged(against=None))
    findings = judged(evaluation(auc=0.6, average_precision=0.1, calibration=2.0), against=None)
    assert failed(findings) == [
        "auc_sufficient",
        "precision_over_base_rate",
        "precision_over_baseline",
        "calibrated",
    ]
    assert not accepts(findings)


@pytest.mark.parametrize(
    ("figures", "rule"),
    [
        ({"auc": 0.7499}, "auc_sufficient"),
        ({"auc": nan}, "auc_sufficient"),
        ({"average_precision": 0.2449, "base_rate": 0.07}, "precision_over_base_rate"),
        ({"average_precision": nan}, "precision_over_base_rate"),
        ({"average_precision": 0.3299}, "precision_over_baseline"),
        ({"calibration": 0.59}, "calibrated"),
        ({"calibration": 1.61}, "calibrated"),
        ({"calibration": nan}, "calibrated"),
    ],
)
def test_a_figure_beyond_its_bound_refuses_the_model(figures: dict[str, float], rule: str) -> None:
    findings = judged(evaluation(**figures))
    assert rule in failed(findings)
    assert not accepts(findings)
    advice = {finding.name: finding.advice for finding in findings}
    assert advice[rule]


@pytest.mark.parametrize(
    "figures",
    [{"auc": 0.75}, {"calibration": 0.8}, {"calibration": 1.25}, {"average_precision": 0.33}],
)
def test_a_figure_at_its_bound_passes(figures: dict[str, float]) -> None:
    assert failed(judged(evaluation(**figures))) == []


@pytest.mark.parametrize("ratio", [0.6, 0.79, 1.26, 1.6])
def test_a_moderate_miscalibration_warns_and_does_not_refuse(ratio: float) -> None:
    findings = judged(evaluation(calibration=ratio))
    assert [(each.name, each.severity) for each in findings if not each.passed] == [
        ("calibrated", "warn")
    ]
    assert accepts(findings)
    assert "MODELS_CALIBRATION_WARN" in findings[4].advice


@pytest.mark.parametrize(
    ("precision", "loss"),
    [
        ((-0.0051, 0.02), (-0.01, -0.001)),  # the model may be less precise, whatever its log loss
        ((0.001, 0.02), (-0.01, 0.0011)),  # its log loss may be higher, however precise it is
        ((nan, nan), (-0.01, -0.001)),
    ],
)
def test_a_champion_that_may_be_better_by_more_than_the_margin_stays(
    precision: tuple[float, float], loss: tuple[float, float]
) -> None:
    findings = judged(against=differences(precision, loss))
    assert failed(findings) == ["not_worse_than_champion"]
    assert not accepts(findings)
    assert "the champion stays" in findings[3].advice


def test_a_label_that_closed_after_the_holdouts_cutoff_is_leakage() -> None:
    late = HOLDOUT - timedelta(days=27)
    findings = judged(cutoffs=[*TRAINING, late])
    assert failed(findings) == ["no_leakage"]
    assert not accepts(findings)
    assert str(late) in findings[5].advice
    assert failed(judged(cutoffs=[])) == ["no_leakage"]


def test_thresholds_are_the_deployments_own() -> None:
    assert failed(judged(models_min_auc=0.9)) == ["auc_sufficient"]
    assert failed(judged(models_min_precision_over_base_rate=6)) == ["precision_over_base_rate"]
    assert failed(judged(models_min_precision_over_baseline=0.02)) == ["precision_over_baseline"]
    strict: dict[str, Any] = {"models_champion_precision_margin": 0.0005}
    assert failed(judged(**strict)) == ["not_worse_than_champion"]
    narrow: dict[str, Any] = {
        "models_calibration_fail": (0.99, 1.01),
        "models_calibration_warn": (0.99, 1.01),
    }
    assert not accepts(judged(evaluation(calibration=1.1), **narrow))


@pytest.mark.parametrize(
    ("fail", "warn"),
    [((0.6, 1.6), (0.5, 1.25)), ((0.6, 1.6), (1.1, 1.2)), ((0.9, 1.1), (0.8, 1.2))],
)
def test_calibration_bounds_lie_inside_each_other(
    fail: tuple[float, float], warn: tuple[float, float]
) -> None:
    with pytest.raises(ValidationError, match="MODELS_CALIBRATION_WARN must lie inside"):
        GateThresholds(models_calibration_fail=fail, models_calibration_warn=warn)
