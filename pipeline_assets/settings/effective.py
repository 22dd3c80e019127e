"""The settings as a deployment has them: each one's value, and which source it comes from.

For `pipeline-assets config`. It shows the settings even where some are missing or wrong; `model` says what a
setting means and which source wins.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from pipeline_assets.settings.model import (
    DATABASE_URLS,
    Settings,
    SettingsError,
    add_dotenv,
    load_settings,
    setting_sources,
)

MASK = "***"
SHOWN_VALUES = 5
"""Of a setting with more values only their number is shown."""


@dataclass(frozen=True)
class EffectiveSetting:
    """A setting by its variable's name. `value` is masked where it is secret, and None where unset."""

    name: str
    value: str | None
    source: str


def effective_settings(environment: str | None) -> tuple[list[EffectiveSetting], list[str]]:
    """Every setting of an environment (default: that of PIPELINE_ENV), and what is wrong with them.

    The variables, files and Vault are those of this process; it is what the environment would be here.

    Raises:
        SettingsError: there is no such environment, or PIPELINE_SECRETS_DIR isn't a folder.
    """
    before = dict(os.environ)
    try:
        if environment:
            os.environ["PIPELINE_ENV"] = environment
        return _effective_settings()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _effective_settings() -> tuple[list[EffectiveSetting], list[str]]:
    from_dotenv = add_dotenv()
    settings, problems = None, []
    try:
        settings = load_settings()
    except SettingsError as error:
        problems = str(error).splitlines()
    found: dict[str, tuple[Any, str]] = {}
    for source, read in setting_sources(Settings).items():
        # Why a source can't be read is among the problems already.
        with suppress(ValueError, OSError):
            for name, value in read().items():
                dotenv = source == "environment variable" and name.upper() in from_dotenv
                found.setdefault(name, (value, ".env" if dotenv else source))
    rows = []
    for name, field in Settings.model_fields.items():
        value, source = found.get(name, (field.get_default(call_default_factory=True), "default"))
        if settings:
            value = getattr(settings, name)
        rows.append(EffectiveSetting(name.upper(), _shown(name, value), source))
    return rows, problems


def _shown(name: str, value: Any) -> str | None:
    if value is None or value == ():
        return None
    if "SecretStr" in str(Settings.model_fields[name].annotation):
        return f"{MASK}{_place(value)}" if name in DATABASE_URLS else MASK
    if isinstance(value, list | tuple):
        return f"{len(value)} of them" if len(value) > SHOWN_VALUES else ", ".join(map(str, value))
    return str(value)


def _place(url: SecretStr | str) -> str:
    """The database that a URL leads to; nothing where it is malformed, as it may hold a password."""
    text = url.get_secret_value() if isinstance(url, SecretStr) else str(url)
    try:
        stated = conninfo_to_dict(text)
    except ProgrammingError:
        return ""
    return f" ({stated.get('dbname')} on {stated.get('host')})"
