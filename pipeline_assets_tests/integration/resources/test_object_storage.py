"""Files between assets in a bucket shared by workers on several hosts, on moto's S3 server over HTTP."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from pipeline_assets.failures import is_transient
from pipeline_assets.resources.files import MissingPartitionError, PartitionFiles

ROWS = pa.table({"key": [1, 2, 3], "name": ["a", None, "c"]})
DAY = "2026-01-07"
OTHER_HOST = """
import sys, pyarrow as pa
from pipeline_assets.resources.files import PartitionFiles
files = PartitionFiles(sys.argv[1])
files.write("asset", "2026-01-07", [pa.table({"key": [int(sys.argv[2])]})])
"""


@pytest.fixture(scope="module")
def storage() -> Iterator[ThreadedMotoServer]:
    """An S3 server, and the variables by which every client finds it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "pipeline")
        patch.setenv("AWS_SECRET_ACCESS_KEY", uuid4().hex)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # Otherwise an unreachable server is retried for half a minute.
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield server
    server.stop()


@pytest.fixture
def files(storage: ThreadedMotoServer) -> PartitionFiles:
    """An empty bucket."""
    return PartitionFiles(f"s3://{uuid4().hex}/partitions")


def names(files: PartitionFiles) -> list[str]:
    """What is in the bucket, listed by a client without a cache."""
    filesystem, root = fsspec.url_to_fs(files.root, skip_instance_cache=True)
    return [path.removeprefix(f"{root}/") for path in filesystem.find(root)]


def on_other_host(files: PartitionFiles, key: int) -> None:
    """Write the day in a process of its own."""
    command = [sys.executable, "-c", OTHER_HOST, files.root, str(key)]
    subprocess.run(command, env=dict(os.environ), check=True)


def test_what_is_read_is_what_was_written(files: PartitionFiles) -> None:
    written = files.write("asset", DAY, [ROWS.slice(0, 0), ROWS, ROWS.slice(1)])
    assert written.rows == 5
    found = pa.concat_tables(files.read("asset", DAY))
    assert found.equals(pa.concat_tables([ROWS, ROWS.slice(1)]))
    assert next(files.read("asset", DAY, ["name"])).column_names == ["name"]
    assert files.sha256("asset", DAY) == written.sha256
    assert names(files) == [f"asset/{DAY}.parquet"]


def test_what_a_killed_run_left_is_removed_whatever_its_asset(files: PartitionFiles) -> None:
    files.write("training_snapshots", DAY, [ROWS])
    part = f"{files.path('training_snapshots', DAY)}.0123.part"
    with fsspec.open(part, "wb") as file:
        file.write(b"half")
    assert files.remove(("raw_",), datetime.now(UTC) + timedelta(days=1)) == 1
    assert names(files) == [f"training_snapshots/{DAY}.parquet"]


def test_what_another_host_writes_is_seen_by_one_that_found_nothing_before(
    files: PartitionFiles,
) -> None:
    files.write("asset", "2026-01-08", [ROWS])  # the client knows the folder, and has listed it
    assert files.remove(("nothing",), datetime.now(UTC)) == 0
    with pytest.raises(MissingPartitionError, match=f"materialize partition {DAY} of asset first"):
        list(files.read("asset", DAY))
    for key in (1, 2):
        on_other_host(files, key)
        assert next(files.read("asset", DAY))["key"].to_pylist() == [key]


@pytest.mark.slow
def test_a_reader_never_gets_the_half_of_a_file_that_was_replaced(
    files: PartitionFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Row groups that don't compress, each larger than a block that is fetched: 50 MB by default.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"default_block_size": 5 * 2**20})
    large = pa.table({"key": pa.array([os.urandom(2**20) for _ in range(12)])})
    files.write("asset", DAY, [large, large])
    reading = files.read("asset", DAY)
    assert next(reading).equals(large)
    on_other_host(files, 1)
    with pytest.raises(OSError, match="no longer exists") as caught:
        list(reading)
    assert is_transient(caught.value)
    assert next(files.read("asset", DAY))["key"].to_pylist() == [1]


def test_a_writer_that_dies_leaves_the_old_file_and_no_other(files: PartitionFiles) -> None:
    files.write("asset", DAY, [ROWS])

    def dying() -> Iterator[pa.Table]:
        yield ROWS.slice(0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write("asset", DAY, dying())
    assert pa.concat_tables(files.read("asset", DAY)).equals(ROWS)
    assert names(files) == [f"asset/{DAY}.parquet"]


def test_old_files_are_removed_of_the_assets_named(files: PartitionFiles) -> None:
    for asset in ("raw_orders", "validated_orders", "training_snapshots"):
        files.write(asset, DAY, [ROWS])
    now = datetime.now(UTC)
    assert files.remove(("raw_", "validated_"), now - timedelta(hours=1)) == 0
    on_other_host(PartitionFiles(f"{files.root}/raw_late"), 1)
    assert files.remove(("raw_", "validated_"), now + timedelta(hours=1)) == 2
    assert names(files) == [f"raw_late/asset/{DAY}.parquet", f"training_snapshots/{DAY}.parquet"]
    assert files.remove(("asset",), now + timedelta(hours=1)) == 1
    assert PartitionFiles(f"s3://{uuid4().hex}").remove(("raw_",), now) == 0


def test_a_storage_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    server.stop()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"connect_timeout": 5}})
    files = PartitionFiles(f"s3://{uuid4().hex}")
    for use in (lambda: list(files.read("asset", DAY)), lambda: files.write("asset", DAY, [ROWS])):
        with pytest.raises(Exception, match="Could not connect") as caught:
            use()
        assert is_transient(caught.value)
