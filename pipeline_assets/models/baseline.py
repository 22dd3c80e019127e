"""BG/NBD by maximum likelihood: a forecast from three numbers per customer.

Fader, Hardie & Lee (2005), "Counting Your Customers" the Easy Way, Marketing Science 24(2), 275-284.
Each customer buys at a constant rate of his own, and may drop out for ever after each repeat purchase.
BG/NBD is the baseline that a model with more features must not fall below.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_assets.failures import PermanentError
from pipeline_assets.models.snapshots import HORIZON

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

DAYS_A_WEEK = 7.0


@dataclass(frozen=True)
class Histories:
    """The inputs of BG/NBD: one value per customer, times in weeks."""

    frequency: "NDArray[np.float64]"
    """Repeat purchases (x)."""
    recency: "NDArray[np.float64]"
    """From the first purchase to the last (t_x)."""
    age: "NDArray[np.float64]"
    """From the first purchase to now (T)."""


@dataclass(frozen=True)
class BgNbd:
    """Fitted parameters. Rates are Gamma(r, alpha), chances to drop out Beta(a, b)."""

    r: float
    alpha: float
    a: float
    b: float
    log_likelihood: float

    def alive(self, of: Histories) -> "NDArray[np.float64]":
        """The probability that a customer hasn't dropped out."""
        import numpy as np

        shape = self.r + of.frequency
        silence = shape * np.log((self.alpha + of.age) / (self.alpha + of.recency))
        # Without a repeat purchase nobody has dropped out: dropout follows repeat purchases only.
        odds = np.where(of.frequency > 0, self.a / (self.b + np.maximum(of.frequency, 1) - 1), 0.0)
        found: NDArray[np.float64] = 1 / (1 + odds * np.exp(silence))
        return found

    def purchase_probability(self, horizon: float, of: Histories) -> "NDArray[np.float64]":
        """The probability of at least one purchase within the next `horizon` weeks.

        The rate of a customer who is still alive is Gamma(r + x, alpha + T), whose Laplace transform at
        the horizon is the probability of no purchase.
        """
        import numpy as np

        now = self.alpha + of.age
        none = np.exp((self.r + of.frequency) * np.log(now / (now + horizon)))
        found: NDArray[np.float64] = self.alive(of) * (1 - none)
        return found


def fit(of: Histories) -> BgNbd:
    """Fit by maximum likelihood (equation 7), over the parameters' logarithms.

    Raises:
        PermanentError: nobody came back, or no maximum was found.
    """
    import numpy as np
    from scipy.optimize import minimize

    if not of.frequency.any():
        raise PermanentError(
            f"BG/NBD can't be fitted: none of {len(of.frequency)} customers bought again; choose a "
            "later week"
        )
    # Many customers share a history: each distinct one is evaluated once.
    distinct, weights = np.unique(
        np.column_stack([of.frequency, of.recency, of.age]), axis=0, return_counts=True
    )
    histories = Histories(*distinct.T)
    found = minimize(
        lambda logs: -float(weights @ _log_likelihood(np.exp(logs), histories)) / weights.sum(),
        # Roughly the paper's estimates; any start of this order of magnitude finds the maximum.
        x0=np.log([0.25, 4.0, 0.8, 2.5]),
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000, "maxfev": 4000},
    )
    if not found.success:
        raise PermanentError(
            f"BG/NBD can't be fitted to {len(of.frequency)} customers: {found.message}"
        )
    r, alpha, a, b = np.exp(found.x).tolist()
    return BgNbd(r, alpha, a, b, log_likelihood=-float(found.fun) * int(weights.sum()))


def _log_likelihood(parameters: "NDArray[np.float64]", of: Histories) -> "NDArray[np.float64]":
    import numpy as np
    from scipy.special import betaln, gammaln

    r, alpha, a, b = parameters
    x = of.frequency
    common = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + betaln(a, b + x) - betaln(a, b)
    alive = -(r + x) * np.log(alpha + of.age)
    gone = np.where(
        x > 0,
        np.log(a) - np.log(b + np.maximum(x, 1) - 1) - (r + x) * np.log(alpha + of.recency),
        -np.inf,
    )
    found: NDArray[np.float64] = common + np.logaddexp(alive, gone)
    return found


def histories(snapshot: "pa.Table") -> Histories:
    """The inputs of BG/NBD for a snapshot's customers."""
    age = snapshot["age_days"].to_numpy()
    return Histories(
        frequency=snapshot["repeat_purchases"].to_numpy(),
        recency=(age - snapshot["days_since_last"].to_numpy()) / DAYS_A_WEEK,
        age=age / DAYS_A_WEEK,
    )


def baseline_scores(snapshot: "pa.Table") -> "NDArray[np.float64]":
    """Fit on a snapshot's history and return each row's probability of a purchase in the horizon."""
    of = histories(snapshot)
    return fit(of).purchase_probability(HORIZON.days / DAYS_A_WEEK, of)
