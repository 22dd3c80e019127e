"""How long the project keeps what it writes. `retention` says what is never removed."""

from pydantic import BaseModel, ConfigDict, Field


class RetentionSettings(BaseModel):
    """Days after which the daily retention removes something."""

    model_config = ConfigDict(frozen=True)

    retention_log_days: int = Field(default=30, ge=1)
    """What a run printed, and its log lines and engine events. Its outcome stays for ever."""
    retention_tick_days: int = Field(default=90, ge=1)
    """Ticks of schedules and sensors that no longer run; `dagster.yaml` says it for the others."""
    retention_file_days: int = Field(default=90, ge=7)
    """Files of `raw_` and `validated_` assets: a new load of the day writes them again."""
    retention_archive_days: int = Field(default=365, ge=7)
    """The news providers' raw answers; after that a past edition can't be made again."""
    retention_quarantine_days: int = Field(default=180, ge=7)
    """The content of quarantined rows of days that aren't held. Keys, versions and broken rules stay."""
