"""The gate on real purchases: what has to be refused is, and a better model is let through."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipeline_assets.models import snapshots
from pipeline_assets.models.baseline import baseline_scores
from pipeline_assets.models.evaluation import Evaluation, compare, evaluate
from pipeline_assets.models.gate import Finding, accepts, judge
from pipeline_assets.models.settings import GateThresholds
from pipeline_assets.models.snapshots import HORIZON
from pipeline_assets.models.training import LeakageError, predict, train
from pipeline_assets_tests.integration.models.conftest import Snapshot

pytestmark = pytest.mark.slow

HOLDOUT = date(2026, 10, 26)
NEWEST = [HOLDOUT - number * HORIZON for number in range(8, 0, -1)]


@dataclass(frozen=True)
class Case:
    """A holdout with the baseline's evaluation and the good model's scores, and what to try on it."""

    snapshot: Snapshot
    holdout: pa.Table
    labels: np.ndarray
    baseline: Evaluation
    good: np.ndarray

    def scores(self, cutoffs: Sequence[date], *, labels: np.ndarray | None = None) -> np.ndarray:
        """What a model of these snapshots says of the holdout; with other labels, if given."""
        return predict(train(self.rows(cutoffs, labels), HOLDOUT).pipeline, self.holdout)

    def rows(self, cutoffs: Sequence[date], labels: np.ndarray | None = None) -> pa.Table:
        """The training snapshots."""
        table = pa.concat_tables([self.snapshot(cutoff) for cutoff in cutoffs])
        if labels is None:
            return table
        return table.set_column(table.column_names.index("bought"), "bought", pa.array(labels))

    def judged(
        self,
        scores: np.ndarray,
        champion: np.ndarray | None = None,
        cutoffs: Sequence[date] = NEWEST,
    ) -> list[Finding]:
        against = None if champion is None else compare(self.labels, scores, champion)
        return judge(
            GateThresholds(),
            evaluate(self.labels, scores),
            self.baseline,
            against,
            training_cutoffs=cutoffs,
            holdout_cutoff=HOLDOUT,
        )


def failed(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if not finding.passed]


@pytest.fixture(scope="module")
def case(snapshot: Snapshot) -> Case:
    holdout = snapshot(HOLDOUT)
    labels = snapshots.labels(holdout)
    training = pa.concat_tables([snapshot(cutoff) for cutoff in NEWEST])
    return Case(
        snapshot,
        holdout,
        labels,
        evaluate(labels, baseline_scores(holdout)),
        predict(train(training, HOLDOUT).pipeline, holdout),
    )


def test_a_good_first_model_is_accepted(case: Case) -> None:
    findings = case.judged(case.good)
    assert failed(findings) == []
    assert accepts(findings)


def test_shuffled_labels(case: Case) -> None:
    labels = snapshots.labels(case.rows(NEWEST))
    shuffled = np.random.default_rng(1).permutation(labels)
    findings = case.judged(case.scores(NEWEST, labels=shuffled))
    assert not accepts(findings)
    assert {"auc_sufficient", "precision_over_base_rate"} <= set(failed(findings))


def test_a_stale_model_although_it_ranks_well(case: Case) -> None:
    """A model of the shop's first weeks ranks still, and predicts far more buyers than there are."""
    first = [date(2026, 2, 9), date(2026, 3, 9)]
    stale = case.scores(first)
    assert evaluate(case.labels, stale, resamples=1)["auc"].value > 0.75
    findings = case.judged(stale, champion=case.good, cutoffs=first)
    assert {"calibrated", "not_worse_than_champion"} <= set(failed(findings))
    assert not accepts(findings)


def test_a_model_that_learnt_from_the_holdouts_time(case: Case) -> None:
    leaking = [*NEWEST, HOLDOUT - timedelta(weeks=1)]
    with pytest.raises(LeakageError, match="closes on 2026-11-16, after the holdout's cutoff"):
        train(case.rows(leaking), HOLDOUT)
    # Whoever trained it otherwise: its cutoffs say so.
    assert failed(case.judged(case.good, cutoffs=leaking)) == ["no_leakage"]


@pytest.mark.parametrize("factor", [0.55, 2.0])
def test_a_miscalibrated_model_although_it_ranks_as_before(case: Case, factor: float) -> None:
    findings = case.judged((case.good * factor).clip(max=1))
    assert failed(findings) == ["calibrated"]
    assert not accepts(findings)


def test_a_model_worse_than_the_champion_by_a_small_real_margin(case: Case) -> None:
    """Blind for the last four weeks of every history, and otherwise the same."""
    blind = case.rows(NEWEST)
    holdout = case.holdout
    for name in ("days_since_last", "purchases_4w", "spend_4w", "last_over_mean_gap"):
        at = blind.column_names.index(name)
        for_all = pa.array(np.zeros(len(blind)))
        blind = blind.set_column(at, name, for_all)
        holdout = holdout.set_column(at, name, for_all.slice(0, len(holdout)))
    scores = predict(train(blind, HOLDOUT).pipeline, holdout)
    alone, beside = case.judged(scores), case.judged(scores, champion=case.good)
    assert "auc_sufficient" not in failed(alone)
    assert "not_worse_than_champion" in failed(beside)
    assert not accepts(beside)


def test_a_better_one_and_an_equal_one_are_accepted(case: Case) -> None:
    old = case.scores([date(2026, 4, 6), date(2026, 5, 4), date(2026, 6, 1)])
    findings = case.judged(case.good, champion=old)
    assert accepts(findings)
    difference = compare(case.labels, case.good, old)
    assert difference["average_precision"].lower > 0
    assert difference["log_loss"].upper < 0
    assert accepts(case.judged(case.good, champion=case.good))
    # The other way round the champion stays.
    assert "not_worse_than_champion" in failed(case.judged(old, champion=case.good))


def test_a_random_split_promises_what_the_next_month_does_not_keep(snapshot: Snapshot) -> None:
    """Snapshots of eight weeks in a row share most of their horizons and their customers.

    Split at random, a model that learns by heart meets in the test what it has seen: average precision
    0.7. On the month that follows it has a third of that.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import train_test_split

    weeks = [HOLDOUT - HORIZON - timedelta(weeks=number) for number in range(8)]
    rows = pa.concat_tables([snapshot(week) for week in weeks])
    frame, labels = snapshots.feature_frame(rows).fillna(-1), snapshots.labels(rows)
    seen, unseen, bought, unseen_bought = train_test_split(
        frame, labels, test_size=0.25, random_state=0
    )
    forest = RandomForestClassifier(n_estimators=40, n_jobs=1, random_state=0).fit(seen, bought)
    split = average_precision_score(unseen_bought, forest.predict_proba(unseen)[:, 1])
    holdout = snapshot(HOLDOUT)
    truth = average_precision_score(
        snapshots.labels(holdout),
        forest.predict_proba(snapshots.feature_frame(holdout).fillna(-1))[:, 1],
    )
    assert split > 0.65
    assert truth < 0.32
