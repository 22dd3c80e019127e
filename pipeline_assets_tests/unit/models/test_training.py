"""Choosing and fitting a model: what is refused, that results repeat, that the holdout has no influence."""

import os
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import evaluation, snapshots
from pipeline_assets.models.snapshots import FEATURES, HORIZON
from pipeline_assets.models.training import (
    CANDIDATES,
    TRUSTED_TYPES,
    LeakageError,
    TrainedModel,
    predict,
    train,
)
from pipeline_assets_tests.unit.models.builders import FIRST, snapshot, training

LAST = FIRST + 3 * HORIZON
HOLDOUT = LAST + HORIZON


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return train(training(), HOLDOUT)


def test_a_model_tells_buyers_from_others(model: TrainedModel) -> None:
    asked = snapshot(HOLDOUT)
    found = evaluation.evaluate(
        snapshots.labels(asked), predict(model.pipeline, asked), resamples=1
    )
    assert found["auc"].value > 0.75
    assert 0.8 < found["calibration"].value < 1.25


def test_the_lowest_log_loss_of_the_newest_snapshots_decides(model: TrainedModel) -> None:
    losses = {name: scores["log_loss"] for name, scores in model.validation.items()}
    assert set(losses) == set(CANDIDATES)
    assert model.name == min(losses, key=lambda name: losses[name])
    assert model.parameters == dict(CANDIDATES[model.name].parameters)


def test_the_same_data_in_any_order_gives_the_same_model_to_the_last_digit(
    model: TrainedModel,
) -> None:
    rows = training()
    shuffled = rows.take(pa.array(np.random.default_rng(3).permutation(len(rows))))
    again = train(shuffled, HOLDOUT)
    assert again.validation == model.validation
    asked = snapshot(HOLDOUT)
    assert (predict(again.pipeline, asked) == predict(model.pipeline, asked)).all()


TRAIN_AND_PREDICT = """
from pipeline_assets_tests.unit.models.test_training import HOLDOUT, snapshot, train, training, predict
model = train(training(), HOLDOUT)
print(model.validation, predict(model.pipeline, snapshot(HOLDOUT)).tobytes().hex())
"""


def test_threads_make_no_difference() -> None:
    answers = {
        subprocess.run(
            [sys.executable, "-c", TRAIN_AND_PREDICT],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(answers) == 1


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_takes_the_feature_frame_and_is_read_back_by_skops(name: str) -> None:
    from skops import io

    candidate = CANDIDATES[name]
    rows = training(2)
    fitted = candidate.build(**candidate.parameters).fit(
        snapshots.feature_frame(rows), snapshots.labels(rows)
    )
    assert list(fitted.feature_names_in_) == list(FEATURES)
    stored = io.dumps(fitted)
    assert set(io.get_untrusted_types(data=stored)) <= set(TRUSTED_TYPES)
    loaded = io.loads(stored, trusted=list(TRUSTED_TYPES))
    assert (predict(loaded, rows) == predict(fitted, rows)).all()


def test_a_label_that_closes_after_the_holdouts_cutoff_is_refused() -> None:
    with pytest.raises(
        LeakageError, match=f"training snapshot at {LAST} closes on {HOLDOUT}, after"
    ):
        train(training(), HOLDOUT - timedelta(days=1))


def test_it_takes_two_snapshots_whose_horizons_do_not_overlap() -> None:
    assert set(train(training(2), HOLDOUT).validation) == set(CANDIDATES)
    with pytest.raises(
        PermanentError, match=r"2 training snapshots .* that takes two, 28 days apart"
    ):
        train(training(2, weeks_apart=3), HOLDOUT)
    with pytest.raises(PermanentError, match=r"0 training snapshots \(none\)"):
        train(training(1).slice(0, 0), HOLDOUT)


def test_labels_that_are_open_or_all_alike_are_refused() -> None:
    with pytest.raises(PermanentError, match="aren't closed"):
        train(training(bought=[None] * 800), HOLDOUT)
    with pytest.raises(PermanentError, match=r"0 of .* customers bought"):
        train(training(bought=[False] * 800), HOLDOUT)


def test_validation_asks_about_a_time_after_all_that_it_learnt_from() -> None:
    """Labels flipped in the newest snapshot alone worsen the validation: nothing was learnt from them."""
    rows = training(3)
    newest = snapshot(LAST)
    flipped = newest.set_column(
        newest.column_names.index("bought"), "bought", pa.array(~snapshots.labels(newest))
    )
    honest = train(pa.concat_tables([rows, newest]), HOLDOUT).validation
    misled = train(pa.concat_tables([rows, flipped]), HOLDOUT).validation
    for name in CANDIDATES:
        assert misled[name]["auc"] < honest[name]["auc"] - 0.1
