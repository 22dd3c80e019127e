"""The Compose file: valid by the specification's own schema, and by the project's rules."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_assets.settings import Settings

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "deploy" / "compose"
FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
PUBLISHED = {"proxy"}


@pytest.mark.slow  # check-jsonschema reads every schema that it ships with
def test_the_file_keeps_the_compose_specification() -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema"]
    found = subprocess.run(
        [*command, "vendor.compose-spec", str(COMPOSE / "compose.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_closed_hardened_and_checked(name: str) -> None:
    service = SERVICES[name]
    assert ("ports" in service) == (name in PUBLISHED)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # The migration ends; the watch has to report what a check would restart it for.
    assert "healthcheck" in service or name in ("migrate", "watch")
    assert ":latest" not in service["image"]


def test_every_file_that_is_mounted_is_there() -> None:
    for config in FILE["configs"].values():
        assert (COMPOSE / config["file"]).is_file(), config


def test_what_is_secret_is_a_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in (service.get("environment") or {}).items():
            assert "://" not in str(value) or "@" not in str(value), f"{name}: {variable}"
            assert not variable.endswith(("PASSWORD", "KEY", "TOKEN")), f"{name}: {variable}"


def test_nothing_starts_before_what_it_needs() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            healthy = "healthcheck" in SERVICES[needed]
            assert how["condition"] == (
                "service_healthy" if healthy else "service_completed_successfully"
            )
    # Two processes that make the same tables at once fail.
    for name in ("code", "worker", "mlflow"):
        assert "migrate" in SERVICES[name]["depends_on"]
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


def test_secrets_are_made_once_and_are_what_the_settings_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = [
        str(COMPOSE / "new-secrets"),
        "postgresql://reader:s3cret@shop.example.com:5432/shop",
        str(tmp_path),
    ]
    subprocess.run(make, check=True)
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    # The proxy's logins and certificate can't be made here.
    assert {name for name in FILE["secrets"] if not name.startswith("proxy_")} == set(before)
    subprocess.run(make, check=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == before
    assert tmp_path.stat().st_mode & 0o777 == 0o700

    # A service's settings load from exactly these, whatever else is in the environment here.
    part = SERVICES["code"]
    stated = ("PIPELINE_EXECUTOR", "PIPELINE_FILES_URL", "MLFLOW_TRACKING_URI")
    given: dict[str, Any] = {name.lower(): part["environment"][name] for name in stated}
    folder = tmp_path / "mounted"
    folder.mkdir()
    for name in part["secrets"]:
        (folder / name).write_text(before[name])
    monkeypatch.setenv("PIPELINE_SECRETS_DIR", str(folder))
    settings = Settings(**given)
    assert settings.celery_broker_url
    assert settings.alert_urls == ()
    assert before["rabbitmq_user"].splitlines()[1].split(" = ")[1] in (
        settings.celery_broker_url.get_secret_value()
    )
