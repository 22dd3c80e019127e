"""Whether anything was lost, doubled, torn or left behind, judged by plain SQL and the files' bytes.

Nothing here calls the package, as its ledger and its reconciliation are judged too. `VALID` restates in
SQL what a valid order is; the contract `transactions` says it in YAML. Each function returns what is
wrong, one sentence per defect; an empty list means that all is well.
"""

import hashlib
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pyarrow.parquet as pq

VALID = """coalesce(
    order_id::text <> '' AND customer_id IS NOT NULL AND ordered_at <= updated_at
    AND amount > 0 AND amount = round(amount, 2) AND amount < 1e12
    AND quantity BETWEEN 1 AND 1000
    AND upper(trim(currency)) IN ('USD', 'EUR', 'GBP', 'JPY', 'CHF')
    AND lower(trim(status)) IN ('pending', 'completed', 'cancelled', 'refunded')
    AND count(*) OVER (PARTITION BY order_id, (updated_at AT TIME ZONE 'UTC')::date) = 1, false)"""

BY_BUSINESS_DAY = """
SELECT business_day, currency, count(*), sum(quantity), sum(amount), sum(net_amount),
    md5(string_agg(concat_ws('|', order_id, customer_id, extract(epoch FROM ordered_at), amount, quantity,
        status, extract(epoch FROM updated_at), net_amount), E'\n' ORDER BY order_id))
FROM ({}) AS orders GROUP BY 1, 2 ORDER BY 1, 2"""

SOURCE_ORDERS = f"""
SELECT order_id, customer_id, ordered_at, amount::numeric(14,2), upper(trim(currency)) AS currency,
    quantity, lower(trim(status)) AS status, updated_at,
    (ordered_at AT TIME ZONE 'UTC')::date AS business_day,
    CASE lower(trim(status)) WHEN 'completed' THEN amount ELSE 0 END::numeric(14,2) AS net_amount
FROM (SELECT *, {VALID} AS valid FROM shop.transactions) AS judged WHERE valid"""

REBUILT = {
    "dim_customers": """SELECT customer_id, currency, min(ordered_at), max(ordered_at), count(*),
        sum(quantity), sum(net_amount) FROM analytics.fct_transactions WHERE status = 'completed'
        GROUP BY 1, 2""",
    "daily_sales": """SELECT business_day, currency, count(*), count(DISTINCT customer_id), sum(quantity),
        sum(amount), sum(net_amount) FROM analytics.fct_transactions GROUP BY 1, 2""",
}
KEPT = {
    "dim_customers": "SELECT * FROM analytics.dim_customers WHERE orders > 0",
    "daily_sales": "SELECT * FROM analytics.daily_sales",
}


def source_differences(source: psycopg.Connection, warehouse: psycopg.Connection) -> list[str]:
    """Business days whose orders differ, and rows that the quarantine lacks or has too often."""
    there = source.execute(BY_BUSINESS_DAY.format(SOURCE_ORDERS)).fetchall()
    here = warehouse.execute(
        BY_BUSINESS_DAY.format("SELECT * FROM analytics.fct_transactions")
    ).fetchall()
    found = [f"only the source has {day[:6]}" for day in there if day not in here]
    found += [f"only the warehouse has {day[:6]}" for day in here if day not in there]
    invalid = Counter(
        source.execute(
            f"SELECT coalesce(order_id::text, ''), updated_at FROM (SELECT *, {VALID} AS valid"
            " FROM shop.transactions) AS judged WHERE NOT valid AND isfinite(updated_at)"
        ).fetchall()
    )
    held = Counter(
        warehouse.execute(
            "SELECT source_identity, source_version FROM quarantine.transactions"
        ).fetchall()
    )
    found += [f"the quarantine lacks {row}" for row in invalid - held]
    return found + [f"the quarantine has too much: {row}" for row in held - invalid]


