"""The three steps of the daily pipeline by which orchestrators are compared: plain Python and psycopg.

Dagster, Airflow and Prefect import this same module, so that only they differ. Steps may run in different
processes: each finds the previous step's file by the day.
"""

import csv
import os
from decimal import Decimal
from pathlib import Path

import psycopg
from psycopg import sql

SCHEDULED_DAY = "2026-02-14"
"""The day that the every-minute schedule loads."""
CURRENCIES = {"USD", "EUR", "GBP", "JPY", "CHF"}


def extract(day: str) -> int:
    """Write the day's rows of the source to a CSV file; returns how many there are."""
    query = sql.SQL(
        "COPY (SELECT order_id, customer_id, ordered_at, amount, currency, quantity FROM shop.orders"
        " WHERE ordered_at >= {day} AND ordered_at < {day}::date + 1) TO STDOUT (FORMAT csv)"
    ).format(day=sql.Literal(day))
    with (
        psycopg.connect(os.environ["SOURCE_URL"], options="-c TimeZone=UTC") as source,
        source.cursor() as cursor,
        _file(day, "raw").open("wb") as file,
    ):
        with cursor.copy(query) as rows:
            for chunk in rows:
                file.write(chunk)
        return cursor.rowcount


def validate(day: str) -> int:
    """Sort the rows into valid ones and others, a CSV file each; returns how many are valid."""
    valid = 0
    with (
        _file(day, "raw").open(newline="") as file,
        _file(day, "valid").open("w", newline="") as kept,
        _file(day, "rejected").open("w", newline="") as others,
    ):
        keep, reject = csv.writer(kept), csv.writer(others)
        for row in csv.reader(file):
            if is_valid(row):
                keep.writerow(row)
                valid += 1
            else:
                reject.writerow(row)
    return valid


def is_valid(row: list[str]) -> bool:
    """Whether a row has its keys, a positive amount and quantity, and a known currency."""
    order_id, customer_id, ordered_at, amount, currency, quantity = row
    return bool(
        order_id
        and customer_id
        and ordered_at
        and Decimal(amount) > 0
        and currency in CURRENCIES
        and int(quantity) >= 1
    )


def upsert(day: str) -> int:
    """Insert the valid rows into the target by key, or update them; returns how many there were."""
    with (
        psycopg.connect(os.environ["TARGET_URL"], options="-c TimeZone=UTC") as target,
        target.cursor() as cursor,
    ):
        cursor.execute("CREATE TEMP TABLE staged (LIKE analytics.orders) ON COMMIT DROP")
        with cursor.copy("COPY staged FROM STDIN (FORMAT csv)") as copy:
            copy.write(_file(day, "valid").read_bytes())
        cursor.execute(
            "INSERT INTO analytics.orders SELECT * FROM staged ORDER BY order_id"
            " ON CONFLICT (order_id) DO UPDATE SET customer_id = excluded.customer_id,"
            " ordered_at = excluded.ordered_at, amount = excluded.amount,"
            " currency = excluded.currency, quantity = excluded.quantity"
        )
        return cursor.rowcount


def _file(day: str, kind: str) -> Path:
    return Path(os.environ["STEPS_FOLDER"]) / f"{day}.{kind}.csv"
