"""The benchmark's databases: TPC-H's order lines as a shop's table, and what a day did to it.

Everything is made by SQL from `tpchgen-cli`'s data, so that the code which is measured has no part in
it. One source database per case holds the rows of one day (`DAY`); the warehouse templates hold the table
before that day (`base`), nothing (`empty`), or the outcome of the largest mixed day (`loaded`).

What a day holds, besides clean rows: one in a thousand breaks the contract. The base has a few lines
whose version is newer than the day's (`NEWER`: the day is replayed late), and a few of the day itself
which the source has deleted since (`DELETED`: the day was loaded before).
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.ddl import ensure_index, ensure_table
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.embedded_postgres import Server, ensure_database

FULL_ROWS = 6_000_000
"""Rows of the warehouse's table in the benchmark that the documentation shows."""
DAY = datetime(2026, 3, 2, tzinfo=UTC)
NEXT_DAY = DAY + timedelta(days=1)
EMPTY_DAY = DAY - timedelta(days=1)
"""A day without rows, which tools load before the clock starts, so that their own tables exist."""

CONTRACT = Path(__file__).parent / "contracts" / "line_items.odcs.yaml"

# The largest mixed day changes the multiples of 12 (half of a sixth), the smaller ones those of 120, 1200.
NEWER = sql.SQL("line_id % 60000 = 0 AND line_id <= {rows}")
DELETED = sql.SQL("line_id % 60000 = 1 AND line_id <= {rows}")
VALID = sql.SQL(
    "(order_id IS NOT NULL AND quantity >= 1 AND amount > 0"
    " AND currency IN ('USD', 'EUR', 'GBP', 'JPY', 'CHF'))"
)
SOURCE = """
CREATE SCHEMA shop;
CREATE TABLE shop.line_items (
    line_id bigint PRIMARY KEY, order_id bigint, customer_id bigint, part_id bigint,
    quantity integer, amount numeric(14,2), discount numeric(5,2), currency text, status text,
    priority text, channel text, ordered_at timestamptz, updated_at timestamptz, note text
);
CREATE VIEW shop.widened AS
    SELECT *, round(amount * (1 - discount), 2)::numeric(14,2) AS net_amount,
        (ordered_at AT TIME ZONE 'UTC')::date AS order_day
    FROM shop.line_items;
COMMENT ON VIEW shop.widened IS 'With the derived columns, for the tools that derive none.';
"""
TPCH = """
CREATE UNLOGGED TABLE orders (
    o_orderkey bigint, o_custkey bigint, o_orderstatus text, o_totalprice numeric,
    o_orderdate date, o_orderpriority text, o_clerk text, o_shippriority int, o_comment text
);
CREATE UNLOGGED TABLE lineitem (
    l_orderkey bigint, l_partkey bigint, l_suppkey bigint, l_linenumber int, l_quantity numeric,
    l_extendedprice numeric, l_discount numeric, l_tax numeric, l_returnflag text,
    l_linestatus text, l_shipdate date, l_commitdate date, l_receiptdate date,
    l_shipinstruct text, l_shipmode text, l_comment text
);
"""
# TPC-H's dates end in 1998; moved by 27 years, all of them are before DAY. The hash gives randomness that
# is reproducible.
LINES = """
CREATE UNLOGGED TABLE lines AS
SELECT row_number() OVER (ORDER BY l_orderkey, l_linenumber) AS line_id,
    l_orderkey AS order_id, o_custkey AS customer_id, l_partkey AS part_id,
    l_quantity::integer AS quantity, l_extendedprice::numeric(14,2) AS amount,
    l_discount::numeric(5,2) AS discount,
    ('{USD,EUR,GBP,JPY,CHF}'::text[])[1 + l_orderkey % 5] AS currency,
    CASE l_returnflag WHEN 'R' THEN 'returned' WHEN 'A' THEN 'delivered' ELSE 'sent' END AS status,
    o_orderpriority AS priority, l_shipmode AS channel,
    (o_orderdate + interval '27 years' + l_orderkey % 86400 * interval '1 s')
        AT TIME ZONE 'UTC' AS ordered_at,
    (l_receiptdate + interval '27 years' + interval '12 hours') AT TIME ZONE 'UTC' AS updated_at,
    l_comment AS note,
    hashint8extended(l_orderkey * 10 + l_linenumber, 0) & 2147483647 AS random
FROM lineitem JOIN orders ON o_orderkey = l_orderkey;
CREATE INDEX ON lines (line_id);
VACUUM ANALYZE lines;
"""


