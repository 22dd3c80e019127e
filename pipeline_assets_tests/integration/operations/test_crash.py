"""A run whose process is killed is reported by mail and resumed from the step it died in, loading once.

Nothing is simulated: the daemon, its code server, launcher, queue, retries and the sensor `alerts` run in
real processes of their own, and `kill -9` is real.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.operations.watch import Mailbox, load, mail_server
from pipeline_assets_tests.waiting import until

DAY = "2026-01-07"
ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, str]]:
    with mail_server() as found:
        yield found


@pytest.fixture
def environment(
    settings: Settings,
    instance: dg.DagsterInstance,
    mailbox: tuple[Mailbox, str],
    tmp_path: Path,
) -> dict[str, str]:
    """The variables of a deployment on the test's databases."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    urls = settings.source_database_url, settings.warehouse_database_url
    return {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "DAGSTER_HOME": str(home),
        "SOURCE_DATABASE_URL": urls[0].get_secret_value() if urls[0] else "",
        "WAREHOUSE_DATABASE_URL": urls[1].get_secret_value() if urls[1] else "",
        "ALERT_URLS": f'["{mailbox[1]}"]',
    }


@pytest.fixture
def dagster(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Dagster's command line in that deployment, while its daemon runs."""

    def command(*arguments: str) -> None:
        subprocess.run(
            [BIN / "dagster", *arguments, "-m", "pipeline_assets.definitions"],
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    with (tmp_path / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(
            [BIN / "dagster-daemon", "run", "-m", "pipeline_assets.definitions"],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        yield command
        daemon.send_signal(signal.SIGINT)
        daemon.wait(timeout=60)


@pytest.mark.slow
def test_a_killed_run_is_told_and_resumed_where_it_died(
    settings: Settings,
    instance: dg.DagsterInstance,
    shop: Shop,
    warehouse: psycopg.Connection,
    mailbox: tuple[Mailbox, str],
    dagster: Callable[..., None],
) -> None:
    shop.put("before", day=1)
    assert load(settings, instance, "2026-01-08").success  # creates the table to lock
    shop.put("a")
    dagster("sensor", "start", "alerts")

    # The load waits for a lock in its last step, and dies there.
    with psycopg.connect(warehouse.info.dsn, password=warehouse.info.password) as locker:
        locker.execute("LOCK TABLE analytics.fct_transactions")
        dagster(
            "job",
            "launch",
            "-j",
            "load_transactions",
            "--tags",
            f'{{"dagster/partition": "{DAY}"}}',
        )
        first = until(lambda: started(instance))
        until(
            lambda: warehouse.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            ).fetchone()
        )
        os.kill(process_of(instance, first), signal.SIGKILL)
        until(lambda: status(instance, first) == "FAILURE")
        until(lambda: any(first in text for _, text in mailbox[0].mails))
        locker.rollback()

    retry = until(lambda: retry_of(instance, first))
    until(lambda: status(instance, retry) == "SUCCESS")

    (alert,) = (text for _, text in mailbox[0].mails if first in text)
    assert "SIGKILL" in alert
    assert "run 1 of 3; is retried" in alert
    steps = steps_of(instance, retry)
    assert steps == {"fct_transactions"}, "what was done isn't done again"
    rows = warehouse.execute(
        "SELECT order_id FROM analytics.fct_transactions ORDER BY 1"
    ).fetchall()
    assert rows == [("a",), ("before",)]
    until(lambda: any("Runs again" in subject for subject in mailbox[0].subjects))


def started(instance: dg.DagsterInstance) -> str | None:
    runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return runs[0].run_id if runs else None


def status(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    return run.status.value if run else ""


def process_of(instance: dg.DagsterInstance, run_id: str) -> int:
    """The pid of the process that executes the run, from the run's log."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    found = [re.search(r"Started process for run \(pid: (\d+)\)", e.message) for e in entries]
    (pid,) = (match[1] for match in found if match)
    return int(pid)


def retry_of(instance: dg.DagsterInstance, run_id: str) -> str | None:
    group = instance.get_run_group(run_id)
    runs = [run for run in (group[1] if group else []) if run.run_id != run_id]
    return runs[0].run_id if runs else None


def steps_of(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    return {str(entry.step_key) for entry in entries}
