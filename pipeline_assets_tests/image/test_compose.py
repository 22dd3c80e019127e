"""The Compose file's services as containers, with its commands, environments, secrets, rights and order.

There is neither Compose nor a registry here: Podman starts what the file says, as far as this module reads
it. Debian's PostgreSQL, RabbitMQ and nginx stand in for the three official images, and do what those
images' entry points do.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import requests
import yaml

from pipeline_assets.ci.smoke import _launch, _outcome, _selector
from pipeline_assets_tests.conftest import FIRST_DAY, SOURCE_SCHEMA
from pipeline_assets_tests.image.conftest import BASE, ROOT, ask_podman, podman
from pipeline_assets_tests.waiting import until

COMPOSE = ROOT / "deploy" / "compose"
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
STAND_IN = "localhost/stand-ins:bookworm"
DAY = f"{FIRST_DAY:%Y-%m-%d}"
NAME = "dagster.example.com"
VALUES = {"${PIPELINE_ENV:-staging}": "staging", "${NEWS_PROVIDER:-rss}": "rss"}
"""What Compose substitutes for its variables if they aren't set."""
BUILD = f"""
FROM {BASE}
RUN apt-get update
RUN apt-get install --yes --no-install-recommends postgresql rabbitmq-server nginx-light wget
ENV PATH=/usr/lib/postgresql/15/bin:/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/var/lib/rabbitmq
COPY entry /entry
# The official nginx image's wget and grep are busybox's, with options of their own.
RUN apt-get install --yes --no-install-recommends busybox \
    && ln -sf /bin/busybox /usr/bin/wget && ln -sf /bin/busybox /usr/bin/grep
ENTRYPOINT ["sh", "-e", "/entry"]
"""
ENTRY = """
case "$1" in
postgres)
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    data=/var/lib/postgresql/data
    chown postgres:postgres $data /run/postgresql
    cp "$POSTGRES_PASSWORD_FILE" /tmp/password
    chown postgres /tmp/password
    $as initdb -D $data --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 \
        --auth-local=trust --encoding=UTF8 $POSTGRES_INITDB_ARGS
    echo "host all all all scram-sha-256" | $as tee -a $data/pg_hba.conf
    $as pg_ctl -D $data -w -o "-c listen_addresses=" start
    for file in /docker-entrypoint-initdb.d/*.sql; do
        $as psql --username="$POSTGRES_USER" --dbname=postgres --file="$file"
    done
    $as pg_ctl -D $data -w stop
    shift
    exec $as postgres -D $data -c listen_addresses='*' "$@";;
rabbitmq)
    chown -R rabbitmq:rabbitmq /var/lib/rabbitmq
    export RABBITMQ_CONFIG_FILES=/etc/rabbitmq/conf.d RABBITMQ_LOGS=- RABBITMQ_LOG_BASE=/tmp/log
    install -d -o rabbitmq /tmp/log
    exec setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups /usr/lib/rabbitmq/bin/rabbitmq-server;;
nginx)
    for kind in client_body proxy fastcgi uwsgi scgi; do temporary="$temporary
        ${kind}_temp_path /var/cache/nginx/$kind;"; done
    echo "events {} http { $temporary access_log off; include /etc/nginx/conf.d/*.conf; }" > /tmp/nginx.conf
    cp -r /etc/nginx/dagster /etc/nginx/conf.d /tmp
    exec nginx -e stderr -c /tmp/nginx.conf -g 'daemon off; error_log stderr;';;
esac
"""
STAND_INS = {"postgres": ["postgres"], "rabbitmq": ["rabbitmq"], "proxy": ["nginx"]}
"""Service -> first argument of the stand-in's entry point; the official image has it as its command."""


