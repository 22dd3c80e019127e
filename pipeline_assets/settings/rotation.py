"""Secrets that change while a process runs: they are read again once the one that it has is refused.

As Vault is asked only then, a run goes on while Vault is down. What counts as a refusal, and what a changed
value must have in common with the one before, is up to the callers.
"""

from typing import Any

from pydantic import BaseModel

from pipeline_assets.settings.model import SettingsError, reload_settings

_replaced: dict[tuple[str, Any], Any] = {}
"""A setting's name and the value that this process was started with -> the value that replaced it."""


def current(settings: BaseModel, name: str) -> Any:
    """A setting as it was last read: with `settings`, or again since."""
    value = getattr(settings, name)
    return _replaced.get((name, value), value)


def replacements() -> list[Any]:
    """The values that this process has read again since its start."""
    return list(_replaced.values())


def read_again(name: str, error: Exception) -> Any:
    """Read a setting from its sources again; None if it isn't set.

    None too if the settings can't be read: then `error`, the reason for reading again, gets a note.
    """
    try:
        return getattr(reload_settings(), name) or None
    except SettingsError as problem:
        error.add_note(f"The settings couldn't be read again: {problem}")
        return None


def replace(settings: BaseModel, name: str, value: Any) -> None:
    """Have `current` return a value from now on, to all callers in this process that have these settings."""
    _replaced[name, getattr(settings, name)] = value
