"""Keys of every type: new rows are appended or upserted, existing ones updated, no others written."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.extract import extract, source_reader
from pipeline_assets.warehouse.gate import judge
from pipeline_assets.warehouse.load import Loaded, load, prepare
from pipeline_assets.warehouse.tables import Table
from pipeline_assets_tests.contracts import contract

FIRST = datetime(2026, 1, 7, tzinfo=UTC)
SECOND = FIRST + timedelta(days=1)

# Types of the key -> keys of the first day, and those that the second adds: below, between and above.
KEYS: dict[tuple[str, ...], tuple[list[Any], list[Any]]] = {
    ("bigint",): (
        [("-9223372036854775808",), ("7",), ("9",)],
        [("-1",), ("8",), ("10",), ("9223372036854775807",)],
    ),
    ("smallint",): ([("-32768",), ("3",)], [("-5",), ("32767",)]),
    ("int4",): ([("1",), ("2147483646",)], [("0",), ("2147483647",)]),
    # These sort differently in PostgreSQL's collations than in Arrow.
    ("text",): ([("b",), ("C",), ("é",)], [("a",), ("B",), ("z",), ("Z",), ("ê",)]),
    ("date",): ([("2026-01-07",)], [("2025-12-31",), ("9999-12-31",)]),
    ("uuid",): (
        [("5b0c9f7e-8f3e-4ec1-a1c5-5d3b8e7f0a01",)],
        [("0b0c9f7e-8f3e-4ec1-a1c5-5d3b8e7f0a01",), ("fb0c9f7e-8f3e-4ec1-a1c5-5d3b8e7f0a01",)],
    ),
    ("bigint", "text"): (
        [("1", "b"), ("2", "b")],
        [("1", "a"), ("1", "c"), ("2", "a"), ("2", "c"), ("3", "a")],
    ),
    ("text", "bigint"): ([("b", "1"), ("b", "2")], [("a", "9"), ("b", "3"), ("c", "0")]),
}


@pytest.mark.parametrize("types", KEYS, ids=", ".join)
def test_a_load_writes_what_is_new_and_what_has_changed(
    types: tuple[str, ...], settings: Settings, warehouse: psycopg.Connection
) -> None:
    names = [f"key{place}" for place in range(len(types))]
    table = Table(
        contract(
            [
                {"name": "id", "physicalType": "integer"},
                *(
                    {
                        "name": name,
                        "physicalType": kind,
                        "primaryKey": True,
                        "primaryKeyPosition": n,
                    }
                    for n, (name, kind) in enumerate(zip(names, types, strict=True), 1)
                ),
            ]
        )
    )
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, types, strict=True))
    files = PartitionFiles(str(settings.pipeline_data_dir))
    assert settings.source_database_url
    url = settings.source_database_url.get_secret_value()
    before, added = KEYS[types]

    def run(day: datetime) -> Loaded:
        key, window = f"{day:%Y-%m-%d}", (day, day + timedelta(days=1))
        with source_reader(url) as reader:
            files.write("raw_things", key, extract(reader, table.contract, window))
        judge(table, key, window, files, warehouse, "run")
        return load(table, key, files, source, warehouse, "run")

    def put(keys: list[Any], version: datetime, value: int) -> None:
        for key in keys:
            marks = ", ".join(["%s"] * (len(key) + 2))
            source.execute(f"INSERT INTO public.source VALUES ({marks})", [value, version, *key])

    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as source:
        source.execute("DROP TABLE IF EXISTS public.source")
        source.execute(
            f"CREATE TABLE public.source (id integer, changed_at timestamptz, {columns},"
            f" PRIMARY KEY ({', '.join(names)}))"
        )
        prepare(warehouse, table)
        put(before, FIRST, 1)
        assert run(FIRST).rows_written == len(before)

        source.execute("UPDATE public.source SET id = 2, changed_at = %s", [SECOND])
        put(added, SECOND, 3)
        assert run(SECOND).rows_written == len(before) + len(added)
        replayed = run(SECOND)
        assert (replayed.rows_written, replayed.rows_deleted) == (0, 0)

        source.execute("DELETE FROM public.source WHERE id = 3")
        assert run(SECOND).rows_deleted == len(added)

        query = "SELECT {}, id, changed_at FROM public.{} ORDER BY 1, 2, 3"
        there = source.execute(query.format(", ".join(names), "source")).fetchall()
        here = warehouse.execute(query.format(", ".join(names), "things")).fetchall()
        assert sorted(here) == sorted(there)
