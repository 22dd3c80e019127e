"""Snapshots and evaluations made up for tests."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_assets.models import snapshots
from pipeline_assets.models.evaluation import METRICS, Estimate, Evaluation
from pipeline_assets.models.snapshots import FEATURES

FIRST = date(2026, 2, 2)


def snapshot(cutoff: date, customers: int = 800, *, noise: float = 0.5, **columns: Any) -> pa.Table:
    """Made-up customers, likelier to buy if they bought often and lately; always the same for a cutoff."""
    random = np.random.default_rng(cutoff.toordinal())
    often, lately = random.poisson(1.5, customers), random.integers(1, 200, customers)
    values: dict[str, Any] = {
        name: random.gamma(2.0, 10.0, customers) for name in FEATURES if "gap" not in name
    }
    gaps = np.where(often > 0, random.gamma(2.0, 20.0, customers), np.nan)
    chance = 1 / (1 + np.exp(2 - 0.8 * often + lately / 60 + noise * random.normal(size=customers)))
    values |= {
        "customer_id": np.arange(customers),
        "cutoff": [cutoff] * customers,
        "repeat_purchases": often.astype(float),
        "days_since_last": lately.astype(float),
        "age_days": lately + 100.0,
        "mean_gap": gaps,
        "gap_deviation": np.where(often > 1, gaps / 2, np.nan),
        "last_over_mean_gap": lately / gaps,
        "bought": random.random(customers) < chance,
    } | columns
    table = pa.table(
        {
            name: pa.array(values[name], from_pandas=True).cast(type_)
            for name, type_ in zip(snapshots.schema().names, snapshots.schema().types, strict=True)
        }
    )
    return table.cast(snapshots.schema())


def training(count: int = 4, weeks_apart: int = 4, **columns: Any) -> pa.Table:
    """Snapshots from `FIRST` on."""
    return pa.concat_tables(
        snapshot(FIRST + timedelta(weeks=weeks_apart * number), **columns)
        for number in range(count)
    )


GOOD = {
    "auc": 0.82,
    "average_precision": 0.34,
    "log_loss": 0.2,
    "brier": 0.05,
    "calibration": 1.0,
    "top_decile_capture": 0.46,
    "base_rate": 0.07,
}


def evaluation(**values: float) -> Evaluation:
    """An evaluation with these figures, or good ones; each interval is a hundredth wide."""
    figures = GOOD | values
    return Evaluation(
        customers=10_000,
        buyers=700,
        metrics={name: Estimate(v, v - 0.005, v + 0.005) for name, v in figures.items()},
        deviations=np.zeros((1, 1, len(figures))),
    )


def differences(precision: tuple[float, float], loss: tuple[float, float]) -> dict[str, Estimate]:
    """A comparison with these intervals."""
    bounds = dict.fromkeys(METRICS, (0.0, 0.0)) | {"average_precision": precision, "log_loss": loss}
    return {name: Estimate((low + high) / 2, low, high) for name, (low, high) in bounds.items()}
