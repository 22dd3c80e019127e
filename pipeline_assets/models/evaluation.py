"""How good scores are: metrics with bootstrap intervals, paired comparison, slices.

Resampling is by customer, and a snapshot has one row a customer. All of it is seeded: the same scores
give the same figures to the last digit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

METRICS = (
    "auc",
    "average_precision",
    "log_loss",
    "brier",
    "calibration",
    "top_decile_capture",
    "base_rate",
)
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval (percentiles)."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Evaluation:
    """Metric -> estimate, on one set of customers.

    `calibration` is predicted over actual buyers; `top_decile_capture` the share of the buyers among
    the tenth of the customers with the highest scores, ties shared out evenly.
    """

    customers: int
    buyers: int
    metrics: Mapping[str, Estimate]

    def __getitem__(self, metric: str) -> Estimate:
        return self.metrics[metric]


def evaluate(
    labels: "NDArray[np.bool_]", scores: "NDArray[np.float64]", *, resamples: int = RESAMPLES
) -> Evaluation:
    """Every metric of `METRICS`.

    Raises:
        PermanentError: lengths differ, a score isn't within 0 and 1, or all or none bought.
    """
    raise NotImplementedError


def compare(
    labels: "NDArray[np.bool_]",
    scores: "NDArray[np.float64]",
    reference: "NDArray[np.float64]",
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Metric -> the difference scores minus reference, both on the same resamples."""
    raise NotImplementedError


def slices(snapshot: "pa.Table") -> "dict[str, NDArray[np.bool_]]":
    """Name -> which rows: customers with one purchase, and with several."""
    raise NotImplementedError
