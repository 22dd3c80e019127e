"""Dagster's own storage, as `dagster.yaml` names it: PostgreSQL and the project's data folder.

Dagster builds these classes in each of its processes; each resolves the settings anew, so that no
address stands in `dagster.yaml` and `dagster dev` needs no variable at all.
"""

from typing import Any, ClassVar, Self

from dagster import Field
from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import load_settings


class PipelineStorage(DagsterPostgresStorage):
    """Runs, events and schedules in the database at DAGSTER_DATABASE_URL, else the embedded one."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure but whether to create the tables (Dagster's own commands ask)."""
        return {"should_autocreate_tables": Field(bool, is_required=False, default_value=True)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: dict[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        url = Database("dagster", load_settings()).url()
        # dagster-postgres ships psycopg2; a bare postgresql:// may come to mean psycopg 3.
        url = "postgresql+psycopg2://" + url.partition("://")[2]
        return cls(url, config_value["should_autocreate_tables"], inst_data)


class _InDataFolder:
    """Dagster's local files, in a folder of the data folder.

    Without DAGSTER_HOME they would lie in a temporary folder, which `dagster dev` deletes when it ends.
    """

    folder: ClassVar[str]

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: dict[str, Any]
    ) -> Self:
        """Build it from the project's settings."""
        del config_value
        return cls(str(load_settings().pipeline_data_dir / cls.folder), inst_data=inst_data)


class PipelineComputeLogs(_InDataFolder, LocalComputeLogManager):
    """What runs print."""

    folder = "compute_logs"


class PipelineArtifacts(_InDataFolder, LocalArtifactStorage):
    """What Dagster itself keeps as files; the assets' own are in `partitions`."""

    folder = "artifacts"
