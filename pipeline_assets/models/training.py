"""Training: the candidates, the choice among them and the fit; the holdout is never seen here.

Candidates are validated out of time inside the training snapshots: they learn from the older ones and
are compared on the newest, whose horizon begins after the others' labels closed. The winner is then
refitted on all. One thread and fixed seeds: the same data gives the same model to the last digit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from pipeline_assets.failures import PermanentError
from pipeline_assets.models.evaluation import METRICS, evaluate
from pipeline_assets.models.snapshots import FEATURES, HORIZON, feature_frame, labels

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

VALIDATIONS = 2
"""How many of the newest training snapshots the candidates are compared on."""
INTERACTING = (
    "repeat_purchases",
    "days_since_last",
    "age_days",
    "purchases_13w",
    "purchases_26w",
    "last_over_mean_gap",
)
"""The features whose squares and products the second candidate adds: frequency and recency."""
TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
"""What skops must be told to trust to load a candidate, beside what it trusts by itself."""


class LeakageError(PermanentError):
    """Training labels depend on what happened after the holdout's cutoff."""


@dataclass(frozen=True)
class TrainedModel:
    """The chosen candidate, fitted on all training snapshots."""

    name: str
    """The candidate, one of `CANDIDATES`."""
    pipeline: "Pipeline"
    """Takes `snapshots.feature_frame`, has `predict_proba`; scikit-learn's own classes only."""
    parameters: dict[str, Any]
    """The candidate's parameters, flat, as they are logged."""
    validation: dict[str, dict[str, float]]
    """Candidate -> metric -> mean over the validation snapshots (log_loss decides)."""


@dataclass(frozen=True)
class Candidate:
    """A model that may be chosen: how it is built, and with which parameters."""

    build: "Callable[..., Pipeline]"
    parameters: Mapping[str, Any]


def train(training: "pa.Table", holdout_cutoff: date) -> TrainedModel:
    """Choose and fit a model on a table of closed snapshots, whose rows may be in any order.

    Raises:
        LeakageError: a snapshot's label closes after the holdout's cutoff.
        PermanentError: too few cutoffs to compare candidates out of time, a label isn't closed, or
            nobody bought.
    """
    import pyarrow.compute as pc

    cutoffs = tuple(sorted(training["cutoff"].unique().to_pylist()))
    _refuse_leakage(cutoffs, holdout_cutoff)
    rows = training.sort_by([("cutoff", "ascending"), ("customer_id", "ascending")])
    folds = _folds(cutoffs)
    with _one_thread():
        scores: dict[str, list[Mapping[str, float]]] = {name: [] for name in CANDIDATES}
        for older, newest in folds:
            known = rows.filter(pc.less_equal(rows["cutoff"], older))
            asked = rows.filter(pc.equal(rows["cutoff"], newest))
            for name, candidate in CANDIDATES.items():
                found = evaluate(
                    labels(asked), _predict(_fit(candidate, known), asked), resamples=1
                )
                scores[name].append({metric: found[metric].value for metric in METRICS})
        validation = {
            name: {
                metric: sum(fold[metric] for fold in of_folds) / len(of_folds) for metric in METRICS
            }
            for name, of_folds in scores.items()
        }
        best = min(CANDIDATES, key=lambda name: validation[name]["log_loss"])
        pipeline = _fit(CANDIDATES[best], rows)
    return TrainedModel(best, pipeline, dict(CANDIDATES[best].parameters), validation)


