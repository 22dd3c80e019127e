"""The model card: what a model is for, what it learnt from, how good it is and where it ends.

After Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pipeline_assets.models.evaluation import Evaluation
from pipeline_assets.models.gate import Finding
from pipeline_assets.models.snapshots import Window


@dataclass(frozen=True)
class ModelCard:
    """What a card tells."""

    name: str
    """The registered name, such as `dev.purchase_propensity`."""
    candidate: str
    week: date
    training: Window
    holdout: Window
    evaluation: Evaluation
    baseline: Evaluation
    slices: Mapping[str, Evaluation]
    validation: Mapping[str, Mapping[str, float]]
    findings: Sequence[Finding]
    code_version: str
    """The Git commit."""


def render(card: ModelCard) -> str:
    """The card in Markdown; texts that come from outside are escaped."""
    raise NotImplementedError
