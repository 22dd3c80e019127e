"""How good scores are: metrics with bootstrap intervals, paired comparison, slices.

Customers are resampled, and a snapshot has one row per customer. All sampling is seeded: the same scores
give the same figures to the last digit.

Up to `SUBSET` customers the plain bootstrap is used. Beyond, a thousand resamples of all customers would take
an hour, and the bag of little bootstraps replaces it (Kleiner, Talwalkar, Sarkar & Jordan 2014, A scalable
bootstrap for massive data, J. R. Stat. Soc. B 76(4)): ten random subsets, each resampled to the size of the
whole a hundred times. Their figures scatter as much as those of resamples of the whole would; the figures
themselves are always computed on all customers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
"""Metric -> its display name."""
LOSSES = ("log_loss", "brier")
"""The metrics of which lower values are better."""
RESAMPLES = 1000
SUBSET, SUBSETS = 50_000, 10
"""Customers per subset, and how many subsets: together they cost what 50,000 customers cost. In the paper,
subsets of n^0.6 and more do as well as the whole; for 2.4 million customers that is 6,700."""
CELLS_AT_ONCE = 200_000
"""Resamples times customers of one matrix: 1.6 MB, of which a core's cache holds a few."""
PERCENTILES = (2.5, 97.5)
SEED = 2005
TOP = 0.1
SMALLEST_CHANCE = 1e-6
"""Log loss clips scores to this distance from 0 and 1: a wrong score of full certainty costs 13.8."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval (percentiles)."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Evaluation:
    """Metric -> estimate, on one set of customers.

    `calibration` is predicted over actual buyers; `top_decile_capture` the share of all buyers that is
    among the tenth of the customers with the highest scores, ties split evenly.
    """

    customers: int
    buyers: int
    metrics: Mapping[str, Estimate]
    deviations: "NDArray[np.float64]" = field(compare=False, repr=False)
    """The figures of each resample minus those of the set that it was drawn from; the axes are subset,
    resample and metric. All evaluations of one set of customers use the same resamples."""

    def __getitem__(self, metric: str) -> Estimate:
        return self.metrics[metric]


def evaluate(
    labels: "NDArray[np.bool_]", scores: "NDArray[np.float64]", *, resamples: int = RESAMPLES
) -> Evaluation:
    """Every metric of `METRICS`.

    Raises:
        PermanentError: lengths differ, a score isn't within 0 and 1, or all or none bought.
    """
    import numpy as np

    random, customers = np.random.default_rng(SEED), len(labels)
    whole = _Ranking(labels, scores)
    values = whole.metrics([np.ones((1, customers))])
    if customers <= SUBSET:
        deviations = [whole.metrics(_resamples(random, customers, resamples)) - values]
    else:
        deviations = []
        for _ in range(min(SUBSETS, resamples)):
            chosen = random.choice(customers, SUBSET, replace=False, shuffle=False)
            subset = _Ranking(labels[chosen], scores[chosen])
            weights = _resamples_of_all(random, customers, -(-resamples // SUBSETS))
            deviations.append(subset.metrics(weights) - subset.metrics([np.ones((1, SUBSET))]))
    return _evaluation(customers, int(labels.sum()), values[0], np.stack(deviations))


def compare(evaluation: Evaluation, reference: Evaluation) -> Evaluation:
    """The differences evaluation minus reference, resample by resample.

    Raises:
        PermanentError: they differ in their customers or in the number of resamples.
    """
    import numpy as np

    whose = [
        (each.customers, each.buyers, each.deviations.shape) for each in (evaluation, reference)
    ]
    if whose[0] != whose[1]:
        raise PermanentError(
            f"evaluations of other customers or resamples can't be compared: {whose[0]} and {whose[1]}"
        )
    values = np.array(
        [[each[metric].value for metric in METRICS] for each in (evaluation, reference)]
    )
    return _evaluation(
        evaluation.customers,
        evaluation.buyers,
        values[0] - values[1],
        evaluation.deviations - reference.deviations,
    )


def evaluate_slices(
    snapshot: "pa.Table", scores: "NDArray[np.float64]", *, resamples: int = RESAMPLES
) -> dict[str, Evaluation]:
    """Slice -> evaluation: customers with one purchase so far, and with several.

    A slice in which all or none bought is left out: its metrics are undefined.
    """
    labels = snapshots.labels(snapshot)
    repeat = snapshot["repeat_purchases"].to_numpy() > 0
    return {
        name: evaluate(labels[rows], scores[rows], resamples=resamples)
        for name, rows in (("one-time buyers", ~repeat), ("repeat buyers", repeat))
        if 0 < labels[rows].sum() < rows.sum()
    }


class _Ranking:
    """Customers sorted by score, the highest first, prepared for weighted metrics."""

    def __init__(self, labels: "NDArray[np.bool_]", scores: "NDArray[np.float64]") -> None:
        import numpy as np

        _check(labels, scores)
        self.scores = scores
        chance = scores.clip(SMALLEST_CHANCE, 1 - SMALLEST_CHANCE)
        self.loss = -np.log(np.where(labels, chance, 1 - chance))
        self.squares = (scores - labels) ** 2
        self.order = np.argsort(-scores, kind="stable")
        bought = labels[self.order]
        # Customers with equal scores form one step, as their order among themselves is arbitrary. Only
        # steps with a buyer contribute: a tenth of all steps where a tenth of the customers buys.
        last = np.append(np.flatnonzero(np.diff(scores[self.order])), len(scores) - 1)
        first = np.append(0, last[:-1] + 1)
        with_buyer = np.logical_or.reduceat(bought, first)
        self.first, self.last = first[with_buyer], last[with_buyer]
        self.buyers = np.flatnonzero(bought)
        self.last_buyer = np.searchsorted(self.buyers, self.last, side="right") - 1

    def metrics(self, drawn: "Iterable[NDArray[np.float64]]") -> "NDArray[np.float64]":
        """The figures of `METRICS` for each row of weights, one weight per customer.

        NaN where they are undefined, as a row has only buyers or none.
        """
        import numpy as np

        return np.concatenate([self._metrics(weights) for weights in drawn])

    def _metrics(self, weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
        import numpy as np

        # `take` keeps each row contiguous, which indexing would not: a row's sums then don't depend on
        # the number of rows.
        ranked = weights.take(self.order, axis=1)
        reached = ranked.cumsum(axis=1)
        customers = reached[:, -1]
        found = ranked.take(self.buyers, axis=1).cumsum(axis=1).take(self.last_buyer, axis=1)
        buyers = np.where(found[:, -1] > 0, found[:, -1], np.nan)
        gained = np.diff(found, axis=1, prepend=0.0)
        after = reached.take(self.last, axis=1)
        before = reached.take(self.first, axis=1) - ranked.take(self.first, axis=1)
        others, passed = after - found, after - before - gained
        # Cumulated buyers over customers: linear within a step that has a buyer, flat between such steps.
        curve_customers = np.stack([before, after], axis=2).reshape(len(weights), -1)
        curve_buyers = np.stack([found - gained, found], axis=2).reshape(len(weights), -1)
        captured = [
            np.interp(TOP * of_all, reaches, finds)
            for of_all, reaches, finds in zip(customers, curve_customers, curve_buyers, strict=True)
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            # The share of pairs of a buyer and a non-buyer where the buyer comes first; ties count half.
            auc = 1 - (gained * (others - passed / 2)).sum(axis=1) / (
                buyers * (customers - found[:, -1])
            )
            precision = (gained * (found / np.maximum(after, 1))).sum(axis=1) / buyers
            return np.column_stack(
                [
                    auc,
                    precision,
                    (weights * self.loss).sum(axis=1) / customers,
                    (weights * self.squares).sum(axis=1) / customers,
                    (weights * self.scores).sum(axis=1) / buyers,
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


def _resamples(
    random: "np.random.Generator", customers: int, count: int
) -> "Iterator[NDArray[np.float64]]":
    """How often each customer is drawn, with replacement; yields several resamples at a time, one per row."""
    import numpy as np

    at_once = max(1, CELLS_AT_ONCE // customers)
    for start in range(0, count, at_once):
        rows = min(at_once, count - start)
        drawn = random.integers(customers, size=(rows, customers))
        drawn += np.arange(rows)[:, None] * customers
        times = np.bincount(drawn.ravel(), minlength=rows * customers)
        yield times.reshape(rows, customers).astype(np.float64)


def _resamples_of_all(
    random: "np.random.Generator", customers: int, count: int
) -> "Iterator[NDArray[np.float64]]":
    """How often each customer of a subset is drawn when it is resampled to the size of the whole."""
    import numpy as np

    chances, at_once = np.full(SUBSET, 1 / SUBSET), max(1, CELLS_AT_ONCE // SUBSET)
    for start in range(0, count, at_once):
        rows = min(at_once, count - start)
        yield random.multinomial(customers, chances, size=rows).astype(np.float64)


def _evaluation(
    customers: int, buyers: int, values: "NDArray[np.float64]", deviations: "NDArray[np.float64]"
) -> Evaluation:
    import numpy as np

    # A resample of a small slice may have no buyers, and NaN for metrics.
    bounds = values + np.nanpercentile(deviations, PERCENTILES, axis=1).mean(axis=1)
    metrics = {
        metric: Estimate(float(value), float(lower), float(upper))
        for metric, value, lower, upper in zip(METRICS, values, *bounds, strict=True)
    }
    return Evaluation(customers, buyers, metrics, deviations)