class Deployment:
    """Containers of the services, in a network that resolves their names."""

    def __init__(self, image: str, secrets: Path) -> None:
        self.image, self.secrets = image, secrets
        self.network = f"pipeline-assets-{uuid4().hex[:8]}"
        podman("network", "create", self.network)
        self.started: list[str] = []

    def start(self, service: str, number: int = 1) -> str:
        """Start a container of a service, as the Compose file has it; returns its name."""
        its = SERVICES[service]
        name = f"{self.network}-{service}-{number}"
        options = ["--detach", "--name", name, "--network", f"{self.network}:alias={service}"]
        assert its["read_only"]
        options += ["--read-only", "--hostname", its.get("hostname", f"{service}-{number}")]
        for option, key in (
            ("--cap-drop", "cap_drop"),
            ("--cap-add", "cap_add"),
            ("--security-opt", "security_opt"),
            ("--tmpfs", "tmpfs"),
        ):
            for value in its.get(key, ()):
                options += [option, value.removesuffix(":true")]
        for key, value in (its.get("environment") or {}).items():
            options += ["--env", f"{key}={VALUES.get(value, value)}"]
        for volume in its.get("volumes", ()):
            options += ["--volume", f"{self.network}-{volume}"]
        for kind, folder in (("secrets", "/run/secrets"), ("configs", "")):
            for each in its.get(kind, ()):
                source, target = (
                    (each, each) if isinstance(each, str) else (each["source"], each["target"])
                )
                file = COMPOSE / FILE[kind][source]["file"]
                if kind == "secrets":
                    file = self.secrets / file.name
                place = target if target.startswith("/") else f"{folder}/{target}"
                options += ["--volume", f"{file}:{place}:ro"]
        command = [each.replace("$$", "$") for each in its.get("command", ())]
        if service in STAND_INS:
            image, command = STAND_IN, [*STAND_INS[service], *command[1:]]
        else:
            image = self.image
        podman("run", *options, image, *command)
        self.started.append(name)
        return name

    def up(self) -> None:
        """Start each service once those that it depends on meet its conditions."""
        waiting = dict(SERVICES)
        done: dict[str, str] = {}
        while waiting:
            service = next(s for s in waiting if set(waiting[s].get("depends_on", ())) <= set(done))
            its = waiting.pop(service)
            for needed, how in its.get("depends_on", {}).items():
                self.wait_for(done[needed], needed, how["condition"])
            for number in range(its.get("deploy", {}).get("replicas", 1)):
                done[service] = self.start(service, number + 1)
        for service, name in done.items():
            if "healthcheck" in SERVICES[service]:
                self.wait_for(name, service, "service_healthy")

    def wait_for(self, name: str, service: str, condition: str) -> None:
        """Wait until a container is healthy by its service's own check, or has exited with 0."""
        if condition == "service_completed_successfully":
            assert podman("wait", name).strip() == "0", podman("logs", name)
            return
        kind, *command = SERVICES[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]

        def is_healthy() -> bool:
            (about,) = json.loads(podman("inspect", name))
            logs = ask_podman("logs", name)
            assert about["State"]["Running"], f"{service}: {logs.stdout}{logs.stderr}"
            return ask_podman("exec", name, *command).returncode == 0

        until(is_healthy, f"{service} healthy")

    def address(self, service: str) -> str:
        (about,) = json.loads(podman("inspect", f"{self.network}-{service}-1"))
        found: str = about["NetworkSettings"]["Networks"][self.network]["IPAddress"]
        return found

    def down(self) -> None:
        for name in reversed(self.started):
            podman("rm", "--force", "--time", "5", name, check=False)
        podman("network", "rm", "--force", self.network, check=False)
        for volume in FILE["volumes"]:
            podman("volume", "rm", "--force", f"{self.network}-{volume}", check=False)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """All files of `secrets`, made as an operator makes them."""
    folder = tmp_path / "secrets"
    new = [str(COMPOSE / "new-secrets"), "postgresql://reader:x@postgres:5432/source", str(folder)]
    subprocess.run(new, check=True)
    password = (folder / "postgres_password").read_text()
    source = f"postgresql://pipeline:{password}@postgres:5432/source"
    (folder / "source_database_url").write_text(source)
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"],  # noqa: S607 - Debian's
        input="letmein\n",
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "proxy_passwords").write_text(f"operator:{hashed.stdout}")
    key, certificate = folder / "proxy_key", folder / "proxy_certificate"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=True,
    )
    key.chmod(0o644)
    return folder


@pytest.fixture
def deployment(image: str, secrets: Path, tmp_path: Path) -> Iterator[Deployment]:
    (tmp_path / "Dockerfile").write_text(BUILD)
    (tmp_path / "entry").write_text(ENTRY)
    podman("build", "--network", "host", "--tag", STAND_IN, str(tmp_path))
    found = Deployment(image, secrets)
    yield found
    found.down()


def test_the_services_come_up_in_their_order_and_a_day_is_loaded_by_the_workers(
    deployment: Deployment, secrets: Path
) -> None:
    deployment.up()
    password = (secrets / "postgres_password").read_text()
    login = f"postgresql://pipeline:{password}@{deployment.address('postgres')}:5432"
    with psycopg.connect(f"{login}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE source")
    with psycopg.connect(f"{login}/source", autocommit=True) as connection:
        connection.execute(SOURCE_SCHEMA)
        connection.execute(
            "INSERT INTO shop.transactions VALUES"
            " (%(order)s, 1, %(at)s, 12.50, 'USD', 2, 'completed', %(at)s)",
            {"order": "one", "at": FIRST_DAY},
        )
    url = f"http://{deployment.address('webserver')}:3000"
    run = _launch(url, _selector(url, "load_transactions", 60), DAY)
    assert "fct_transactions" in _outcome(url, "load_transactions", DAY, run, 240)
    with psycopg.connect(f"{login}/warehouse") as warehouse:
        query = "SELECT order_id, net_amount::text FROM analytics.fct_transactions"
        assert warehouse.execute(query).fetchall() == [("one", "12.50")]
    said = [ask_podman("logs", f"{deployment.network}-worker-{number}") for number in (1, 2)]
    assert any("Task execute_plan" in log.stdout + log.stderr for log in said)

    # From outside one reaches the proxy, which asks for an account.
    proxy = f"https://{deployment.address('proxy')}/server_info"
    for account, status in ((None, 401), (("operator", "letmein"), 200)):
        answer = requests.get(proxy, headers={"Host": NAME}, auth=account, timeout=60, verify=False)  # noqa: S501 - it has the name's certificate, and is asked by its address
        assert answer.status_code == status
