"""What another local user can read or change in the data folder and its server: nothing."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.resources.dagster_instance import PipelineComputeLogs

pytestmark = pytest.mark.security
ROOT = Path(__file__).parents[2]
STRANGER = 54321
"""A user who owns no file and isn't the one that PostgreSQL may run as."""
IS_ROOT = os.geteuid() == 0

WORK = """
import sys
from pathlib import Path
import psycopg
from pipeline_assets.resources.dagster_instance import PipelineComputeLogs, PipelineArtifacts
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.local_files import write_atomically
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import load_settings
import pyarrow as pa

settings = load_settings()
logs = PipelineComputeLogs.from_config_value(None, {})
PartitionFiles(settings.files_url).write("raw_transactions", "2026-01-07", [pa.table({"a": [1]})])
write_atomically(settings.pipeline_data_dir / "digests" / "2026-11-02.html", b"page")
key = ["run", "compute_logs", "step"]
with logs.capture_logs(key):
    print("printed by a run")
(Path(PipelineArtifacts.from_config_value(None, {}).storage_dir)).mkdir(parents=True)
with Database("warehouse", settings).connect() as connection:
    connection.execute("CREATE TABLE secret AS SELECT 1 AS a")
print("READY", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def working() -> Iterator[tuple[Path, int]]:
    """A data folder with files of every kind, in a world-readable place, and the process that uses it."""
    base = Path(tempfile.mkdtemp(prefix="perm"))
    base.chmod(0o755)
    data = base / "data"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.endswith("_DATABASE_URL")},
        "PIPELINE_DATA_DIR": str(data),
        "NEWSAPI_KEY": "c4n4ry",
    }
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", WORK],
        env=environment,
        cwd=ROOT,
        stdin=pipe,
        stdout=pipe,
        umask=0o022,
        text=True,
    ) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        assert any("READY" in line for line in lines), "it ended early"
        yield data, process.pid
        process.kill()
    embedded_postgres.stop(data / "postgres")
    subprocess.run(["rm", "-r", str(base)], check=True)


def test_the_folder_is_its_owners_alone_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of Dagster's processes, its own files are the first thing to need the folder."""
    folder = tmp_path / "parent" / "data"
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(folder))
    before = os.umask(0)
    try:
        PipelineComputeLogs.from_config_value(None, {})
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700

    folder.chmod(0o750)  # opened to a group on purpose
    PipelineComputeLogs.from_config_value(None, {})
    assert folder.stat().st_mode & 0o777 == 0o750


def as_stranger(*command: str) -> str:
    """What a program of another user writes, errors too."""
    ran = subprocess.run(
        command,
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
    )
    return ran.stdout


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_another_user_reads_and_writes_nothing(working: tuple[Path, int]) -> None:
    data, _ = working
    files = [path for path in data.rglob("*") if path.is_file()]
    kinds = {path.relative_to(data).parts[0] for path in files}
    assert {"partitions", "digests", "compute_logs", "postgres"} <= kinds
    assert "Permission denied" in as_stranger("ls", str(data))
    # Files can't be read by a known or guessed path either.
    for path in files:
        if "data/postgres/data" not in str(path):
            assert "Permission denied" in as_stranger("cat", str(path)), path
    for path in (
        data / "mine",
        data / "digests" / "index.html",
        data / "postgres" / "data" / "mine",
    ):
        assert "Permission denied" in as_stranger("sh", "-c", f"echo mine > {path}")
    assert not (data / "mine").exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_another_user_learns_nothing_from_the_processes(working: tuple[Path, int]) -> None:
    data, pid = working
    password = (data / "postgres" / "password").read_text()
    server = embedded_postgres.status(data / "postgres")
    assert server
    for process in (pid, server.pid):
        assert "Permission denied" in as_stranger("cat", f"/proc/{process}/environ")
        assert "Permission denied" in as_stranger("ls", f"/proc/{process}/cwd/")
    arguments = as_stranger("sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
    assert password not in arguments
    assert "c4n4ry" not in arguments
    sockets = as_stranger(
        "sh", "-c", f"ls -la {server.socket_folder}; echo > {server.socket_folder}/x"
    )
    assert sockets.count("Permission denied") == 2


def test_nobody_gets_into_the_server_without_its_password(working: tuple[Path, int]) -> None:
    data, _ = working
    server = embedded_postgres.status(data / "postgres")
    assert server
    for user, password in (
        ("postgres", None),
        ("postgres", ""),
        ("postgres", "postgres"),
        ("root", "root"),
    ):
        for host in (server.host, str(server.socket_folder)):
            with pytest.raises(
                psycopg.OperationalError, match=r"no password|authentication failed"
            ):
                psycopg.connect(
                    host=host, port=server.port, user=user, password=password, dbname="warehouse"
                )
    # On no address but loopback.
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    port = f"{server.port:04X}"
    addresses = set(
        re.findall(rf"^ *\d+: ([0-9A-F]+):{port} [0-9A-F]+:0000 0A", listening, re.MULTILINE)
    )
    assert addresses == {"0100007F"}
