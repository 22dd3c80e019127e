"""BG/NBD against the figures that its authors published, and against simulated customers."""

from datetime import date, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import baseline
from pipeline_assets.models.baseline import BgNbd, Histories

# Fader, Hardie & Lee 2005, Tables 2 and 3: weeks 1-39 to fit, weeks 40-78 to forecast.
CALIBRATED, OBSERVED = date(1997, 9, 30), date(1998, 6, 30)
PUBLISHED = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}


@pytest.fixture(scope="module")
def sample() -> tuple[Histories, np.ndarray]:
    """The 1/10 sample of CDNOW's customers: their histories, and how often they then bought."""
    spec = find_spec("lifetimes")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "CDNOW_sample.txt"
    days: dict[str, set[date]] = {}
    for line in file.read_text(encoding="ascii").splitlines():
        customer, _, day, _, _ = line.split()
        days.setdefault(customer, set()).add(datetime.strptime(day, "%Y%m%d").date())  # noqa: DTZ007 - a day has no zone
    known = [sorted(day for day in each if day <= CALIBRATED) for each in days.values()]
    histories = Histories(
        frequency=np.array([len(each) - 1.0 for each in known]),
        recency=np.array([(each[-1] - each[0]).days / 7 for each in known]),
        age=np.array([(CALIBRATED - each[0]).days / 7 for each in known]),
    )
    later = [sum(CALIBRATED < day <= OBSERVED for day in each) for each in days.values()]
    return histories, np.array(later)


def expected_purchases(model: BgNbd, horizon: float, of: Histories) -> np.ndarray:
    """Purchases to be expected within the next `horizon` weeks (the paper's equation 10)."""
    from scipy.special import hyp2f1

    x, now = of.frequency, model.alpha + of.age
    ends = horizon / (now + horizon)
    series = hyp2f1(model.r + x, model.b + x, model.a + model.b + x - 1, ends)
    decline = np.exp((model.r + x) * np.log(now / (now + horizon)))
    while_alive = (model.a + model.b + x - 1) / (model.a - 1) * (1 - decline * series)
    found: np.ndarray = while_alive * model.alive(of)
    return found


def test_the_published_figures_come_out(sample: tuple[Histories, np.ndarray]) -> None:
    histories, later = sample
    assert len(later) == 2357
    model = baseline.fit(histories)
    for name, value in PUBLISHED.items():
        assert round(getattr(model, name), 3) == value
    assert round(model.log_likelihood, 1) == -9582.4
    expected = expected_purchases(model, 39, histories)
    assert round(float(np.corrcoef(expected, later)[0, 1]), 3) == 0.626


def test_a_fit_is_the_same_to_the_last_digit_in_any_order(
    sample: tuple[Histories, np.ndarray],
) -> None:
    of = sample[0]
    order = np.random.default_rng(1).permutation(len(of.age))
    shuffled = Histories(of.frequency[order], of.recency[order], of.age[order])
    assert baseline.fit(shuffled) == baseline.fit(of)


def test_probability_and_expectation_agree_with_simulated_futures() -> None:
    """Each customer's future is drawn from the model itself, given the customer's history."""
    model = BgNbd(0.3, 5.0, 1.4, 3.0, 0.0)
    horizon, draws = 12.0, 400_000
    random = np.random.default_rng(7)
    for x, recency, age in ((0.0, 0.0, 20.0), (3.0, 15.0, 20.0), (6.0, 22.0, 30.0)):
        one = Histories(np.array([x]), np.array([recency]), np.array([age]))
        alive = random.random(draws) < model.alive(one)[0]
        rate = random.gamma(model.r + x, 1 / (model.alpha + age), draws)
        # A customer alive after x repeat purchases has survived each of them.
        leaving = random.beta(model.a, model.b + x, draws)
        bought, now = np.zeros(draws), np.zeros(draws)
        while alive.any():
            now += random.exponential(1 / rate)
            alive &= now < horizon
            bought += alive
            alive &= random.random(draws) >= leaving
        assert model.purchase_probability(horizon, one)[0] == pytest.approx(
            (bought > 0).mean(), abs=0.004
        )
        assert expected_purchases(model, horizon, one)[0] == pytest.approx(bought.mean(), rel=0.02)


def test_who_never_came_back_is_alive() -> None:
    model = BgNbd(0.3, 5.0, 1.4, 3.0, 0.0)
    never = Histories(np.zeros(1), np.zeros(1), np.array([70.0]))
    assert model.alive(never).tolist() == [1.0]


def test_nobody_came_back() -> None:
    with pytest.raises(PermanentError, match="none of 3 customers bought again"):
        baseline.fit(Histories(np.zeros(3), np.zeros(3), np.arange(1.0, 4)))
