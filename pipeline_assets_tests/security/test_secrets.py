"""No secret leaks: a canary in every secret setting, good runs and bad ones, then everything is searched.

Secret settings are found by their type, so a new one gets a canary automatically.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.request import Request as Ask
from urllib.request import urlopen

import psycopg
import pytest
from psycopg import sql
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline_assets.news.assets import mornings
from pipeline_assets.operations.migration import migrate
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.tables import every_table
from pipeline_assets_tests.conftest import SOURCE_SCHEMA
from pipeline_assets_tests.databases import drop
from pipeline_assets_tests.integration.news.newsapi_server import KEY, NewsApi, article
from pipeline_assets_tests.security.test_proxy import free_port, running

pytestmark = [pytest.mark.security, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_numbers = count()

SECRETS = [
    name for name, info in Settings.model_fields.items() if "SecretStr" in str(info.annotation)
]

DRIVER = """
import json, os, sys
import dagster as dg
from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.settings import load_settings

settings, keys = load_settings(), json.loads(sys.argv[1])
repository = build_definitions(settings).get_repository_def()
outcomes = {}
with dg.DagsterInstance.get() as instance:
    jobs = {job.name: job for job in repository.get_all_jobs() if not job.name.startswith("__")}
    # Those with keys in the order of these, as some need what others made; then the rest.
    for job in (jobs[name] for name in [*keys, *(name for name in jobs if name not in keys)]):
        partitions = job.partitions_def
        for key in keys.get(job.name, [partitions and partitions.get_last_partition_key()]):
            result = job.execute_in_process(
                instance=instance, partition_key=key, raise_on_error=False
            )
            outcomes[f"{job.name} {key}"] = result.success
    for sensor in repository.sensor_defs:
        if sensor.name == "alerts":
            context = dg.build_sensor_context(
                instance=instance, repository_def=repository, resources=build_resources(settings)
            )
            print(sensor.evaluate_tick(context).skip_message)
