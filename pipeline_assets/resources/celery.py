"""Steps as Celery tasks: the executor, and the app that run processes and workers share.

Belongs here: what makes a step survive its worker, and what may not be tried again. The settings say
whether Celery is used at all (`PIPELINE_EXECUTOR`), and where its broker is. Celery is imported only where
it is needed: definitions load without it.
"""

from collections.abc import Sequence
from socket import gethostname
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets.failures import PERMANENT, PermanentError
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from celery import Celery
    from dagster_celery.executor import CeleryExecutor

QUEUE = "dagster"
LONGEST_STEP = 4 * 3600
"""Seconds, equal to a run's `max_runtime_seconds` in dagster.yaml. After that time Redis hands a step to
another worker, done or not; RabbitMQ (deploy/rabbitmq.conf) closes the channel of its worker."""
WORKERS_A_STEP = 3
"""A step that loses this many workers is itself the cause: memory, most likely."""

# Most of these change a default of Celery with which a lost worker's step would be lost or delayed.
SURVIVE = {
    # A step leaves the queue when it is done, not when it starts.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # No worker reserves more steps than it executes; by default it reserves four times as many.
    "worker_prefetch_multiplier": 1,
    # A host that is cut off doesn't close its connection: RabbitMQ requeues its steps after two heartbeats
    # of 10 s; by default after two minutes.
    "broker_heartbeat": 10,
    # By then other workers have its steps, so it cancels them, and reconnects once the broker answers.
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {"visibility_timeout": LONGEST_STEP},
    # Memory that steps leak is freed with the process.
    "worker_max_tasks_per_child": 200,
    # Nothing is unpickled.
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    "result_expires": 24 * 3600,
    # Log lines stay as the project writes them.
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


@dg.executor(name="celery", requirements=dg.multiple_process_executor_requirements())
def celery_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """Each step is a task for Celery's workers; the run's own process only hands them out."""
    del context  # nothing is configured by the run: the settings say it all
    return _executor(load_settings())


def worker_app(settings: Settings) -> "Celery":
    """The app of a worker, whose processes are forked from this one: they inherit what is loaded here.

    Raises:
        SettingsError: the settings choose another executor.
    """
    app = _app(settings)
    from dagster_celery.tasks import create_task

    create_task(app, base=_step_task())
    return app


def worker_answers(settings: Settings) -> bool:
    """Whether a worker on this host answers through the broker; takes 5 s, as it waits for all workers."""
    replies = _app(settings).control.ping(timeout=5)
    return any(name.endswith(f"@{gethostname()}") for reply in replies for name in reply)


def clean_results(app: "Celery") -> None:
    """Remove the results that runs have read long ago; otherwise only Celery's own scheduler does."""
    app.backend.cleanup()


def _app(settings: Settings) -> "Celery":
    if settings.pipeline_executor != "celery":
        raise SettingsError(
            "PIPELINE_EXECUTOR is not celery: no run would hand a step to this worker"
        )
    from dagster_celery.make_app import make_app

    return make_app(_executor(settings).app_args())


def _executor(settings: Settings) -> "CeleryExecutor":
    from dagster._core.execution.retries import RetryMode
    from dagster_celery.executor import CeleryExecutor

    broker, database = settings.celery_broker_url, settings.dagster_database_url
    if broker is None or database is None:
        raise SettingsError("CELERY_BROKER_URL and DAGSTER_DATABASE_URL must be set for Celery")
    # RabbitMQ's own result backend, rpc://, loses results in a restart, and the run waits for ever.
    backend = (settings.celery_backend_url or database).get_secret_value()
    scheme, _, rest = backend.partition("://")
    configuration: dict[str, Any] = {"task_default_queue": QUEUE, **SURVIVE}
    if settings.celery_backend_url is None:
        configuration["database_engine_callback"] = Database("dagster", settings).follow
    return CeleryExecutor(
        retries=RetryMode.ENABLED,
        broker=broker.get_secret_value(),
        backend=f"db+postgresql+psycopg2://{rest}" if scheme.startswith("postgres") else backend,
        config_source=configuration,
    )


def _step_task() -> Any:
    from celery import Task
    from celery.exceptions import Ignore
    from dagster._core.storage.tags import MAX_RETRIES_TAG
    from dagster._grpc.types import ExecuteStepArgs
    from dagster._serdes import unpack_value

    from pipeline_assets.resources.dagster_instance import close_connections

    class StepTask(Task):  # type: ignore[misc]  # Celery ships no types
        """Checks a step that came back from a lost worker before it starts; closes connections after each."""

        def before_start(
            self, task_id: str, args: Sequence[object], kwargs: dict[str, Any]
        ) -> None:
            del task_id, args
            if not self.request.delivery_info.get("redelivered"):
                return
            step = unpack_value(kwargs["execute_step_args_packed"], as_type=ExecuteStepArgs)
            (key,) = step.step_keys_to_execute or [""]
            with dg.DagsterInstance.get() as instance:
                run = instance.get_run_by_id(step.run_id)
                if run is None or run.is_finished:
                    raise Ignore  # cancelled, or ended for its run time: nobody waits for it
                known = step.known_state
                tries = known.get_retry_state().get_attempt_count(key) if known else 0
                if _begun(instance, step.run_id, key) - tries >= WORKERS_A_STEP:
                    tags = {MAX_RETRIES_TAG: "0", PERMANENT: "true"}
                    instance.add_run_tags(step.run_id, tags)
                    raise PermanentError(
                        f"{WORKERS_A_STEP} workers died in {key}: give them more memory, or look in "
                        "their log for what ended them"
                    )

        def after_return(self, *outcome: object) -> None:
            del outcome
            close_connections()

    return StepTask


def _begun(instance: dg.DagsterInstance, run_id: str, key: str) -> int:
    kinds = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED}
    return sum(entry.step_key == key for entry in instance.all_logs(run_id, of_type=kinds))
