"""Running a command under the clock: seconds, CPU of it and of the server, peak memory."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Measured:
    """One run. `server_cpu_seconds` is what PostgreSQL spent meanwhile, all its processes together."""

    seconds: float
    cpu_seconds: float
    server_cpu_seconds: float
    peak_mb: float


class ToolError(RuntimeError):
    """A measured command failed; the message has the end of what it printed."""


def run(command: Sequence[str], env: Mapping[str, str], postmaster: int) -> Measured:
    """Run a command to its end.

    Peak memory is that of the largest process. A command that measures itself (a warm process
    times only what comes after its start) prints its own figures as its last line, in JSON.

    Raises:
        ToolError: it ended with another exit code than 0.
    """
    with tempfile.TemporaryFile() as output:
        server_before = server_cpu(postmaster)
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        server = server_cpu(postmaster) - server_before
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise ToolError(f"{command[0]} ended with {process.returncode}:\n{text[-3000:]}")
    figures = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "server_cpu_seconds": server,
        "peak_mb": usage.ru_maxrss / (1 << 20 if psutil.MACOS else 1 << 10),
    }
    last = text.strip().rpartition("\n")[2]
    if last.startswith('{"seconds"'):
        figures |= json.loads(last)
    return Measured(**figures)


def server_cpu(postmaster: int) -> float:
    """CPU seconds of all the server's processes; the postmaster counts those that have ended."""
    server = psutil.Process(postmaster)
    backends = sum(cpu_seconds(process) for process in server.children())
    return cpu_seconds(server, ended_children=True) + backends


def cpu_seconds(process: psutil.Process, *, ended_children: bool = False) -> float:
    """CPU seconds of a process so far; 0 if it has gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    own = times.user + times.system
    return own + (times.children_user + times.children_system if ended_children else 0.0)