def predict(pipeline: "Pipeline", snapshot: "pa.Table") -> "NDArray[np.float64]":
    """Each row's probability of a purchase in the horizon."""
    with _one_thread():
        return _predict(pipeline, snapshot)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit native libraries to one thread.

    With several, sums depend on which thread finishes first, and OpenMP's threads spin while they wait: 21 s
    of CPU for 3 s of trees.
    """
    import sklearn.ensemble  # noqa: F401 - only libraries that are loaded already can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def _refuse_leakage(cutoffs: Sequence[date], holdout_cutoff: date) -> None:
    if late := [cutoff for cutoff in cutoffs if cutoff + HORIZON > holdout_cutoff]:
        raise LeakageError(
            f"the label of the training snapshot at {late[-1]} closes on {late[-1] + HORIZON}, after "
            f"the holdout's cutoff {holdout_cutoff}: train on snapshots at {holdout_cutoff - HORIZON} "
            "or before"
        )


def _folds(cutoffs: Sequence[date]) -> list[tuple[date, date]]:
    """Each fold's newest training cutoff and its validation cutoff, the newest fold first."""
    folds = []
    for newest in cutoffs[: -VALIDATIONS - 1 : -1]:
        closed = [cutoff for cutoff in cutoffs if cutoff + HORIZON <= newest]
        if closed:
            folds.append((closed[-1], newest))
    if not folds:
        raise PermanentError(
            f"candidates can't be compared on {len(cutoffs)} training snapshots "
            f"({', '.join(map(str, cutoffs)) or 'none'}): that takes two, {HORIZON.days} days apart; "
            "choose a later week, or materialize the snapshots before"
        )
    return folds


def _fit(candidate: Candidate, rows: "pa.Table") -> "Pipeline":
    bought = labels(rows)
    if not 0 < bought.sum() < len(bought):
        raise PermanentError(
            f"{int(bought.sum())} of {len(bought)} customers bought in the training snapshots: there "
            "is nothing to learn; look at the warehouse table"
        )
    return candidate.build(**candidate.parameters).fit(feature_frame(rows), bought)


def _predict(pipeline: "Pipeline", snapshot: "pa.Table") -> "NDArray[np.float64]":
    found: NDArray[np.float64] = pipeline.predict_proba(feature_frame(snapshot))[:, 1]
    return found


def logistic_regression(C: float) -> "Pipeline":  # noqa: N803 - scikit-learn's name
    """Logistic regression on the logarithms of all features, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(_logarithms(list(FEATURES)), LogisticRegression(C=C, max_iter=MOST_STEPS))


def logistic_interactions(C: float) -> "Pipeline":  # noqa: N803 - scikit-learn's name
    """`logistic_regression` with the squares and products of the features in `INTERACTING`."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    products = make_pipeline(
        _logarithms(list(INTERACTING)),
        PolynomialFeatures(2, include_bias=False),
        StandardScaler(),
    )
    return make_pipeline(
        make_column_transformer(
            (_logarithms(list(FEATURES)), list(FEATURES)), (products, list(INTERACTING))
        ),
        LogisticRegression(C=C, max_iter=MOST_STEPS),
    )


def gradient_boosting(**parameters: Any) -> "Pipeline":
    """Boosted trees on the features as they are; each split learns which way an unknown gap goes."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        HistGradientBoostingClassifier(early_stopping=False, random_state=0, **parameters)
    )


def _logarithms(columns: list[str]) -> "ColumnTransformer":
    """Standardised logarithms of 1 + x; a gap that isn't known yet counts as 0.

    Counts, days and money all span orders of magnitude: the step from the first purchase to the second
    is as large as from the fifth to the tenth.
    """
    import numpy as np
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    return make_column_transformer(
        (
            make_pipeline(
                SimpleImputer(strategy="constant", fill_value=0.0),
                FunctionTransformer(np.log1p, feature_names_out="one-to-one"),
                StandardScaler(),
            ),
            columns,
        )
    )


MOST_STEPS = 5000
CANDIDATES: dict[str, Candidate] = {
    "logistic_regression": Candidate(logistic_regression, {"C": 0.01}),
    "logistic_regression_interactions": Candidate(logistic_interactions, {"C": 0.01}),
    "gradient_boosting": Candidate(
        gradient_boosting,
        {
            "learning_rate": 0.05,
            "max_iter": 100,
            "max_leaf_nodes": 8,
            "min_samples_leaf": 400,
            "l2_regularization": 10.0,
        },
    ),
}
"""Name -> candidate. Candidates and `C` were compared on earlier weeks and on both phases of nine
holdouts, including those that `benchmarks.models` reports: its figures aren't independent of the choice."""
