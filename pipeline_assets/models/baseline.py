"""BG/NBD by maximum likelihood: what can be known from three numbers a customer.

Fader, Hardie & Lee (2005), "Counting Your Customers" the Easy Way, Marketing Science 24(2), 275-284.
Customers buy at their own constant rate and after each purchase may drop out for ever. It is the
yardstick that a model with more to look at must not fall below.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class BgNbd:
    """Fitted parameters. Time is in weeks; every method takes one value a customer.

    frequency: repeat purchases; recency: time from the first to the last purchase; age: time from
    the first purchase to now.
    """

    r: float
    alpha: float
    a: float
    b: float
    log_likelihood: float

    def alive(
        self,
        frequency: "NDArray[np.float64]",
        recency: "NDArray[np.float64]",
        age: "NDArray[np.float64]",
    ) -> "NDArray[np.float64]":
        """The probability that a customer hasn't dropped out."""
        raise NotImplementedError

    def expected_purchases(
        self,
        horizon: float,
        frequency: "NDArray[np.float64]",
        recency: "NDArray[np.float64]",
        age: "NDArray[np.float64]",
    ) -> "NDArray[np.float64]":
        """Purchases to be expected within the next `horizon` weeks (equation 10)."""
        raise NotImplementedError

    def purchase_probability(
        self,
        horizon: float,
        frequency: "NDArray[np.float64]",
        recency: "NDArray[np.float64]",
        age: "NDArray[np.float64]",
    ) -> "NDArray[np.float64]":
        """The probability of at least one purchase within the next `horizon` weeks."""
        raise NotImplementedError


def fit(
    frequency: "NDArray[np.float64]", recency: "NDArray[np.float64]", age: "NDArray[np.float64]"
) -> BgNbd:
    """Fit by maximum likelihood (equation 7).

    Raises:
        PermanentError: no repeat purchases, or the search for the maximum failed.
    """
    raise NotImplementedError


def baseline_scores(snapshot: "pa.Table") -> "NDArray[np.float64]":
    """Fit on a snapshot's history and return each row's probability of a purchase in the horizon."""
    raise NotImplementedError
