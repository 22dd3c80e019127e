"""No secret leaks: a canary in every secret setting, good runs and bad ones, then everything is searched.

Secret settings are found by their type, so a new one gets a canary automatically.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.request import Request as Ask
from urllib.request import urlopen

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
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
from pipeline_assets_tests.integration.settings.vault_server import VaultServer, vault_server
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


IN_VAULT = ("warehouse_database_url", "newsapi_key", "alert_urls", "heartbeat_url")
"""Settings that come from Vault alone; the others are variables."""
VAULT_TOKEN = re.compile(r"\bs\.[A-Za-z0-9]{24}\b")


def test_there_are_secrets() -> None:
    assert {"warehouse_database_url", "newsapi_key", "alert_urls"} <= set(SECRETS)


def forms(canary: str) -> list[str]:
    """A canary as it is, and in base64 after any prefix, such as a login's name and a colon."""
    found = [canary]
    for before in range(3):
        encoded = base64.b64encode(b" " * before + canary.encode()).decode()
        # The first and last characters depend on what stands before and after it, too.
        found.append(encoded[-(-before * 8 // 6) : (before + len(canary)) * 8 // 6])
    return found


def text_of(path: Path) -> str:
    """A file's text, with what is compressed inside a Parquet file or an archive."""
    texts = [path.read_bytes().decode(errors="replace")]
    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read()
        columns = [field.name for field in table.schema if not pa.types.is_primitive(field.type)]
        texts.append(str(table.select(columns).to_pylist()))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            texts += [archive.read(name).decode(errors="replace") for name in archive.namelist()]
    return "\n".join(texts)


@pytest.mark.parametrize("login", ["", "a:", "me:", "you:"])
def test_the_search_sees_through_base64(login: str) -> None:
    header = base64.b64encode(f"{login}c4n4ry.0123".encode()).decode()
    assert any(form in header for form in forms("c4n4ry.0123"))


def test_the_search_sees_through_compression(tmp_path: Path) -> None:
    canary = "c4n4ry.0123456789abcdef"
    pq.write_table(
        pa.table({"a": [canary] * 9}),
        tmp_path / "a.parquet",
        compression="gzip",
        write_statistics=False,
    )
    with zipfile.ZipFile(tmp_path / "a.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", canary * 9)
    for path in tmp_path.iterdir():
        assert canary.encode() not in path.read_bytes()
        assert canary in text_of(path)


@dataclass
class Deployment:
    """A deployment whose secrets are canaries, and all texts seen so far, by where they were seen."""

    server: embedded_postgres.Server
    folder: Path
    canaries: dict[str, str]
    environment: dict[str, str]
    databases: dict[str, str]
    newsapi: NewsApi
    web: HTTPServer
    """Where alerts and heartbeats go."""
    vault: VaultServer
    delivered: list[Request] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)

    def watch(self, name: str, *command: str, until: str | None = None, **variables: str) -> int:
        """Run a command until it ends or says `until`, and return its exit code.

        Its output is recorded, and the arguments of every process meanwhile.
        """
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                env=self.environment | variables,
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
                if until and until in log.read_text():
                    process.terminate()
                    process.wait(60)
        self.seen[f"arguments of processes during {name}"] = "\n".join(arguments)
        self.seen[f"output of {name}"] = log.read_text()
        return process.returncode

    def run(self, name: str, keys: dict[str, list[str]]) -> dict[str, bool]:
        """Run all jobs in a process of their own."""
        code = self.watch(name, sys.executable, "-c", DRIVER, json.dumps(keys))
        text = self.seen[f"output of {name}"]
        assert code == 0, text
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
        for role in ("source", "warehouse", "dagster", "mlflow", "celery"):
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
            others = {"mlflow": "mlflow_tracking_uri", "celery": "celery_backend_url"}
            setting = others.get(role, f"{role}_database_url")
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
    with (
        HTTPServer() as web,
        HTTPServer() as api,
        vault_server(tmp_path_factory.mktemp("vault")) as vault,
    ):
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
            "celery_backend_url": url("celery", "celery_backend_url"),
        }
        access = vault.approle({name: values.pop(name) for name in IN_VAULT})
        for name in ("vault_role_id", "vault_secret_id"):  # Vault's own, which it accepts
            canaries[name] = values[name] = access[name.upper()]
        environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            **{name.upper(): value for name, value in values.items()},
            "VAULT_ADDR": access["VAULT_ADDR"],
            "VAULT_PATH": access["VAULT_PATH"],
            "DAGSTER_HOME": str(folder / "home"),
            "PIPELINE_DATA_DIR": str(folder / "data"),
            "NEWS_PROVIDER": "newsapi",
            "NEWSAPI_URL": newsapi.url,
            "MODELS_TRAINING_SNAPSHOTS": "3",
            "MODELS_MISSING_DAYS": "0.1",
            "MODELS_MIN_PRECISION_OVER_BASELINE": "-0.03",
            "COLUMNS": "1000",  # nothing is broken into lines
        }
        yield Deployment(
            server, folder, canaries, environment, databases, newsapi, web, vault, delivered
        )
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
                sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))
            )
            texts += [readable(value) for row in rows for value in row]
    return "\n".join(texts)


