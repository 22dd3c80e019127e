"""How good scores are: metrics with bootstrap intervals, paired comparison, slices.

Resampling is by customer, and a snapshot has one row a customer. All of it is seeded: the same scores
give the same figures to the last digit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import snapshots

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

METRICS: dict[str, str] = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "calibration": "Predicted over actual buyers",
    "top_decile_capture": "Buyers in the top 10%",
    "base_rate": "Base rate",
}
"""Metric -> its name for people."""
RESAMPLES = 1000
CELLS_AT_ONCE = 2_000_000
"""Resamples times customers of one matrix: 16 MB, and a dozen of them at a time. A resample isn't divided,
so 2.4 million customers are one at a time."""
SEED = 2005
TOP = 0.1
SMALLEST_CHANCE = 1e-6
"""Log loss is counted as if nobody's chance were nearer to 0 or 1: certainty that is wrong costs 13.8."""


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
    ranking = _Ranking(labels, scores)
    values = ranking.metrics(_everyone(len(labels)))
    drawn = [ranking.metrics(weights) for weights in _resamples(len(labels), resamples)]
    return Evaluation(
        customers=len(labels), buyers=int(labels.sum()), metrics=_estimates(values, drawn)
    )


def compare(
    labels: "NDArray[np.bool_]",
    scores: "NDArray[np.float64]",
    reference: "NDArray[np.float64]",
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Metric -> the difference scores minus reference, both on the same resamples.

    Raises:
        PermanentError: as `evaluate`.
    """
    one, other = _Ranking(labels, scores), _Ranking(labels, reference)
    values = one.metrics(_everyone(len(labels))) - other.metrics(_everyone(len(labels)))
    drawn = [
        one.metrics(weights) - other.metrics(weights)
        for weights in _resamples(len(labels), resamples)
    ]
    return _estimates(values, drawn)


def evaluate_slices(
    snapshot: "pa.Table", scores: "NDArray[np.float64]", *, resamples: int = RESAMPLES
) -> dict[str, Evaluation]:
    """Slice -> evaluation: customers with one purchase so far, and with several.

    A slice in which all or none bought is left out: nothing can be said of it.
    """
    labels = snapshots.labels(snapshot)
    repeat = snapshot["repeat_purchases"].to_numpy() > 0
    return {
        name: evaluate(labels[rows], scores[rows], resamples=resamples)
        for name, rows in (("one-time buyers", ~repeat), ("repeat buyers", repeat))
        if 0 < labels[rows].sum() < rows.sum()
    }


class _Ranking:
    """Customers in the order of their scores, the highest first, ready for metrics under weights."""

    def __init__(self, labels: "NDArray[np.bool_]", scores: "NDArray[np.float64]") -> None:
        import numpy as np

        _check(labels, scores)
        self.order = np.argsort(-scores, kind="stable")
        self.bought = labels[self.order].astype(np.float64)
        self.scores = scores[self.order]
        # Customers with one score are one step: their order among themselves is chance.
        self.steps = np.append(np.flatnonzero(np.diff(self.scores)), len(scores) - 1)
        chance = self.scores.clip(SMALLEST_CHANCE, 1 - SMALLEST_CHANCE)
        self.loss = -np.log(np.where(self.bought > 0, chance, 1 - chance))
        self.squares = (self.scores - self.bought) ** 2

    def metrics(self, weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """The figures of `METRICS` for each row of weights, one weight a customer; NaN where a row
        has only buyers or none."""
        import numpy as np

        # `take` keeps each row in one piece, where indexing would not: a row's sums are then the same
        # however many rows there are.
        weights = weights.take(self.order, axis=1)
        reached = weights.cumsum(axis=1).take(self.steps, axis=1)
        found = (weights * self.bought).cumsum(axis=1).take(self.steps, axis=1)
        customers = reached[:, -1]
        buyers = np.where(found[:, -1] > 0, found[:, -1], np.nan)
        gained = np.diff(found, axis=1, prepend=0.0)
        others = reached - found
        passed = np.diff(others, axis=1, prepend=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Of all pairs of a buyer and another, those where the buyer comes first; ties count half.
            auc = 1 - (gained * (others - passed / 2)).sum(axis=1) / (buyers * others[:, -1])
            precision = (gained * (found / np.maximum(reached, 1))).sum(axis=1) / buyers
            predicted = (weights * self.scores).sum(axis=1)
            captured = [
                np.interp(TOP * row_reached[-1], row_reached, row_found)
                for row_reached, row_found in zip(
                    np.pad(reached, ((0, 0), (1, 0))), np.pad(found, ((0, 0), (1, 0))), strict=True
                )
            ]
            return np.column_stack(
                [
                    auc,
                    precision,
                    (weights * self.loss).sum(axis=1) / customers,
                    (weights * self.squares).sum(axis=1) / customers,
                    predicted / buyers,
                    captured / buyers,
                    found[:, -1] / customers,
                ]
            )


def _check(labels: "NDArray[np.bool_]", scores: "NDArray[np.float64]") -> None:
    if len(labels) != len(scores):
        raise PermanentError(f"{len(scores)} scores for {len(labels)} customers")
    # Written so that NaN fails too.
    if wrong := int((~((scores >= 0) & (scores <= 1))).sum()):
        raise PermanentError(
            f"{wrong} of {len(scores)} scores aren't probabilities between 0 and 1"
        )
    if not 0 < labels.sum() < len(labels):
        raise PermanentError(
            f"{int(labels.sum())} of {len(labels)} customers bought: with only one kind there is "
            "nothing to tell apart"
        )


def _everyone(customers: int) -> "NDArray[np.float64]":
    import numpy as np

    return np.ones((1, customers))


def _resamples(customers: int, count: int) -> "Iterator[NDArray[np.float64]]":
    """How often each customer is drawn, with replacement; some resamples at a time, one a row."""
    import numpy as np

    random = np.random.default_rng(SEED)
    at_once = max(1, CELLS_AT_ONCE // customers)
    for start in range(0, count, at_once):
        rows = min(at_once, count - start)
        drawn = random.integers(customers, size=(rows, customers))
        drawn += np.arange(rows)[:, None] * customers
        times = np.bincount(drawn.ravel(), minlength=rows * customers)
        yield times.reshape(rows, customers).astype(np.float64)


def _estimates(
    values: "NDArray[np.float64]", drawn: "list[NDArray[np.float64]]"
) -> dict[str, Estimate]:
    import numpy as np

    # A resample of a small slice may have no buyers, and no metric.
    bounds = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5], axis=0)
    return {
        metric: Estimate(float(value), float(lower), float(upper))
        for metric, value, lower, upper in zip(METRICS, values[0], *bounds, strict=True)
    }
