"""Settings: what differs between deployments, where each value comes from, and Vault as one such source."""

from pipeline_assets.settings.model import (
    DATABASE_URLS,
    ENVIRONMENTS,
    Settings,
    SettingsError,
    load_settings,
    project_root,
    reload_settings,
)

__all__ = [
    "DATABASE_URLS",
    "ENVIRONMENTS",
    "Settings",
    "SettingsError",
    "load_settings",
    "project_root",
    "reload_settings",
]
