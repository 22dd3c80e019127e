"""Dagster's own storage, as `dagster.yaml` names it: PostgreSQL and the project's data folder.

Dagster builds these classes in each of its processes; each resolves the settings anew, so that no
address stands in `dagster.yaml` and `dagster dev` needs no variable at all.
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from dagster import Field
from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import load_settings

# What only the environment can say; every process of Dagster's loads this module first.
# Materializations of a range are stored in batches instead of one by one: 319 days in 61 s, not 73.
os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "200")
# No step multiplies large matrices, but OpenBLAS starts its threads, which spin, when pandas is
# imported: 0.12 s of CPU a run.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


class PipelineStorage(DagsterPostgresStorage):
    """Runs, events and schedules in the database at DAGSTER_DATABASE_URL, else the embedded one."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure but whether to create the tables (Dagster's own commands ask)."""
        return {"should_autocreate_tables": Field(bool, is_required=False, default_value=True)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        database = Database("dagster", load_settings())
        # dagster-postgres ships psycopg2; a bare postgresql:// may come to mean psycopg 3.
        url = "postgresql+psycopg2://" + database.url().partition("://")[2]
        if database.is_embedded:
            # Each event commits by itself, and waiting for the disk is nearly all that it costs (4.8 ms
            # of 4.9). Should the machine lose power, the last half second of Dagster's own history may
            # be gone; the warehouse and its ledger wait for the disk.
            url += "?options=-c%20synchronous_commit%3Doff"
        storage = cls(url, config_value["should_autocreate_tables"], inst_data)
        # Dagster keeps a connection open in its webserver only; elsewhere each statement connects anew.
        # A ranged run of 319 days and three assets made 5,000 connections: 113 s, and 25 s without.
        for part in (storage.run_storage, storage.event_log_storage, storage.schedule_storage):
            part.optimize_for_webserver(
                statement_timeout=60_000, pool_recycle=3600, max_overflow=20
            )
        # Asked again for every materialization, on one more connection; tables don't vanish.
        events = storage.event_log_storage
        events.has_table = cache(events.has_table)  # type: ignore[attr-defined]  # PostgreSQL's has it
        return storage


class PipelineComputeLogs(LocalComputeLogManager):
    """What runs print, in the data folder (`dagster dev` alone would delete it when it ends)."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        del config_value
        return cls(_in_data_folder("compute_logs"), inst_data=inst_data)


class PipelineArtifacts(LocalArtifactStorage):
    """What Dagster itself keeps as files; the assets' own are in `partitions`."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        del config_value
        return cls(_in_data_folder("artifacts"), inst_data)


def _in_data_folder(name: str) -> str:
    return str(load_settings().pipeline_data_dir / name)
