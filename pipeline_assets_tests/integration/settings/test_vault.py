"""Secrets from a real Vault server, and passwords that change while a process runs."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pytest_httpserver import HTTPServer

from pipeline_assets.failures import is_transient
from pipeline_assets.resources import celery, embedded_postgres
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings, SettingsError, load_settings, reload_settings, vault
from pipeline_assets_tests.integration.settings.vault_server import VaultServer, vault_server
from pipeline_assets_tests.waiting import until

PRODUCTION = {
    "SOURCE_DATABASE_URL": "postgresql://u:secret-of-source@db/source",
    "WAREHOUSE_DATABASE_URL": "postgresql://u:secret-of-warehouse@db/warehouse",
    "DAGSTER_DATABASE_URL": "postgresql://u:secret-of-dagster@db/dagster",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with vault_server(tmp_path_factory.mktemp("vault")) as found:
        yield found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of the test's own, and no variable from outside."""
    for name in (*(field.upper() for field in Settings.model_fields), "VAULT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    vault.forget()
    return tmp_path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set variables for the rest of the test."""

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


Use = Callable[[dict[str, str]], None]


def secret(settings: Settings, name: str) -> str:
    found: str = getattr(settings, name).get_secret_value()
    return found


def failure(use: Use, variables: dict[str, str]) -> str:
    use(variables)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for name in ("VAULT_SECRET_ID", "VAULT_ROLE_ID"):
        assert variables.get(name, "nothing") not in str(caught.value)
    return str(caught.value)


def test_production_starts_on_what_vault_has_alone(server: VaultServer, use: Use) -> None:
    values = {**PRODUCTION, "alert_urls": '["slack://a/b/c"]', "unknown_to_this_version": "x"}
    use({"PIPELINE_ENV": "production", **server.approle(values)})
    settings = load_settings()
    assert {name: secret(settings, name.lower()) for name in PRODUCTION} == PRODUCTION
    assert [url.get_secret_value() for url in settings.alert_urls] == ["slack://a/b/c"]
    assert "secret-of" not in repr(settings)
    assert os.environ["VAULT_SECRET_ID"] not in repr(settings)


def test_the_environment_and_secret_files_win_over_vault(
    server: VaultServer, use: Use, tmp_path: Path
) -> None:
    names = [name for name in PRODUCTION if name.endswith("DATABASE_URL")]
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / names[1].lower()).write_text("postgresql://u:file@db/x\n")
    access = server.approle(dict.fromkeys(names, "postgresql://u:vault@db/x"))
    # The ids come as files too.
    for name in ("VAULT_ROLE_ID", "VAULT_SECRET_ID"):
        (tmp_path / "secrets" / name).write_text(access.pop(name))
    use({**access, "PIPELINE_SECRETS_DIR": str(tmp_path / "secrets")})
    use({names[0]: "postgresql://u:environment@db/x"})
    settings = load_settings()
    passwords = [conninfo_to_dict(secret(settings, name.lower()))["password"] for name in names]
    assert passwords == ["environment", "file", "vault"]


def test_a_near_miss_among_the_keys_is_named(server: VaultServer, use: Use) -> None:
    found = failure(use, server.approle({"SOURCE_DATABSE_URL": "postgresql://u:p@db/x"}))
    assert found == (
        "SOURCE_DATABSE_URL, a key of Vault's secret, is not a setting; SOURCE_DATABASE_URL is"
    )


def test_a_malformed_value_is_named_without_itself(server: VaultServer, use: Use) -> None:
    found = failure(use, server.approle({"ALERT_URLS": "slack://hunter2"}))
    assert found == "ALERT_URLS of Vault is malformed: lists are written as JSON"


def test_a_denied_path_says_which_policy_is_missing(server: VaultServer, use: Use) -> None:
    access = server.approle({})
    server.put("pipeline-assets/of-others", {})
    found = failure(use, {**access, "VAULT_PATH": "pipeline-assets/of-others"})
    assert "denies secret/pipeline-assets/of-others" in found
    assert 'path "secret/data/pipeline-assets/of-others" { capabilities = ["read"] }' in found


def test_a_refused_login_says_which_variables_to_check(server: VaultServer, use: Use) -> None:
    found = failure(use, {**server.approle({}), "VAULT_SECRET_ID": "not-it"})
    assert "refuses the AppRole at approle: check VAULT_ROLE_ID and VAULT_SECRET_ID" in found


def test_half_an_approle_is_an_error(server: VaultServer, use: Use) -> None:
    found = failure(use, {"VAULT_ADDR": server.address, "VAULT_ROLE_ID": "role"})
    assert "set VAULT_ROLE_ID and VAULT_SECRET_ID too, or unset VAULT_ADDR" in found


@pytest.mark.parametrize("removed", ["never written", "deleted"])
def test_a_secret_that_is_missing_is_no_default(
    server: VaultServer, use: Use, removed: str
) -> None:
    access = server.approle(PRODUCTION)
    path = access["VAULT_PATH"]
    kv = server.root().secrets.kv.v2
    if removed == "deleted":
        kv.delete_latest_version_of_secret(path)
    else:
        kv.delete_metadata_and_all_versions(path)
    found = failure(use, {"PIPELINE_ENV": "production", **access})
    assert f"has nothing at secret/{path}: write it there" in found


def test_a_key_that_is_missing_is_no_default(server: VaultServer, use: Use) -> None:
    values = {name: value for name, value in PRODUCTION.items() if name != "SOURCE_DATABASE_URL"}
    found = failure(use, {"PIPELINE_ENV": "production", **server.approle(values)})
    assert found == "SOURCE_DATABASE_URL must be set: production has no embedded default"


@pytest.mark.parametrize("environment", ["dev", "staging", "production"])
def test_a_vault_that_is_down_stops_the_start(tmp_path: Path, use: Use, environment: str) -> None:
    with vault_server(tmp_path) as own:
        access = own.approle(PRODUCTION)
    found = failure(use, {"PIPELINE_ENV": environment, **access})
    assert f"Vault at {own.address}/ doesn't answer" in found
    assert "reached at VAULT_ADDR" in found


def test_a_sealed_vault_stops_the_start(tmp_path: Path, use: Use) -> None:
    with vault_server(tmp_path) as own:
        access = own.approle(PRODUCTION)
        own.root().sys.seal()
        found = failure(use, access)
    assert "(VaultDown): see that it runs, is unsealed" in found


def test_another_server_at_the_address_is_no_vault(use: Use, httpserver: HTTPServer) -> None:
    httpserver.expect_request(re.compile("/.*")).respond_with_data("<h1>Welcome</h1>")
    access = {"VAULT_ROLE_ID": "role", "VAULT_SECRET_ID": "secret-id"}
    found = failure(use, {"VAULT_ADDR": httpserver.url_for(""), **access})
    assert "doesn't answer as Vault does (200, and no JSON)" in found


def test_a_token_that_cannot_be_renewed_is_replaced(server: VaultServer, use: Use) -> None:
    access = server.approle({"NEWSAPI_KEY": "one"}, token_type="batch", token_ttl="1h")
    use(access)
    load_settings()
    before = token_of(access)
    login_of(access).renew_at = time.monotonic()
    assert secret(reload_settings(), "newsapi_key") == "one"
    assert token_of(access) != before


def token_of(access: dict[str, str]) -> str:
    """The token of this process's login."""
    token: str = login_of(access).client.token
    return token


def login_of(access: dict[str, str]) -> Any:
    stated = {name.lower(): value for name, value in access.items()}
    return vault._login(vault.VaultSettings.model_validate(stated))


def seconds_left(server: VaultServer, token: str) -> int | None:
    """The seconds until a token expires; None once it is no longer valid."""
    from hvac.exceptions import Forbidden

    try:
        return int(server.root().auth.token.lookup(token)["data"]["ttl"])
    except Forbidden:
        return None


def test_a_token_is_renewed_while_it_can_be(server: VaultServer, use: Use) -> None:
    access = server.approle({"NEWSAPI_KEY": "one"}, token_ttl="60s", token_max_ttl="1h")
    use(access)
    load_settings()
    token = token_of(access)
    until(lambda: (seconds_left(server, token) or 0) <= 57)
    login_of(access).renew_at = time.monotonic()
    server.put(access["VAULT_PATH"], {"NEWSAPI_KEY": "two"})
    assert secret(load_settings(), "newsapi_key") == "one"  # read once per process
    assert secret(reload_settings(), "newsapi_key") == "two"
    assert token_of(access) == token
    left = seconds_left(server, token)
    assert left
    assert left >= 58


@pytest.mark.parametrize("how", ["expired", "revoked"])
def test_a_token_that_is_no_more_is_replaced(server: VaultServer, use: Use, how: str) -> None:
    ttl = "3s" if how == "expired" else "1h"
    access = server.approle({"NEWSAPI_KEY": "one"}, token_ttl=ttl)
    use(access)
    load_settings()
    token = token_of(access)
    if how == "revoked":
        server.root().auth.token.revoke(token)
    until(lambda: seconds_left(server, token) is None)
    assert secret(reload_settings(), "newsapi_key") == "one"
    assert token_of(access) != token


def test_a_forked_process_logs_in_for_itself(server: VaultServer, use: Use) -> None:
    access = server.approle({"NEWSAPI_KEY": "one"})
    use(access)
    load_settings()
    before = token_of(access)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reload_settings()
            code = 0 if token_of(access) != before else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert token_of(access) == before


class Account:
    """A login of the real PostgreSQL whose password a test changes."""

    def __init__(self, url: str, name: str) -> None:
        self.administrator = psycopg.connect(url, autocommit=True)
        self.place = conninfo_to_dict(url)
        self.name = name
        self.administrator.execute(
            sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(name))
        )

    def change_password(self, password: str) -> str:
        """Set another password and end the sessions of this login; return the new URL."""
        self.administrator.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                sql.Identifier(self.name), sql.Literal(password)
            )
        )
        self.administrator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [self.name]
        )
        return self.url(password)

    def url(self, password: str) -> str:
        place = self.place
        return (
            f"postgresql://{self.name}:{password}@{place['host']}:{place['port']}/{place['dbname']}"
        )


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded_postgres.Server]:
    folder = tmp_path_factory.mktemp("rotated")
    yield embedded_postgres.connect_or_start(folder)
    embedded_postgres.release(folder)
    embedded_postgres.stop(folder)


