"""The orchestrators that are compared: their versions, how each is set up, and how runs are requested.

Each is set up as its own documentation advises for one host with PostgreSQL. `configuration` says how;
what it doesn't name keeps its default. `orchestrators` does the measuring.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, ClassVar

import requests
import yaml

from benchmarks.deployment import LAUNCH, graphql
from benchmarks.tools import PEERS
from pipeline_assets import __version__

ROOT = PEERS.parents[1]
PSYCOPG = f"psycopg[binary]=={installed('psycopg')}"
"""What the steps need, in the same version everywhere."""
Command = list[str]
PATIENCE = 300
"""Timeout in seconds: Airflow's first answer takes a second of CPU, and ten are requested at once."""


@dataclass(frozen=True)
class Place:
    """Where a system runs."""

    home: Path
    """Its Python environment."""
    folder: Path
    """Its own files."""
    port: int
    database: str
    """URL of its metadata database, as psycopg takes it."""
    secret: str = secrets.token_hex(32)

    @property
    def address(self) -> str:
        """Where its UI and API are."""
        return f"http://127.0.0.1:{self.port}"

    def program(self, name: str, *arguments: str) -> Command:
        """The command of a program of the environment."""
        return [str(self.home / "bin" / name), *arguments]

    def database_for(self, driver: str) -> str:
        """The database's URL for SQLAlchemy with a driver."""
        return f"postgresql+{driver}://" + self.database.partition("://")[2]


class System(ABC):
    """An orchestrator."""

    key: ClassVar[str]
    """Its name on the command line."""
    name: ClassVar[str]
    version: ClassVar[str]
    configuration: ClassVar[str]
    """The settings made and the defaults that matter, for the page."""
    packages: ClassVar[tuple[str, ...]] = ()
    """The pinned packages of its environment; without any, the project's own is used."""
    runs: ClassVar[str]
    """SQL on its metadata database: a run's due moment, start and end (seconds since 1970), and success."""

    @abstractmethod
    def environment(self, place: Place) -> dict[str, str]:
        """The variables that its programs need."""

    def prepare(self, place: Place) -> list[Command]:
        """Commands to run once, before its services start."""
        del place
        return []

    @abstractmethod
    def services(self, place: Place) -> list[Command]:
        """The programs that run all the time; the UI is among them."""

    def workers(self, place: Place) -> list[Command]:
        """Services that can start only once the UI answers."""
        del place
        return []

    def register(self, place: Place) -> list[Command]:
        """Commands to run once, while the services run."""
        del place
        return []

    @abstractmethod
    def request(self, place: Place, day: str) -> None:
        """Ask for a run of one day, as the UI does."""

    def request_all(self, place: Place, days: Sequence[str]) -> None:
        """Ask for the runs of several days at once, a request each."""
        with ThreadPoolExecutor(len(days)) as pool:
            list(pool.map(lambda day: self.request(place, day), days))

    @abstractmethod
    def backfill(self, place: Place, days: Sequence[str]) -> int:
        """Ask for a range of days by the tool's own means; returns how many runs that makes."""

    @abstractmethod
    def switch_on(self, place: Place) -> None:
        """Start the schedule that is due every minute."""


CONFIGURATION = (
    "queue asked each second, 4 runs at once, pools of 3, one process a run; `dagster dev` (webserver,"
    " daemon, code server); a range of days is one run, which Dagster asks for within 30 s"
)


