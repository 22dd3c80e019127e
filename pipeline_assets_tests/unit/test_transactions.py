"""The transactions' own functions, on frames."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pandas as pd
import pyarrow as pa

from pipeline_assets.warehouse.transactions import derive, normalise


def frame(**columns: pa.Array) -> pd.DataFrame:
    found: pd.DataFrame = pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)
    return found


def test_normalise_mends_case_and_blanks_and_nothing_else() -> None:
    found = normalise(
        frame(
            currency=pa.array([" usd", "EUR ", None, "x"]),
            status=pa.array(["Completed", " ", None, "x"]),
        )
    )
    assert found["currency"].to_list()[:2] == ["USD", "EUR"]
    assert found["status"].to_list()[:2] == ["completed", ""]
    assert found.isna().sum().to_list() == [1, 1]


def test_derive_counts_completed_orders_on_their_day_and_monday() -> None:
    utc = pa.timestamp("us", "UTC")
    found = derive(
        frame(
            amount=pa.array([Decimal("10.05"), Decimal("7.00")], pa.decimal128(14, 2)),
            status=pa.array(["completed", "refunded"]),
            ordered_at=pa.array(
                # the last microsecond of a Sunday, and the first of a leap day
                [datetime(2026, 1, 11, 23, 59, 59, 999999, UTC), datetime(2028, 2, 29, tzinfo=UTC)],
                utc,
            ),
        )
    )
    assert found["net_amount"].to_list() == [Decimal("10.05"), Decimal("0.00")]
    assert found["business_day"].to_list() == [date(2026, 1, 11), date(2028, 2, 29)]
    assert found["business_week"].to_list() == [date(2026, 1, 5), date(2028, 2, 28)]
    assert str(found["net_amount"].dtype) == "decimal128(14, 2)[pyarrow]"
