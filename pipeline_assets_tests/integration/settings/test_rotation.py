"""Secrets that change while a process runs: one that is refused is read again, without a restart."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from pytest_httpserver import HTTPServer

from pipeline_assets.failures import PermanentError
from pipeline_assets.operations.problems import Problem
from pipeline_assets.operations.runs import Outside
from pipeline_assets.operations.watching import OUTSIDE, tell, watch_outside
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.settings import load_settings
from pipeline_assets_tests.integration.news.newsapi_server import KEY, NewsApi
from pipeline_assets_tests.integration.news.test_providers import collect
from pipeline_assets_tests.integration.settings.test_vault import Account, account, postgres

__all__ = ["account", "postgres"]  # fixtures

Put = Callable[[str, str], None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """A function that writes a secret's file, as Kubernetes and Vault's agent do."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PIPELINE_SECRETS_DIR", str(folder))

    def write(name: str, value: str) -> None:
        (folder / name).write_text(value)

    return write


def test_newsapis_key(
    put: Put, httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = NewsApi(httpserver)
    monkeypatch.setenv("NEWS_PROVIDER", "newsapi")
    monkeypatch.setenv("NEWSAPI_URL", server.url)
    put("newsapi_key", "0" * 32)
    settings = load_settings()
    with pytest.raises(PermanentError, match="NewsAPI refused the key"):
        collect(settings, tmp_path / "first")
    put("newsapi_key", KEY)
    collect(settings, tmp_path / "second")
    refused = len(server.requests)
    collect(settings, tmp_path / "third")
    sent = {request.headers["X-Api-Key"] for request in server.requests[refused:]}
    assert sent == {KEY}, "the one that was refused isn't tried again"


def test_mlflows_login(put: Put, account: Account) -> None:
    put("mlflow_tracking_uri", account.change_password("first"))
    mlflow = Mlflow(load_settings())
    mlflow.client()
    changed = account.change_password("second")
    with pytest.raises(Exception, match="password authentication failed"):
        mlflow.client()
    # Another server is not another login: what was begun on one doesn't continue on another.
    put("mlflow_tracking_uri", "postgresql://me:password@127.0.0.1:1/mlflow")
    with pytest.raises(Exception, match="password authentication failed"):
        mlflow.client()
    put("mlflow_tracking_uri", changed)
    assert mlflow.client().get_experiment_by_name(mlflow.experiment)
    assert ":second@" in mlflow.tracking_uri()


def test_an_alert_address(put: Put, httpserver: HTTPServer, instance: dg.DagsterInstance) -> None:
    httpserver.expect_request("/revoked").respond_with_data("", status=410)
    httpserver.expect_request("/new").respond_with_data("")
    place = f"json://{httpserver.host}:{httpserver.port}"
    put("alert_urls", f'["{place}/revoked"]')
    settings = load_settings()
    begun = datetime.now(UTC).replace(microsecond=0)
    problem = Problem("look_failed", "the warehouse", begun, facts={"Cause": "it is away"})

    def look(minutes: int) -> list[str]:
        """The paths requested by a look so many minutes after the first."""
        httpserver.clear_log()
        now = begun + timedelta(minutes=minutes)
        view = Outside(instance, settings, now)
        tell(view, OUTSIDE, lambda _: ([problem], set()), lambda: now, beats=False)
        return [request.path for request, _ in httpserver.log]

    assert look(0) == ["/revoked"]
    put("alert_urls", f'["{place}/new"]')
    assert set(look(1)) <= {"/revoked"}
    assert set(look(2)) == {"/new"}, "what waited for the other goes there too"
    assert look(3) == []


@pytest.mark.slow
def test_an_alert_address_while_dagsters_storage_is_away(
    put: Put, httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpserver.expect_request("/gone").respond_with_data("", status=410)
    httpserver.expect_request("/moved").respond_with_data("")
    place = f"json://{httpserver.host}:{httpserver.port}"
    monkeypatch.setenv("DAGSTER_HOME", str(Path(__file__).parents[3]))
    monkeypatch.setenv("PIPELINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DAGSTER_DATABASE_URL", "postgresql://me:password@127.0.0.1:1/none")
    put("alert_urls", f'["{place}/gone"]')
    now = datetime.now(UTC)
    looks = watch_outside(load_settings(), tmp_path / "workspace.yaml", lambda: now)
    next(looks)
    put("alert_urls", f'["{place}/moved"]')
    for asked in ("/gone", "/moved"):
        httpserver.clear_log()
        now += timedelta(minutes=2)
        next(looks)
        assert {request.path for request, _ in httpserver.log} == {asked}