class Dagster(System):
    """Dagster with this project's dagster.yaml, except for the run launcher, which is Dagster's default."""

    key = "dagster"
    name = "pipeline_assets, default launcher"
    version = f"{__version__}, Dagster {installed('dagster')}"
    configuration = f"this project's `dagster.yaml` without its `run_launcher`: {CONFIGURATION}"
    runs = """
        SELECT extract(epoch FROM value::timestamptz)::float, start_time, end_time,
            status = 'SUCCESS'
        FROM runs LEFT JOIN run_tags
            ON run_tags.run_id = runs.run_id AND key = '.dagster/scheduled_execution_time'"""

    def environment(self, place: Place) -> dict[str, str]:
        """Variables for a history stored like the others': each commit waits for the disk."""
        return {
            "DAGSTER_HOME": str(place.folder),
            "DAGSTER_DATABASE_URL": place.database,
            "PIPELINE_DATA_DIR": str(place.folder / "data"),
            "PIPELINE_ENV": "dev",
        }

    def settings(self) -> dict[str, Any]:
        """The content of dagster.yaml."""
        found = project_settings()
        found.pop("run_launcher", None)
        return found

    def prepare(self, place: Place) -> list[Command]:
        """Write Dagster's files; the first start makes the tables."""
        location = {
            "relative_path": str(PEERS / "daily_dagster.py"),
            "working_directory": str(PEERS),
        }
        workspace = {"load_from": [{"python_file": location}]}
        (place.folder / "workspace.yaml").write_text(yaml.safe_dump(workspace))
        (place.folder / "dagster.yaml").write_text(yaml.safe_dump(self.settings()))
        return []

    def services(self, place: Place) -> list[Command]:
        """What `make dev` starts."""
        return [place.program("dagster", "dev", "--port", str(place.port))]

    def request(self, place: Place, day: str) -> None:
        """Launch the job's partition."""
        found = graphql(place.address, LAUNCH, location="daily_dagster.py", job="daily", day=day)
        _expect(found["launchRun"], "LaunchRunSuccess")

    def backfill(self, place: Place, days: Sequence[str]) -> int:
        """Materialize the assets' partitions, which is one run."""
        names = ("raw_orders", "validated_orders", "orders")
        assets = ", ".join(f'{{path: ["{name}"]}}' for name in names)
        keys = ", ".join(f'"{day}"' for day in days)
        found = graphql(
            place.address,
            f"""mutation {{ launchPartitionBackfill(backfillParams: {{
                assetSelection: [{assets}], partitionNames: [{keys}]
            }}) {{ __typename ... on PythonError {{ message }} }} }}""",
        )
        _expect(found["launchPartitionBackfill"], "LaunchBackfillSuccess")
        return 1

    def switch_on(self, place: Place) -> None:
        """Start the schedule."""
        found = graphql(
            place.address,
            """mutation { startSchedule(scheduleSelector: {
                repositoryLocationName: "daily_dagster.py", repositoryName: "__repository__",
                scheduleName: "each_minute"
            }) { __typename ... on PythonError { message } } }""",
        )
        _expect(found["startSchedule"], "ScheduleStateResult")


class WarmDagster(Dagster):
    """Dagster with this project's dagster.yaml as it is."""

    key = "ours"
    name = "pipeline_assets"
    configuration = f"this project's `dagster.yaml`: {CONFIGURATION}"

    def settings(self) -> dict[str, Any]:
        """The content of dagster.yaml."""
        return project_settings()


class Airflow(System):
    """Airflow 3 with its LocalExecutor."""

    key = "airflow"
    name = "Airflow"
    version = "3.3.2"
    configuration = (
        "LocalExecutor with its 32 workers; api-server, scheduler and dag-processor, no triggerer, as no"
        " task defers; psycopg2 and asyncpg; examples and usage data off, everyone is admin; up to 16"
        " runs of a DAG at once, 10 of a backfill"
    )
    packages = (
        f"apache-airflow=={version}",
        "apache-airflow-core==3.3.2",
        "apache-airflow-task-sdk==1.3.2",
        "apache-airflow-providers-postgres==7.1.1",
        "apache-airflow-providers-standard==1.21.0",
        "sqlalchemy==2.1.9",
        "fastapi==0.136.3",
        "uvicorn==0.54.0",
        "asyncpg==0.32.0",
        "psycopg2-binary==2.9.13",
        PSYCOPG,
    )
    # The days' runs come by request and backfill; its end date is past, so the DAG schedules none itself.
    runs = """
        SELECT extract(epoch FROM run_after)::float, extract(epoch FROM start_date)::float,
            extract(epoch FROM end_date)::float, state = 'success'
        FROM dag_run"""

    def environment(self, place: Place) -> dict[str, str]:
        """Its settings, as variables."""
        return {
            "AIRFLOW_HOME": str(place.folder),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": place.database_for("psycopg2"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(PEERS / "airflow_dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{place.address}/execution/",
            "AIRFLOW__API__BASE_URL": place.address,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(place.port),
            "AIRFLOW__API__SECRET_KEY": place.secret,
            "AIRFLOW__API_AUTH__JWT_SECRET": place.secret,
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(place.port + 1),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }

    def prepare(self, place: Place) -> list[Command]:
        """Make the tables, and write the DAGs into them."""
        return [
            place.program("airflow", "db", "migrate"),
            place.program("airflow", "dags", "reserialize"),
        ]

    def services(self, place: Place) -> list[Command]:
        """Its components, each a program."""
        return [
            place.program("airflow", name) for name in ("api-server", "scheduler", "dag-processor")
        ]

    def register(self, place: Place) -> list[Command]:
        """Unpause the DAG: new ones are paused."""
        return [place.program("airflow", "dags", "unpause", "daily")]

    def request(self, place: Place, day: str) -> None:
        """Trigger the DAG for a day."""
        self._call(place, "POST", "dags/daily/dagRuns", {"logical_date": f"{day}T00:00:00Z"})

    def backfill(self, place: Place, days: Sequence[str]) -> int:
        """One run per day."""
        dates = {"from_date": f"{days[0]}T00:00:00Z", "to_date": f"{days[-1]}T00:00:00Z"}
        self._call(place, "POST", "backfills", {"dag_id": "daily", **dates})
        return len(days)

    def switch_on(self, place: Place) -> None:
        """Start the schedule; the minute that has just begun is run at once."""
        self._call(place, "PATCH", "dags/each_minute", {"is_paused": False})

    def _call(self, place: Place, method: str, path: str, body: Mapping[str, Any]) -> None:
        address, login = f"{place.address}/api/v2/{path}", _airflow_login(place.address)
        requests.request(
            method, address, json=body, headers=login, timeout=PATIENCE
        ).raise_for_status()


