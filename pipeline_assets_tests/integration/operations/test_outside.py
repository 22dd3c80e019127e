"""The watch from outside: failures that leave no sensor to report them."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer

from pipeline_assets.operations import daemon
from pipeline_assets.operations.daemon import broken_code, silent_ui
from pipeline_assets.operations.runs import Outside
from pipeline_assets.operations.watching import missing_looks, watch_outside
from pipeline_assets.settings import Settings
from pipeline_assets_tests.integration.operations.watch import look, mail_server

NOW = datetime.now(UTC)


FINE = "import dagster as dg\ndefs = dg.Definitions()\n"
BROKEN = """
try:
    {}["WAREHOUSE_DATABASE_URL"]
except KeyError as error:
    raise RuntimeError("the settings are wrong") from error
"""


def workspace(folder: Path, **modules: str) -> Path:
    """A `workspace.yaml` of modules with the given code."""
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    file = folder / "workspace.yaml"
    files = "".join(
        f"  - python_file: {{relative_path: {name}.py, location_name: {name}}}\n"
        for name in modules
    )
    file.write_text(f"load_from:\n{files}")
    return file


def alive(instance: dg.DagsterInstance) -> None:
    """Store a heartbeat for each daemon that the instance requires."""
    from dagster._daemon.types import DaemonHeartbeat

    now = datetime.now(UTC).timestamp()
    for kind in instance.get_required_daemon_types():
        instance.add_daemon_heartbeat(DaemonHeartbeat(now, kind, "id", []))


@pytest.fixture
def outside(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings of a deployment that the watch finds, without a UI to check."""
    monkeypatch.setenv("DAGSTER_HOME", str(Path(__file__).parents[3]))
    return settings.model_copy(update={"pipeline_ui_url": None, "pipeline_automation": "stopped"})


@pytest.mark.slow
def test_code_that_does_not_load_is_told_without_a_ui(
    outside: Settings,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline_assets.operations.watching.LOADED_EVERY", timedelta(0))
    alive(instance)
    with mail_server() as (mailbox, url):
        looks = watch_outside(
            outside.model_copy(update={"alert_urls": (SecretStr(url),)}),
            workspace(tmp_path, shop_code=FINE),
        )
        said, well = next(looks)
        assert well, said
        (tmp_path / "shop_code.py").write_text(BROKEN)
        assert not next(looks)[1]
        assert not next(looks)[1]
        (tmp_path / "shop_code.py").write_text(FINE)
        assert next(looks)[1]
    assert mailbox.subjects == [
        "[dev] Code location broken: shop_code",
        "[dev] Code location loads again: shop_code",
    ]
    text = mailbox.mails[0][1]
    assert (
        "RuntimeError: the settings are wrong; at its root KeyError: 'WAREHOUSE_DATABASE_URL'"
        in text
    )


@pytest.mark.slow
def test_a_code_server_that_is_away_and_an_interpreter_that_is_killed(
    outside: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "workspace.yaml"
    file.write_text(
        "load_from:\n  - grpc_server: {host: 127.0.0.1, port: 1, location_name: shop}\n"
    )
    (problem,) = broken_code(file, NOW)
    assert (problem.kind, problem.subject) == ("code_broken", "shop")
    assert "Could not reach user code server" in problem.facts["Cause"]

    (problem,) = broken_code(
        workspace(tmp_path, killed="import os\nos.kill(os.getpid(), 9)\n"), NOW
    )
    assert (problem.kind, problem.subject) == ("code_broken", "workspace.yaml")
    assert "ended with -9" in problem.facts["Cause"]


def test_a_ui_that_answers_is_there_also_behind_a_login(httpserver: HTTPServer) -> None:
    for status in (200, 401, 502):
        httpserver.expect_request("/server_info").respond_with_data("", status=status)
        found = silent_ui(httpserver.url_for("/"), NOW)
        assert [problem.kind for problem in found] == (["ui_unreachable"] if status == 502 else [])
        httpserver.clear()
    assert [problem.kind for problem in silent_ui("http://127.0.0.1:1", NOW)] == ["ui_unreachable"]


def test_the_sensor_that_looks_at_all_others_is_looked_at_itself(
    outside: Settings, instance: dg.DagsterInstance
) -> None:
    began = NOW - timedelta(days=1)

    def seen(minutes: int, automation: str, awake: datetime = began) -> list[str]:
        found = outside.model_copy(update={"pipeline_automation": automation})
        view = Outside(instance, found, NOW + timedelta(minutes=minutes))
        return [problem.title for problem in missing_looks(view, awake)]

    assert seen(0, "stopped") == [], "a laptop"
    assert seen(0, "running") == ["Tick late: alerts"], "it never looked"
    assert seen(0, "running", NOW - timedelta(minutes=9)) == [], "nobody knows for how long"
    look(outside, instance, NOW)
    assert seen(9, "running") == []
    assert seen(11, "running") == ["Tick late: alerts"]
    assert seen(11, "stopped") == []


def test_the_watch_tells_of_a_silent_daemon_once_and_of_its_return(
    outside: Settings, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    with mail_server() as (mailbox, url):
        looks = watch_outside(
            outside.model_copy(update={"alert_urls": (SecretStr(url),)}),
            workspace(tmp_path, shop_code=FINE),
        )
        assert not next(looks)[1]
        assert not next(looks)[1]
        (subject,) = mailbox.subjects
        assert "Daemon silent" in subject
        alive(instance)
        assert next(looks)[1]
    assert "Daemon back" in mailbox.subjects[1]


def test_a_look_that_fails_while_the_storage_answers_is_told_as_that(
    outside: Settings,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Whatever failed was called "Dagster's storage doesn't answer"."""
    alive(instance)
    with mail_server() as (mailbox, url):
        looks = watch_outside(
            outside.model_copy(update={"alert_urls": (SecretStr(url),)}),
            workspace(tmp_path, shop_code=FINE),
        )
        with monkeypatch.context() as patch:

            def fails(*_: object) -> None:
                raise OSError("no handle is left")

            patch.setattr(daemon, "broken_code", fails)
            said, fine = next(looks)
        assert (said, fine) == ("Operations can't look: watch. OSError: no handle is left", False)
        assert next(looks)[1]
    assert mailbox.subjects == [
        "[dev] Operations can't look: watch",
        "[dev] Operations can look again: watch",
    ]


@pytest.mark.slow
def test_the_watch_tells_that_dagsters_own_storage_is_away_and_is_back(
    outside: Settings,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    there, away = os.environ["DAGSTER_DATABASE_URL"], "postgresql://d:s3cret@127.0.0.1:1/none"
    alive(instance)
    now = NOW
    with mail_server() as (mailbox, url):
        looks = watch_outside(
            outside.model_copy(
                update={"alert_urls": (SecretStr(url),), "dagster_database_url": SecretStr(away)}
            ),
            workspace(tmp_path, shop_code=FINE),
            lambda: now,
        )
        monkeypatch.setenv("DAGSTER_DATABASE_URL", away)
        mailbox.refuse = True
        said = [next(looks)]
        mailbox.refuse = False
        for _ in range(2):
            now += timedelta(minutes=1)
            said.append(next(looks))
        assert mailbox.subjects == ["[dev] Storage unreachable: Dagster's database"]
        monkeypatch.setenv("DAGSTER_DATABASE_URL", there)
        assert next(looks)[1]
        assert mailbox.subjects[1:] == ["[dev] Storage back: Dagster's database"]
    assert all("Storage unreachable" in text and not fine for text, fine in said)
    assert "s3cret" not in "".join(text for text, _ in said) + mailbox.mails[0][1]
