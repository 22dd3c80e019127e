"""The watch from outside: what leaves no sensor to tell of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import requests
from pydantic import HttpUrl, SecretStr

from pipeline_assets.definitions import build_definitions
from pipeline_assets.operations.daemon import broken_code
from pipeline_assets.operations.watching import watch_outside
from pipeline_assets.settings import Settings
from pipeline_assets_tests.integration.operations.watch import mail_server

NOW = datetime.now(UTC)
BIN = Path(sys.executable).parent


@contextmanager
def webserver(folder: Path) -> Iterator[str]:
    """Dagster's webserver on the module `shop_code` of a folder; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    (folder / "home").mkdir(exist_ok=True)
    (folder / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    server = subprocess.Popen(
        [BIN / "dagster-webserver", "-m", "shop_code", "-h", "127.0.0.1", "-p", str(port)],
        cwd=folder,
        env={**os.environ, "DAGSTER_HOME": str(folder / "home"), "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                requests.get(f"{url}/server_info", timeout=1)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import dagster as dg\ndefs = dg.Definitions()\n", None),
        ("raise RuntimeError('WAREHOUSE_DATABASE_URL must be set')\n", "WAREHOUSE_DATABASE_URL"),
    ],
    ids=["loads", "broken"],
)
def test_code_that_does_not_load(tmp_path: Path, code: str, told: str | None) -> None:
    (tmp_path / "shop_code.py").write_text(code)
    with webserver(tmp_path) as url:
        problems = broken_code(url, NOW)
    assert [problem.kind for problem in problems] == (["code_broken"] if told else [])
    assert not told or told in problems[0].facts["Cause"]
    assert [problem.kind for problem in broken_code(url, NOW)] == ["ui_unreachable"], "it is gone"


def test_the_watch_tells_of_a_silent_daemon_once_and_of_its_return(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster._daemon.types import DaemonHeartbeat

    monkeypatch.setenv("DAGSTER_HOME", str(Path(__file__).parents[3]))
    repository = build_definitions(settings).get_repository_def()
    with mail_server() as (mailbox, url):
        # No UI to look for: the test is about the daemon alone.
        watched = {"alert_urls": (SecretStr(url),), "pipeline_ui_url": None}
        looks = watch_outside(settings.model_copy(update=watched), repository)
        assert not next(looks)[1]
        assert not next(looks)[1]
        (subject,) = mailbox.subjects
        assert "Daemon silent" in subject
        now = datetime.now(UTC).timestamp()
        for kind in instance.get_required_daemon_types():
            instance.add_daemon_heartbeat(DaemonHeartbeat(now, kind, "id", []))
        assert next(looks)[1]
    assert "Daemon back" in mailbox.subjects[1]


def test_the_watch_tells_that_dagsters_own_storage_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(Path(__file__).parents[3]))
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DAGSTER_DATABASE_URL", "postgresql://dagster:s3cret@127.0.0.1:1/none")
    repository = build_definitions(settings).get_repository_def()
    with mail_server() as (mailbox, url):
        chosen = settings.model_copy(
            update={
                "alert_urls": (SecretStr(url),),
                "pipeline_ui_url": HttpUrl("http://127.0.0.1:1"),
                "dagster_database_url": SecretStr("postgresql://dagster:s3cret@127.0.0.1:1/none"),
            }
        )
        looks = watch_outside(chosen, repository)
        said = [next(looks) for _ in range(2)]
    assert all("storage doesn't answer" in text and not fine for text, fine in said)
    (subject,) = mailbox.subjects
    assert "storage doesn't answer" in subject
    assert "s3cret" not in "".join(text for text, _ in said) + mailbox.mails[0][1]
