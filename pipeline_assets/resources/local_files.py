"""The data folder, and files in it that people and browsers read while they are being replaced."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def make_private(folder: Path) -> None:
    """Make the data folder, unless it is there, before anything in it does so as the umask says.

    Rows, logs and models are this user's business; whoever opens the folder to a group means it.
    """
    with suppress(OSError):  # that it is there, or can't be; who writes there says so
        folder.mkdir(mode=0o700, parents=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
