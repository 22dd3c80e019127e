"""Which executor runs use, and what must be shared before steps may run on other hosts."""

import subprocess
import sys
from typing import Any

import dagster as dg
import pytest

from pipeline_assets.definitions import build_definitions
from pipeline_assets.resources import celery
from pipeline_assets.settings import Settings, SettingsError

SHARED: dict[str, Any] = {
    "source_database_url": "postgresql://u:p@db/source",
    "warehouse_database_url": "postgresql://u:p@db/warehouse",
    "dagster_database_url": "postgresql://u:p@db/dagster",
    "mlflow_tracking_uri": "http://mlflow:5000",
    "celery_broker_url": "amqp://u:p@rabbitmq:5672//",
    "pipeline_files_url": "s3://bucket/partitions",
}


def settings(**others: Any) -> Settings:
    return Settings(**{"pipeline_executor": "celery", **SHARED, **others})


def test_the_settings_alone_choose_the_executor() -> None:
    found = {
        choice: build_definitions(settings(pipeline_executor=choice))
        .resolve_job_def("load_transactions")
        .executor_def.name
        for choice in ("in_process", "celery")
    }
    assert found == {"in_process": "in_process", "celery": "celery"}
    assert build_definitions(Settings()).executor is dg.in_process_executor


@pytest.mark.parametrize("name", SHARED)
def test_what_workers_on_other_hosts_need_must_be_stated(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name.upper()} must be set"):
        settings(**{name: None})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("pipeline_files_url", "/data/partitions", "a folder of one host"),
        ("mlflow_tracking_uri", "postgresql://u:p@db/mlflow", "must be an MLflow server"),
        ("celery_broker_url", "sqs://key:p4ssword@", "must begin with amqp://"),
        ("celery_backend_url", "rpc://", "must begin with postgresql://"),
    ],
)
def test_what_would_be_one_hosts_own_is_refused(name: str, value: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        settings(**{name: value})
    assert "p4ssword" not in str(refused.value)


def test_a_folder_that_all_mount_is_said_by_its_scheme() -> None:
    assert settings(pipeline_files_url="file:///mnt/partitions").files_url.startswith("file:///")


def test_a_worker_without_celery_says_so() -> None:
    with pytest.raises(SettingsError, match="PIPELINE_EXECUTOR is not celery"):
        celery.worker_app(Settings())


def test_results_go_to_dagsters_database_unless_another_place_is_stated() -> None:
    ours = celery._executor(settings()).app_args()
    assert ours["backend"] == "db+postgresql+psycopg2://u:p@db/dagster"
    other = celery._executor(settings(celery_backend_url="redis://:p@redis/0")).app_args()
    assert other["backend"] == "redis://:p@redis/0"


def test_a_step_outlives_its_worker_by_these_settings() -> None:
    conf = celery._app(settings()).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_cancel_long_running_tasks_on_connection_loss
    assert conf.broker_transport_options == {"visibility_timeout": 4 * 3600}
    assert conf.accept_content == ["json"]
    assert conf.task_default_queue == "dagster"


def test_definitions_load_without_celery() -> None:
    code = "import pipeline_assets.definitions, sys; print('celery' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
