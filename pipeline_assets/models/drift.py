"""Drift: how far a distribution has moved from the one that a model learnt from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_assets.failures import PermanentError
from pipeline_assets.models.snapshots import FEATURES

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SMALLEST_SHARE = 1e-4
"""The share that an empty bin counts as: with 0, a single value in it would make the PSI infinite."""
BINS = 10
MOVED, MOVED_FAR = 0.1, 0.25
"""The usual thresholds of a PSI in credit scoring: stable below the first, a large shift above the second."""


@dataclass(frozen=True)
class Drift:
    """Population stability index, and the Kolmogorov-Smirnov distance (0 to 1)."""

    psi: float
    ks: float


def measure(expected: "NDArray[np.float64]", actual: "NDArray[np.float64]") -> Drift:
    """Measure how far `actual` lies from `expected`; NaN has a bin of its own, below all values.

    PSI is the sum over the bins of (a - e) ln(a / e), a and e being the shares of `actual` and
    `expected`; the bins are the quantiles of `expected`, fewer where many values are equal.

    Raises:
        PermanentError: one of them is empty.
    """
    import numpy as np

    if not len(expected) or not len(actual):
        raise PermanentError(
            f"drift can't be measured between {len(expected)} and {len(actual)} values"
        )
    # np.sort puts NaN last by a special rule; as -inf it is ordered like any other value.
    before = np.sort(np.where(np.isnan(expected), -np.inf, expected))
    now = np.sort(np.where(np.isnan(actual), -np.inf, actual))
    known = before[np.isfinite(before)]
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else known
    edges = np.append(np.finfo(np.float64).min, edges)
    shares = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        / len(values)
        for values in (before, now)
    ]
    e, a = (share.clip(min=SMALLEST_SHARE) for share in shares)
    everything = np.concatenate([before, now])
    distance = np.searchsorted(before, everything, side="right") / len(before) - np.searchsorted(
        now, everything, side="right"
    ) / len(now)
    return Drift(psi=float(((a - e) * np.log(a / e)).sum()), ks=float(np.abs(distance).max()))


def feature_drift(expected: "pa.Table", actual: "pa.Table") -> dict[str, Drift]:
    """Feature -> drift between two tables of snapshots."""
    return {name: measure(_values(expected, name), _values(actual, name)) for name in FEATURES}


def _values(table: "pa.Table", name: str) -> "NDArray[np.float64]":
    values: NDArray[np.float64] = table[name].to_numpy()
    return values
