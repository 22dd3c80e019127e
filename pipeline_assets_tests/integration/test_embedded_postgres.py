"""The embedded PostgreSQL, on real servers: who shares it, and the effect of each crash or leftover.

Every test that uses `folder` ends by stopping its server and checking that nothing is left behind: no
process that names the folder, no file in the temp folder.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from pipeline_assets.resources import embedded_postgres as embedded
from pipeline_assets.resources import postgres_supervisor as supervisor
from pipeline_assets.resources.embedded_postgres import EmbeddedPostgresError, Server
from pipeline_assets_tests.waiting import until

fcntl = pytest.importorskip("fcntl")

PROJECT = Path(__file__).parents[2]
NAMELESS = 65533  # a user id without an entry in the user database
IS_ROOT = os.geteuid() == 0
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))

CLIENT = """
import sys
from pathlib import Path
from pipeline_assets.resources.embedded_postgres import EmbeddedPostgresError, connect_or_start
folder, binaries = Path(sys.argv[1]), sys.argv[2] and Path(sys.argv[2])
try:
    server = connect_or_start(folder, binaries=binaries or None)
except EmbeddedPostgresError as error:
    sys.exit(str(error))
print(server.pid, server.url(), flush=True)
sys.stdin.read()
"""


def processes_of(folder: Path) -> list[int]:
    """The supervisor, the postmaster and what else names the folder in its command line."""
    listing = subprocess.check_output(["/bin/ps", "-axww", "-o", "pid=,args="], text=True)
    lines = [line.split(None, 1) for line in listing.splitlines()]
    return [int(pid) for pid, args in lines if f"{folder} " in f"{args} " or f"{folder}/" in args]


def supervisor_of(folder: Path, server: Server) -> int:
    (pid,) = set(processes_of(folder)) - {server.pid}
    return pid


def is_locked(path: Path) -> bool:
    lock = supervisor.take_lock(path, fcntl.LOCK_EX)
    if lock is not None:
        os.close(lock)
    return lock is None


def is_leased(folder: Path) -> bool:
    """Whether a client holds the clients' lock: the supervisor tries it too, but for microseconds."""
    for _ in range(3):
        if not is_locked(folder / supervisor.CLIENTS_LOCK):
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def client(folder: Path, binaries: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process that connects; its first line of output is the server's pid and URL."""
    command = [sys.executable, "-c", CLIENT, str(folder), str(binaries or "")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()


def answer(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout is not None
    pid, url = process.stdout.readline().split()
    return int(pid), url


def write_row(server: Server) -> None:
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")


def read_row(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
    return row and row[0]


@pytest.fixture(params=[None, *(path.parent for path in DEBIAN)], ids=lambda path: path or "wheel")
def binaries(request: pytest.FixtureRequest) -> Path | None:
    path: Path | None = request.param
    return path


@pytest.fixture
def temp_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temp folder of the test's own, which must be empty in the end; its path is short, for the sockets."""
    path = Path(tempfile.mkdtemp(prefix="pgt"))
    path.chmod(0o711)  # the mode of a real temp folder, as far as sockets need it
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    path.rmdir()


@pytest.fixture
def folder(tmp_path: Path, temp_folder: Path) -> Iterator[Path]:
    path = tmp_path / "server"
    yield path
    embedded.release(path)
    embedded.stop(path)
    until(lambda: not processes_of(path))
    assert list(temp_folder.iterdir()) == []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stopped server, to be copied: initdb is most of a cold start."""
    path = tmp_path_factory.mktemp("cluster") / "server"
    embedded.connect_or_start(path)
    embedded.release(path)
    embedded.stop(path)
    return path


@pytest.fixture
def used_folder(folder: Path, cluster: Path) -> Path:
    shutil.copytree(cluster, folder, symlinks=True)
    return folder


# --- starting and joining ---


def test_cold_start_makes_a_utf8_cluster_that_is_safe_and_in_utc(
    folder: Path, binaries: Path | None
) -> None:
    server = embedded.connect_or_start(folder, binaries=binaries)
    expected = {
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "log_timezone": "UTC",
        "fsync": "on",
        "data_checksums": "on",
        "max_connections": "200",
        "listen_addresses": "127.0.0.1",
        "password_encryption": "scram-sha-256",
    }
    with psycopg.connect(server.url()) as connection:
        rows = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
        collations = connection.execute("SELECT DISTINCT datcollate FROM pg_database").fetchall()
    assert expected.items() <= dict(rows).items()
    assert collations in ([("C.UTF-8",)], [("C",)])


def test_warm_start_keeps_data_and_url(folder: Path, binaries: Path | None) -> None:
    server = embedded.connect_or_start(folder, binaries=binaries)
    write_row(server)
    embedded.stop(folder)
    assert embedded.status(folder) is None
    again = embedded.connect_or_start(folder, binaries=binaries)
    assert again.pid != server.pid
    assert read_row(server.url()) == 42


def test_three_cold_starts_at_once_make_one_server(folder: Path, binaries: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(folder, binaries)) for _ in range(3)]
        assert len({answer(process) for process in clients}) == 1


def test_threads_of_one_process_share_one_lease(used_folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = list(pool.map(embedded.connect_or_start, [used_folder] * 4))
    assert len(set(servers)) == 1
    embedded.release(used_folder)
    assert not is_leased(used_folder)


def test_the_server_outlives_the_client_that_started_it(used_folder: Path) -> None:
    with client(used_folder) as first:
        pid, _ = answer(first)
        assert embedded.connect_or_start(used_folder).pid == pid
    assert is_leased(used_folder)
    assert embedded.connect_or_start(used_folder).pid == pid


def test_long_path(tmp_path: Path, temp_folder: Path) -> None:
    folder = tmp_path / ("a long name " * 15).strip() / "server"
    server = embedded.connect_or_start(folder)
    assert len(str(folder)) > 150
    with psycopg.connect(
        host=str(server.socket_folder),
        port=server.port,
        user=server.user,
        password=server.password,
        dbname="postgres",
    ) as connection:
        assert connection.execute("SHOW data_directory").fetchone() == (f"{folder}/data",)
    embedded.stop(folder)
    assert list(temp_folder.iterdir()) == []


def test_a_database_is_created_once_by_any_number(used_folder: Path) -> None:
    server = embedded.connect_or_start(used_folder)
    name = 'Ware"house äö'
    with ThreadPoolExecutor(6) as pool:
        urls = set(pool.map(lambda _: embedded.ensure_database(server, name), range(6)))
    assert urls == {server.url(name)}
    with psycopg.connect(urls.pop()) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (name,)


# --- the end of clients ---


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_server_stops_after_its_last_client(used_folder: Path, ending: signal.Signals) -> None:
    with client(used_folder) as process:
        answer(process)
        process.send_signal(ending)
        process.wait()
    until(lambda: not processes_of(used_folder))
    assert embedded.status(used_folder) is None


def test_a_client_that_comes_during_the_shutdown_gets_a_server(used_folder: Path) -> None:
    first = embedded.connect_or_start(used_folder)
    embedded.release(used_folder)
    until(lambda: is_leased(used_folder))
    second = embedded.connect_or_start(used_folder)
    assert second.pid != first.pid
    with psycopg.connect(second.url()):
        pass


def test_clients_and_stops_at_once_never_fail(used_folder: Path) -> None:
    def stop_thrice() -> None:
        for _ in range(3):
            embedded.stop(used_folder)

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop_thrice)
        while not stopping.done():
            embedded.connect_or_start(used_folder)
        stopping.result()
    with psycopg.connect(embedded.connect_or_start(used_folder).url()):
        pass


def test_a_forked_child_keeps_the_lease_of_its_parent(used_folder: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from pipeline_assets.resources import embedded_postgres
folder = Path(sys.argv[1])
embedded_postgres.connect_or_start(folder)
if os.fork():
    embedded_postgres.release(folder)
    os._exit(0)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(used_folder)], stdin=subprocess.PIPE
    ) as parent:
        parent.wait()
        assert is_leased(used_folder)
    until(lambda: not is_leased(used_folder))


def test_programs_started_by_a_client_hold_no_lease(used_folder: Path) -> None:
    embedded.connect_or_start(used_folder)
    with subprocess.Popen(["/bin/sleep", "10"], close_fds=False) as child:
        embedded.release(used_folder)
        assert not is_leased(used_folder)
        child.kill()


# --- crashes and leftovers ---


def test_a_killed_server_comes_back_at_the_same_url(folder: Path, binaries: Path | None) -> None:
    server = embedded.connect_or_start(folder, binaries=binaries)
    write_row(server)
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: (now := embedded.status(folder)) and now.pid != server.pid)
    assert read_row(server.url()) == 42


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends it without another client")
def test_a_killed_supervisor_takes_the_server_along(folder: Path, binaries: Path | None) -> None:
    server = embedded.connect_or_start(folder, binaries=binaries)
    write_row(server)
    os.kill(supervisor_of(folder, server), signal.SIGKILL)
    until(lambda: not processes_of(folder))
    again = embedded.connect_or_start(folder, binaries=binaries)
    assert again.url() == server.url()
    assert read_row(again.url()) == 42


def test_supervisor_and_server_killed_at_once(used_folder: Path) -> None:
    server = embedded.connect_or_start(used_folder)
    write_row(server)
    os.kill(supervisor_of(used_folder, server), signal.SIGKILL)
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not is_locked(used_folder / supervisor.SUPERVISOR_LOCK))
    again = embedded.connect_or_start(used_folder)
    assert read_row(again.url()) == 42
    assert not server.socket_folder.exists()


@pytest.mark.parametrize(
    ("next_step", "platform"), [(embedded.connect_or_start, "linux"), (embedded.stop, "darwin")]
)
def test_a_server_without_supervisor_is_ended(
    used_folder: Path,
    next_step: Callable[[Path], Server | None],
    platform: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if platform == "linux" and sys.platform != "linux":
        pytest.skip("reads /proc")
    script = """
import os, sys
from pathlib import Path
from pipeline_assets.resources import postgres_supervisor
sys.platform = "darwin"  # where no signal follows the death of a parent
postgres_supervisor.start(Path(sys.argv[1]), Path(sys.argv[2]))
os._exit(0)
"""
    wheel = embedded.wheel_binaries()
    command = [sys.executable, "-c", script, str(used_folder), str(wheel)]
    subprocess.run(
        [*embedded._as_acceptable_user(used_folder, wheel), *command], check=True, cwd=PROJECT
    )
    orphan = int(supervisor.read_pid_file(used_folder)[0])
    assert embedded.status(used_folder) is None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        server = next_step(used_folder)
    assert orphan not in processes_of(used_folder)
    assert server is None or server.pid != orphan


def test_a_stale_pid_file_that_names_a_live_process(folder: Path, binaries: Path | None) -> None:
    server = embedded.connect_or_start(folder, binaries=binaries)
    pid_file = folder / "data" / "postmaster.pid"
    content = pid_file.read_text()
    embedded.stop(folder)
    with subprocess.Popen(["/bin/sleep", "60"]) as bystander:
        pid_file.write_text(content.replace(str(server.pid), str(bystander.pid), 1))
        pid_file.chmod(0o600)
        again = embedded.connect_or_start(folder, binaries=binaries)
        assert again.pid != bystander.pid
        assert bystander.poll() is None
        bystander.kill()


def test_a_half_made_cluster_is_made_anew(folder: Path) -> None:
    (folder / "data.new" / "base").mkdir(parents=True)
    with psycopg.connect(embedded.connect_or_start(folder).url()):
        pass
    assert not (folder / "data.new").exists()


def test_a_supervisor_killed_during_initdb(folder: Path) -> None:
    with client(folder) as process:
        until((folder / "data.new" / "global").exists)
        (pid,) = {
            pid
            for pid in processes_of(folder)
            if supervisor.__file__ in embedded._command_line(pid)
        }
        os.kill(pid, signal.SIGKILL)
        _, url = answer(process)  # the client notices, and starts another
        with psycopg.connect(url):
            pass


def test_a_deleted_folder_ends_its_server(used_folder: Path) -> None:
    server = embedded.connect_or_start(used_folder)
    remove = ["/bin/rm", "-rf", str(used_folder)]  # repeated while the server still writes
    until(lambda: subprocess.run(remove, check=False).returncode == 0)
    until(lambda: not processes_of(used_folder))
    assert not server.socket_folder.exists()
    assert embedded.connect_or_start(used_folder).password != server.password


def test_the_log_is_bounded(used_folder: Path) -> None:
    embedded.connect_or_start(used_folder)
    log = used_folder / supervisor.LOG
    with log.open("ab") as file:
        file.truncate(supervisor.LOG_LIMIT + 1)
    until(lambda: log.stat().st_size < supervisor.LOG_LIMIT)
    assert sorted(path.name for path in used_folder.glob("server.log*")) == [
        log.name,
        "server.log.1",
    ]


@pytest.mark.parametrize("how", ["moved", "no space"])
def test_a_log_that_cannot_be_kept_ends_no_server(used_folder: Path, how: str) -> None:
    server = embedded.connect_or_start(used_folder)
    log, older = used_folder / supervisor.LOG, used_folder / "server.log.1"
    if how == "no space":
        older.symlink_to("/dev/full")
    with log.open("ab") as file:
        if how == "moved":
            log.rename(used_folder / "moved.log")
        file.truncate(supervisor.LOG_LIMIT + 1)
    with psycopg.connect(server.url()) as connection:
        time.sleep(5 * supervisor.POLL)  # the supervisor has looked several times
        assert connection.execute("SELECT 1").fetchone() == (1,)
        if how == "no space":
            assert log.stat().st_size > supervisor.LOG_LIMIT, "nothing is cut that isn't kept"
            older.unlink()
        else:
            (used_folder / "moved.log").rename(log)
        until(lambda: log.stat().st_size < supervisor.LOG_LIMIT)
        assert older.stat().st_size > supervisor.LOG_LIMIT
        assert connection.execute("SELECT 1").fetchone() == (1,)


# --- who may read it ---


@pytest.mark.security
def test_everything_is_closed_to_other_users(used_folder: Path) -> None:
    server = embedded.connect_or_start(used_folder)
    password = used_folder / supervisor.PASSWORD
    assert password.stat().st_mode & 0o777 == 0o600
    assert used_folder.stat().st_mode & 0o777 == 0o700
    assert server.socket_folder.stat().st_mode & 0o777 == 0o700
    assert server.password not in repr(server)
    for host in (server.host, str(server.socket_folder)):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(
                host=host, port=server.port, user=server.user, password="wrong", dbname="postgres"
            )
    if IS_ROOT:
        for command in (["cat", str(password)], ["ls", str(server.socket_folder)]):
            attempt = subprocess.run(
                command, user=NAMELESS, extra_groups=[], capture_output=True, check=False
            )
            assert b"Permission denied" in attempt.stderr


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
@pytest.mark.parametrize("user", ["daemon", NAMELESS])
def test_as_a_normal_user(user: str | int) -> None:
    uid = pwd.getpwnam(user).pw_uid if isinstance(user, str) else user
    binaries = embedded.wheel_binaries()
    with tempfile.TemporaryDirectory() as path:  # pytest's folders are closed to other users
        os.chown(path, uid, -1)
        folder = Path(path) / "server"
        command = [python_for(uid, binaries), "-c", CLIENT, str(folder), str(binaries)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            user=uid,
            extra_groups=[],
        ) as process:
            pid, _ = answer(process)
            server = embedded.connect_or_start(folder)  # root may join what others own
            assert server.pid == pid
            write_row(server)
            process.kill()
        embedded.stop(folder)
        again = embedded.connect_or_start(folder)  # and start it, as its owner
        assert read_row(again.url()) == 42
        assert {path.stat().st_uid for path in (folder / "data").rglob("*")} == {uid}
        embedded.stop(folder)


def python_for(uid: int, binaries: Path) -> str:
    """An interpreter that this user can run: the modules need no more than the standard library."""
    probe = "import sys; import pipeline_assets; assert sys.version_info >= (3, 11)"
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            for command in ([python, "-c", probe], [str(binaries / "postgres"), "--version"]):
                subprocess.run(command, cwd=PROJECT, check=True, user=uid, extra_groups=[])
            return python
    pytest.skip("no Python 3.11, or no binaries, in a folder that other users can reach")


@pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="for root on Linux")
def test_as_root_where_user_namespaces_are_forbidden(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("setpriv", "sh", "ps"):
        (tools / name).symlink_to(shutil.which(name) or pytest.skip(f"there is no {name}"))
    monkeypatch.setenv("PATH", str(tools))
    server = embedded.connect_or_start(folder)
    assert (folder / "data").stat().st_uid == embedded.NOBODY
    write_row(server)
    os.kill(supervisor_of(folder, server), signal.SIGKILL)
    until(lambda: not processes_of(folder))
    assert read_row(embedded.connect_or_start(folder).url()) == 42


def test_as_root_without_any_means_to_be_another_user(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match="neither as root nor"):
        embedded.connect_or_start(folder)


# --- errors ---


def test_another_major_version(used_folder: Path) -> None:
    (used_folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError) as raised:
        embedded.connect_or_start(used_folder)
    for part in (str(used_folder), "made by PostgreSQL 9", "is version 18", "pg_dump"):
        assert part in str(raised.value)


def test_a_server_that_cannot_start_shows_its_log(used_folder: Path) -> None:
    with (used_folder / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        embedded.connect_or_start(used_folder)
    assert not is_leased(used_folder)


def test_an_occupied_port_is_left_to_its_owner(used_folder: Path) -> None:
    port = embedded.connect_or_start(used_folder).port
    embedded.stop(used_folder)
    with socket.create_server((supervisor.HOST, port)):
        assert embedded.connect_or_start(used_folder).port != port


def test_too_short_a_timeout(folder: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="wasn't ready in time"):
        embedded.connect_or_start(folder, timeout=0.01)
    with psycopg.connect(embedded.connect_or_start(folder).url()):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=r"file/server can't be used: .*Not a dir"):
        embedded.connect_or_start(tmp_path / "file" / "server")


@pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="mounts a small disk as root")
def test_a_full_disk(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=8m none "$1" && exec "$2" -c "$3" "$1/server" ""'
    arguments = ["sh", str(tmp_path), sys.executable, CLIENT]
    outcome = subprocess.run(
        ["/usr/bin/unshare", "--mount", "sh", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert str(tmp_path / "server") in outcome.stderr
    assert "No space left on device" in outcome.stderr


def test_binaries_that_are_not_there(
    tmp_path: Path, temp_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EmbeddedPostgresError, match="no postgres there"):
        embedded.connect_or_start(tmp_path / "server", binaries=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match="not installed"):
        embedded.connect_or_start(tmp_path / "server")


def test_windows_gets_a_clear_message() -> None:
    script = (
        "import sys; sys.modules['fcntl'] = None\n"  # as on Windows, which has none
        "import pipeline_assets.resources.embedded_postgres"
    )
    command = [sys.executable, "-c", script]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "needs Linux or macOS" in outcome.stderr


# --- the command line and its cost ---


def test_command_line(used_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedded.main(["status", str(used_folder)]) == 1
    assert "no PostgreSQL server runs" in capsys.readouterr().err
    server = embedded.connect_or_start(used_folder)
    assert embedded.main(["url", str(used_folder)]) == 0
    assert capsys.readouterr().out == f"{server.url()}\n"
    assert embedded.main(["status", str(used_folder)]) == 0
    status = capsys.readouterr().out
    assert str(server.port) in status
    assert server.password not in status
    assert embedded.main(["stop", str(used_folder)]) == 0
    assert embedded.status(used_folder) is None


def test_importing_it_is_cheap() -> None:
    script = (
        "import sys; import pipeline_assets.resources.embedded_postgres\n"
        "assert not {'dagster', 'pandas', 'psycopg', 'embedded_postgres'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
