"""The data folder, files in it that are read while they are being replaced, and temporary ones.

A process that is killed can't tidy up. What it was writing it held a lock on, which the kernel drops with
it, however it dies: so the next process that comes by tells the leavings of the dead from the work of the
living, on the same host or another.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PART = ".part"
"""What the name of a file ends in until it is complete; it begins with a dot."""
TEMPORARY = "pipeline_assets."
"""What the name of a temporary folder begins with."""


def make_private(folder: Path) -> None:
    """Make the data folder, unless it is there, before anything in it does so as the umask says.

    Rows, logs and models are this user's business; whoever opens the folder to a group means it.
    """
    with suppress(OSError):  # that it is there, or can't be; who writes there says so
        folder.mkdir(mode=0o700, parents=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to be written, which takes its place if the block succeeds.

    Those that killed processes left in the folder are removed.
    """
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(PART):
                _remove_if_abandoned(Path(entry.path))
    part, lock = _new_part(path)
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _new_part(path: Path) -> tuple[Path, int]:
    while True:
        part = path.with_name(f".{path.name}.{uuid4().hex}{PART}")
        lock = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return part, lock
        os.close(lock)  # before it was locked it was taken for abandoned


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with the block; those that killed processes left go now."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        _remove_if_abandoned(path)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        with suppress(FileNotFoundError):  # before it was locked it was taken for abandoned
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                break
            os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def tidy_temporary_files() -> Iterator[None]:
    """Have libraries write their temporary files, in the whole process, where they go like ours."""
    before = tempfile.tempdir
    with temporary_folder() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _remove_if_abandoned(path: Path) -> None:
    """Remove a file or folder that nobody holds a lock on."""
    with suppress(OSError):  # it is gone, another user's, or locked
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(lock)
