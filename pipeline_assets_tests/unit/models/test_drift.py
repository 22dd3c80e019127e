"""Drift: known values, invariants, and the awkward distributions that features have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_assets.failures import PermanentError
from pipeline_assets.models.drift import feature_drift, measure
from pipeline_assets.models.snapshots import FEATURES
from pipeline_assets_tests.unit.models.builders import FIRST, snapshot

values = st.lists(
    st.floats(-1e6, 1e6) | st.just(float("nan")) | st.just(0.0), min_size=1, max_size=60
).map(np.array)


def test_psi_of_two_bins_is_the_textbooks() -> None:
    before, now = np.repeat([0.0, 1.0], [50, 50]), np.repeat([0.0, 1.0], [30, 70])
    expected = (0.3 - 0.5) * np.log(0.3 / 0.5) + (0.7 - 0.5) * np.log(0.7 / 0.5)
    found = measure(before, now)
    assert found.psi == pytest.approx(expected)
    assert found.ks == pytest.approx(0.2)


@given(values)
def test_nothing_drifts_from_itself(same: np.ndarray) -> None:
    found = measure(same, same[::-1])
    assert found.psi == pytest.approx(0)
    assert found.ks == 0


@settings(deadline=None)  # the first example imports SciPy
@given(values, values)
def test_drift_is_never_negative_and_ks_is_scipys(one: np.ndarray, other: np.ndarray) -> None:
    from scipy.stats import ks_2samp

    found = measure(one, other)
    assert found.psi >= 0
    lowest = [np.where(np.isnan(each), -1e9, each) for each in (one, other)]
    assert found.ks == pytest.approx(ks_2samp(*lowest, method="asymp").statistic)


def test_a_shift_of_the_normal_distribution_is_seen() -> None:
    random = np.random.default_rng(0)
    same = measure(random.normal(size=20_000), random.normal(size=20_000))
    moved = measure(random.normal(size=20_000), random.normal(0.5, size=20_000))
    assert same.psi < 0.005
    # The PSI of two normals of unit deviation is their squared distance, slightly less over ten bins.
    assert moved.psi == pytest.approx(0.25, rel=0.15)


def test_values_that_go_missing_are_drift() -> None:
    found = measure(np.arange(100.0), np.where(np.arange(100) < 50, np.nan, np.arange(100.0)))
    assert found.psi > 1
    assert found.ks == pytest.approx(0.5)


def test_a_column_of_one_value_or_of_none_is_no_special_case() -> None:
    assert measure(np.zeros(10), np.zeros(5)).psi == 0
    assert measure(np.full(10, np.nan), np.full(5, np.nan)).psi == 0
    assert measure(np.zeros(10), np.ones(10)).ks == 1


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(PermanentError, match="between 3 and 0 values"):
        measure(np.zeros(3), np.zeros(0))


def test_every_feature_is_measured() -> None:
    before = snapshot(FIRST)
    doubled = snapshot(FIRST, mean_amount=before["mean_amount"].to_numpy() * 2)
    found = feature_drift(before, doubled)
    assert list(found) == list(FEATURES)
    assert {name for name, each in found.items() if each.psi > 0} == {"mean_amount"}