@dataclass(frozen=True)
class Case:
    """A day to load: `changed` old lines and `new` ones, into a warehouse made from `template`."""

    name: str
    changed: int
    new: int
    template: str

    @property
    def source(self) -> str:
        """The database with the day's rows; a replay shares that of the mixed day it repeats."""
        kind = "first" if self.template == "empty" else f"{self.changed}_{self.new}"
        return f"bench_source_{kind}"


def cases(rows: int) -> dict[str, Case]:
    """The benchmark's cases for a table of `rows` rows, by a short name for the command line."""
    mixed = {f"mixed{part}": rows // part for part in (600, 60, 6)}
    into = words(rows)
    return {
        **{
            name: Case(f"{words(size)} mixed into {into}", size // 2, size // 2, "base")
            for name, size in mixed.items()
        },
        "new": Case(f"{words(rows // 12)} all new into {into}", 0, rows // 12, "base"),
        "first": Case(f"{into} into an empty table", rows, 0, "empty"),
        "replay": Case(
            f"{words(rows // 6)} replayed into {into}", rows // 12, rows // 12, "loaded"
        ),
    }


def words(rows: int) -> str:
    """A number of rows in few letters: 10k, 6M."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if rows >= size:
            return f"{rows / size:g}{unit}"
    return str(rows)


def contract() -> Contract:
    """The contract of the table that is loaded."""
    return load_contract(CONTRACT)


def prepare(server: Server, rows: int) -> None:
    """Make every database that the cases need, unless they exist already for as many rows."""
    if _prepared(server) == rows:
        return
    with psycopg.connect(server.url(), autocommit=True) as admin:
        for (name,) in admin.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'bench_%'"
        ).fetchall():
            drop(admin, name)
    with connect(server, "bench_lines") as lines:
        _generate(lines, rows)
        wanted = cases(rows)
        for case in {case.source: case for case in wanted.values()}.values():
            _fill_source(server, lines, case, rows)
        _fill_template(server, lines, "empty", 0)
        _fill_template(server, lines, "base", rows)
        _load_by_sql(server, wanted["replay"], rows)
        lines.execute("DROP TABLE lines")
        lines.execute("CREATE TABLE prepared AS SELECT %s::int AS rows", [rows])


def connect(server: Server, database: str) -> psycopg.Connection:
    """A connection to one of the benchmark's databases, which is made if missing."""
    return psycopg.connect(
        ensure_database(server, database), autocommit=True, options="-c TimeZone=UTC"
    )


def drop(admin: psycopg.Connection, database: str) -> None:
    """Drop a database, ending all connections to it."""
    admin.execute(
        sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
    )


def fresh_copy(server: Server, template: str, name: str) -> str:
    """Copy a template file by file, all on disk on return; returns the copy's URL."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        drop(admin, name)
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(f"bench_{template}")
            )
        )
        admin.execute("CHECKPOINT")
    return server.url(name)


Wrong = dict[str, int]
"""How many rows of the target are wrong after a load:

bad        rows of the day that break the contract, but are in the target in any version
older      rows that the day's older version has overwritten
deleted    rows that the source has deleted
differing  clean rows of the day that are missing or differ in any column
"""


def wrong_rows(server: Server, warehouse_name: str, case: Case, rows: int) -> Wrong:
    """Compare a loaded warehouse with the day, in SQL."""
    names = [column.name for column in contract().columns]
    with connect(server, warehouse_name) as warehouse:
        attach_day(warehouse, server, case)
        row = warehouse.execute(
            sql.SQL(
                """
                SELECT
                    (SELECT count(*) FROM analytics.line_items JOIN day USING (line_id)
                     WHERE NOT valid),
                    (SELECT count(*) FROM analytics.line_items
                     WHERE {newer} AND updated_at < {next_day} AND {has_base}),
                    (SELECT count(*) FROM analytics.line_items WHERE {deleted} AND {has_base}),
                    (SELECT count(*) FROM day LEFT JOIN analytics.line_items AS t USING (line_id)
                     WHERE valid AND NOT ({has_base} AND {newer})
                     AND ({wanted}) IS DISTINCT FROM ({found}))
                """
            ).format(
                newer=NEWER.format(rows=rows),
                deleted=DELETED.format(rows=rows),
                next_day=sql.Literal(NEXT_DAY),
                has_base=case.template != "empty",
                wanted=sql.SQL(", ").join(sql.Identifier("day", name) for name in names[1:]),
                found=sql.SQL(", ").join(sql.Identifier("t", name) for name in names[1:]),
            )
        ).fetchone()
    bad, older, deleted, differing = row or (0, 0, 0, 0)
    return {"bad": bad, "older": older, "deleted": deleted, "differing": differing}


def attach_day(warehouse: psycopg.Connection, server: Server, case: Case) -> None:
    """Bring the case's day into the warehouse as a temporary table `day`, by postgres_fdw."""
    settings = {"host": server.host, "port": str(server.port), "dbname": case.source}
    login = {"user": server.user, "password": server.password}
    warehouse.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    warehouse.execute("DROP SERVER IF EXISTS source CASCADE")
    warehouse.execute(
        sql.SQL("CREATE SERVER source FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
            _options(settings)
        )
    )
    warehouse.execute(
        sql.SQL("CREATE USER MAPPING FOR CURRENT_USER SERVER source OPTIONS ({})").format(
            _options(login)
        )
    )
    warehouse.execute(
        "IMPORT FOREIGN SCHEMA shop LIMIT TO (widened) FROM SERVER source INTO pg_temp"
    )
    warehouse.execute(
        sql.SQL(
            "CREATE TEMP TABLE day AS SELECT *, {} IS TRUE AS valid FROM pg_temp.widened"
        ).format(VALID)
    )
    warehouse.execute("ANALYZE day")


def _options(values: dict[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in values.items()
    )


def _prepared(server: Server) -> int | None:
    with connect(server, "bench_lines") as lines:
        if lines.execute("SELECT to_regclass('prepared')").fetchone() == (None,):
            return None
        found: tuple[int] | None = lines.execute("SELECT rows FROM prepared").fetchone()
        return found and found[0]


def _generate(lines: psycopg.Connection, rows: int) -> None:
    """TPC-H at the scale that gives the base's lines and the new ones of every case."""
    lines.execute(TPCH)
    scale = (rows * 7 / 6) / 5_990_000  # 6,001,215 lines at scale 1; a little more is cut off
    for table in ("orders", "lineitem"):
        generator = str(Path(sys.executable).with_name("tpchgen-cli"))
        command = [generator, "csv", "--quiet", "--stdout", "-T", table, "-s", f"{scale:.6f}"]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as process,
            lines.cursor().copy(f"COPY {table} FROM STDIN (FORMAT csv, HEADER)") as copy,
        ):
            while process.stdout and (chunk := process.stdout.read(1 << 20)):
                copy.write(chunk)
    for statement in LINES.strip().split(";")[:-1]:
        lines.execute(statement)
    lines.execute("DROP TABLE orders, lineitem")


def _fill_source(server: Server, lines: psycopg.Connection, case: Case, rows: int) -> None:
    """The day's rows: old lines from all over the table, changed, and new lines; a few are bad.

    They are stored in the order of their change, which is unrelated to the order of the keys.
    """
    stride = rows // case.changed if case.changed else 1
    first_new = {"base": rows, "loaded": rows, "empty": rows}[case.template]
    query = sql.SQL(
        """
        SELECT line_id,
            CASE WHEN bad AND random % 4000 < 1000 THEN NULL ELSE order_id END, customer_id, part_id,
            CASE WHEN bad AND random % 4000 BETWEEN 1000 AND 1999 THEN 0 ELSE quantity END,
            CASE WHEN bad AND random % 4000 BETWEEN 2000 AND 2999 THEN -amount ELSE amount + 1 END,
            discount,
            CASE WHEN bad AND random % 4000 >= 3000 THEN 'XXX' ELSE currency END,
            'changed', priority, channel, ordered_at,
            {day} + random % 86400000 * interval '1 ms' AS changed_at, note
        FROM (
            SELECT *, random % 1000 = 7 AND NOT ({newer}) AS bad FROM lines
            WHERE ({changed} > 0 AND line_id <= {rows} AND line_id % {stride} = 0)
                OR (line_id > {first_new} AND line_id <= {first_new} + {new})
        ) AS picked
        ORDER BY changed_at
        """
    ).format(
        day=sql.Literal(DAY),
        newer=NEWER.format(rows=rows),
        changed=case.changed,
        rows=rows,
        stride=stride,
        first_new=first_new,
        new=case.new,
    )
    with connect(server, case.source) as source:
        source.execute(SOURCE)
        _copy(lines, query, source, sql.SQL("shop.line_items"))
        source.execute("CREATE INDEX ON shop.line_items (updated_at)")
        source.execute("VACUUM (FREEZE, ANALYZE) shop.line_items")


def _fill_template(server: Server, lines: psycopg.Connection, name: str, rows: int) -> None:
    table = contract()
    query = sql.SQL(
        """
        SELECT line_id, order_id, customer_id, part_id, quantity, amount, discount, currency, status,
            priority, channel, ordered_at,
            CASE WHEN {newer} THEN {next_day} WHEN {deleted} THEN {day} ELSE updated_at END,
            note, round(amount * (1 - discount), 2)::numeric(14,2),
            (ordered_at AT TIME ZONE 'UTC')::date
        FROM lines WHERE line_id <= {rows} ORDER BY line_id
        """
    ).format(
        newer=NEWER.format(rows=rows),
        deleted=DELETED.format(rows=rows),
        day=sql.Literal(DAY),
        next_day=sql.Literal(NEXT_DAY),
        rows=rows,
    )
    with connect(server, f"bench_{name}") as template:
        with template.transaction():
            ensure_table(template, table)
            ensure_index(template, table.target_relation, [table.change_column])
        _copy(lines, query, template, sql.SQL("analytics.line_items"))
        template.execute("VACUUM (FREEZE, ANALYZE) analytics.line_items")


def _load_by_sql(server: Server, case: Case, rows: int) -> None:
    """The template `loaded`: what a correct load of the case's day leaves."""
    fresh_copy(server, "base", "bench_loaded")
    with connect(server, "bench_loaded") as warehouse:
        attach_day(warehouse, server, case)
        names = [column.name for column in contract().columns]
        warehouse.execute(
            sql.SQL("DELETE FROM analytics.line_items WHERE {}").format(DELETED.format(rows=rows))
        )
        warehouse.execute(
            "DELETE FROM analytics.line_items AS t USING day"
            " WHERE day.line_id = t.line_id AND NOT valid"
        )
        warehouse.execute(
            sql.SQL(
                """INSERT INTO analytics.line_items AS t ({names})
                   SELECT {names} FROM day WHERE valid ORDER BY line_id
                   ON CONFLICT (line_id) DO UPDATE SET {updates}
                   WHERE t.updated_at <= excluded.updated_at"""
            ).format(
                names=sql.SQL(", ").join(map(sql.Identifier, names)),
                updates=sql.SQL(", ").join(
                    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names
                ),
            )
        )
        warehouse.execute("DROP EXTENSION postgres_fdw CASCADE")
        warehouse.execute("VACUUM (FREEZE, ANALYZE) analytics.line_items")


def _copy(
    origin: psycopg.Connection,
    query: sql.Composed,
    destination: psycopg.Connection,
    table: sql.Composable,
) -> None:
    read = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)
    write = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(table)
    with (
        closing(origin.cursor()) as reader,
        closing(destination.cursor()) as writer,
        reader.copy(read) as rows,
        writer.copy(write) as copy,
    ):
        chunks: Iterator[memoryview] = iter(rows)  # type: ignore[arg-type]  # bytes-like
        for chunk in chunks:
            copy.write(chunk)