def readable(value: object) -> str:
    """A value's text; Dagster stores some compressed."""
    if not isinstance(value, bytes):
        return str(value)
    with suppress(zlib.error):
        value = zlib.decompress(value)
    return value.decode(errors="replace")


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

    worker = [str(BIN / "pipeline-assets"), "worker"]
    celery = {
        "PIPELINE_EXECUTOR": "celery",
        "PIPELINE_FILES_URL": f"file://{deployment.folder}/data/partitions",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
    }
    deployment.watch("a worker", *worker, until="Cannot connect", **celery)
    job = [str(BIN / "dagster"), "job", "execute", "-m", "pipeline_assets.definitions"]
    job += ["-j", "load_transactions", "--tags", '{"dagster/partition": "2026-01-07"}']
    assert deployment.watch("a run without its broker", *job, **celery) == 1

    with psycopg.connect(deployment.server.url(), autocommit=True) as connection:
        for role in ("source", "warehouse", "mlflow", "celery"):
            connection.execute(
                sql.SQL("ALTER ROLE {} PASSWORD 'another'").format(
                    sql.Identifier(deployment.databases[role])
                )
            )
    done = deployment.run(
        "failing runs", {"build_snapshots": [SNAPSHOTS[0]], "train_model": [WEEK]}
    )
    assert not any(value for name, value in done.items() if name.startswith(("load_", "publish_")))

    assert deployment.watch("a worker without its results", *worker, **celery) == 2
    look_at_the_ui(deployment)
    role = deployment.environment["VAULT_PATH"].rpartition("/")[2]
    deployment.vault.root().auth.approle.delete_role(role)
    deployment.watch("config without Vault", str(BIN / "pipeline-assets"), "config")
    for role, name in deployment.databases.items():
        deployment.seen[f"database of {role}"] = dump(deployment.server.url(name))
    for request in deployment.delivered:
        deployment.seen[f"alert {len(deployment.seen)}"] = request.get_data(as_text=True)
    for path in deployment.folder.rglob("*"):
        if path.is_file():
            deployment.seen[str(path.relative_to(deployment.folder))] = text_of(path)
    return deployment.seen


@pytest.mark.parametrize("name", SECRETS)
def test_no_canary_is_found_anywhere(
    seen: dict[str, str], deployment: Deployment, name: str
) -> None:
    wanted = forms(deployment.canaries[name])
    assert [place for place, text in seen.items() if any(form in text for form in wanted)] == []


def test_no_token_of_vault_is_found_anywhere(seen: dict[str, str], deployment: Deployment) -> None:
    token = deployment.vault.root().auth.token.create()["auth"]["client_token"]
    assert VAULT_TOKEN.fullmatch(token)
    assert [place for place, text in seen.items() if VAULT_TOKEN.search(text)] == []


def test_the_canaries_were_in_use_and_the_search_looked_everywhere(
    seen: dict[str, str], deployment: Deployment
) -> None:
    """The databases accepted theirs, else no run would have succeeded; the others are checked here.

    Vault accepted its own, and the good runs used the settings of `IN_VAULT`, which are nowhere else.
    """
    canaries = deployment.canaries
    assert not {name.upper() for name in IN_VAULT} & set(deployment.environment)
    keys = {request.headers["X-Api-Key"] for request in deployment.newsapi.requests}
    assert keys == {canaries["newsapi_key"]}
    beats = {each.path for each, _ in deployment.web.log if each.path.startswith("/beat")}
    assert beats == {f"/beat/{canaries['heartbeat_url']}"}
    assert "Cannot connect to amqp://me:**@" in seen["output of a worker"]
    assert "kombu.exceptions.OperationalError" in seen["output of a run without its broker"]
    assert "authentication failed" in seen["output of a worker without its results"]
    assert "refuses the AppRole" in seen["output of config without Vault"]
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
    assert any(path.endswith(".parquet") for path in seen)
    assert any(path.endswith(".skops") for path in seen)
    said = seen["database of dagster"]
    for wanted in (
        "authentication failed",
        "kombu.exceptions.OperationalError",
        "PipelineSnapshot",
    ):
        assert wanted in said, wanted