print("OUTCOMES", json.dumps(outcomes))
"""
WEEK, NEXT, SNAPSHOTS = "2026-11-02", "2026-11-09", ["2026-08-10", "2026-09-07", "2026-10-05"]


def test_there_are_secrets() -> None:
    assert {"warehouse_database_url", "newsapi_key", "alert_urls"} <= set(SECRETS)


@dataclass
class Deployment:
    """A deployment whose secrets are canaries, and all texts seen so far, by where they were seen."""

    server: embedded_postgres.Server
    folder: Path
    canaries: dict[str, str]
    environment: dict[str, str]
    databases: dict[str, str]
    newsapi: NewsApi
    delivered: list[Request] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, keys: dict[str, list[str]]) -> dict[str, bool]:
        """Run all jobs in a process of their own, recording the arguments of every process meanwhile."""
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, json.dumps(keys)],
                env=self.environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
            )
            arguments = set()
            deadline = time.monotonic() + 1200
            while process.poll() is None:
                assert time.monotonic() < deadline, log.read_text()
                arguments |= command_lines()
                time.sleep(0.2)
        self.seen[f"arguments of processes during {name}"] = "\n".join(arguments)
        text = self.seen[f"output of {name}"] = log.read_text()
        assert process.returncode == 0, text
        (outcomes,) = re.findall(r"^OUTCOMES (.*)$", text, re.MULTILINE)
        found: dict[str, bool] = json.loads(outcomes)
        return found


def command_lines() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return found


@pytest.fixture(scope="module")
def deployment(
    server: embedded_postgres.Server,
    templates: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("secrets")
    canaries = {name: f"c4n4ry.{name.replace('_', '.')}.0123456789abcdef" for name in SECRETS}
    canaries["newsapi_key"] = KEY  # the key that the test's server accepts
    databases = {}
    number = next(_numbers)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for role in ("source", "warehouse", "dagster", "mlflow"):
            name = databases[role] = f"canary_{role}_{number}"
            template = templates.get(role, "template1")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [template],
            )
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template)
                )
            )
            setting = "mlflow_tracking_uri" if role == "mlflow" else f"{role}_database_url"
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}").format(
                    sql.Identifier(name),
                    # No job, not even the model's, needs more than the rights to load and to extract.
                    sql.SQL("NOSUPERUSER" if role in ("source", "warehouse") else "SUPERUSER"),
                    sql.Literal(canaries[setting]),
                )
            )
    with psycopg.connect(server.url(databases["warehouse"]), autocommit=True) as connection:
        tables = every_table()
        list(migrate(connection, tables, load=databases["warehouse"], read=""))
    with psycopg.connect(server.url(databases["source"])) as connection:
        connection.execute(SOURCE_SCHEMA)
        for grant in ("USAGE ON SCHEMA shop", "SELECT ON shop.transactions"):
            connection.execute(
                sql.SQL("GRANT {} TO {}").format(
                    sql.SQL(grant), sql.Identifier(databases["source"])
                )
            )
        for day, amount in (("2026-01-07", "10"), ("2026-01-08", "-1")):  # the second is held
            connection.execute(
                "INSERT INTO shop.transactions VALUES (%s, 1, %s, %s, 'USD', 1, 'completed', %s)",
                [day, f"{day} 12:00+00", amount, f"{day} 12:00+00"],
            )

    def url(role: str, setting: str) -> str:
        login = f"{databases[role]}:{canaries[setting]}"
        return f"postgresql://{login}@{server.host}:{server.port}/{databases[role]}"

    (folder / "home").mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder / "home")
    with HTTPServer() as web, HTTPServer() as api:
        newsapi = NewsApi(api)
        delivered: list[Request] = []

        def take(request: Request) -> Response:
            delivered.append(request)
            return Response("ok")

        web.expect_request(re.compile("^/hook")).respond_with_handler(take)
        web.expect_request(re.compile("^/beat")).respond_with_data("ok")
        hook, closed = canaries["alert_urls"], free_port()
        # Secrets not named here are used as they are: a new one that needs a certain form is to be added.
        values = canaries | {
            "source_database_url": url("source", "source_database_url"),
            "warehouse_database_url": url("warehouse", "warehouse_database_url"),
            "dagster_database_url": url("dagster", "dagster_database_url"),
            "mlflow_tracking_uri": url("mlflow", "mlflow_tracking_uri"),
            "alert_urls": json.dumps(
                [
                    f"json://me:{hook}@127.0.0.1:{web.port}/hook",
                    f"json://me:{hook}@127.0.0.1:{closed}/{hook}",  # where nobody answers
                ]
            ),
            "heartbeat_url": web.url_for(f"/beat/{canaries['heartbeat_url']}"),
            "celery_broker_url": f"amqp://me:{canaries['celery_broker_url']}@127.0.0.1:{closed}//",
            "celery_backend_url": url("dagster", "celery_backend_url"),
        }
        environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            **{name.upper(): value for name, value in values.items()},
            "DAGSTER_HOME": str(folder / "home"),
            "PIPELINE_DATA_DIR": str(folder / "data"),
            "NEWS_PROVIDER": "newsapi",
            "NEWSAPI_URL": newsapi.url,
            "MODELS_TRAINING_SNAPSHOTS": "3",
            "MODELS_MISSING_DAYS": "0.1",
            "MODELS_MIN_PRECISION_OVER_BASELINE": "-0.03",
        }
        yield Deployment(server, folder, canaries, environment, databases, newsapi, delivered)
    drop(server, *databases.values())
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for name in databases.values():
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


QUERIES = {
    "instance": "{ instance { id info runQueuingSupported daemonHealth { id allDaemonStatuses"
    " { daemonType lastHeartbeatErrors { message stack } } } } version }",
    "code": "{ workspaceOrError { __typename ... on Workspace { locationEntries { name loadStatus"
    " displayMetadata { key value } locationOrLoadError { __typename ... on PythonError"
    " { message stack } } } } } }",
    "resources": "{ repositoriesOrError { ... on RepositoryConnection { nodes { name"
    " allTopLevelResourceDetails { name description configuredValues { key value } } } } } }",
    "assets": "{ assetNodes { assetKey { path } description metadataEntries { ...M }"
    " assetMaterializations(limit: 20) { runId metadataEntries { ...M } } } }"
    " fragment M on MetadataEntry { __typename label description ... on TextMetadataEntry { text }"
    " ... on JsonMetadataEntry { jsonString } ... on MarkdownMetadataEntry { mdStr }"
    " ... on PathMetadataEntry { path } ... on UrlMetadataEntry { url } }",
    "runs": "{ runsOrError { ... on Runs { results { runId status runConfigYaml tags { key value }"
    " eventConnection { events { __typename ... on MessageEvent { message }"
    " ... on ExecutionStepFailureEvent { error { message stack causes { message stack } }"
    " failureMetadata { metadataEntries { label description } } } } } } } } }",
}


def look_at_the_ui(deployment: Deployment) -> None:
    port = free_port()
    command = [BIN / "dagster-webserver", "-m", "pipeline_assets.definitions", "-p", str(port)]
    with running(command, deployment.folder, port, **deployment.environment):
        site = f"http://127.0.0.1:{port}"
        for name, query in QUERIES.items():
            ask = Ask(  # noqa: S310  # http, and our own
                f"{site}/graphql",
                json.dumps({"query": query}).encode(),
                {"Content-Type": "application/json"},
            )
            with urlopen(ask, timeout=300) as answer:  # noqa: S310  # likewise
                text = deployment.seen[f"GraphQL: {name}"] = answer.read().decode()
            assert "errors" not in json.loads(text), text
        runs = json.loads(deployment.seen["GraphQL: runs"])["data"]["runsOrError"]["results"]
        assert len(runs) > 10
        for path in ("/", "/server_info", *(f"/download_debug/{run['runId']}" for run in runs)):
            with urlopen(f"{site}{path}", timeout=300) as answer:  # noqa: S310  # likewise
                body = answer.read()
            if body.startswith(b"\x1f\x8b"):
                import gzip

                body = gzip.decompress(body)
            deployment.seen[f"GET {path}"] = body.decode(errors="replace")
        deployment.seen["arguments of the web server's processes"] = "\n".join(command_lines())


def dump(url: str) -> str:
    """Every row of every table of a database, except the fixture's orders."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        texts = []
        for schema, table in tables:
            if (schema, table) == ("analytics", "fct_transactions"):
                continue  # 70,000 orders of the fixture
            rows = connection.execute(
                sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, table))
            )
            texts += [text for (text,) in rows]
    return "\n".join(texts)


