"""Every supported type from a real source to a real warehouse, its oddest values unchanged or set aside."""

import json
from datetime import UTC, datetime
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from pipeline_assets.quality.contract import ContractError
from pipeline_assets.quality.validation import SchemaMismatchError, empty
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.extract import extract, source_reader
from pipeline_assets.warehouse.gate import judge
from pipeline_assets.warehouse.load import derived, load, prepare
from pipeline_assets.warehouse.tables import Table
from pipeline_assets_tests.contracts import contract

DAY = "2026-01-07"
WINDOW = datetime(2026, 1, 7, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC)

FITTING = {
    "text": ["", "NULL", "\\N", "a\tb\nc", "\\x00", "€" * 1000],
    "varchar(3)": ["abc", "", "€€€"],
    "char(3)": ["a", "abc"],
    "smallint": ["-32768", "32767"],
    "bigint": ["-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "real": ["1.1", "NaN", "-Infinity", "3.4e38", "1e-45"],
    "double precision": ["0.1", "NaN", "Infinity", "5e-324"],
    "numeric(14,2)": ["999999999999.99", "-0.01"],
    "numeric(38,10)": ["1234567890123456789012345678.0123456789"],
    "numeric(50,10)": ["1234567890123456789012345678901234567890.0123456789", "NaN"],
    "numeric": ["1.10", "NaN", "Infinity", "-Infinity", "0." + "1" * 100, "9" * 200],
    "boolean": ["true", "false"],
    "date": ["0001-01-01", "9999-12-31"],
    "time": ["00:00:00", "23:59:59.999999", "24:00:00"],
    "timestamp": ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"],
    "timestamptz": ["0001-01-01 00:00:00+00", "2026-01-07 12:00:00.000001+05:30"],
    "uuid": ["0b0c9f7e-8f3e-4ec1-a1c5-5d3b8e7f0a01"],
    "json": ['{"a":  1.0, "a": "\\u00e9"}', "null"],
    "jsonb": ['{"a": 1.0, "b": [1e-400, "\\u00e9"]}'],
    "bytea": ["\\x00ff", "\\x"],
}
# Type in the source, type in the contract, and values that the latter can't hold.
UNFIT = [
    ("date", "date", ["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31"]),
    ("timestamp", "timestamp", ["infinity", "-infinity", "20000-01-02 03:04:05.6", "294276-12-31"]),
    ("timestamptz", "timestamptz", ["infinity", "-infinity", "4713-01-01 00:00:00+00 BC"]),
    ("numeric", "numeric(14,2)", ["NaN", "Infinity", "1.005", "1000000000000"]),
    ("numeric", "numeric(50,2)", ["Infinity", "1.005", "9" * 49]),
    ("bigint", "integer", ["2147483648", "-2147483649"]),
    ("double precision", "real", ["0.1", "1e300"]),
    ("text", "varchar(3)", ["abcd"]),
    ("text", "char(3)", ["abcd"]),
    ("text", "uuid", ["", "0b0c9f7e"]),
    ("text", "json", ["{", "NaN", ""]),
    ("text", "jsonb", ['"\\u0000"', '"\\ud800"']),
    ("text", "time", ["25:00:00", "8"]),
    ("text", "numeric", ["1,5", "", "0x1"]),
    ("text", "boolean", ["maybe"]),
    ("text", "bigint", ["1.5", "9223372036854775808"]),
    ("timestamp", "date", ["2026-01-07 13:00:00"]),
    ("timestamptz", "date", ["2026-01-07 13:00:00+00"]),
    ("numeric", "double precision", ["9007199254740993", "1e400", "0." + "1" * 30]),
    ("numeric", "real", ["16777217"]),
    ("text", "double precision", ["nan(1)", "0x1", " 1", ""]),
    ("integer", "boolean", ["2", "-1"]),
]
# The types differ, but the values are the same in both.
CONVERTED = [
    ("timestamp", "date", ["2026-01-07 00:00:00", "0001-01-01"]),
    (
        "numeric",
        "double precision",
        ["0.1", "1.50", "NaN", "-Infinity", "1e-300", "9007199254740992"],
    ),
    ("numeric", "real", ["0.1", "16777216"]),
    ("integer", "boolean", ["0", "1"]),
    ("integer", "bigint", ["-2147483648"]),
]


def run(
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
    source_type: str,
    physical_type: str,
    values: list[str],
    **rules: Any,
) -> list[str]:
    """Load a source of these values; return what the warehouse holds of them, as text."""
    source.execute("DROP TABLE IF EXISTS public.source")
    source.execute(
        f"CREATE TABLE public.source (id bigint, changed_at timestamptz, x {source_type})"
    )
    for place, value in enumerate(values):
        source.execute("INSERT INTO public.source VALUES (%s, %s, %s)", [place, WINDOW[0], value])
    table = Table(contract([{"name": "x", "physicalType": physical_type, **rules}]))
    files = PartitionFiles(str(settings.pipeline_data_dir))
    assert settings.source_database_url
    url = settings.source_database_url.get_secret_value()
    with source_reader(url) as reader:
        files.write("raw_things", DAY, extract(reader, table.contract, WINDOW))
    prepare(warehouse, table)
    judgement = judge(table, DAY, WINDOW, files, warehouse, "run")
    if judgement.verdict.passed:
        load(table, DAY, files, source, warehouse, "run")
        rows = warehouse.execute("SELECT x::text FROM public.things ORDER BY id").fetchall()
        return [text for (text,) in rows]
    return []


@pytest.fixture
def source(settings: Settings) -> Any:
    assert settings.source_database_url
    url = settings.source_database_url.get_secret_value()
    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as connection:
        yield connection


@pytest.mark.parametrize("physical_type", FITTING)
def test_a_value_arrives_as_the_source_has_it(
    physical_type: str,
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
) -> None:
    values = FITTING[physical_type]
    loaded = run(settings, source, warehouse, physical_type, physical_type, values)
    there = source.execute("SELECT x::text FROM public.source ORDER BY id").fetchall()
    assert loaded == [text for (text,) in there]


@pytest.mark.parametrize(
    ("physical_type", "value"),
    [("text", "\\€\t'\n" * 150_000), ("bytea", "\\x" + bytes(range(256)).hex() * 4096)],
    ids=["text", "bytea"],
)
def test_a_value_of_a_megabyte_arrives_as_the_source_has_it(
    physical_type: str,
    value: str,
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
) -> None:
    run(settings, source, warehouse, physical_type, physical_type, [value, value])
    what = f"SELECT octet_length(x), x = %s::{physical_type} FROM public."
    loaded, there = (
        connection.execute(f"{what}{table}", [value]).fetchall()
        for connection, table in ((warehouse, "things"), (source, "source"))
    )
    assert loaded == there == [(2**20 if physical_type == "bytea" else 1_050_000, True)] * 2


@pytest.mark.parametrize(("source_type", "physical_type", "values"), CONVERTED)
def test_a_value_of_another_type_arrives_if_it_is_the_same_there(
    source_type: str,
    physical_type: str,
    values: list[str],
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
) -> None:
    loaded = run(settings, source, warehouse, source_type, physical_type, values)
    there = source.execute(f"SELECT x::{physical_type}::text FROM public.source ORDER BY id")
    assert loaded == [text for (text,) in there.fetchall()]


@pytest.mark.parametrize(("source_type", "physical_type", "values"), UNFIT)
def test_a_value_that_does_not_fit_is_set_aside_as_the_source_has_it(
    source_type: str,
    physical_type: str,
    values: list[str],
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
) -> None:
    assert run(settings, source, warehouse, source_type, physical_type, values) == []
    rows = warehouse.execute(
        "SELECT broken_rules, source_row ->> 'x' FROM quarantine.things"
        " ORDER BY (source_row ->> 'id')::int"
    ).fetchall()
    assert [rules for rules, _ in rows] == [["x_type"]] * len(values)
    same = source.execute(
        f"SELECT array_agg(x ORDER BY id) = %s::{source_type}[] FROM public.source",
        [[text for _, text in rows]],
    )
    assert same.fetchone() == (True,), json.dumps(rows)


@pytest.mark.parametrize(
    ("source_type", "value"),
    [("bytea", "\\xff"), ("timestamptz", "infinity"), ("date", "infinity")],
)
def test_a_value_of_which_no_text_can_be_made_is_an_error_and_not_lost(
    source_type: str,
    value: str,
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
) -> None:
    """It became NULL and was loaded: any text is text, so no rule asks whether a value fits."""
    with pytest.raises(SchemaMismatchError, match=r"things: column x .*correct its physicalType"):
        run(settings, source, warehouse, source_type, "text", [value])
    assert warehouse.execute("SELECT FROM public.things").fetchall() == []


DERIVED = {
    "name": "y",
    "physicalType": "bigint",
    "transformSourceObjects": ["x"],
    "transformDescription": "x",
}


def test_a_derived_column_of_another_type_is_refused() -> None:
    """PostgreSQL read the float's eight bytes as a bigint: 1.0 became 4607182418800017408."""
    its = contract([{"name": "x", "physicalType": "bigint"}, DERIVED])
    rows = empty(its)
    good = Table(its, derive=lambda frame: frame.assign(y=frame["x"]))
    nothing = Table(its, derive=lambda frame: frame.assign(y=None))
    assert derived(nothing, rows)["y"].type == pa.int64()  # pandas types such a column as null
    assert derived(good, rows).column_names == ["id", "changed_at", "x", "y"]
    for wrong, message in (
        (lambda frame: frame.assign(y=frame["x"].astype("double[pyarrow]")), "gives y as double"),
        (lambda frame: frame.assign(y=frame["x"].astype("int32[pyarrow]")), "gives y as int32"),
        (lambda frame: frame.assign(z=frame["x"]), "gives no column y"),
    ):
        with pytest.raises(ContractError, match=f"things: derive {message}"):
            derived(Table(its, derive=wrong), rows)


def test_a_table_without_a_function_for_its_derived_columns_is_refused() -> None:
    with pytest.raises(ContractError, match="things: y must be derived; give the table a `derive`"):
        Table(contract([{"name": "x", "physicalType": "bigint"}, DERIVED]))


@pytest.mark.parametrize("physical_type", ["double precision", "numeric"])
def test_nan_is_a_duplicate_of_nan_as_in_postgresql(
    physical_type: str,
    settings: Settings,
    source: psycopg.Connection,
    warehouse: psycopg.Connection,
) -> None:
    values = ["NaN", "1", "NaN"]
    assert run(settings, source, warehouse, physical_type, physical_type, values, unique=True) == []
    rows = warehouse.execute("SELECT broken_rules, source_row ->> 'x' FROM quarantine.things")
    assert rows.fetchall() == [(["x_unique"], "NaN")] * 2
