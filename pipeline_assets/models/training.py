"""Training: the candidates, the choice among them and the fit; the holdout is never seen here.

The choice is made out of time inside the training snapshots: candidates learn from the older ones and
are compared on the newest, whose label window begins after theirs closed. The winner then learns from
all. One thread and fixed seeds: the same data gives the same model to the last digit.
"""

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from pipeline_assets.failures import PermanentError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline


class LeakageError(PermanentError):
    """Training data that knows what happened after the holdout's cutoff."""


@dataclass(frozen=True)
class TrainedModel:
    """The chosen candidate, fitted on all training snapshots."""

    name: str
    """Candidate: `logistic_regression` or `gradient_boosting`, with its variant after a colon."""
    pipeline: "Pipeline"
    """Takes `snapshots.feature_frame`, has `predict_proba`; scikit-learn's own classes only."""
    parameters: dict[str, Any]
    """What the candidate was built with, flat, for the record."""
    validation: dict[str, dict[str, float]]
    """Candidate -> metric -> mean over the validation snapshots (log_loss decides)."""
    cutoffs: tuple[date, ...]


def train(training: "pa.Table", holdout_cutoff: date) -> TrainedModel:
    """Choose and fit a model on a table of closed snapshots.

    Raises:
        LeakageError: a snapshot's label closes after the holdout's cutoff.
        PermanentError: fewer than six cutoffs, a label is missing, or nobody bought.
    """
    raise NotImplementedError


def predict(pipeline: "Pipeline", snapshot: "pa.Table") -> "NDArray[np.float64]":
    """Each row's probability of a purchase in the horizon."""
    raise NotImplementedError