@pytest.fixture
def account(postgres: embedded_postgres.Server) -> Iterator[Account]:
    found = Account(embedded_postgres.ensure_database(postgres, "rotated"), "rotating")
    yield found
    found.change_password("nobody's")
    found.administrator.execute("DROP OWNED BY rotating CASCADE")
    found.administrator.execute("DROP ROLE rotating")
    found.administrator.close()


def test_a_password_changed_in_vault_is_used_by_what_is_already_running(
    server: VaultServer, account: Account, use: Use
) -> None:
    access = server.approle({"WAREHOUSE_DATABASE_URL": account.change_password("first")})
    use(access)
    database = Database("warehouse", load_settings())
    database.connect().close()
    for password in ("second", "third"):
        changed = account.change_password(password)
        with pytest.raises(psycopg.OperationalError) as caught:  # Vault still has the old one
            database.connect()
        assert not is_transient(caught.value)
        server.put(access["VAULT_PATH"], {"WAREHOUSE_DATABASE_URL": changed})
        with database.connect() as connection:
            assert connection.info.password == password
        assert database.url() == changed  # for other drivers
        with Database("warehouse", load_settings()).connect() as connection:
            assert connection.info.password == password


def test_a_vault_that_is_down_meanwhile_is_told_beside_the_refusal(
    account: Account, use: Use, tmp_path: Path
) -> None:
    with vault_server(tmp_path) as own:
        use(own.approle({"WAREHOUSE_DATABASE_URL": account.change_password("first")}))
        database = Database("warehouse", load_settings())
        database.connect().close()
    database.connect().close()  # Vault isn't asked as long as the password is right
    account.change_password("second")
    with pytest.raises(psycopg.OperationalError, match="authentication failed") as caught:
        database.connect()
    assert f"Vault at {own.address}/ doesn't answer" in caught.value.__notes__[0]


