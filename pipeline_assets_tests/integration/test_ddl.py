"""A contract's table in a real PostgreSQL: created, altered if nothing is lost, refused otherwise."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.ddl import TableMismatchError, ensure_index, ensure_table
from pipeline_assets.resources import embedded_postgres
from pipeline_assets_tests.contracts import contract

ROW = "INSERT INTO things (id, changed_at) VALUES (1, '2026-01-07 12:00Z')"


@pytest.fixture
def database(server: embedded_postgres.Server) -> Iterator[psycopg.Connection]:
    """A connection whose transaction is rolled back."""
    with psycopg.connect(server.url(), options="-c TimeZone=UTC") as connection:
        yield connection
        connection.rollback()


def things(*properties: dict[str, Any]) -> Contract:
    return contract(list(properties))


def x(physical_type: str, **more: Any) -> dict[str, Any]:
    return {"name": "x", "physicalType": physical_type, **more}


def columns(database: psycopg.Connection) -> dict[str, tuple[str, bool]]:
    """Name -> type and NOT NULL, in the database's own words."""
    rows = database.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = 'things'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return {name: (physical_type, required) for name, physical_type, required in rows}


def test_an_index_of_an_expression_or_of_some_rows_does_not_count(
    database: psycopg.Connection,
) -> None:
    its = things(x("text"))
    ensure_table(database, its)
    name = its.target_relation
    database.execute("CREATE INDEX of_an_expression ON things (lower(x), changed_at)")
    database.execute("CREATE INDEX of_some_rows ON things (changed_at) WHERE x = 'some'")
    for _ in range(2):
        ensure_index(database, name, ["changed_at"])
    found = database.execute("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%(changed_at)'")
    assert found.fetchone() == (1,)


def test_a_table_is_made_with_key_index_and_comment(database: psycopg.Connection) -> None:
    its = things(
        {"name": "id", "physicalType": "bigint", "primaryKey": True, "primaryKeyPosition": 2},
        {"name": "shop", "physicalType": "varchar(9)", "primaryKey": True, "primaryKeyPosition": 1},
        x("numeric(14,2)"),
    )
    for _ in range(2):
        ensure_table(database, its)
        ensure_index(database, its.target_relation, ["changed_at"])
        ensure_index(database, its.target_relation, ["shop"])  # the key's index begins with it
    assert columns(database) == {
        "changed_at": ("timestamp with time zone", False),
        "id": ("bigint", True),
        "shop": ("character varying(9)", True),
        "x": ("numeric(14,2)", False),
    }
    definitions = [
        row[0]
        for row in database.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'things'")
    ]
    assert sorted(text.partition(" USING ")[2] for text in definitions) == [
        "btree (changed_at)",
        "btree (shop, id)",
    ]
    assert database.execute("SELECT obj_description('things'::regclass)").fetchone() == (
        "What a test is about.",
    )


@pytest.mark.parametrize(
    "physical_type",
    [
        "text", "varchar", "varchar(20)", "char", "char(3)", "smallint", "int", "bigint", "real",
        "float8", "numeric", "numeric(5)", "numeric(14,2)", "numeric(100,50)", "bool", "date", "time",
        "timestamp", "timestamptz", "uuid", "json", "jsonb", "bytea",
    ],
)  # fmt: skip
def test_every_type_is_known_again(database: psycopg.Connection, physical_type: str) -> None:
    ensure_table(database, things(x(physical_type)))
    ensure_table(database, things(x(physical_type)))


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        (x("smallint"), x("integer"), "-32768"),
        (x("integer"), x("bigint"), "2147483647"),
        (x("real"), x("double precision"), "1.5"),
        (x("varchar(3)"), x("varchar(5)"), "abc"),
        (x("varchar(3)"), x("varchar"), "abc"),
        (x("varchar(3)"), x("text"), "abc"),
        (x("varchar"), x("text"), "abc"),
        (x("text"), x("varchar"), "abc"),
        (x("numeric(5,2)"), x("numeric(7,2)"), "999.99"),
        (x("numeric(5,2)"), x("numeric(6,3)"), "999.99"),
        (x("numeric(5,2)"), x("numeric"), "999.99"),
        (x("text", required=True), x("text"), "abc"),
        (x("text"), x("text", required=True), "abc"),
    ],
)
def test_what_loses_nothing_is_changed_in_place(
    database: psycopg.Connection, before: dict[str, Any], after: dict[str, Any], value: str
) -> None:
    ensure_table(database, things(before))
    database.execute(
        "INSERT INTO things (id, changed_at, x) VALUES (1, '2026-01-07 12:00Z', %s)", [value]
    )
    ensure_table(database, things(after))
    (column,) = [column for column in things(after).columns if column.name == "x"]
    assert columns(database)["x"] == (column.physical_type, column.required)
    (kept,) = database.execute("SELECT x FROM things").fetchone() or (None,)
    assert float(kept) == float(value) if value[-1].isdigit() else kept == value


