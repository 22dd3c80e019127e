"""Drift: how far a distribution has moved from the one that a model learnt from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Drift:
    """Population stability index, and the Kolmogorov-Smirnov distance (0 to 1)."""

    psi: float
    ks: float


def measure(
    expected: "NDArray[np.float64]", actual: "NDArray[np.float64]", *, bins: int = 10
) -> Drift:
    """How far `actual` lies from `expected`. NaN is a value of its own.

    PSI's bins are the quantiles of `expected`. Below 0.1 nothing moved, above 0.25 much did (the
    usual reading in credit scoring).

    Raises:
        PermanentError: one of them is empty.
    """
    raise NotImplementedError


def feature_drift(expected: "pa.Table", actual: "pa.Table") -> dict[str, Drift]:
    """Feature -> drift between two tables of snapshots."""
    raise NotImplementedError