def test_a_running_process_does_not_move_to_another_database(
    server: VaultServer, account: Account, use: Use
) -> None:
    access = server.approle({"WAREHOUSE_DATABASE_URL": account.change_password("first")})
    use(access)
    database = Database("warehouse", load_settings())
    changed = account.change_password("second")
    elsewhere = changed.replace("/rotated", "/postgres")
    server.put(access["VAULT_PATH"], {"WAREHOUSE_DATABASE_URL": elsewhere})
    with pytest.raises(psycopg.OperationalError):
        database.connect()
    assert database.url() == account.url("first")


@pytest.mark.slow
def test_dagsters_own_storage_follows_a_password_in_a_secret_file(
    account: Account, use: Use, tmp_path: Path
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    file = folder / "dagster_database_url"
    file.write_text(account.change_password("first"))
    root = Path(__file__).parents[3]
    (tmp_path / "dagster.yaml").write_text((root / "dagster.yaml").read_text())
    use({"PIPELINE_SECRETS_DIR": str(folder), "PIPELINE_DATA_DIR": str(tmp_path / "data")})
    instance = dg.DagsterInstance.get()
    assert instance.get_runs_count() == 0
    file.write_text(account.change_password("second"))
    run_id = until(lambda: _created(instance))
    assert instance.get_run_by_id(run_id)
    until(lambda: _answers(lambda: instance.all_logs(run_id)))
    assert instance.event_log_storage.postgres_url.partition("@")[0].endswith(":second")  # type: ignore[attr-defined]  # PostgreSQL's has it
    webserver = dg.DagsterInstance.from_ref(instance.get_ref())
    webserver.optimize_for_webserver(15_000, 3600, 20)  # as it does when it starts
    assert webserver.get_runs_count() == 1
    # A process that was started before, and opens Dagster's storage only now.
    file.write_text(account.change_password("third"))
    again = dg.DagsterInstance.from_ref(instance.get_ref())
    assert again.get_runs_count() == 1
    until(lambda: _answers(webserver.get_runs_count))


def test_celerys_results_follow_a_password_in_a_secret_file(
    account: Account, use: Use, tmp_path: Path
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    file = folder / "dagster_database_url"
    file.write_text(account.change_password("first"))
    use(
        {
            **{name: PRODUCTION[name] for name in PRODUCTION if name != "DAGSTER_DATABASE_URL"},
            "PIPELINE_EXECUTOR": "celery",
            "CELERY_BROKER_URL": "amqp://u:p@rabbitmq:5672//",
            "PIPELINE_FILES_URL": "s3://bucket/partitions",
            "PIPELINE_SECRETS_DIR": str(folder),
        }
    )
    app = celery.worker_app(load_settings())
    app.backend.store_result("one", "done", "SUCCESS")
    file.write_text(account.change_password("second"))
    assert app.AsyncResult("one").get(timeout=10) == "done"


def _created(instance: dg.DagsterInstance) -> str | None:
    """The id of a new run; None if the pool still held a connection that the server has ended."""

    @dg.op
    def nothing() -> None: ...

    job = dg.GraphDefinition("rotation", node_defs=[nothing]).to_job()
    run: list[dg.DagsterRun] = []
    _answers(lambda: run.append(instance.create_run_for_job(job)))
    return run[0].run_id if run else None


def _answers(question: Callable[[], object]) -> bool:
    from sqlalchemy.exc import OperationalError

    try:
        question()
    except OperationalError:
        return False
    return True
