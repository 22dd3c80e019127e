"""The data folder, files that are read while they are being replaced, and temporary files.

A process that is killed can't tidy up. But it holds a lock on each file that it is writing, which the
kernel releases however the process dies: so a later process, on the same host or another, can tell
abandoned files from those that are still being written.
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
"""Suffix of a file's name until the file is complete; until then the name also begins with a dot."""
TEMPORARY = "pipeline_assets."
"""Prefix of a temporary folder's name."""


def make_private(folder: Path) -> None:
    """Create the data folder, if missing, with mode 0700, before anything else does with the umask's mode.

    Rows, logs and models are private to this user; the mode of an existing folder is deliberate.
    """
    with suppress(OSError):  # it exists, or can't be created: the first write will say so
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
    """Create an empty file beside `path` to write to, which replaces `path` if the block succeeds.

    Such files that killed processes left in the folder are removed.
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
        os.close(lock)  # another process removed it as abandoned before it was locked


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed after the block; those that killed processes left are removed now."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        _remove_if_abandoned(path)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
        with suppress(FileNotFoundError):  # removed by another process before it was locked
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
    """Make all temporary files of this process, libraries' included, go to a `temporary_folder`."""
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
