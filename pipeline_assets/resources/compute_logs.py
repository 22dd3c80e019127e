"""Capturing what a run prints: into a file, and on to where it went before, within the run's own process.

Dagster's own way starts four processes a run, two `tail`s and an interpreter to watch over each: 0.1 s of
the 0.7 s of CPU that a small run costs. Where the files lie and what is captured isn't decided here.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from dagster._core.execution.compute_logs import redirect_to_file

LAG = 0.2
"""Seconds at most until what was printed is passed on."""
PATIENCE = 5.0
"""Seconds that the end waits for whoever doesn't read what is passed on: a pipe may be full."""


@contextmanager
def captured(stream: TextIO, path: Path) -> Iterator[None]:
    """Append to a file all that this process and its children write to a stream, and pass it on.

    The file has everything at once, also if the process is killed; what the last `LAG` seconds before that
    would have passed on is in the file alone. A stream without a descriptor, as a test's, isn't captured.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        before = os.dup(stream.fileno())
    except (AttributeError, OSError, TypeError):  # Celery's stand-in says None
        yield
        return
    begins, is_over = path.stat().st_size, threading.Event()

    def pass_on() -> None:
        with suppress(OSError), os.fdopen(before, "wb") as onward, path.open("rb") as written:
            written.seek(begins)
            while not is_over.wait(LAG):
                shutil.copyfileobj(written, onward)
                onward.flush()
            shutil.copyfileobj(written, onward)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        with redirect_to_file(stream, path):
            yield
    finally:
        is_over.set()
        thread.join(PATIENCE)
