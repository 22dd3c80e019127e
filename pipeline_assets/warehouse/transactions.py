"""The transactions table's own steps: pure functions from frame to frame (Arrow dtypes)."""

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def normalise(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Convert currencies to upper case and statuses to lower case, and strip blanks around them."""
    return frame.assign(
        currency=frame["currency"].str.strip().str.upper(),
        status=frame["status"].str.strip().str.lower(),
    )


def derive(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Add `net_amount` (decimal), `business_day` and `business_week` (dates, UTC).

    Only a completed order counts: the shop keeps 0 of a pending, cancelled or refunded one. A week is
    identified by its Monday (ISO 8601).
    """
    import pandas as pd
    import pyarrow as pa

    date = pd.ArrowDtype(pa.date32())
    day = frame["ordered_at"].dt.tz_localize(None).dt.floor("D")
    monday = day - pd.to_timedelta(day.dt.dayofweek.astype("int64"), unit="D").astype(
        "duration[us][pyarrow]"
    )
    amount = frame["amount"]
    nothing = pd.Series(Decimal("0.00"), index=frame.index, dtype=amount.dtype)
    return frame.assign(
        net_amount=amount.where(frame["status"] == "completed", nothing),
        business_day=day.astype(date),
        business_week=monday.astype(date),
    )
