"""Secrets that change while a process lives: read again once the one that it has is refused.

Asked only then, Vault needn't answer for a run to go on. Who refuses, and what a changed value must have in
common with the one before, is for those who use it.
"""

from typing import Any

from pydantic import BaseModel

from pipeline_assets.settings.model import SettingsError, reload_settings

_replaced: dict[tuple[str, Any], Any] = {}
"""Settings that this process was started with, and what has taken their place since."""


def current(settings: BaseModel, name: str) -> Any:
    """A setting as it was last read: with `settings`, or again since."""
    value = getattr(settings, name)
    return _replaced.get((name, value), value)


def read_again(name: str, error: Exception) -> Any:
    """What the sources say of a setting by now; None if that is nothing.

    Settings that can't be read are nothing too, and a note on `error`, which is why somebody asks.
    """
    try:
        return getattr(reload_settings(), name) or None
    except SettingsError as problem:
        error.add_note(f"The settings couldn't be read again: {problem}")
        return None


def replace(settings: BaseModel, name: str, value: Any) -> None:
    """Have `current` give a value from now on, to all of this process that has these settings."""
    _replaced[name, getattr(settings, name)] = value
