"""MLflow: where its tracking server and registry are, and the MLflow run that belongs to a Dagster run.

Without MLFLOW_TRACKING_URI both are a database of the embedded PostgreSQL, with the artifacts in the data
folder. The models decide what is logged, registered and deployed. MLflow is imported only where it is
needed: the import takes three seconds.
"""

import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from pipeline_assets.failures import PermanentError
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.settings.rotation import current, read_again, replace

if TYPE_CHECKING:
    import dagster as dg
    import psycopg
    from mlflow import MlflowClient

ROOT_RUN = "dagster_root_run_id"
"""The tag that ties an MLflow run to a Dagster run and its re-executions."""

SERVERS = ("ui", "server", "models")
"""MLflow's commands that start processes of their own, which a signal to the command alone doesn't end."""
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Enabled, it takes ten processes and 2.5 GB for jobs that nobody here has.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Environment of everything that imports MLflow: no progress bars, no advice on git, no telemetry."""


def _place(uri: SecretStr) -> str:
    """An address without user and password."""
    parts = urlsplit(uri.get_secret_value())
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True)
class Mlflow:
    """MLflow as the settings place it. Nothing connects or starts before it is used."""

    settings: Settings

    @property
    def experiment(self) -> str:
        """The experiment that the runs are filed under."""
        return f"{self.settings.pipeline_env}.purchase_propensity"

    def tracking_uri(self) -> str:
        """Where runs and models are recorded, with the password if there is one: never log it."""
        stated = current(self.settings, "mlflow_tracking_uri")
        uri = stated.get_secret_value() if stated else Database("mlflow", self.settings).url()
        scheme, _, rest = uri.partition("://")
        # A bare postgresql:// may come to mean psycopg 3, which MLflow's store doesn't know.
        return f"postgresql+psycopg2://{rest}" if scheme.startswith("postgres") else uri

    def artifact_root(self) -> str | None:
        """Where models and plots are stored; None leaves it to the tracking server."""
        if self.tracking_uri().startswith("http"):
            return None
        return (self.settings.pipeline_data_dir / "mlflow").as_uri()

    def run_url(self, run_id: str) -> str | None:
        """The page of a run if MLflow is a server; else None, as its UI may not be running."""
        uri = self.tracking_uri()
        if not uri.startswith("http"):
            return None
        page = f"/#/experiments/{_experiment_id(self.client(), self.experiment)}/runs/{run_id}"
        return f"{_place(SecretStr(uri)).rstrip('/')}{page}"

    def client(self) -> "MlflowClient":
        """A client for tracking and registry; database and experiment are created if missing.

        MLflow's own functions then use the same address. If a login is refused, it is read again, in case
        it was changed.
        """
        try:
            return self._client()
        except Exception as error:
            if not self._has_another_login(error):
                raise
        return self._client()

    def _has_another_login(self, error: Exception) -> bool:
        """Whether the settings now have a new login for the same address; if so, use it from now on."""
        name = "mlflow_tracking_uri"
        tried, now = current(self.settings, name), read_again(name, error)
        if tried is None or now is None or now == tried or _place(now) != _place(tried):
            return False
        replace(self.settings, name, now)
        return True

    def _client(self) -> "MlflowClient":
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        import mlflow

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = self.tracking_uri()
        with _unchanged_environment():
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient(uri, uri)
        with _alone(uri):
            # The first query creates the schema. The experiment must exist before dagster-mlflow starts
            # a run, which it would otherwise file under "Default".
            if client.get_experiment_by_name(self.experiment) is None:
                root = self.artifact_root()
                client.create_experiment(
                    self.experiment, artifact_location=root and f"{root}/{self.experiment}"
                )
        return client

    def upgrade(self) -> None:
        """Create MLflow's tables or upgrade them; a tracking server manages its own."""
        uri = self.tracking_uri()
        if not uri.startswith("postgresql"):
            return
        from mlflow.store.db import utils

        with _alone(uri):
            engine = utils.create_sqlalchemy_engine_with_retry(uri)
            # What `mlflow db upgrade` does; but that needs the password on the command line.
            if utils._is_empty_database(engine):
                utils._initialize_tables(engine)
            else:
                utils._upgrade_db(engine)

    def command(self, arguments: Sequence[str]) -> int:
        """Run an `mlflow` command, such as `ui`, on this MLflow, until it ends; returns its exit code.

        The address is passed in the environment: other users can read a command line.
        """
        self.client()
        environment = {**QUIET, **os.environ, "MLFLOW_TRACKING_URI": self.tracking_uri()}
        # MLflow looks for uvicorn on the PATH, which lacks a virtual environment that isn't activated.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        if root := self.artifact_root():
            environment |= {
                "MLFLOW_BACKEND_STORE_URI": self.tracking_uri(),
                "MLFLOW_DEFAULT_ARTIFACT_ROOT": root,
            }
        command = [sys.executable, "-m", "mlflow", *arguments]
        # Not exec: this process holds the lease on the embedded server. A server has its own group, to be
        # ended whole; any other command may ask something, so it is in the terminal's, which tells it.
        group = 0 if arguments[:1] and arguments[0] in SERVERS else None
        with subprocess.Popen(command, env=environment, process_group=group) as process:

            def pass_on(number: int, _: object) -> None:
                with suppress(ProcessLookupError):
                    if group == 0:
                        os.killpg(process.pid, number)
                    elif number == signal.SIGTERM:
                        process.terminate()

            before = {number: signal.signal(number, pass_on) for number in ENDING}
            try:
                code = process.wait()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
        return code if code >= 0 else 128 - code

    @contextmanager
    def run(
        self,
        context: "dg.AssetExecutionContext",
        warehouse: "psycopg.Connection",
        tags: dict[str, str],
    ) -> Iterator[tuple["MlflowClient", str]]:
        """The MLflow run of a Dagster run, active in the block: a client, and the run's id.

        A re-execution or retry continues the MLflow run of its root run, if that has the same `tags`. The
        MLflow run ends with the block: FINISHED, FAILED, or KILLED where the block was interrupted; a
        process that was killed leaves it RUNNING, until the next run finds it and ends it. A lock on the
        warehouse connection, released when the process ends, tells abandoned runs from live ones.
        dagster-mlflow's resource lives as long as the block, not as the Dagster run: that way no MLflow run
        is started when the data is missing, and its end doesn't wait for later steps, as it would with
        dagster-mlflow's hook.
        """
        client = self.client()
        root = context.run.get_root_run_id() or context.run.run_id
        warehouse.execute(f"SELECT pg_advisory_lock({_ALIVE})", [root])
        end_abandoned(client, self.experiment, context.instance, warehouse, but=root)
        import mlflow

        config = {
            "experiment_name": self.experiment,
            "mlflow_run_id": _run_of(client, self.experiment, root, tags),
            "extra_tags": tags,
            "env": {},
        }
        status = "KILLED"
        try:
            with ExitStack() as stack:
                _start(stack, context, config)
                active = mlflow.active_run()
                if active is None:
                    raise RuntimeError("dagster-mlflow started no run")
                yield client, active.info.run_id
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            mlflow.end_run(status)
            if not warehouse.broken:
                warehouse.execute(f"SELECT pg_advisory_unlock({_ALIVE})", [root])


