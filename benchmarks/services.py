"""Services under the clock: programs that run until they are stopped, with all that they start.

Every descendant of this process is followed, even after its parent has ended: this process adopts
orphans (Linux). Processes that ran before, such as the PostgreSQL server, aren't counted.
"""

import ctypes
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.measure import cpu_seconds

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
STOPS_WITHIN = 30.0  # seconds after an interrupt; then they are killed


class Services:
    """Programs started together; leaving the context stops them, however it is left."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._started: list[subprocess.Popen[bytes]] = []
        self._others = set(psutil.Process().children(recursive=True))

    def __enter__(self) -> Self:
        _adopt_orphans(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """The file with the output of all programs."""
        return self._folder / "services.log"

    def start(self, commands: Iterable[Sequence[str]]) -> None:
        """Start programs, each in a session of its own: Ctrl-C is for this process, which stops them."""
        with self.log.open("ab") as log:
            for command in commands:
                self._started.append(
                    subprocess.Popen(
                        command,
                        cwd=self._folder,
                        env=self._environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def has_ended(self) -> bool:
        """Whether one of the started programs has ended by itself."""
        return any(process.poll() is not None for process in self._started)

    def processes(self) -> list[psutil.Process]:
        """All processes that live, or have ended and wait for their parent to reap them."""
        found = psutil.Process().children(recursive=True)
        return [process for process in found if process not in self._others]

    def cpu_seconds(self) -> float:
        """CPU of all of them so far, with that of the children that have ended."""
        return sum(cpu_seconds(process, ended_children=True) for process in self.processes())

    def memory_mb(self) -> tuple[float, float]:
        """The sums of the processes' PSS, which divides shared pages among their users, and RSS."""
        pss = rss = 0
        for process in self.processes():
            with suppress(psutil.Error):  # it has ended
                memory = process.memory_full_info()
                pss, rss = pss + memory.pss, rss + memory.rss
        return pss / (1 << 20), rss / (1 << 20)

    def stop(self) -> None:
        """Interrupt them, and kill what is left half a minute later."""
        try:
            for process in self._started:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + STOPS_WITHIN
            while self._living() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            while living := self._living():  # one may have started another meanwhile
                for each in living:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
                time.sleep(0.01)
            psutil.wait_procs(self.processes())
            for process in self._started:
                process.wait()
            _adopt_orphans(False)

    def _living(self) -> list[psutil.Process]:
        return [each for each in self.processes() if not _has_ended(each)]


def _adopt_orphans(yes: bool) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes))


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
