"""A new version is deployed while runs are in progress and others queued: none is lost or executed twice.

Real webservers, daemons and code servers run two copies of the package; the second has another version
number, and a contract with one more column.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from dagster._grpc.client import DagsterGrpcClient
from psycopg import sql

from pipeline_assets.ci.smoke import _launch, _selector
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.settings import Settings
from pipeline_assets_tests import databases
from pipeline_assets_tests.conftest import FIRST_DAY, Shop
from pipeline_assets_tests.waiting import until

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
LONGEST = 240.0
"""Seconds until a wait gives up; what is waited for takes a few on an idle machine."""
PATIENCE = 35.0
"""Seconds that runs go on after their code server got SIGTERM: `dagster code-server` waits for only 30."""
JOB = "load_transactions"
OLD, NEW = "0.1.0", "0.2.0"
CHANGES = {
    "__init__.py": (f'"{OLD}"', f'"{NEW}"'),
    "warehouse/transactions.py": (
        "return frame.assign(\n        net_amount",
        'return frame.assign(\n        label=frame["status"] + " " + frame["currency"],\n        net_amount',
    ),
    "contracts/transactions.odcs.yaml": (
        "      - name: business_day\n",
        """      - name: label
        logicalType: string
        physicalType: text
        transformSourceObjects: [status, currency]
        transformDescription: Both, as one text.
        description: How the order stands.
      - name: business_day
""",
    ),
}
"""File -> a text of the old version, and what replaces it in the new one."""
WANTED = "SELECT order_id, amount, updated_at, status || ' ' || currency FROM shop.transactions ORDER BY 1"
FOUND = "SELECT order_id, amount, updated_at, label FROM analytics.fct_transactions ORDER BY 1"


def copies(folder: Path) -> dict[str, Path]:
    """Version -> the folder that holds its package."""
    for version in (OLD, NEW):
        shutil.copytree(ROOT / "pipeline_assets", folder / version / "pipeline_assets")
    for name, (before, after) in CHANGES.items():
        file = folder / NEW / "pipeline_assets" / name
        text = file.read_text()
        assert text.count(before) == 1, name
        file.write_text(text.replace(before, after))
    contract = folder / NEW / "pipeline_assets" / "contracts" / "transactions.odcs.yaml"
    contract.write_text(contract.read_text().replace("version: 1.0.0", "version: 1.1.0"))
    return {version: folder / version for version in (OLD, NEW)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """The processes of a deployment, each of the version that it was started with."""

    def __init__(self, home: Path, versions: dict[str, Path], code: list[str], **variables: str):
        self.home, self.versions, self.code_address = home, versions, code
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.environment = {**kept, **variables, "DAGSTER_HOME": str(home)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, version: str, *command: str) -> subprocess.Popen[bytes]:
        log = (self.home / f"{command[0]}-{version}.log").open("wb")
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env={**self.environment, "PYTHONPATH": str(self.versions[version])},
            cwd=self.versions[version],
            stdout=log,
            stderr=log,
        )
        log.close()
        self.processes.append(process)
        return process

    def code(self, version: str) -> subprocess.Popen[bytes]:
        module = ("--module-name", "pipeline_assets.definitions")
        process = self.start(version, "dagster", "api", "grpc", *self.code_address, *module)
        option, address = self.code_address[-2:]
        client = (
            DagsterGrpcClient(port=int(address), host="127.0.0.1")
            if option == "--port"
            else DagsterGrpcClient(socket=address)
        )

        def serves() -> bool:
            status: str = client.health_check_query()  # type: ignore[no-untyped-call]  # it has no types
            return status == "SERVING"

        until(serves, f"the code server of {version}")
        return process

    def daemon(self, version: str) -> subprocess.Popen[bytes]:
        return self.start(
            version, "dagster-daemon", "run", "--workspace", str(self.home / "grpc.yaml")
        )

    def webserver(self, version: str) -> tuple[subprocess.Popen[bytes], str]:
        port = str(free_port())
        workspace = ("--workspace", str(self.home / "grpc.yaml"))
        process = self.start(version, "dagster-webserver", "--port", port, *workspace)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return requests.get(f"{url}/server_info", timeout=5).ok
            except requests.RequestException:
                return False

        until(answers, f"the webserver of {version}")
        return process, url

    def end(self) -> None:
        """Terminate all processes, the newest first."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=120)