def _start(stack: ExitStack, context: "dg.AssetExecutionContext", config: dict[str, Any]) -> None:
    import dagster as dg

    with warnings.catch_warnings():
        # dagster-mlflow warns in every run that it is beta; its update will replace its deprecated calls.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from dagster_mlflow import mlflow_tracking

        stack.enter_context(
            dg.build_resources(
                {"mlflow": mlflow_tracking},
                context.instance,
                {"mlflow": {"config": config}},
                context.run,
                context.log,
            )
        )


_ALIVE = "hashtext('pipeline_assets.mlflow_run'), hashtext(%s)"
"""The lock of a process that works on the MLflow run of a root Dagster run."""


def end_abandoned(
    client: "MlflowClient",
    experiment: str,
    instance: "dg.DagsterInstance",
    warehouse: "psycopg.Connection",
    *,
    but: str,
) -> list[str]:
    """End, as KILLED, this deployment's MLflow runs that are RUNNING without a process.

    `but` is the root run that is about to continue its own. Returns the ids of the runs ended.
    """
    ended = []
    for run in client.search_runs(
        [_experiment_id(client, experiment)], "attributes.status = 'RUNNING'"
    ):
        root = run.data.tags.get(ROOT_RUN)
        # A run that this Dagster doesn't know belongs to another deployment on a shared server.
        if root in (None, but) or instance.get_run_by_id(root) is None:
            continue
        if warehouse.execute(f"SELECT pg_try_advisory_lock({_ALIVE})", [root]).fetchone() == (
            True,
        ):
            client.set_terminated(run.info.run_id, "KILLED")
            warehouse.execute(f"SELECT pg_advisory_unlock({_ALIVE})", [root])
            ended.append(run.info.run_id)
    return ended


def _run_of(client: "MlflowClient", experiment: str, root_run_id: str, tags: dict[str, str]) -> str:
    """The MLflow run of a root Dagster run, if it has these tags; else a new one.

    MLflow's parameters can't be changed, so that training on other data can't continue a run. A new run is
    created with its tags: a process may be killed before dagster-mlflow sets them, and then the run's owner
    would be unknown.
    """
    experiment_id = _experiment_id(client, experiment)
    for run in client.search_runs([experiment_id], f"tags.{ROOT_RUN} = '{root_run_id}'"):
        if tags.items() <= run.data.tags.items():
            return str(run.info.run_id)
    return str(client.create_run(experiment_id, tags={ROOT_RUN: root_run_id, **tags}).info.run_id)


def _experiment_id(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        raise PermanentError(f"MLflow has no experiment {name}: was it deleted? Restore it there")
    return str(found.experiment_id)


@contextmanager
def _unchanged_environment() -> Iterator[None]:
    """Undo MLflow's additions: settings that are read later would take its address for a configured one."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Admit one process at a time if the store is a database: two that create its schema fail."""
    if not uri.startswith("postgresql"):
        yield
        return
    import psycopg

    with psycopg.connect(uri.replace("+psycopg2", "", 1)) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('pipeline_assets.mlflow'))")
        yield
