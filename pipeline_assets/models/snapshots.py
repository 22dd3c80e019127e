"""Snapshots: what is known of each customer at a cutoff, and whether he then bought within 28 days.

A cutoff is a day of the project's time zone; the midnight that begins it divides what is known from
what is to be foreseen. Belongs here: the one statement that computes a snapshot in the warehouse,
which weeks use which cutoffs, and the hash of a snapshot.

Columns of a snapshot: `customer_id` int64, `cutoff` date32, the `FEATURES` double, `bought` bool (null
where the horizon isn't closed), ordered by customer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.ddl import relation as identifier
from pipeline_assets.warehouse.extract import source_reader

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

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
"""Feature -> what it is. Purchases of one day count as one. Spend is measured in average orders
of its currency up to the cutoff, so that currencies can be added."""


# Sums and deviations are computed on numeric and on whole days, which are exact: with floats they, and so
# the hash, would depend on the order in which PostgreSQL's workers add.
_QUERY = """
WITH orders AS (
    SELECT customer_id, currency, net_amount, (ordered_at AT TIME ZONE {zone})::date AS day
    FROM {relation}
    WHERE status = 'completed' AND ordered_at < {end}::timestamp AT TIME ZONE {zone}
), currencies AS (
    SELECT currency, avg(net_amount) AS average FROM orders WHERE day < {cutoff} GROUP BY currency
), days AS (
    SELECT customer_id, day, sum(net_amount / average) AS amount
    FROM orders JOIN currencies USING (currency) WHERE day < {cutoff} GROUP BY customer_id, day
), purchases AS (
    SELECT *, day - lag(day) OVER (PARTITION BY customer_id ORDER BY day) AS gap FROM days
), customers AS (
    SELECT customer_id,
        count(*) - 1 AS repeat_purchases,
        {cutoff} - max(day) AS days_since_last,
        {cutoff} - min(day) AS age_days,
        {in_weeks},
        avg(amount) AS mean_amount,
        max(amount) AS max_amount,
        max(amount) FILTER (WHERE gap IS NULL) AS first_amount,
        avg(gap) AS mean_gap,
        stddev_samp(gap) AS gap_deviation,
        ({cutoff} - max(day)) / avg(gap) AS last_over_mean_gap
    FROM purchases GROUP BY customer_id
), buyers AS (
    SELECT DISTINCT customer_id FROM orders WHERE day >= {cutoff}
)
SELECT customer_id, {cutoff} AS cutoff, {features},
    CASE WHEN {closed} THEN buyers.customer_id IS NOT NULL END AS bought
FROM customers LEFT JOIN buyers USING (customer_id) ORDER BY customer_id
"""
_IN_WEEKS = """
        count(*) FILTER (WHERE day >= {cutoff} - {days}) AS {purchases},
        coalesce(sum(amount) FILTER (WHERE day >= {cutoff} - {days}), 0) AS {spend}"""
BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class Window:
    """What a table of one or more snapshots holds: its bounds, its size and its content's hash."""

    first_purchase: date
    cutoffs: tuple[date, ...]
    """Ascending."""
    closes: date
    """The day at whose beginning the last label is known; without labels the last cutoff."""
    rows: int
    buyers: int | None
    """Rows whose customer bought; None while a label isn't closed."""
    content_hash: str


def holdout_cutoff(week: date) -> date:
    """The cutoff of the snapshot of the week that begins on this Monday: 28 days before its end."""
    return week + WEEK - HORIZON


def every_fourth_week(week: date, count: int, first: date) -> list[date]:
    """The weeks whose snapshots a model of this week learns from, oldest first, none before `first`.

    Every fourth week, beginning four weeks back, whose labels closed at this week's holdout cutoff. So no
    two horizons share a day: eight snapshots span more of the year than eight weeks in a row, and the
    season misleads a model less (benchmarks.models).
    """
    weeks = [week - HORIZON * back for back in range(count, 0, -1)]
    return [each for each in weeks if each >= first]


def read(url: str, cutoff: date, *, as_of: date, timezone: str) -> "pa.Table":
    """The snapshot at a cutoff, whole; see `read_batches`."""
    import pyarrow as pa

    batches = read_batches(url, cutoff, as_of=as_of, timezone=timezone)
    return pa.concat_tables(batches).combine_chunks()


def read_batches(url: str, cutoff: date, *, as_of: date, timezone: str) -> "Iterator[pa.Table]":
    """The snapshot at a cutoff in batches, ordered by customer; at least one table, possibly empty.

    Customers are those with a completed order before the cutoff. `as_of` is the first day, in
    `timezone`, that the warehouse doesn't hold in full yet: `bought` is null if the horizon ends later.
    An order's status is the newest that the warehouse has, also for old cutoffs.
    """
    import pyarrow as pa
    from adbc_driver_postgresql import StatementOptions

    query = _query(cutoff, closed=cutoff + HORIZON <= as_of, timezone=timezone)
    with source_reader(url) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(
            **{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)}
        )
        cursor.execute(query)
        reader = cursor.fetch_record_batch()
        # The cast drops the driver's notes on PostgreSQL types, which differ between servers.
        yield reader.schema.empty_table().cast(schema())
        for batch in reader:
            if batch.num_rows:
                yield pa.Table.from_batches([batch]).cast(schema())


