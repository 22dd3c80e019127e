"""Snapshots: what is known of each customer at a cutoff, and whether he then bought within 28 days.

A cutoff is a day of the project's time zone; the midnight that begins it divides what is known from
what is to be foreseen. Belongs here: the one statement that computes a snapshot in the warehouse,
which weeks use which cutoffs, the hash of a snapshot, and the days of the warehouse that it rests on.

Columns of a snapshot: `customer_id` int64, `cutoff` date32, the `FEATURES` double, `bought` bool (null
where the horizon isn't closed), in the order of the customers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

import psycopg

from pipeline_assets.quality.contract import Contract

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

HORIZON = timedelta(days=28)
WEEK = timedelta(weeks=1)
LABEL = "bought"
RELATION = "analytics.fct_transactions"

FEATURES: dict[str, str] = {
    "repeat_purchases": "purchase days after the first",
    "days_since_last": "days from the last purchase to the cutoff",
    "age_days": "days from the first purchase to the cutoff",
    "purchases_4w": "purchase days in the last 4 weeks",
    "purchases_8w": "purchase days in the last 8 weeks",
    "purchases_13w": "purchase days in the last 13 weeks",
    "purchases_26w": "purchase days in the last 26 weeks",
    "spend_4w": "spend in the last 4 weeks",
    "spend_8w": "spend in the last 8 weeks",
    "spend_13w": "spend in the last 13 weeks",
    "spend_26w": "spend in the last 26 weeks",
    "mean_amount": "mean spend of a purchase day",
    "max_amount": "largest spend of a purchase day",
    "first_amount": "spend of the first purchase day",
    "mean_gap": "mean days between purchases; null before the second",
    "gap_deviation": "standard deviation of the days between purchases; null before the third",
    "last_over_mean_gap": "days since the last purchase over the mean gap; null before the second",
}
"""Feature -> what it is. Purchases of one day are one purchase. Spend is in average orders of the
order's currency up to the cutoff, so that currencies can be added."""


@dataclass(frozen=True)
class Window:
    """What a table of one or more snapshots holds: its bounds, its size and its content's hash."""

    first_purchase: date
    cutoffs: tuple[date, ...]
    """In their order."""
    closes: date
    """The day at whose beginning the last label is known; without labels the last cutoff."""
    rows: int
    buyers: int | None
    """Rows whose customer bought; None while a label isn't closed."""
    content_hash: str


def holdout_cutoff(week: date) -> date:
    """The cutoff of the snapshot of the week that begins on this Monday: 28 days before its end."""
    return week + WEEK - HORIZON


def training_weeks(week: date, count: int) -> list[date]:
    """The weeks whose snapshots a model of this week learns from, oldest first.

    The newest is four weeks before: its labels closed at this week's holdout cutoff.
    """
    newest = week - HORIZON
    return [newest - WEEK * back for back in reversed(range(count))]


def read(
    url: str, cutoff: date, *, as_of: date, timezone: str, relation: str = RELATION
) -> "pa.Table":
    """The snapshot at a cutoff, whole; see `read_batches`."""
    raise NotImplementedError


def read_batches(
    url: str, cutoff: date, *, as_of: date, timezone: str, relation: str = RELATION
) -> "Iterator[pa.Table]":
    """The snapshot at a cutoff in batches, ordered by customer; at least one table, if an empty one.

    Customers are those with a completed order before the cutoff. `as_of` is the first day of
    `timezone` of which the warehouse doesn't yet know all: `bought` is null if the horizon ends later.
    """
    raise NotImplementedError


def feature_frame(table: "pa.Table") -> "pd.DataFrame":
    """A snapshot's features as the models take them: float64 columns in the order of `FEATURES`."""
    raise NotImplementedError


def describe(table: "pa.Table") -> Window:
    """The window of a table of snapshots. Rows in any order and chunks give the same hash.

    Raises:
        PermanentError: the table has no rows.
    """
    raise NotImplementedError


def incomplete_days(
    warehouse: psycopg.Connection, contract: Contract, days: Sequence[date]
) -> dict[str, str]:
    """Partition key -> why it isn't in the warehouse as it should be: `missing`, `held by <rules>` or
    `not loaded`. Days that passed their gate and are loaded aren't in it."""
    raise NotImplementedError
