"""How assets of every domain run: what is tried again, and what isn't."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pipeline_assets.failures import PermanentError

# What a database or a network needs to come back, and not all workers in the same second.
RETRY = dg.RetryPolicy(
    max_retries=4, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Keep Dagster from retrying what a retry can't mend."""
    try:
        yield
    except PermanentError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
