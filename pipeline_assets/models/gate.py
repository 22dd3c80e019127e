"""The gate: what a model must have reached on the holdout before it may be deployed.

Pure: from figures to findings, one a rule. Where the figures come from, and what becomes of a refused
model, belongs elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from pipeline_assets.models.evaluation import Estimate, Evaluation
from pipeline_assets.models.settings import GateThresholds

RULES: dict[str, str] = {
    "auc_sufficient": "The model tells buyers from others well enough.",
    "precision_over_base_rate": "Average precision is a multiple of what chance reaches.",
    "precision_over_baseline": "Average precision isn't below a BG/NBD refitted at the cutoff.",
    "not_worse_than_champion": "On the same holdout the champion isn't better by more than a margin.",
    "calibrated": "As many customers bought as were predicted, within bounds.",
    "no_leakage": "Every training label was closed at the holdout's cutoff.",
}
"""Rule -> what it says; `judge` has a finding for each, in this order."""


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
    """A finding for every rule of `RULES`.

    `against_champion` is `evaluation.compare` of the model with the champion on this holdout; None if
    there is no champion yet, which passes that rule and no other.
    """
    raise NotImplementedError


def accepts(findings: Iterable[Finding]) -> bool:
    """Whether the model may be deployed: no finding of severity `error` failed."""
    return all(finding.passed or finding.severity == "warn" for finding in findings)
