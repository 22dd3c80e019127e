"""The `pipeline-assets` command and `dagster dev`, as a person starts them, on the embedded defaults."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import FIRST_DAY, Shop

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A data folder of the test's own and none of the project's variables."""
    keep = ("PATH", "HOME", "LANG", "TMPDIR")
    yield {name: os.environ[name] for name in keep if name in os.environ} | {
        "PIPELINE_DATA_DIR": str(tmp_path / "data"),
        "COLUMNS": "100",
    }
    embedded_postgres.stop(tmp_path / "data" / "postgres")


def command(
    environment: Mapping[str, str], *arguments: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "pipeline-assets"), *arguments],
        env=dict(environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_wrong_setting_is_one_line_before_anything_starts(
    environment: dict[str, str], tmp_path: Path
) -> None:
    found = command(environment | {"PIPELINE_ENV": "prod"}, "run")
    assert found.returncode == 2
    assert "PIPELINE_ENV=prod is not an environment" in found.stdout
    assert "Traceback" not in found.stdout + found.stderr
    assert not (tmp_path / "data").exists()


def test_a_port_that_is_taken_is_one_line(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = command(environment, "metrics", "--port", port)
    assert found.returncode == 2
    assert f"127.0.0.1:{port} can't be listened on: Address already in use." in found.stdout
    assert "Traceback" not in found.stdout + found.stderr


def test_help_names_the_commands(environment: dict[str, str]) -> None:
    found = command(environment, "--help")
    assert found.returncode == 0
    assert "run" in found.stdout
    assert "status" in found.stdout


@pytest.mark.slow
def test_run_loads_trains_deploys_scores_and_publishes_once_and_says_so(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["COLUMNS"] = "200"
    begun = datetime.now(UTC).date()
    first = command(environment, "run", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stderr == ""
    closed = (begun - FIRST_DAY.date()).days
    days = range(closed, closed + (datetime.now(UTC).date() - begun).days + 1)
    assert "fct_transactions" in first.stdout
    assert any(f"{day} of {day} closed" in first.stdout for day in days)
    assert re.search(
        r"auc_sufficient .* passed .* auc 0\.\d+ \(0\.\d+ to .*\), at least 0\.75", first.stdout
    )
    assert re.search(r"champion .* version 1, since", first.stdout)
    assert re.search(r"scored .* by version 1", first.stdout)
    (page,) = (tmp_path / "data" / "digests").glob("2*.html")
    assert str(page) in first.stdout
    for noise in ("alembic", "INFO", "Warning", "Successfully registered", "Downloading"):
        assert noise not in first.stdout

    # A day that is in step isn't loaded again, nor is a week trained that was decided.
    again = command(environment, "run")
    assert again.returncode == 0, again.stdout
    assert "every closed day is in step" in again.stdout
    assert [line for line in first.stdout.splitlines() if "rows in the warehouse" in line] == [
        line for line in again.stdout.splitlines() if "rows in the warehouse" in line
    ]
    assert "version 1, week of" in again.stdout
    nowhere = command(environment, "rollback", "--reason", "a test")
    assert (nowhere.returncode, "has no previous champion" in nowhere.stdout) == (2, True)
    audit = command(environment, "status")
    assert "version 1, since" in audit.stdout

    deadline = time.monotonic() + 20
    while embedded_postgres.status(tmp_path / "data" / "postgres"):
        assert time.monotonic() < deadline, "the embedded server outlived its clients"
        time.sleep(0.1)


@contextmanager
def dagster_dev(environment: Mapping[str, str], log: Path, folder: Path = ROOT) -> Iterator[str]:
    """Run `dagster dev` in the project's folder, or a copy, until the block ends; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    # When the tests run in the background, SIGINT is ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        log.open("w") as output,
        subprocess.Popen(
            [str(BIN / "dagster"), "dev", "--port", str(port)],
            env=dict(environment),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        deadline = time.monotonic() + 180
        try:
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    requests.get(f"{address}/server_info", timeout=2).raise_for_status()
                    break
                except requests.RequestException:
                    time.sleep(0.2)
            yield address
        finally:  # Popen would wait for it without a limit, whatever failed
            process.send_signal(signal.SIGINT)
            process.wait(60)


def graphql(address: str, query: str) -> dict[str, object]:
    answer = requests.post(f"{address}/graphql", json={"query": query}, timeout=60)
    found: dict[str, object] = answer.json()["data"]
    return found


def processes_naming(text: str) -> list[str]:
    listing = subprocess.run(["/bin/ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if text in line]


@pytest.mark.slow
def test_dagster_dev_keeps_its_history_and_leaves_nothing_behind(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "from pipeline_assets.definitions import defs; import dagster as dg\n"
        "job = defs.resolve_job_def('load_transactions')\n"
        "job.execute_in_process(instance=dg.DagsterInstance.get(), partition_key='2026-01-08')"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"DAGSTER_HOME": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    # A folder of its own: other tests' processes come and go in the project's.
    folder = tmp_path / "project"
    folder.mkdir()
    settings = {"dagster.yaml", "workspace.yaml", "pyproject.toml"}
    for name in settings:
        shutil.copy(ROOT / name, folder)
    query = "{ runsOrError { ... on Runs { results { jobName status } } } assetNodes { id } }"
    for attempt in range(2):
        with dagster_dev(environment, tmp_path / f"dev{attempt}.log", folder) as address:
            found = graphql(address, query)
        assert found["runsOrError"] == {
            "results": [{"jobName": "load_transactions", "status": "SUCCESS"}]
        }
        assert found["assetNodes"]
    deadline = time.monotonic() + 20
    while left := processes_naming(str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert {path.name for path in folder.iterdir()} == settings


@pytest.mark.slow
def test_quarantined_rows_are_shown_and_replayed_once_they_are_mended(
    environment: dict[str, str], settings: Settings, shop: Shop
) -> None:
    assert settings.source_database_url
    assert settings.warehouse_database_url
    today = (datetime.now(UTC) - FIRST_DAY).days
    environment |= {
        "SOURCE_DATABASE_URL": settings.source_database_url.get_secret_value(),
        "WAREHOUSE_DATABASE_URL": settings.warehouse_database_url.get_secret_value(),
        "WAREHOUSE_START_DATE": str((FIRST_DAY + timedelta(days=today - 4)).date()),
        "COLUMNS": "250",
    }
    shop.put("good", day=today - 3)
    shop.put("bad", day=today - 3, second=1, status="lost [bold]")
    shop.put("fine", day=today - 1)
    day = str((FIRST_DAY + timedelta(days=today - 3)).date())

    ran = command(environment, "run")
    assert ran.returncode == 1, ran.stdout
    assert f"1 of 4 partitions held back: {day}" in ran.stdout
    assert "held" in ran.stdout
    assert "status_known" in ran.stdout

    status = command(environment, "status")
    assert status.returncode == 1
    assert f"transactions: {day} held back by the contract" in status.stdout
    assert "quarantine replay transactions" in status.stdout

    shown = command(environment, "quarantine", "show", "transactions", "--rule", "status_known")
    assert "lost [bold]" in shown.stdout
    assert "1 of 1 rows." in shown.stdout
    assert (
        "0 of 0 rows."
        in command(
            environment, "quarantine", "show", "transactions", "--rule", "amount_positive"
        ).stdout
    )
    assert "0 of 0" in command(environment, "quarantine", "show", "purchase_predictions").stdout
    wrong = command(environment, "quarantine", "show", "nonsense")
    assert (wrong.returncode, "nonsense is not a table" in wrong.stdout) == (2, True)

    shop.connection.execute("UPDATE shop.transactions SET status = 'completed'")
    replayed = command(environment, "quarantine", "replay", "transactions")
    assert replayed.returncode == 0, replayed.stdout
    assert "raw_transactions" in replayed.stdout
    assert "1/1" in replayed.stdout  # exactly the day concerned
    again = command(environment, "quarantine", "replay", "transactions")
    assert "nothing is quarantined" in again.stdout
    status = command(environment, "status")
    assert "4 of 4 closed" in status.stdout
    assert "held" not in status.stdout
    assert (status.returncode, "Everything is fine" in status.stdout) == (0, True), status.stdout
