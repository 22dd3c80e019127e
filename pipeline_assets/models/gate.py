"""The gate: what a model must have reached on the holdout before it may be deployed.

Pure functions from figures to findings, one per rule. Where the figures come from, and what happens to a
refused model, belongs elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from pipeline_assets.models.evaluation import Estimate, Evaluation
from pipeline_assets.models.rules import GATE_RULES
from pipeline_assets.models.settings import GateThresholds
from pipeline_assets.models.snapshots import HORIZON


@dataclass(frozen=True)
class Finding:
    """What a rule found. Only a failed one of severity `error` refuses the model."""

    name: str
    passed: bool
    severity: Literal["error", "warn"] = "error"
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """What was compared with what, thresholds included."""
    advice: str = ""
    """What is wrong and what to do; empty if passed."""


def judge(
    thresholds: GateThresholds,
    evaluation: Evaluation,
    baseline: Evaluation,
    against_champion: Mapping[str, Estimate] | None,
    *,
    training_cutoffs: Sequence[date],
    holdout_cutoff: date,
) -> list[Finding]:
    """A finding for every rule of `GATE_RULES`.

    `against_champion` has the metrics of `evaluation.compare`, model minus champion on this holdout; None
    if there is no champion yet, which passes the champion's rule but no other.
    """
    found = [
        _auc_sufficient(thresholds, evaluation),
        _precision_over_base_rate(thresholds, evaluation),
        _precision_over_baseline(thresholds, evaluation, baseline),
        _not_worse_than_champion(thresholds, against_champion),
        _calibrated(thresholds, evaluation),
        _no_leakage(training_cutoffs, holdout_cutoff),
    ]
    assert [finding.name for finding in found] == list(GATE_RULES)  # noqa: S101 - our own lists
    return found


def accepts(findings: Iterable[Finding]) -> bool:
    """Whether the model may be deployed: no finding of severity `error` failed."""
    return all(finding.passed or finding.severity == "warn" for finding in findings)


# Each comparison is written so that NaN fails it.


def _auc_sufficient(thresholds: GateThresholds, evaluation: Evaluation) -> Finding:
    auc, bound = evaluation["auc"], thresholds.models_min_auc
    return _finding(
        "auc_sufficient",
        auc.value >= bound,
        {**_estimate("auc", auc), "at_least": bound},
        f"AUC is {auc.value:.3f}, below {bound:g} (MODELS_MIN_AUC): the scores hardly tell buyers from "
        "others. Look at the drift of the features and at the labels of the newest snapshots.",
    )


def _precision_over_base_rate(thresholds: GateThresholds, evaluation: Evaluation) -> Finding:
    precision, base_rate = evaluation["average_precision"], evaluation["base_rate"].value
    factor = thresholds.models_min_precision_over_base_rate
    return _finding(
        "precision_over_base_rate",
        precision.value >= factor * base_rate,
        {
            **_estimate("average_precision", precision),
            "base_rate": base_rate,
            "times_base_rate": precision.value / base_rate,
            "at_least": factor,
        },
        f"Average precision is {precision.value:.3f}, {precision.value / base_rate:.2f} times the base "
        f"rate, below {factor:g} times (MODELS_MIN_PRECISION_OVER_BASE_RATE): the highest scores hold "
        "too few buyers.",
    )


def _precision_over_baseline(
    thresholds: GateThresholds, evaluation: Evaluation, baseline: Evaluation
) -> Finding:
    precision, reference = evaluation["average_precision"], baseline["average_precision"]
    difference = precision.value - reference.value
    bound = thresholds.models_min_precision_over_baseline
    return _finding(
        "precision_over_baseline",
        difference >= bound,
        {
            **_estimate("average_precision", precision),
            "baseline": reference.value,
            "difference": difference,
            "at_least": bound,
        },
        f"Average precision is {precision.value:.3f}, BG/NBD's {reference.value:.3f}: the difference is "
        f"below {bound:g} (MODELS_MIN_PRECISION_OVER_BASELINE), so three numbers a customer do as well "
        "as this model.",
    )


def _not_worse_than_champion(
    thresholds: GateThresholds, against_champion: Mapping[str, Estimate] | None
) -> Finding:
    name = "not_worse_than_champion"
    if against_champion is None:
        return Finding(name, True, figures={"champion": "none yet"})
    precision, loss = against_champion["average_precision"], against_champion["log_loss"]
    lowest = -thresholds.models_champion_precision_margin
    highest = thresholds.models_champion_log_loss_margin
    return _finding(
        name,
        precision.lower > lowest and loss.upper < highest,
        {
            **_estimate("average_precision_difference", precision),
            "lower_bound_above": lowest,
            **_estimate("log_loss_difference", loss),
            "upper_bound_below": highest,
        },
        f"Minus the champion's, average precision may be as low as {precision.lower:+.4f} (above "
        f"{lowest:+g} is needed, MODELS_CHAMPION_PRECISION_MARGIN) and log loss as high as "
        f"{loss.upper:+.4f} (below {highest:+g}, MODELS_CHAMPION_LOG_LOSS_MARGIN): the champion stays.",
    )


def _calibrated(thresholds: GateThresholds, evaluation: Evaluation) -> Finding:
    ratio = evaluation["calibration"]
    (fail_low, fail_high), (low, high) = (
        thresholds.models_calibration_fail,
        thresholds.models_calibration_warn,
    )
    bearable = fail_low <= ratio.value <= fail_high
    bounds = "MODELS_CALIBRATION_WARN" if bearable else "MODELS_CALIBRATION_FAIL"
    crossed = (low, high) if bearable else (fail_low, fail_high)
    return _finding(
        "calibrated",
        low <= ratio.value <= high,
        {
            **_estimate("predicted_over_actual", ratio),
            "warn_outside": f"{low:g} to {high:g}",
            "fail_outside": f"{fail_low:g} to {fail_high:g}",
        },
        f"The model predicted {ratio.value:.2f} times the buyers that there were, outside {crossed[0]:g} "
        f"to {crossed[1]:g} ({bounds}). Rates follow the season; a model that is far off learnt from "
        "another time than it is used in.",
        severity="warn" if bearable else "error",
    )


def _no_leakage(training_cutoffs: Sequence[date], holdout_cutoff: date) -> Finding:
    late = [cutoff for cutoff in training_cutoffs if not cutoff + HORIZON <= holdout_cutoff]
    return _finding(
        "no_leakage",
        bool(training_cutoffs) and not late,
        {
            "training_cutoffs": ", ".join(str(cutoff) for cutoff in sorted(training_cutoffs)),
            "holdout_cutoff": str(holdout_cutoff),
        },
        f"Labels of the training snapshots {', '.join(map(str, sorted(late))) or '(none)'} weren't closed "
        f"at the holdout's cutoff {holdout_cutoff}: the model may have seen what it is asked. Train it "
        f"on snapshots at least {HORIZON.days} days older.",
    )


def _finding(
    name: str,
    passed: bool,
    figures: Mapping[str, float | str],
    advice: str,
    severity: Literal["error", "warn"] = "error",
) -> Finding:
    return Finding(name, passed, severity, figures, "" if passed else advice)


def _estimate(name: str, estimate: Estimate) -> dict[str, float | str]:
    return {name: estimate.value, f"{name}_lower": estimate.lower, f"{name}_upper": estimate.upper}
