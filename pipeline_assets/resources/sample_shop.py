"""The sample shop: CDNOW's real purchases, moved to begin on 2026-01-07, as a live source database.

The purchases of 23,570 people at an online music shop from 1997-01-01 to 1998-06-30 (Fader & Hardie),
read from the installed `lifetimes` package. The dates are moved by whole weeks, which keeps the
weekdays; an order becomes visible at its moved time, so that new ones arrive every day. Nothing is
corrected: zero amounts and orders that look like duplicates are in the original data.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import psycopg

from pipeline_assets.failures import PermanentError

SHIFT = timedelta(weeks=1514)  # 1997-01-01 becomes 2026-01-07, both Wednesdays
OPENS, CLOSES = 8 * 3600, 22 * 3600
"""Seconds of the day (UTC) between which the orders are spread; in the file they have no time."""

SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (
    order_id text PRIMARY KEY,
    customer_id bigint NOT NULL,
    ordered_at timestamptz NOT NULL,
    amount numeric(14,2),
    currency text,
    quantity integer,
    status text,
    updated_at timestamptz NOT NULL
);
CREATE INDEX ON shop.orders (updated_at);
CREATE VIEW shop.transactions AS SELECT * FROM shop.orders WHERE updated_at <= now();
COMMENT ON VIEW shop.transactions IS 'The orders whose moment has come.';
"""

Order = tuple[str, int, datetime, Decimal, str, int, str, datetime]


def ensure(url: str) -> None:
    """Fill the database at `url` with the shop, once; several processes may call this at the same time.

    Raises:
        PermanentError: the package with the purchases isn't installed.
    """
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('pipeline_assets.sample_shop'))")
        if connection.execute("SELECT to_regclass('shop.transactions')").fetchone() != (None,):
            return
        connection.execute(SCHEMA)
        with connection.cursor().copy("COPY shop.orders FROM STDIN") as copy:
            for order in orders():
                copy.write_row(order)
        connection.execute("ANALYZE shop.orders")


def orders() -> Iterator[Order]:
    """All 69,659 orders, past and to come, in the order of the file: by customer, then day.

    An order's number consists of customer, day and its position among that customer's orders of the day;
    its second of the day comes from that number's CRC-32, so that it is the same on every machine.
    """
    placed: Counter[tuple[str, str]] = Counter()
    with _purchases().open(encoding="ascii") as file:
        next(file)  # the header
        for line in file:
            customer, day, quantity, amount = line.split()
            placed[customer, day] += 1
            date = datetime.fromisoformat(day).replace(tzinfo=UTC) + SHIFT
            order_id = f"{customer}-{date:%Y%m%d}-{placed[customer, day]}"
            second = OPENS + crc32(order_id.encode()) % (CLOSES - OPENS)
            moment = date + timedelta(seconds=second)
            yield (
                order_id,
                int(customer),
                moment,
                Decimal(amount),
                "USD",
                int(quantity),
                "completed",
                moment,
            )


def _purchases() -> Path:
    # Located without importing lifetimes, which takes a second and emits warnings.
    spec = find_spec("lifetimes")
    if spec is None or not spec.submodule_search_locations:
        raise PermanentError(
            "the sample shop's purchases come with the package lifetimes, which is not installed: "
            'run pip install "pipeline-assets[sample]", or set SOURCE_DATABASE_URL'
        )
    return Path(spec.submodule_search_locations[0]) / "datasets" / "CDNOW_master.txt"
