"""The detached process that owns one embedded PostgreSQL server: it starts, watches and stops it.

`embedded_postgres` runs this file, not the package, with a bare interpreter, which costs some 40 ms
at the start and 8 MB for as long as the server runs. So only the standard library may be imported
here. Finding binaries, ending what a dead supervisor left, and the client API belong in
`embedded_postgres`.

File locks, which the kernel releases however their holder dies, show who is alive:

    clients.lock     held shared by every client; the server stops once nobody holds it
    supervisor.lock  held by this process, which inherits it locked from the client that starts it
    server.lock      held by initdb, postgres and their children, which inherit it: while one of them
                     lives, no other server may touch the data; once it is free, a pid file is stale
"""

import contextlib
import ctypes
import fcntl
import locale
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOST = "127.0.0.1"
USER = "postgres"

CLIENTS_LOCK = "clients.lock"
SUPERVISOR_LOCK = "supervisor.lock"
SERVER_LOCK = "server.lock"
DATA = "data"
LOG = "server.log"
PASSWORD = "password"  # noqa: S105  (the file's name)
SOCKET_LINK = "socket"
STOP_REQUEST = "stop"

GRACE = 3.0  # seconds, so that each short command of a shell loop reuses the last one's server
POLL = 0.2  # seconds between checks for clients, which take 0.1 % of a core
SHUTDOWN_TIMEOUT = 30.0  # seconds for a clean shutdown; past it the next start replays the WAL
LOG_LIMIT = 10_000_000  # bytes; one older log of that size is kept
SOCKET_PATH_LIMIT = 103  # bytes on macOS; Linux allows 107

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>

SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "200",  # each process of Dagster, MLflow and a run keeps a few
    "shared_buffers": "256MB",
    # Loading a million rows into six million writes 1.5 GB of WAL; 1.8 GB with a checkpoint midway.
    "max_wal_size": "4GB",
    "unix_socket_permissions": "0700",
    "wal_level": "minimal",  # nobody replicates a laptop's database
    "max_wal_senders": "0",
}


class StartError(Exception):
    """The server can't start; the message is shown to the user."""


