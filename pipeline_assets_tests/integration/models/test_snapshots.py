"""Snapshots from a real table, compared with a naive computation."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from statistics import mean, stdev
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import snapshots
from pipeline_assets.models.snapshots import FEATURES, LABEL
from pipeline_assets.quality.ddl import ensure_table
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.settings import Settings
from pipeline_assets_tests.integration.models.conftest import Snapshot

CUTOFF = date(2026, 6, 1)
CLOSED = CUTOFF + snapshots.HORIZON
TRANSACTIONS = load_contract("transactions")


@dataclass(frozen=True)
class Order:
    """What a snapshot reads of an order."""

    customer: int
    at: datetime
    amount: Decimal
    currency: str = "USD"
    status: str = "completed"


def at(day: date, hour: int = 12) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def order(customer: int = 1, *, days_before: float = 10, **values: Any) -> Order:
    given: dict[str, Any] = {
        "customer": customer,
        "at": at(CUTOFF, 0) - timedelta(days=days_before),
        "amount": Decimal("10.00"),
    }
    return Order(**given | values)


class Store:
    """The warehouse table of a test."""

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self.url, self.connection = url, connection
        with connection.transaction():
            ensure_table(connection, TRANSACTIONS)

    def hold(self, *orders: Order) -> "Store":
        """Hold these orders and no others."""
        self.connection.execute("TRUNCATE analytics.fct_transactions")
        with self.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO analytics.fct_transactions VALUES"
                " (%s, %s, %s, %s, %s, 1, %s, %s, %s, '2000-01-01', '2000-01-01')",
                [
                    (
                        str(number),
                        each.customer,
                        each.at,
                        each.amount,
                        each.currency,
                        each.status,
                        each.at,
                        each.amount if each.status == "completed" else 0,
                    )
                    for number, each in enumerate(orders)
                ],
            )
        return self

    def read(self, *, as_of: date = CLOSED, timezone: str = "UTC") -> pa.Table:
        return snapshots.read(self.url, CUTOFF, as_of=as_of, timezone=timezone)

    def rows(self, **asked: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.read(**asked).to_pylist()
        return rows


@pytest.fixture
def store(settings: Settings, warehouse: psycopg.Connection) -> Store:
    assert settings.warehouse_database_url
    return Store(settings.warehouse_database_url.get_secret_value(), warehouse)


def naive(orders: list[Order], timezone: str) -> list[dict[str, Any]]:
    """The features and labels, computed order by order as one would explain them."""
    zone = ZoneInfo(timezone)
    completed = [
        (each, each.at.astimezone(zone).date()) for each in orders if each.status == "completed"
    ]
    by_currency = defaultdict(list)
    for each, day in completed:
        if day < CUTOFF:
            by_currency[each.currency].append(float(each.amount))
    spent: dict[int, dict[date, float]] = defaultdict(lambda: defaultdict(float))
    for each, day in completed:
        if day < CUTOFF:
            spent[each.customer][day] += float(each.amount) / mean(by_currency[each.currency])
    rows = []
    for customer in sorted(spent):
        days = sorted(spent[customer])
        amounts = [spent[customer][day] for day in days]
        gaps = [(later - earlier).days for earlier, later in pairwise(days)]
        since = (CUTOFF - days[-1]).days
        row: dict[str, Any] = {
            "customer_id": customer,
            "cutoff": CUTOFF,
            "repeat_purchases": len(days) - 1,
            "days_since_last": since,
            "age_days": (CUTOFF - days[0]).days,
            "mean_amount": mean(amounts),
            "max_amount": max(amounts),
            "first_amount": amounts[0],
            "mean_gap": mean(gaps) if gaps else None,
            "gap_deviation": stdev(gaps) if len(gaps) > 1 else None,
            "last_over_mean_gap": since / mean(gaps) if gaps else None,
            "bought": any(
                each.customer == customer and CUTOFF <= day < CLOSED for each, day in completed
            ),
        }
        for weeks in (4, 8, 13, 26):
            recent = [day for day in days if (CUTOFF - day).days <= 7 * weeks]
            row[f"purchases_{weeks}w"] = len(recent)
            row[f"spend_{weeks}w"] = sum(spent[customer][day] for day in recent)
        rows.append(row)
    return rows


def about(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value


orders = st.builds(
    Order,
    customer=st.integers(1, 4),
    # Seconds around the cutoff: eight months before to six weeks after.
    at=st.integers(-240 * 86_400, 42 * 86_400).map(lambda s: at(CUTOFF, 0) + timedelta(seconds=s)),
    amount=st.decimals(Decimal("0.01"), Decimal("5000"), places=2),
    currency=st.sampled_from(["USD", "USD", "JPY"]),
    status=st.sampled_from(["completed", "completed", "completed", "refunded", "pending"]),
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(held=st.lists(orders, max_size=25), timezone=st.sampled_from(["UTC", "America/New_York"]))
def test_features_and_labels_are_what_a_naive_computation_gives(
    store: Store, held: list[Order], timezone: str
) -> None:
    expected = naive(held, timezone)
    found = store.hold(*held).rows(timezone=timezone)
    assert [row["customer_id"] for row in found] == [row["customer_id"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == {name: about(value) for name, value in wanted.items()}


def test_the_cohorts_features_are_the_naive_ones_too(cohort: str, snapshot: Snapshot) -> None:
    with psycopg.connect(cohort) as connection:
        held = [
            Order(*row)
            for row in connection.execute(
                "SELECT customer_id, ordered_at, amount, currency, status"
                " FROM analytics.fct_transactions WHERE customer_id <= 400"
            )
        ]
        average = connection.execute(
            "SELECT avg(amount) FROM analytics.fct_transactions WHERE ordered_at < %s",
            [at(CUTOFF, 0)],
        ).fetchone()
    assert average
    expected = {row["customer_id"]: row for row in naive(held, "UTC")}
    scale = mean(float(each.amount) for each in held if each.at < at(CUTOFF, 0)) / float(average[0])
    found = [row for row in snapshot(CUTOFF).to_pylist() if row["customer_id"] <= 400]
    assert len(found) == len(expected) == 400
    for row in found:
        wanted = expected[row["customer_id"]]
        for name in wanted:
            # The naive average is that of these customers only.
            factor = scale if "amount" in name or "spend" in name else 1
            value = wanted[name]
            assert row[name] == about(value * factor if isinstance(value, float) else value)


def test_a_label_is_null_until_its_horizon_is_closed(store: Store) -> None:
    store.hold(order(), order(days_before=-3))
    assert [row[LABEL] for row in store.rows(as_of=CLOSED)] == [True]
    early = store.read(as_of=CLOSED - timedelta(days=1))
    assert early[LABEL].to_pylist() == [None]
    with pytest.raises(PermanentError, match="1 of 1 labels of the snapshot at 2026-06-01"):
        snapshots.labels(early)


def test_the_day_of_the_cutoff_belongs_to_the_label_and_the_day_after_the_horizon_to_nobody(
    store: Store,
) -> None:
    store.hold(
        *(order(customer, days_before=1) for customer in (1, 2, 3)),
        order(1, days_before=0),
        order(2, days_before=-27.99),
        order(3, days_before=-28),
    )
    assert [row[LABEL] for row in store.rows()] == [True, True, False]
    assert {row["repeat_purchases"] for row in store.rows()} == {0.0}


def test_a_day_is_a_day_of_the_time_zone(store: Store) -> None:
    # 02:00 UTC on the cutoff's day is still the evening before in New York.
    store.hold(order(1, at=at(CUTOFF, 2)))
    assert store.rows() == []
    assert [row["days_since_last"] for row in store.rows(timezone="America/New_York")] == [1.0]


def test_money_of_two_currencies_counts_in_average_orders_of_each(store: Store) -> None:
    store.hold(
        order(1, amount=Decimal(5)),
        order(2, amount=Decimal(15)),
        order(3, amount=Decimal(1500), currency="JPY"),
        order(1, amount=Decimal(500), currency="JPY", days_before=3),
    )
    spent = {row["customer_id"]: row["spend_4w"] for row in store.rows()}
    assert spent == pytest.approx({1: 0.5 + 0.5, 2: 1.5, 3: 1.5})


def test_an_empty_table_gives_an_empty_snapshot_which_can_not_be_described(store: Store) -> None:
    found = store.read()
    assert found.schema == snapshots.schema()
    assert found.num_rows == 0
    with pytest.raises(PermanentError, match="no customers"):
        snapshots.describe(found)


def test_the_same_week_on_the_same_data_gives_the_same_hash(
    store: Store, cohort: str, snapshot: Snapshot
) -> None:
    first = snapshots.describe(snapshot(CUTOFF))
    again = snapshots.read(cohort, CUTOFF, as_of=CLOSED, timezone="UTC")
    assert snapshots.describe(again) == first
    assert (first.rows, first.buyers) == (23_500, 1_953)
    assert (first.first_purchase, first.closes) == (date(2026, 1, 7), CLOSED)
    # A literal: another PostgreSQL, processor or version must give the same hash.
    assert first.content_hash == (
        "9d54e6457e313a918f58f8a12bdec900bae44afef0ab9f7af249370c7bddac07"
    )


def test_it_is_the_same_however_the_rows_lie_in_the_table(store: Store) -> None:
    held = [
        order(number % 7, days_before=1 + number, amount=Decimal(number + 1) / 7, currency=currency)
        for number in range(60)
        for currency in ("USD", "EUR")
    ]
    first = snapshots.describe(store.hold(*held).read())
    assert snapshots.describe(store.hold(*held[::-1]).read()) == first


def test_batches_are_the_whole(cohort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = snapshots.read(cohort, CUTOFF, as_of=CLOSED, timezone="UTC")
    monkeypatch.setattr(snapshots, "BATCH_BYTES", 100_000)
    batches = list(snapshots.read_batches(cohort, CUTOFF, as_of=CLOSED, timezone="UTC"))
    assert len(batches) > 20
    assert pa.concat_tables(batches).combine_chunks() == whole


def test_features_have_the_models_columns(snapshot: Snapshot) -> None:
    frame = snapshots.feature_frame(snapshot(CUTOFF))
    assert list(frame) == list(FEATURES)
    assert set(frame.dtypes.astype(str)) == {"float64"}
    assert frame["mean_gap"].isna().mean() == pytest.approx(0.6, abs=0.2)
