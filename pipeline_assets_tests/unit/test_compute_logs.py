"""What a run prints: written to its file at once, and passed on to the original stream, by the run itself."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_assets.resources.compute_logs import captured

PRINTS = r"""
import os, subprocess, sys, time
from pathlib import Path
from pipeline_assets.resources.compute_logs import captured

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()

path = Path(sys.argv[1])
print("before", flush=True)
with captured(sys.stdout, path):
    print("from Python")
    subprocess.run(["echo", "from a child"], check=True)
    os.write(1, b"from C\n")
    MIDDLE
print("after")
"""
INSIDE = "from Python\nfrom a child\nfrom C\n"


def run(path: Path, middle: str) -> "subprocess.CompletedProcess[str]":
    code = PRINTS.replace("MIDDLE", middle)
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_everything_goes_to_the_file_and_on(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "step.out"
    ran = run(path, "pass")
    assert ran.returncode == 0, ran.stderr
    assert path.read_text() == INSIDE
    assert ran.stdout == f"before\n{INSIDE}after\n"
    # A second capture appends to the file, and passes on only its own output.
    assert run(path, "pass").stdout == f"before\n{INSIDE}after\n"
    assert path.read_text() == 2 * INSIDE


def test_it_is_passed_on_while_the_run_goes_on(tmp_path: Path) -> None:
    code = PRINTS.replace("MIDDLE", "sys.stdin.readline()")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdin
        lines = [process.stdout.readline() for _ in range(4)]
        process.stdin.write("\n")
        process.stdin.flush()
        assert "".join(lines) == f"before\n{INSIDE}"
        assert process.stdout.read() == "after\n"


def test_what_a_killed_run_has_printed_is_in_its_file(tmp_path: Path) -> None:
    ran = run(tmp_path / "out", "os.kill(os.getpid(), 9)")
    assert ran.returncode == -signal.SIGKILL
    assert (tmp_path / "out").read_text() == INSIDE


def test_nobody_reads_what_is_passed_on(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = PRINTS.replace("MIDDLE", "time.sleep(0.5); print('still')")
    code = code.replace('print("before", flush=True)', "")
    code = code.replace('print("after")', "os._exit(7)")
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    ran = subprocess.run(command, check=False, stdout=write, timeout=60)
    os.close(write)
    assert ran.returncode == 7
    assert (tmp_path / "out").read_text() == f"{INSIDE}still\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the children")
def test_no_process_is_started_for_it(tmp_path: Path) -> None:
    ran = run(tmp_path / "out", "print(f'children: {children()!r}')")
    assert ran.stdout == f"before\n{INSIDE}children: ''\nafter\n"


class StandIn(io.StringIO):
    """A stream like those that Celery puts in place of a worker's."""

    def fileno(self) -> int:
        return None  # type: ignore[return-value]  # it does


@pytest.mark.parametrize("stream", [io.StringIO(), StandIn(), None])
def test_a_stream_without_a_descriptor_is_left_alone(
    tmp_path: Path, stream: io.StringIO | None
) -> None:
    with captured(stream, tmp_path / "out"):  # type: ignore[arg-type]  # Python's own may be None
        if stream:
            stream.write("said")
    assert (tmp_path / "out").read_text() == ""
    assert stream is None or stream.getvalue() == "said"