@pytest.fixture(scope="module")
def seen(deployment: Deployment) -> dict[str, str]:
    """Everything that the deployment wrote, logged and answered, after good runs and bad ones."""
    at = f"{mornings(Settings()).get_last_partition_key()}T12:00:00Z"
    deployment.newsapi.headlines = {"general": [article(1, at)]}
    deployment.newsapi.everything = [article(number, at) for number in range(2, 9)]
    jobs = {
        "load_transactions": ["2026-01-07", "2026-01-08"],
        "build_snapshots": [*SNAPSHOTS],
        "train_model": [WEEK],
        "score_customers": [NEXT],
    }
    done = deployment.run("good runs", jobs)
    assert done["load_transactions 2026-01-07"]
    assert not done["load_transactions 2026-01-08"]
    assert done[f"train_model {WEEK}"], deployment.seen["output of good runs"]
    assert done[f"score_customers {NEXT}"], deployment.seen["output of good runs"]

    with psycopg.connect(deployment.server.url(), autocommit=True) as connection:
        for role in ("source", "warehouse", "mlflow"):
            connection.execute(
                sql.SQL("ALTER ROLE {} PASSWORD 'another'").format(
                    sql.Identifier(deployment.databases[role])
                )
            )
    done = deployment.run(
        "failing runs", {"build_snapshots": [SNAPSHOTS[0]], "train_model": [WEEK]}
    )
    assert not any(value for name, value in done.items() if name.startswith(("load_", "publish_")))

    look_at_the_ui(deployment)
    for role, name in deployment.databases.items():
        deployment.seen[f"database of {role}"] = dump(deployment.server.url(name))
    for request in deployment.delivered:
        deployment.seen[f"alert {len(deployment.seen)}"] = request.get_data(as_text=True)
    for path in deployment.folder.rglob("*"):
        if path.is_file():
            deployment.seen[str(path.relative_to(deployment.folder))] = path.read_bytes().decode(
                errors="replace"
            )
    return deployment.seen


@pytest.mark.parametrize("name", SECRETS)
def test_no_canary_is_found_anywhere(
    seen: dict[str, str], deployment: Deployment, name: str
) -> None:
    canary = deployment.canaries[name]
    assert [place for place, text in seen.items() if canary in text] == []


def test_the_canaries_were_in_use_and_the_search_looked_everywhere(
    seen: dict[str, str], deployment: Deployment
) -> None:
    """The databases accepted theirs, else no run would have succeeded; the others are checked here."""
    keys = {request.headers["X-Api-Key"] for request in deployment.newsapi.requests}
    assert keys == {deployment.canaries["newsapi_key"]}
    assert deployment.delivered, "alerts were sent"
    assert all(request.authorization for request in deployment.delivered)
    for wanted in (
        "compute_logs",
        "mlflow",
        "GraphQL",
        "database of dagster",
        "GET /download_debug",
    ):
        assert any(wanted in place and text for place, text in seen.items()), wanted
    assert "authentication failed" in seen["database of dagster"]