class Prefect(System):
    """Prefect 3 with a process work pool."""

    key = "prefect"
    name = "Prefect"
    version = "3.8.8"
    configuration = (
        "server and one worker of a process work pool, 10 runs at once; asks for work every 10 s"
        " and starts a scheduled run's process up to 10 s ahead of its moment, from which its time counts;"
        " results aren't persisted; analytics off; it has no backfill: 30 runs are asked for at once"
    )
    packages = (
        f"prefect=={version}",
        "fastapi==0.139.0",  # its own bound allows 0.165, with which the server doesn't start
        "starlette==1.10.0",
        "sqlalchemy==2.0.58",  # with 2.1 it can't start a schedule
        "uvicorn==0.54.0",
        "asyncpg==0.32.0",
        PSYCOPG,
    )
    runs = """
        SELECT extract(epoch FROM expected_start_time)::float, extract(epoch FROM start_time)::float,
            extract(epoch FROM end_time)::float, state_type = 'COMPLETED'
        FROM flow_run"""

    def environment(self, place: Place) -> dict[str, str]:
        """Its settings, as variables."""
        return {
            "PREFECT_HOME": str(place.folder),
            "PREFECT_API_URL": f"{place.address}/api",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": place.database_for("asyncpg"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }

    def prepare(self, place: Place) -> list[Command]:
        """Make the tables."""
        return [place.program("prefect", "server", "database", "upgrade", "--yes")]

    def services(self, place: Place) -> list[Command]:
        """The server."""
        return [place.program("prefect", "server", "start", "--port", str(place.port))]

    def workers(self, place: Place) -> list[Command]:
        """The worker, which needs a running server. Without a limit, 30 interpreters would start at once."""
        pool = ["--pool", "processes", "--type", "process", "--limit", "10"]
        return [place.program("prefect", "worker", "start", *pool)]

    def register(self, place: Place) -> list[Command]:
        """The work pool, and the flow's deployments."""
        return [
            place.program("prefect", "work-pool", "create", "processes", "--type", "process"),
            place.program("python", str(PEERS / "daily_prefect.py")),
        ]

    def request(self, place: Place, day: str) -> None:
        """Ask for a flow run."""
        self._post(place, "daily", "create_flow_run", {"parameters": {"day": day}})

    def backfill(self, place: Place, days: Sequence[str]) -> int:
        """One run per day."""
        self.request_all(place, days)
        return len(days)

    def switch_on(self, place: Place) -> None:
        """Start the schedule."""
        self._post(place, "each_minute", "resume_deployment", {})

    def _post(self, place: Place, deployment: str, what: str, body: Mapping[str, Any]) -> None:
        address = f"{_prefect_deployment(place.address, deployment)}/{what}"
        requests.post(address, json=body, timeout=PATIENCE).raise_for_status()


def project_settings() -> dict[str, Any]:
    """This project's dagster.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    return found


def systems() -> list[System]:
    """All systems; this project's launcher is a separate one if dagster.yaml sets it."""
    ours = [WarmDagster()] if "run_launcher" in project_settings() else []
    return [*ours, Dagster(), Airflow(), Prefect()]


@cache
def _airflow_login(address: str) -> dict[str, str]:
    answer = requests.get(f"{address}/auth/token", timeout=PATIENCE)
    answer.raise_for_status()
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@cache
def _prefect_deployment(address: str, name: str) -> str:
    answer = requests.get(f"{address}/api/deployments/name/daily/{name}", timeout=PATIENCE)
    answer.raise_for_status()
    return f"{address}/api/deployments/{answer.json()['id']}"


def _expect(answer: Mapping[str, Any], kind: str) -> None:
    if answer["__typename"] != kind:
        raise SystemExit(f"Dagster refused: {answer}")
