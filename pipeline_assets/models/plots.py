"""The plots of a model, as matplotlib figures: one question a plot, and its title is the answer.

No pyplot, whose figures are global and stay in memory. What is plotted is worked out elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal

from pipeline_assets.models.drift import Drift
from pipeline_assets.models.evaluation import Estimate

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Scores = Mapping[str, NDArray[np.float64]]
    """Who scored (`model`, `BG/NBD`, `champion`) -> scores; the first is the model in question."""


@dataclass(frozen=True)
class HistoryPoint:
    """A week's model in the metric history; `outcome` is what became of it."""

    week: date
    version: str
    estimate: Estimate
    outcome: Literal["promoted", "refused", "kept"]
    """`kept`: it passed, and wasn't deployed (yet)."""


def precision_recall(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """Precision over recall, with the base rate."""
    raise NotImplementedError


def roc(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """True over false positive rate."""
    raise NotImplementedError


def reliability(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """Actual over predicted share of buyers, by tenths of the customers."""
    raise NotImplementedError


def lift(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """Gain and lift over the share of customers reached."""
    raise NotImplementedError


def history(
    points: Sequence[HistoryPoint], *, metric: str, threshold: float | None = None
) -> "Figure":
    """A metric over the weeks, with its intervals, promotions and refusals marked."""
    raise NotImplementedError


def champion_comparison(
    differences: Mapping[str, Estimate], margins: Mapping[str, float]
) -> "Figure":
    """Challenger minus champion by metric, with intervals and the gate's bounds (metric -> bound)."""
    raise NotImplementedError


def drift(drifts: Mapping[str, Drift]) -> "Figure":
    """Population stability index by feature, with the usual bounds."""
    raise NotImplementedError


def png(figure: "Figure") -> bytes:
    """The figure as a PNG, the same bytes every time."""
    raise NotImplementedError
