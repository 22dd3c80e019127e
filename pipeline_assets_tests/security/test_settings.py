"""Hostile and absurd settings: refused in one line, and no file but the environment's own is read."""

from pathlib import Path

import pytest

from pipeline_assets.settings import Settings, SettingsError, load_settings
from pipeline_assets_tests.security.test_contracts import assert_bombs_are_refused

pytestmark = pytest.mark.security


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIPELINE_ENV", "PIPELINE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_an_environments_name_leads_to_no_other_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "evil.yaml").write_text("warehouse_database_url: postgresql://u:p@evil/db\n")
    monkeypatch.setenv("PIPELINE_ENV", f"../../../../../../../{home / 'evil'}")
    with pytest.raises(SettingsError, match="is not an environment; use one of: dev"):
        load_settings()


ENVIRONMENT_FILE = """
from pipeline_assets.settings import SettingsError as Refused
from pipeline_assets.settings import load_settings, model

def read(file):
    model.ENVIRONMENTS = file.parent
    load_settings()
"""


def test_an_environments_file_that_is_a_bomb_is_refused_by_name(tmp_path: Path) -> None:
    assert_bombs_are_refused(ENVIRONMENT_FILE, "dev.yaml", tmp_path)


NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if any(kind in str(field.annotation) for kind in ("int", "float"))
]


def test_there_are_numbers() -> None:
    assert "models_min_auc" in NUMBERS
    assert "retention_log_days" in NUMBERS


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e300", "9" * 30, "9" * 5000])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_absurd(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN as a threshold would let every model pass: nothing is below it."""
    pair = "tuple" in str(Settings.model_fields[name].annotation)
    monkeypatch.setenv(name.upper(), f"[{value}, {value}]" if pair else value)
    with pytest.raises(SettingsError, match=f"(?i){name}") as caught:
        load_settings()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "zone", ["../../../../etc/passwd", "/etc/localtime", "Europe/../Europe/Berlin", "a\x01b"]
)
def test_a_time_zone_is_a_name_and_no_path(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_TIMEZONE", zone)
    with pytest.raises(SettingsError, match=r"^PIPELINE_TIMEZONE"):
        load_settings()


@pytest.mark.parametrize(
    "feeds",
    [
        '[{"outlet": "A", "url": "file:///etc/passwd"}]',
        '[{"outlet": "A", "url": "gopher://127.0.0.1"}]',
        '[{"outlet": "A", "url": "https://a.example", "command": "id"}]',
        "!!python/object/apply:os.system ['id']",
    ],
)
def test_feeds_are_web_addresses(feeds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWS_FEEDS", feeds)
    with pytest.raises(SettingsError, match=r"(?i)news_feeds"):
        load_settings()


def test_a_hostile_environment_file_runs_nothing(home: Path, tmp_path: Path) -> None:
    """`.env` is read as names and values: no command in it is run, no other variable is shown."""
    (home / ".env").write_text(
        f"PIPELINE_DATA_DIR=$(touch {tmp_path}/pwned)`touch {tmp_path}/pwned`\n"
    )
    settings = load_settings()
    assert not (tmp_path / "pwned").exists()
    assert "touch" in str(settings.pipeline_data_dir)