def test_an_optional_column_is_added(database: psycopg.Connection) -> None:
    ensure_table(database, things())
    database.execute(ROW)
    ensure_table(database, things(x("date")))
    assert columns(database)["x"] == ("date", False)


def test_a_column_that_the_contract_does_not_know_stays(database: psycopg.Connection) -> None:
    ensure_table(database, things(x("date")))
    database.execute("ALTER TABLE things ADD COLUMN y integer NOT NULL DEFAULT 7")
    then = columns(database)
    ensure_table(database, things())
    assert columns(database) == then
    database.execute(ROW)
    assert database.execute("SELECT x, y FROM things").fetchone() == (None, 7)


def test_a_required_column_is_added_only_while_there_are_no_rows(
    database: psycopg.Connection,
) -> None:
    ensure_table(database, things())
    ensure_table(database, things(x("date", required=True)))
    database.execute("ALTER TABLE things DROP COLUMN x")
    database.execute(ROW)
    with pytest.raises(TableMismatchError, match=r"adds the required column x.* make it optional"):
        ensure_table(database, things(x("date", required=True)))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (x("text", required=True), None, "has a column x that contract things 1.0.0 lacks"),
        (x("text"), x("integer"), "things.x is text, but contract things 1.0.0 says integer"),
        (x("bigint"), x("integer"), "is bigint, but .* says integer, which can't hold all of it"),
        (x("double precision"), x("real"), "is double precision, but .* says real"),
        (x("varchar(5)"), x("varchar(3)"), r"varying\(5\), but .* says character varying\(3\)"),
        (x("text"), x("varchar(3)"), "is text, but"),
        (x("numeric(5,2)"), x("numeric(6,4)"), r"numeric\(5,2\), but .* says numeric\(6,4\)"),
        (x("numeric"), x("numeric(38,9)"), "is numeric, but"),
        (x("timestamp"), x("timestamptz"), "is timestamp without time zone, but"),
        (x("text"), x("text", required=True), "makes x required, for which some rows"),
        (
            x("text"),
            x("text", primaryKey=True),
            r"key of public.things is \(id\), but .* \(id, x\)",
        ),
    ],
)
def test_what_would_lose_or_invent_data_is_refused(
    database: psycopg.Connection,
    before: dict[str, Any],
    after: dict[str, Any] | None,
    message: str,
) -> None:
    ensure_table(database, things({**before, "required": False}))
    database.execute(ROW)
    if before.get("required"):
        database.execute("UPDATE things SET x = ''")
        ensure_table(database, things(before))
    then = columns(database)
    with pytest.raises(TableMismatchError, match=message):
        ensure_table(database, things(after) if after else things())
    assert columns(database) == then


def test_a_view_in_the_tables_place_is_refused(database: psycopg.Connection) -> None:
    database.execute("CREATE VIEW things AS SELECT 1 AS id")
    with pytest.raises(TableMismatchError, match=r"public.things exists and is no table"):
        ensure_table(database, things())