def take_lock(path: Path, kind: int, timeout: float = 0) -> int | None:
    """Lock the file and return the descriptor that holds the lock until it is closed.

    `kind` is `fcntl.LOCK_SH` or `LOCK_EX`. Returns None if others hold it for `timeout` seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.01)
        else:
            return descriptor


def read_pid_file(folder: Path) -> list[str]:
    """The lines of the server's pid file: pid, folder, start, port, socket folder, ..., state."""
    try:
        return (folder / DATA / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def is_ready(pid_file: list[str]) -> bool:
    """Whether the server that wrote these lines accepts connections."""
    return len(pid_file) > 7 and pid_file[7].strip() == "ready"


def log_tail(folder: Path, lines: int = 15) -> str:
    """The end of the server's log, for an error message."""
    try:
        return "\n".join((folder / LOG).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def remove_socket_folder(path: Path) -> None:
    """Remove a socket folder, the only thing we create outside the data folder."""
    with contextlib.suppress(OSError):  # never made, or gone with a reboot
        for name in path.glob(".s.PGSQL.*"):
            name.unlink()
        path.rmdir()


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed server left; the caller must hold the server lock.

    The pid file may by now name an unrelated live process: postgres would refuse to start.
    """
    (folder / DATA / "postmaster.pid").unlink(missing_ok=True)
    link = folder / SOCKET_LINK
    if link.is_symlink():
        remove_socket_folder(link.readlink())
        link.unlink()


def _make_socket_folder(folder: Path) -> Path:
    """Make a private folder with a short path: socket paths in `folder` may exceed the length limit."""
    for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  (the name is random, the mode 0700)
        path = Path(base, f"pg-{secrets.token_hex(8)}")
        if len(os.fsencode(path / ".s.PGSQL.65535")) <= SOCKET_PATH_LIMIT:
            break
    (folder / SOCKET_LINK).symlink_to(path)  # first, so that a kill here leaves no untracked folder
    path.mkdir(mode=0o700)
    return path


def _choose_port(folder: Path) -> int:
    """The port of the last start if it is free, so that URLs survive a restart; else another."""
    memory = folder / "port"
    last = memory.read_text() if memory.exists() else ""
    for wanted in (int(last) if last.isdigit() else 0, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, wanted))
            port = int(probe.getsockname()[1])
            memory.write_text(str(port))
            return port
    raise StartError(f"no port of {HOST} is free for PostgreSQL")


def _die_with_supervisor() -> None:
    """Have Linux stop this new child cleanly if the supervisor is killed.

    Elsewhere, a server that lost its supervisor runs until the next client finds and ends it.
    """
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _create_cluster(folder: Path, binaries: Path, lock: int) -> None:
    """Run initdb in a scratch folder and rename it, so that no incomplete cluster is ever started."""
    scratch = folder / "data.new"
    shutil.rmtree(scratch, ignore_errors=True)
    password = folder / PASSWORD
    password.touch(mode=0o600)
    with password.open("w") as file:
        file.write(secrets.token_urlsafe(24))
        file.flush()
        os.fsync(file.fileno())
    try:
        locale.setlocale(locale.LC_ALL, "C.UTF-8")
        cluster_locale = "C.UTF-8"
    except locale.Error:  # older macOS: upper() and lower() then change ASCII letters only
        cluster_locale = "C"
    options = ["--auth=scram-sha-256", "--encoding=UTF8", f"--locale={cluster_locale}"]
    options += ["--data-checksums", "--no-instructions"]
    initdb = subprocess.run(
        [binaries / "initdb", "-D", scratch, "-U", USER, "--pwfile", password, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=[lock],
        preexec_fn=_die_with_supervisor,
        check=False,
    )
    if initdb.returncode:
        shutil.rmtree(scratch, ignore_errors=True)
        output = "\n".join(initdb.stdout.splitlines()[-10:])
        raise StartError(f"initdb could not create a cluster in {folder}:\n{output}")
    scratch.rename(folder / DATA)
    parent = os.open(folder, os.O_RDONLY)
    os.fsync(parent)  # else a power cut could undo the rename under a database in use
    os.close(parent)


def _check_version(folder: Path, binaries: Path) -> None:
    answer = subprocess.run(
        [binaries / "postgres", "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise StartError(f"{binaries / 'postgres'} doesn't run here: {answer.stdout}")
    version = answer.stdout.split()[2]  # postgres (PostgreSQL) 15.18 (Debian ...)
    made_by = (folder / DATA / "PG_VERSION").read_text().strip()
    if made_by != version.partition(".")[0]:
        raise StartError(
            f"{folder} was made by PostgreSQL {made_by}, but {binaries} is version {version}. "
            f"Name a folder with PostgreSQL {made_by}'s binaries and move the data with pg_dump, "
            f"or remove {folder} to start empty."
        )


def start(folder: Path, binaries: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the server, creating its cluster if needed; return it, once ready, and its socket folder."""
    lock = take_lock(folder / SERVER_LOCK, fcntl.LOCK_EX, timeout=SHUTDOWN_TIMEOUT)
    if lock is None:
        raise StartError(f"processes of an earlier server still hold {folder / SERVER_LOCK}")
    if (folder / DATA).exists():
        _check_version(folder, binaries)
    else:
        _create_cluster(folder, binaries, lock)
    clear_leftovers(folder)
    sockets = _make_socket_folder(folder)
    settings = SETTINGS | {
        "port": str(_choose_port(folder)),
        "unix_socket_directories": str(sockets),
    }
    command = [str(binaries / "postgres"), "-D", str(folder / DATA)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with (folder / LOG).open("ab") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            preexec_fn=_die_with_supervisor,  # noqa: PLW1509  (this process has one thread)
        )
    os.close(lock)
    while not is_ready(read_pid_file(folder)):
        if server.poll() is not None:
            remove_socket_folder(sockets)
            raise StartError(f"PostgreSQL in {folder} ended at its start:\n{log_tail(folder)}")
        time.sleep(0.01)
    return server, sockets


def watch(folder: Path, server: subprocess.Popen[bytes], clients: int) -> bool:
    """Wait until the server dies (False), or until it is unused or asked to stop (True).

    If it is unused, the clients' lock stays taken: a new client waits for it, then starts a new server.
    """
    log = folder / LOG
    last_used = time.monotonic()
    while server.poll() is None:
        time.sleep(POLL)
        if (folder / STOP_REQUEST).exists() or not (folder / CLIENTS_LOCK).exists():
            return True  # asked to stop, or the folder was deleted under us
        with contextlib.suppress(OSError):  # a moved log or a full disk must not end the server
            if log.stat().st_size > LOG_LIMIT:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)  # the server appends, so it continues at offset 0
        try:
            fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            last_used = time.monotonic()
        else:
            if time.monotonic() - last_used > GRACE:
                return True
            fcntl.flock(clients, fcntl.LOCK_UN)
    return False


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server, cleanly if possible: it disconnects its clients and writes everything to disk."""
    server.send_signal(signal.SIGINT)
    try:
        server.wait(SHUTDOWN_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)
        server.wait()


def run(folder: Path, binaries: Path) -> None:
    """Run the server of `folder` until nobody uses it, and restart it if it dies."""
    signal.signal(signal.SIGTERM, lambda *_: (folder / STOP_REQUEST).touch())
    clients = os.open(folder / CLIENTS_LOCK, os.O_RDWR)
    unused = False
    while not unused:
        server, sockets = start(folder, binaries)
        # The client reads our output to its end: empty means that the server is ready.
        log = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        try:
            unused = watch(folder, server, clients)
        finally:
            stop(server)
            remove_socket_folder(sockets)


def main() -> None:
    """Leave the client's process tree, then run; print an error that occurs before readiness."""
    folder, binaries = Path(sys.argv[1]), Path(sys.argv[2])
    if os.fork():
        os._exit(0)  # reaped by the client; init adopts the child
    os.umask(0o077)
    try:
        run(folder, binaries)
    except (StartError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
