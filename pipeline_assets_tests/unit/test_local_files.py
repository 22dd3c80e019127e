"""The next process removes what killed ones leave on the disk, and nothing of those still running."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.local_files import temporary_folder, write_atomically

WRITES = """
import sys, time
from pathlib import Path
from pipeline_assets.resources.local_files import replacing, temporary_folder, tidy_temporary_files

with replacing(Path(sys.argv[1]) / "page.html") as part, temporary_folder(), tidy_temporary_files():
    part.write_text("half of")
    print("writes", flush=True)
    time.sleep(600)
"""
MANY = """
import sys
from pathlib import Path
from pipeline_assets.resources.local_files import temporary_folder, write_atomically

for number in range(300):
    write_atomically(Path(sys.argv[1]) / f"{number % 7}.txt", b"whole")
    with temporary_folder() as folder:
        (folder / "file").write_text("there")
"""


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing into a folder, killed at the end."""
    command = [sys.executable, "-c", WRITES, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "writes\n"
        yield process
        process.kill()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own in place of the system's for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_what_a_killed_process_was_writing_goes_with_the_next_write(
    tmp_path: Path, temporary: Path
) -> None:
    with writer(tmp_path) as living:
        write_atomically(tmp_path / "other.html", b"other")
        with temporary_folder():
            pass
        assert len(list(tmp_path.glob(".*.part"))) == 1, "a living one's is left to it"
        assert len(list(temporary.iterdir())) == 2
        living.kill()
        assert living.wait() == -signal.SIGKILL
        write_atomically(tmp_path / "other.html", b"other")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "temporary"]
        with temporary_folder() as folder:
            assert list(temporary.iterdir()) == [folder]
        assert list(temporary.iterdir()) == []


def test_a_partition_clears_up_after_killed_ones_of_its_asset(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "asset").mkdir()
    files = PartitionFiles(str(tmp_path))
    with writer(tmp_path / "asset") as killed:
        killed.kill()
        killed.wait()
        files.write("asset", "day", [pa.table({"key": [1]})])
    assert [path.name for path in (tmp_path / "asset").iterdir()] == ["day.parquet"]


def test_writers_at_once_never_take_each_other_for_dead(tmp_path: Path, temporary: Path) -> None:
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in writers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert {path.read_bytes() for path in tmp_path.glob("*.txt")} == {b"whole"}
    assert list(tmp_path.glob(".*")) == []
    assert list(temporary.iterdir()) == []
