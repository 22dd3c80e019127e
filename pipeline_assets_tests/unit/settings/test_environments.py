"""The environments' files hold only what differs between them; what `config` shows of an environment."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline_assets.cli import app
from pipeline_assets.settings import ENVIRONMENTS, Settings, SettingsError, load_settings
from pipeline_assets.settings.effective import effective_settings
from pipeline_assets_tests.unit.settings.test_settings import PRODUCTION, error, home

__all__ = ["home"]  # a fixture

# Setting: its value in dev, staging and production.
DIFFERENCES: dict[str, tuple[Any, Any, Any]] = {
    "pipeline_automation": ("stopped", "running", "running"),
    "pipeline_ui_url": ("http://127.0.0.1:3000", None, None),
    "news_provider": ("sample", "rss", "rss"),
    "vault_path": (
        "pipeline-assets/dev",
        "pipeline-assets/staging",
        "pipeline-assets/production",
    ),
}
NAMES = ("dev", "staging", "production")


def stated(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ENVIRONMENTS / f"{name}.yaml").read_text())
    return found


def test_the_files_hold_these_differences_and_nothing_else() -> None:
    assert {file.stem for file in ENVIRONMENTS.glob("*.yaml")} == set(NAMES)
    assert set().union(*map(stated, NAMES)) == set(DIFFERENCES)
    for setting, values in DIFFERENCES.items():
        default = Settings.model_fields[setting].default
        assert tuple(stated(name).get(setting, default) for name in NAMES) == values
        assert len(set(values)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_no_file_repeats_a_default_or_holds_a_secret(name: str) -> None:
    for setting, value in stated(name).items():
        field = Settings.model_fields[setting]
        assert "SecretStr" not in str(field.annotation)
        if setting != "pipeline_automation":  # stated in each file, as it is what people look for
            assert value != field.default


def test_production_has_no_sample_no_embedded_database_and_no_default_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.news_provider != "sample"
    secrets = [
        n for n, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
    ]
    assert {"source_database_url", "alert_urls", "newsapi_key", "vault_secret_id"} <= set(secrets)
    for name in secrets:
        assert not Settings.model_fields[name].default
        if name.upper() not in PRODUCTION:
            assert not getattr(settings, name)
    found = error(monkeypatch, NEWS_PROVIDER="sample")
    assert found == "NEWS_PROVIDER must be rss or newsapi: production has no sample"


def shown(environment: str | None = None) -> dict[str, tuple[str | None, str]]:
    settings, _ = effective_settings(environment)
    return {setting.name: (setting.value, setting.source) for setting in settings}


def test_each_setting_is_shown_with_its_source(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".env").write_text("PIPELINE_TIMEZONE=Europe/Berlin\nNEWS_LANGUAGE=de\n")
    (home / "secrets").mkdir()
    (home / "secrets" / "newsapi_key").write_text("hunter2")
    monkeypatch.setenv("PIPELINE_SECRETS_DIR", str(home / "secrets"))
    monkeypatch.setenv("NEWS_LANGUAGE", "fr")
    monkeypatch.setenv("SOURCE_DATABASE_URL", "postgresql://me:hunter2@db/shop?password=hunter2")
    for name in ("PIPELINE_TIMEZONE", "PIPELINE_ENV"):  # undoes what .env adds, after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    found = shown("staging")
    assert list(found) == [name.upper() for name in Settings.model_fields]
    assert found["PIPELINE_TIMEZONE"] == ("Europe/Berlin", ".env")
    assert found["NEWS_LANGUAGE"] == ("fr", "environment variable")
    assert found["NEWSAPI_KEY"] == ("***", "secret file")
    assert found["NEWS_PROVIDER"] == ("rss", "environment file")
    assert found["NEWS_MAX_STORIES"] == ("30", "default")
    assert found["NEWS_MUTE"] == (None, "default")
    assert found["PIPELINE_DATA_DIR"] == (str(home / ".data"), "default")
    assert found["SOURCE_DATABASE_URL"] == ("*** (shop on db)", "environment variable")
    assert "hunter2" not in str(found)


def test_production_is_shown_where_its_required_settings_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIPELINE_ENV", "dev")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("WAREHOUSE_DATABASE_URL", "postgresql://me:hunter2/x@db/shop")
    found = CliRunner().invoke(app, ["config", "--env", "production"])
    assert found.exit_code == 1
    lines = found.output.splitlines()
    assert any("SOURCE_DATABASE_URL" in line and "unset" in line for line in lines)
    assert any("WAREHOUSE_DATABASE_URL" in line and "***" in line for line in lines)
    assert "WAREHOUSE_DATABASE_URL is not a PostgreSQL URL" in found.output
    assert "hunter2" not in found.output

    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SOURCE_DATABASE_URL")
    found = CliRunner().invoke(app, ["config", "--env", "production"])
    assert (found.exit_code, lines[-1] in found.output) == (1, False)
    assert "SOURCE_DATABASE_URL must be set: production has no embedded default" in found.output
    monkeypatch.setenv("SOURCE_DATABASE_URL", PRODUCTION["SOURCE_DATABASE_URL"])
    assert CliRunner().invoke(app, ["config", "--env", "production"]).exit_code == 0


def test_an_unknown_environment_is_named_and_the_process_stays_in_its_own() -> None:
    before = dict(os.environ)
    with pytest.raises(SettingsError, match="PIPELINE_ENV=prod is not an environment"):
        effective_settings("prod")
    effective_settings("staging")
    assert dict(os.environ) == before
