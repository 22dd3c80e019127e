"""Capture a run's output in a file and pass it on to its original streams, within the run's own process.

Dagster's implementation starts four processes per run, two `tail`s and an interpreter to watch each: 0.1 s
of the 0.7 s of CPU that a small run costs. The files' location and what is captured are decided elsewhere.
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
"""Maximum seconds until output is passed on."""
PATIENCE = 5.0
"""Seconds to wait, at the end, for output to be passed on: nobody may be reading a full pipe."""


@contextmanager
def captured(stream: TextIO, path: Path) -> Iterator[None]:
    """Append to a file all that this process and its children write to a stream, and pass it on.

    The file gets everything at once, even if the process is killed; output of the last `LAG` seconds before
    that may be in the file only. A stream without a descriptor, such as a test's, isn't captured.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        before = os.dup(stream.fileno())
    except (AttributeError, OSError, TypeError):  # Celery's replacement stream returns None
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
