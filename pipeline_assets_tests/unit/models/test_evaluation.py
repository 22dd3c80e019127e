"""The metrics against scikit-learn's, the intervals against theory, and what must be refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import evaluation
from pipeline_assets.models.evaluation import METRICS, Estimate, Evaluation, compare, evaluate


def scored(
    customers: int, seed: int = 0, informative: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with known probabilities, and these as scores: perfectly calibrated."""
    random = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(3 - informative * random.normal(size=customers)))
    return random.random(customers) < chance, chance


@settings(deadline=None)  # the first example imports scikit-learn
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0])),
        min_size=2,
        max_size=60,
    ).filter(lambda rows: 0 < sum(label for label, _ in rows) < len(rows))
)
def test_every_metric_is_scikit_learns_ties_and_certainties_included(
    rows: list[tuple[bool, float]],
) -> None:
    from sklearn import metrics as judge

    labels = np.array([label for label, _ in rows])
    scores = np.array([score for _, score in rows])
    found = evaluate(labels, scores, resamples=40)
    bounded = scores.clip(1e-6, 1 - 1e-6)
    assert found["auc"].value == pytest.approx(judge.roc_auc_score(labels, scores))
    assert found["average_precision"].value == pytest.approx(
        judge.average_precision_score(labels, scores)
    )
    assert found["log_loss"].value == pytest.approx(judge.log_loss(labels, bounded))
    assert found["brier"].value == pytest.approx(judge.brier_score_loss(labels, scores))
    assert found["calibration"].value == pytest.approx(scores.sum() / labels.sum())
    assert found["base_rate"].value == pytest.approx(labels.mean())
    assert (found.customers, found.buyers) == (len(labels), labels.sum())


def test_the_top_tenth_counts_buyers_and_shares_ties_out() -> None:
    labels = np.array([True, False] * 5 + [False] * 10)
    scores = np.linspace(1, 0, 20)
    # The two highest scores hold one of five buyers; of ten customers tied at the top, a fifth counts.
    assert evaluate(labels, scores, resamples=1)["top_decile_capture"].value == 1 / 5
    tied = np.where(np.arange(20) < 10, 0.9, 0.1)
    assert evaluate(labels, tied, resamples=1)["top_decile_capture"].value == pytest.approx(0.2)


def test_an_interval_is_as_wide_as_theory_says() -> None:
    labels, scores = scored(4000)
    found = evaluate(labels, scores)
    base = found["base_rate"]
    spread = 1.96 * np.sqrt(base.value * (1 - base.value) / 4000)
    assert base.upper - base.lower == pytest.approx(2 * spread, rel=0.1)
    for name in METRICS:
        assert found[name].lower < found[name].value < found[name].upper


def test_intervals_hold_what_they_shall_about_as_often_as_they_say() -> None:
    """The AUC of a large sample lies in the interval of about 95 of 100 small ones."""
    truth = evaluate(*scored(200_000, seed=999), resamples=1)["auc"].value
    held = 0
    for seed in range(100):
        auc = evaluate(*scored(800, seed=seed), resamples=200)["auc"]
        held += auc.lower <= truth <= auc.upper
    assert 86 <= held <= 100


def test_a_comparison_is_paired() -> None:
    """Two nearly equal models differ by far less than either's own interval is wide."""
    labels, scores = scored(5000)
    other = (scores * 1.02).clip(max=1)
    model = evaluate(labels, scores, resamples=300)
    alone = model["log_loss"]
    difference = compare(evaluate(labels, other, resamples=300), model)["log_loss"]
    assert difference.upper - difference.lower < (alone.upper - alone.lower) / 20
    assert compare(model, model)["log_loss"] == Estimate(0.0, 0.0, 0.0)


def test_what_is_not_paired_is_not_compared() -> None:
    labels, scores = scored(500)
    model = evaluate(labels, scores, resamples=30)
    for other in (
        evaluate(labels, scores, resamples=20),
        evaluate(labels[1:], scores[1:], resamples=30),
    ):
        with pytest.raises(PermanentError, match="other customers or resamples"):
            compare(model, other)


def test_a_real_difference_is_seen_and_has_a_sign() -> None:
    labels, scores = scored(6000)
    noisy = 1 / (1 + np.exp(3 - np.random.default_rng(5).normal(size=6000)))
    model, other = (evaluate(labels, each, resamples=200) for each in (scores, noisy))
    better, worse = compare(model, other), compare(other, model)
    assert better["average_precision"].lower > 0
    assert better["log_loss"].upper < 0
    for name in METRICS:
        assert worse[name].value == pytest.approx(-better[name].value)
        assert worse[name].upper == pytest.approx(-better[name].lower)


def test_the_same_scores_give_the_same_figures_to_the_last_digit() -> None:
    labels, scores = scored(3000)
    assert evaluate(labels, scores, resamples=120) == evaluate(labels, scores, resamples=120)


@pytest.mark.parametrize("paired", [False, True])
def test_little_bootstraps_give_the_intervals_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, paired: bool
) -> None:
    labels, scores = scored(20_000)
    # The same model, but every tenth customer has another's score: better for some, worse for others.
    other = np.where(np.arange(20_000) % 10 == 0, np.roll(scores, 1), scores)
    monkeypatch.setattr(evaluation, "SUBSET", 20_000)

    def found() -> Evaluation:
        model = evaluate(labels, scores)
        return compare(evaluate(labels, other), model) if paired else model

    plain = found()
    monkeypatch.setattr(evaluation, "SUBSET", 5_000)
    little = found()
    assert little == found()  # to the last digit
    for metric in METRICS:
        assert little[metric].value == plain[metric].value
        width = plain[metric].upper - plain[metric].lower
        assert little[metric].upper - little[metric].lower == pytest.approx(width, rel=0.25)
        assert little[metric].lower == pytest.approx(plain[metric].lower, abs=width / 5)


def test_how_many_resamples_are_computed_at_once_changes_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, scores = scored(3001)
    together = evaluate(labels, scores, resamples=70)
    for cells in (1, 7 * 3001):  # one at a time, and seven
        monkeypatch.setattr(evaluation, "CELLS_AT_ONCE", cells)
        assert evaluate(labels, scores, resamples=70) == together


def test_memory_grows_with_the_customers_and_not_with_the_resamples() -> None:
    """240,000 customers took 1,076 MB when 50 resamples were computed at once."""
    labels, scores = scored(240_000)
    tracemalloc.start()
    evaluate(labels, scores, resamples=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 << 20


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([True, False], [0.5], "1 scores for 2 customers"),
        ([True, False], [0.5, float("nan")], "1 of 2 scores aren't probabilities"),
        ([True, False], [0.5, 1.5], "1 of 2 scores aren't probabilities"),
        ([True, True], [0.5, 0.5], "2 of 2 customers bought"),
        ([False, False], [0.5, 0.5], "0 of 2 customers bought"),
        ([], [], "0 of 0 customers bought"),
    ],
)
def test_what_can_not_be_judged_is_refused(
    labels: list[bool], scores: list[float], message: str
) -> None:
    with pytest.raises(PermanentError, match=message):
        evaluate(np.array(labels, dtype=bool), np.array(scores))
