"""Parquet files between assets: complete or absent."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline_assets.resources.files import MissingPartitionError, PartitionFiles

ROWS = pa.table({"key": [1, 2, 3], "name": ["a", None, "c"]})


@pytest.mark.parametrize("root", ["folder", "memory://files"])
def test_what_is_read_is_what_was_written(tmp_path: Path, root: str) -> None:
    files = PartitionFiles(root if "://" in root else str(tmp_path / root))
    written = files.write("asset", "2026-01-07", [ROWS.slice(0, 0), ROWS, ROWS.slice(1)])
    assert written.rows == 5
    assert pa.concat_tables(files.read("asset", "2026-01-07")).equals(
        pa.concat_tables([ROWS, ROWS.slice(1)])
    )
    assert [table.column_names for table in files.read("asset", "2026-01-07", ["name"])] == [
        ["name"]
    ] * 2
    assert files.sha256("asset", "2026-01-07") == written.sha256


def test_the_hash_is_that_of_the_file_and_the_same_again(tmp_path: Path) -> None:
    files = PartitionFiles(str(tmp_path))
    first = files.write("asset", "day", [ROWS])
    assert hashlib.sha256(Path(files.path("asset", "day")).read_bytes()).hexdigest() == first.sha256
    assert files.write("asset", "day", [ROWS]) == first


def test_a_writer_that_dies_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    files = PartitionFiles(str(tmp_path))
    files.write("asset", "day", [ROWS])

    def dying() -> Iterator[pa.Table]:
        yield ROWS.slice(0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write("asset", "day", dying())
    assert pa.concat_tables(files.read("asset", "day")).equals(ROWS)
    assert [path.name for path in (tmp_path / "asset").iterdir()] == ["day.parquet"]


def test_a_part_that_takes_its_files_place_meanwhile_ends_no_retention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was gone between the listing and the look at its age, and the day's retention failed for good."""
    files = PartitionFiles(str(tmp_path))
    for day in ("one", "two"):
        files.write("asset", day, [ROWS])
    listed = LocalFileSystem.find

    def find(self: LocalFileSystem, path: str) -> list[str]:
        return [f"{path}/asset/gone.part", *listed(self, path)]

    monkeypatch.setattr(LocalFileSystem, "find", find)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert files.remove(("asset",), tomorrow) == 2
    assert files.version("asset", "two") == ""


def test_a_partition_that_was_never_written_is_named(tmp_path: Path) -> None:
    files = PartitionFiles(str(tmp_path))
    with pytest.raises(MissingPartitionError, match="materialize partition day of asset first"):
        list(files.read("asset", "day"))
    with pytest.raises(MissingPartitionError, match="materialize partition day of asset first"):
        files.sha256("asset", "day")