@contextmanager
def at_work(warehouse: psycopg.Connection, days: list[str]) -> Iterator[dict[str, ExitStack]]:
    """Lock these days in the ledger: a day's run waits for the lock until the day's stack is closed."""
    with ExitStack() as all_of_them:
        held = {day: all_of_them.enter_context(ExitStack()) for day in days}
        for day, stack in held.items():
            place = "hashtext('transactions'), hashtext(%s)"
            warehouse.execute(f"SELECT pg_advisory_lock({place})", [day])
            stack.callback(warehouse.execute, f"SELECT pg_advisory_unlock({place})", [day])
        yield held


def waiting(warehouse: psycopg.Connection) -> int:
    """How many runs wait for the lock of their day."""
    row = warehouse.execute(
        "SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    ).fetchone()
    return int(row[0]) if row else 0


@pytest.mark.reliability
@pytest.mark.parametrize("runs_are", ["in the code server", "processes of their own"])
def test_runs_at_work_end_on_the_old_code_and_those_that_wait_start_on_the_new(
    runs_are: str,
    settings: Settings,
    shop: Shop,
    warehouse: psycopg.Connection,
    server: embedded_postgres.Server,
    tmp_path: Path,
) -> None:
    today = (datetime.now(UTC) - FIRST_DAY).days
    days = [f"{FIRST_DAY + timedelta(days=today - back):%Y-%m-%d}" for back in range(6, 0, -1)]
    for back in range(6, 0, -1):
        for number in range(5):
            shop.put(f"{back}-{number}", day=today - back, second=number, customer_id=number)
    asked, later = days[:5], days[5]
    home = tmp_path / "home"
    home.mkdir()
    patient = (ROOT / "dagster.yaml").read_text()
    assert "user_code_failure_retry_delay: 30" in patient
    (home / "dagster.yaml").write_text(patient.replace("retry_delay: 30", "retry_delay: 2"))
    drains = runs_are == "in the code server"
    if drains:  # as in Compose
        port = str(free_port())
        code, where = ["--host", "127.0.0.1", "--port", port], f"{{host: 127.0.0.1, port: {port}"
    else:  # as on one host, or in Kubernetes, where runs are pods
        code, where = ["--socket", str(home / "s")], f"{{socket: {home / 's'}"
    (home / "grpc.yaml").write_text(
        f"load_from:\n  - grpc_server: {where}, location_name: pipeline_assets.definitions}}\n"
    )
    assert settings.source_database_url
    assert settings.warehouse_database_url
    history = embedded_postgres.ensure_database(server, f"history_{int(drains)}")
    site = Site(
        home,
        copies(tmp_path),
        code,
        SOURCE_DATABASE_URL=settings.source_database_url.get_secret_value(),
        WAREHOUSE_DATABASE_URL=settings.warehouse_database_url.get_secret_value(),
        DAGSTER_DATABASE_URL=history,
        PIPELINE_DATA_DIR=str(tmp_path / "data"),
        WAREHOUSE_START_DATE=days[0],
        WAREHOUSE_LATENESS_DAYS="8",
    )

    def migrate(version: str) -> None:
        process = site.start(version, "pipeline-assets", "migrate")
        assert process.wait(LONGEST) == 0, (home / f"pipeline-assets-{version}.log").read_text()

    def runs(columns: str = "partition, status") -> list[Any]:
        with psycopg.connect(history) as connection:
            query = sql.SQL("SELECT {} FROM runs ORDER BY id").format(sql.SQL(columns))
            return connection.execute(query).fetchall()

    def said(text: str) -> bool:
        with psycopg.connect(history) as connection:
            query = "SELECT FROM event_logs WHERE position(%s IN event) > 0 LIMIT 1"
            return connection.execute(query, [text]).fetchone() is not None

    def versions() -> dict[str, str]:
        return dict(warehouse.execute("SELECT partition_key, code_version FROM pipeline.batches"))

    try:
        migrate(OLD)
        old_code = site.code(OLD)
        old_daemon = site.daemon(OLD)
        old_webserver, url = site.webserver(OLD)
        job = _selector(url, JOB, LONGEST)
        with at_work(warehouse, asked) as held:
            # The daemon's first pass over a pool creates its limit, and doesn't enforce it yet.
            _launch(url, job, asked[0])
            until(lambda: runs() == [(asked[0], "STARTED")], "the first run")
            for day in asked[1:]:
                _launch(url, job, day)
            places = Counter(STARTED=3, QUEUED=2)
            until(lambda: Counter(dict(runs()).values()) == places, "as many runs as have room")
            # Not always the oldest: on a busy machine, a run that couldn't be started is requeued.
            active = [day for day, status in runs() if status == "STARTED"]
            queued = [day for day in asked if day not in active]
            for day in queued:
                held[day].close()
            until(lambda: waiting(warehouse) == len(active), "runs at their ledger")

            migrate(NEW)
            _, url = site.webserver(NEW)
            for process in (old_webserver, old_daemon):
                process.send_signal(signal.SIGTERM)
                process.wait(LONGEST)
            site.daemon(NEW)
            old_code.send_signal(signal.SIGTERM)
            patience_ends = time.monotonic() + PATIENCE
            first, *others = active
            if drains:
                # A queued run now has room, but only the old code server could start it.
                held[first].close()
                until(lambda: (first, "SUCCESS") in runs(), "a run at work")
                until(lambda: said("re-submitting the run into the queue"), "a run that waits")
                time.sleep(max(0.0, patience_ends - time.monotonic()))
                assert old_code.poll() is None
                for day in others:
                    held[day].close()
                until(lambda: old_code.poll() is not None, "the old code server's end")
                site.code(NEW)
            else:
                until(lambda: old_code.poll() is not None, "the old code server's end")
                site.code(NEW)
                held[first].close()
                until(lambda: {(day, "SUCCESS") for day in queued} & {*runs()}, "a run that waited")
                assert {(day, "STARTED") for day in others} < {*runs()}
        _launch(url, _selector(url, JOB, LONGEST), later)
        until(lambda: {status for _, status in runs()} == {"SUCCESS"}, "all runs")
        # One run per day, by the expected version of the code.
        assert sorted(runs()) == [(day, "SUCCESS") for day in days]
        assert versions() == {day: OLD if day in active else NEW for day in days}
        assert {
            loader for (loader,) in warehouse.execute("SELECT loaded_by FROM pipeline.batches")
        } == {run for (run,) in runs("run_id")}
        by_new_code = "(updated_at AT TIME ZONE 'UTC')::date::text <> ALL(%s)"
        label = "status || ' ' || currency"
        wanted = WANTED.replace(label, f"CASE WHEN {by_new_code} THEN {label} END")
        assert (
            warehouse.execute(FOUND).fetchall()
            == shop.connection.execute(wanted, [active]).fetchall()
        )

        # What the old code loaded lacks the new column: the sensor has the new code load it again.
        start_sensor(url, job, "source_changes_sensor_transactions")
        until(lambda: set(versions().values()) == {NEW}, "the sensor's runs")
        until(lambda: {status for _, status in runs()} == {"SUCCESS"}, "all runs")
        # A day that ends meanwhile is loaded too.
        found = [run for run in runs() if run[0] in (*days, *active)]
        assert sorted(found) == sorted((day, "SUCCESS") for day in [*days, *active])
        assert warehouse.execute(FOUND).fetchall() == shop.connection.execute(WANTED).fetchall()
    finally:
        site.end()
        databases.drop(server, f"history_{int(drains)}")


def start_sensor(url: str, job: dict[str, str], name: str) -> None:
    """Switch a sensor on, as the UI does."""
    mutation = """mutation($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) {
        __typename ... on PythonError { message } } }"""
    sensor = {key: value for key, value in job.items() if key != "pipelineName"}
    variables = {"sensor": {**sensor, "sensorName": name}}
    answer = requests.post(
        f"{url}/graphql", json={"query": mutation, "variables": variables}, timeout=60
    ).json()
    assert answer["data"]["startSensor"]["__typename"] == "Sensor", answer
