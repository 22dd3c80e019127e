"""Polling for what other processes do, where there is no notification."""

import time
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy.exc

LONGEST = 300.0
"""Seconds until a wait gives up; on an idle machine what is waited for takes some 1 to 60."""


def until(
    happened: Callable[[], Any], wanted: str = "what was waited for", longest: float = LONGEST
) -> Any:
    """Call the function until its result is true, and return that; an unreachable server counts as false.

    Raises:
        AssertionError: the result wasn't true within so many seconds.
    """
    deadline = time.monotonic() + longest
    away: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := happened():
                return found
        except (psycopg.OperationalError, sqlalchemy.exc.OperationalError) as error:
            away = error
        time.sleep(0.05)
    raise AssertionError(f"not in {longest:g} s: {wanted}") from away
