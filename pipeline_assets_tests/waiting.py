"""Waiting for what other processes do, of which nobody tells."""

import time
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy.exc

LONGEST = 300.0
"""Seconds until a wait gives up; what is waited for takes some 1 to 60 on an idle machine."""


def until(
    happened: Callable[[], Any], wanted: str = "what was waited for", longest: float = LONGEST
) -> Any:
    """What the function gives, once it gives something; a server that is away gives nothing.

    Raises:
        AssertionError: it gave nothing for so many seconds.
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