def buyers(cutoff: date, *, timezone: str) -> sql.Composed:
    """A query of those who bought in the horizon of a cutoff, including customers without earlier orders."""
    return sql.SQL(
        "SELECT DISTINCT customer_id FROM {relation} WHERE status = 'completed'"
        " AND ordered_at >= {cutoff}::timestamp AT TIME ZONE {zone}"
        " AND ordered_at < {end}::timestamp AT TIME ZONE {zone}"
    ).format(
        relation=identifier(RELATION),
        cutoff=sql.Literal(cutoff.isoformat()),
        end=sql.Literal((cutoff + HORIZON).isoformat()),
        zone=sql.Literal(timezone),
    )


def schema() -> "pa.Schema":
    """The columns of a snapshot."""
    import pyarrow as pa

    return pa.schema(
        [
            ("customer_id", pa.int64()),
            ("cutoff", pa.date32()),
            *((name, pa.float64()) for name in FEATURES),
            (LABEL, pa.bool_()),
        ]
    )


def _query(cutoff: date, *, closed: bool, timezone: str) -> str:
    # ADBC's COPY path takes no parameters: psycopg quotes the values.
    day = sql.SQL("{}::date").format(sql.Literal(cutoff.isoformat()))
    in_weeks = [
        sql.SQL(_IN_WEEKS).format(
            cutoff=day,
            days=sql.Literal(7 * weeks),
            purchases=sql.Identifier(f"purchases_{weeks}w"),
            spend=sql.Identifier(f"spend_{weeks}w"),
        )
        for weeks in (4, 8, 13, 26)
    ]
    query = sql.SQL(_QUERY).format(
        zone=sql.Literal(timezone),
        relation=identifier(RELATION),
        cutoff=day,
        end=sql.Literal((cutoff + HORIZON if closed else cutoff).isoformat()),
        closed=sql.Literal(closed),
        in_weeks=sql.SQL(",").join(in_weeks),
        features=sql.SQL(", ").join(
            sql.SQL("{0}::float8 AS {0}").format(sql.Identifier(name)) for name in FEATURES
        ),
    )
    return query.as_string()


def feature_frame(table: "pa.Table") -> "pd.DataFrame":
    """A snapshot's features as the models take them: float64 columns in the order of `FEATURES`."""
    frame: pd.DataFrame = table.select(list(FEATURES)).to_pandas()
    return frame


def labels(table: "pa.Table") -> "NDArray[np.bool_]":
    """Whether each row's customer bought.

    Raises:
        PermanentError: a label is null, as its horizon isn't closed.
    """
    if open_labels := table[LABEL].null_count:
        raise PermanentError(
            f"{open_labels} of {len(table)} labels of the snapshot at {_cutoffs(table)[-1]} aren't "
            f"closed: that takes {HORIZON.days} days; use an older one"
        )
    found: NDArray[np.bool_] = table[LABEL].to_numpy()
    return found


def describe(table: "pa.Table") -> Window:
    """The window of a table of snapshots; its hash doesn't depend on the rows' order and chunks.

    Raises:
        PermanentError: the table has no rows.
    """
    import pyarrow.compute as pc

    if not len(table):
        raise PermanentError(
            "the snapshot has no customers: no order was completed before its cutoff; load the "
            "warehouse first, or set MODELS_START_DATE to a later week"
        )
    cutoffs = _cutoffs(table)
    ages = pc.max(table["age_days"].filter(pc.equal(table["cutoff"], cutoffs[0]))).as_py()
    has_labels = table[LABEL].null_count == 0
    return Window(
        first_purchase=cutoffs[0] - timedelta(days=ages),
        cutoffs=cutoffs,
        closes=cutoffs[-1] + HORIZON if has_labels else cutoffs[-1],
        rows=len(table),
        buyers=pc.sum(table[LABEL]).as_py() if has_labels else None,
        content_hash=_content_hash(table),
    )


def _cutoffs(table: "pa.Table") -> tuple[date, ...]:
    return tuple(sorted(table["cutoff"].unique().to_pylist()))


def _content_hash(table: "pa.Table") -> str:
    """SHA-256 of names, types and values, sorted by cutoff and customer; the same on every platform."""
    import numpy as np
    import pyarrow.compute as pc

    rows = table.sort_by([("cutoff", "ascending"), ("customer_id", "ascending")])
    digest = sha256()
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        digest.update(f"{name} {column.type}\n".encode())
        digest.update(pc.is_null(column).to_numpy().tobytes())
        plain = {"cutoff": "int32", LABEL: "int8"}.get(name, column.type)
        values = pc.fill_null(column.cast(plain), 0).to_numpy()
        # Adding 0.0 turns -0.0 into 0.0; the bytes are little-endian on every platform.
        values = values + 0.0 if values.dtype == np.float64 else values
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
