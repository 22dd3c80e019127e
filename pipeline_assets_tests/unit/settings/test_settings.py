"""Settings: where they come from, and the one clear line when one is wrong."""

from pathlib import Path

import pytest

from pipeline_assets.settings import SettingsError, load_settings, project_root

PRODUCTION = {
    "PIPELINE_ENV": "production",
    "SOURCE_DATABASE_URL": "postgresql://u:p@db/source",
    "WAREHOUSE_DATABASE_URL": "postgresql://u:p@db/warehouse",
    "DAGSTER_DATABASE_URL": "postgresql://u:p@db/dagster",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder of the test's own, and no variable from outside."""
    for name in ("PIPELINE_ENV", "PIPELINE_DATA_DIR", *PRODUCTION):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def error(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


def test_without_any_variable_everything_is_embedded(home: Path) -> None:
    settings = load_settings()
    assert settings.pipeline_env == "dev"
    assert settings.pipeline_data_dir == home / ".data"
    assert settings.source_database_url is None


def test_environment_wins_over_dotenv_and_dotenv_over_yaml(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(pipeline_env="staging").pipeline_automation == "stopped"
    monkeypatch.setenv("PIPELINE_ENV", "staging")
    assert load_settings().pipeline_automation == "running"
    (home / ".env").write_text("PIPELINE_AUTOMATION=stopped\nPIPELINE_TIMEZONE=Europe/Berlin\n")
    monkeypatch.setenv("PIPELINE_TIMEZONE", "Asia/Tokyo")
    monkeypatch.setenv("PIPELINE_AUTOMATION", "running")
    monkeypatch.delenv("PIPELINE_AUTOMATION")
    settings = load_settings()
    assert (settings.pipeline_automation, settings.pipeline_timezone) == ("stopped", "Asia/Tokyo")


def test_a_relative_data_folder_lies_beside_dagster_yaml(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_DATA_DIR", "elsewhere")
    monkeypatch.chdir("/")
    assert load_settings().pipeline_data_dir == home / "elsewhere"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PIPELINE_ENV": "prod"}, "PIPELINE_ENV=prod is not an environment; use one of: dev,"),
        ({"PIPELINE_TIMEZON": "UTC"}, "PIPELINE_TIMEZON is not a setting; PIPELINE_TIMEZONE is"),
        (
            {"WAREHOUSE_LATENES_DAYS": "9"},
            "WAREHOUSE_LATENES_DAYS is not a setting; WAREHOUSE_LATENESS_DAYS is",
        ),
        (
            {"SOURCE_DATABSE_URL": "x"},
            "SOURCE_DATABSE_URL is not a setting; SOURCE_DATABASE_URL is",
        ),
        (
            {"WAREHOUSE_DATABASE_URL": "postgresql://me:hunter2%zz@db:5432/shop"},
            "WAREHOUSE_DATABASE_URL is not a PostgreSQL URL",
        ),
        (
            {"WAREHOUSE_DATABASE_URL": "postgresql://me:hunter2/x@db:5432/shop"},
            "WAREHOUSE_DATABASE_URL is not a PostgreSQL URL",
        ),
        ({"PIPELINE_TIMEZONE": "Mars/Olympus"}, "PIPELINE_TIMEZONE 'Mars/Olympus' is not a time"),
        ({"PIPELINE_AUTOMATION": "maybe"}, "PIPELINE_AUTOMATION should be 'running' or 'stopped'"),
        ({"WAREHOUSE_START_DATE": "soon"}, "WAREHOUSE_START_DATE should be a valid date"),
        (
            {"SOURCE_DATABASE_URL": "mysql://me:hunter2@db/shop"},
            "SOURCE_DATABASE_URL is not a PostgreSQL URL",
        ),
        (
            {"SOURCE_DATABASE_URL": "postgresql://me:hunter2@db"},
            "SOURCE_DATABASE_URL is not a PostgreSQL URL",
        ),
        (
            {"SOURCE_DATABASE_URL": "postgresql://me:hunter2@one:5432,two:x/shop"},
            "SOURCE_DATABASE_URL is not a PostgreSQL URL",
        ),
        (
            {"DAGSTER_DATABASE_URL": "postgresql://me:hunter2@one:5432,two:5432/dagster"},
            "DAGSTER_DATABASE_URL is not a PostgreSQL URL",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    found = error(monkeypatch, **variables)
    assert found.startswith(message)
    assert "\n" not in found
    assert "hunter2" not in found


def test_every_unknown_name_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = error(monkeypatch, PIPELINE_COLOUR="red", NEWS_COLOUR="blue")
    assert [line.split()[0] for line in found.splitlines()] == ["NEWS_COLOUR", "PIPELINE_COLOUR"]


def test_what_kubernetes_adds_for_a_service_is_no_misspelt_setting(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a service `pipeline-assets`, or one called `warehouse`: no pod of its namespace started."""
    for service in ("PIPELINE_ASSETS", "WAREHOUSE"):
        for name, value in {
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "4000",
            "SERVICE_PORT_GRPC": "4000",
            "PORT": "tcp://10.0.0.1:4000",
            "PORT_4000_TCP": "tcp://10.0.0.1:4000",
            "PORT_4000_TCP_PROTO": "tcp",
            "PORT_4000_TCP_PORT": "4000",
            "PORT_4000_TCP_ADDR": "10.0.0.1",
        }.items():
            monkeypatch.setenv(f"{service}_{name}", value)
    assert load_settings().pipeline_env == "dev"
    found = error(monkeypatch, WAREHOUSE_PORT="5432")
    assert found.startswith("WAREHOUSE_PORT is not a setting")


@pytest.mark.security
def test_a_wrong_heartbeat_address_is_refused_without_its_key(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("https://hc-ping.com:x/k3y", "hc-ping.com/k3y", "ftp://hc-ping.com/k3y"):
        found = error(monkeypatch, HEARTBEAT_URL=address)
        assert found == "HEARTBEAT_URL is not an http:// or https:// address"


def test_an_unknown_key_of_the_yaml_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev.yaml").write_text("warehouse_begin: 2026-01-01\n")
    monkeypatch.setattr("pipeline_assets.settings.model.ENVIRONMENTS", tmp_path)
    assert error(monkeypatch) == "dev.yaml: warehouse_begin is not a setting"


@pytest.mark.parametrize("missing", [name for name in PRODUCTION if name != "PIPELINE_ENV"])
def test_production_refuses_embedded_defaults(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    assert load_settings().pipeline_env == "production"
    monkeypatch.delenv(missing)
    found = error(monkeypatch)
    assert found == f"{missing} must be set: production has no embedded default"


@pytest.mark.security
def test_no_password_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATABASE_URL", "postgresql://me:hunter2@db/shop")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_the_project_root_is_the_checkout_without_dagster_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    monkeypatch.chdir("/")
    assert (project_root() / "dagster.yaml").exists()


@pytest.fixture
def secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of secret files."""
    folder = home / "secrets"
    folder.mkdir()
    monkeypatch.setenv("PIPELINE_SECRETS_DIR", str(folder))
    return folder


def test_a_secret_may_come_as_a_file(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "source_database_url").write_text("postgresql://u:file@db/shop\n")
    (secrets / "ALERT_URLS").write_text('["slack://a/b/c"]')
    (secrets / "rabbitmq_password").write_text("somebody else's")
    settings = load_settings()
    assert settings.source_database_url
    assert settings.source_database_url.get_secret_value() == "postgresql://u:file@db/shop"
    assert [url.get_secret_value() for url in settings.alert_urls] == ["slack://a/b/c"]
    monkeypatch.setenv("SOURCE_DATABASE_URL", "postgresql://u:variable@db/shop")
    settings = load_settings()
    assert settings.source_database_url
    assert "variable" in settings.source_database_url.get_secret_value()


def test_a_secret_file_that_is_nearly_a_setting_is_named(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "source_databse_url").write_text("postgresql://u:file@db/shop")
    found = error(monkeypatch)
    assert found.startswith(f"source_databse_url, a file in {secrets}, is not a setting; SOURCE_DA")


def test_a_folder_of_secrets_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = error(monkeypatch, PIPELINE_SECRETS_DIR="/nowhere")
    assert found == "PIPELINE_SECRETS_DIR=/nowhere is not a folder"