def mart_differences(warehouse: psycopg.Connection) -> list[str]:
    """Groups of a mart that a full rebuild wouldn't give, or that the mart lacks."""
    found = []
    for mart, rebuilt in REBUILT.items():
        rows = warehouse.execute(
            f"(({rebuilt}) EXCEPT ALL ({KEPT[mart]})) UNION ALL (({KEPT[mart]}) EXCEPT ALL ({rebuilt}))"
        )
        found += [f"{mart} and its rebuild differ in {row}" for row in rows]
    return found


def torn(warehouse: psycopg.Connection, root: Path) -> list[str]:
    """What breaks the rules that hold however a run ended: whole transactions and whole files."""
    if warehouse.execute("SELECT to_regclass('analytics.daily_sales')").fetchone() == (None,):
        return []
    rows = warehouse.execute(
        """SELECT partition_key FROM pipeline.batches AS b WHERE table_name = 'transactions'
           AND (rows_extracted <> rows_valid + rows_quarantined OR rows_quarantined <>
               (SELECT count(*) FROM quarantine.transactions AS q WHERE q.partition_key = b.partition_key))
           UNION SELECT partition_key FROM quarantine.transactions
           WHERE partition_key NOT IN (SELECT partition_key FROM pipeline.batches)"""
    )
    found = [f"{key}: ledger and quarantine count differently" for (key,) in rows]
    return found + mart_differences(warehouse) + broken_files(root)


def broken_files(root: Path) -> list[str]:
    """Files of partitions that can't be read to their end; a killed run's partial files end in `.part`."""
    found = []
    for file in root.rglob("*"):
        if file.is_file() and file.suffix != ".part":
            try:
                pq.read_table(file, partitioning=None)
            except Exception as error:
                found.append(f"{file.name} is broken: {error}")
    return found


def unloaded(warehouse: psycopg.Connection, root: Path) -> list[str]:
    """Days that passed but weren't loaded, or whose file isn't the one that was validated."""
    found = []
    for key, verdict, content, loaded in warehouse.execute(
        "SELECT partition_key, verdict, content_hash, loaded_hash FROM pipeline.batches"
        " WHERE table_name = 'transactions'"
    ):
        file = root / "validated_transactions" / f"{key}.parquet"
        if verdict == "passed" and loaded != content:
            found.append(f"{key} passed and wasn't loaded")
        if hashlib.sha256(file.read_bytes()).hexdigest() != content:
            found.append(f"{key}: the file isn't the one that was validated")
    return found


def left_behind(connection: psycopg.Connection, databases: list[str]) -> list[str]:
    """Sessions, locks and prepared transactions in these databases, except for the asking session's."""
    sessions = connection.execute(
        "SELECT datname, application_name, state, query FROM pg_stat_activity"
        " WHERE datname = ANY (%s) AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        [databases],
    ).fetchall()
    locks = connection.execute(
        "SELECT datname, locktype, mode FROM pg_locks JOIN pg_database ON database = oid"
        " WHERE datname = ANY (%s) AND pid IS DISTINCT FROM pg_backend_pid()",
        [databases],
    ).fetchall()
    prepared = connection.execute(
        "SELECT gid FROM pg_prepared_xacts WHERE database = ANY (%s)", [databases]
    ).fetchall()
    return [f"left behind: {row}" for row in (*sessions, *locks, *prepared)]


def left_files(data: Path) -> list[str]:
    """Partial files whose writers died, and whatever is left in the folder for temporary files."""
    parts = [*data.rglob("*.part"), *(data / "tmp").glob("*")]
    return [f"left behind: {file.relative_to(data)}" for file in parts]


def left_processes(mark: str, cluster: Path, server: int) -> list[str]:
    """Processes of runs, known by an environment variable, and of PostgreSQL servers but the live one.

    The asking process and its own children, from which runs are forked, don't count as a run's.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            name, value = mark.split("=")
            is_run = process.environ().get(name) == value and os.getpid() not in (
                process.pid,
                process.ppid(),
            )
            is_stray = process.cwd() == str(cluster) and server not in (
                process.pid,
                process.ppid(),
            )
            if is_run or is_stray:
                found.append(f"left behind: {process.pid} {process.cmdline()}")
    return found
