"""Which failures a retry may fix, and which it can't: the one place that decides.

A transient failure passes by itself: the network, a server that is busy or restarting, a lost
connection, a full disk, two conflicting transactions. Everything else is permanent, a bug and a broken
contract alike: trying again costs time and hides the failure. `running` acts on the answer.
"""

import errno
import sys
from collections.abc import Iterator

PERMANENT = "pipeline_assets/permanent"
"""The tag of runs that failed for good: no sensor starts their partition again by itself."""


class PermanentError(Exception):
    """Trying again won't help: somebody has to fix the data, the contract or the settings."""


class NotYetError(PermanentError):
    """Trying again at once won't help; a later run will, once what it depends on is there."""


class TransientError(Exception):
    """Trying again later may help."""


TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers that say that the same request may succeed later."""

TRANSIENT_STATES = ("08", "25006", "40", "53", "55P03", "57P01", "57P02", "57P03", "57P05", "58030")
"""SQLSTATEs, or their first two characters (https://www.postgresql.org/docs/current/errcodes-appendix.html):
connection lost, read-only (a replica before its promotion), deadlock and serialization, out of connections
or disk, lock not available, server shutting down or starting, idle session ended, I/O error."""

REFUSED = ("authentication failed", "does not exist", "pg_hba.conf", "not permitted to log in")
"""What a server says to a login that will never succeed. psycopg has no SQLSTATE for it."""

TRANSIENT_ERRNOS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        # A full disk, as PostgreSQL's "53": once somebody has made room, nothing is wrong any more.
        errno.EDQUOT,
        errno.ENOSPC,
        # What s3fs raises if the storage answers 503 or 500, or if a file was replaced meanwhile.
        errno.EBUSY,
        getattr(errno, "EREMOTEIO", errno.EIO),  # where there is none, s3fs takes the other
    }
)

# Errors of libraries that are slow to import: one can be raised only if its module is loaded.
TRANSIENT_CLASSES = (
    ("requests.exceptions", ("ConnectionError", "Timeout", "ChunkedEncodingError")),
    ("urllib3.exceptions", ("HTTPError",)),
    ("socket", ("gaierror",)),
    ("botocore.exceptions", ("ConnectionError", "HTTPClientError")),
    ("aiohttp", ("ClientConnectionError", "ClientPayloadError")),
)


def is_transient(error: BaseException) -> bool:
    """Whether a retry may help: the first error of the chain that has a verdict decides."""
    for link in _chain(error):
        verdict = _verdict(link)
        if verdict is not None:
            return verdict
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps and what caused it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        # SQLAlchemy keeps the driver's error as `orig`.
        wrapped = getattr(link, "orig", None) or link.__cause__
        link = wrapped or (None if link.__suppress_context__ else link.__context__)


def _verdict(error: BaseException) -> bool | None:
    """Whether this error alone is transient; None if it says nothing either way."""
    if isinstance(error, PermanentError):
        return False
    if isinstance(error, TransientError | TimeoutError | ConnectionError):
        return True
    if (status := _http_status(error)) is not None:
        return status in TRANSIENT_STATUSES
    by_database = _database_verdict(error)
    if by_database is None and isinstance(error, _loaded_classes()):
        return True
    if by_database is None and isinstance(error, OSError) and error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS
    return by_database


def _loaded_classes() -> tuple[type[BaseException], ...]:
    return tuple(
        getattr(sys.modules[module], name)
        for module, names in TRANSIENT_CLASSES
        if module in sys.modules
        for name in names
    )


def _http_status(error: BaseException) -> int | None:
    """The HTTP status that an error of requests or of MLflow stands for."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None and callable(ask := getattr(error, "get_http_status_code", None)):
        status = ask()
    return status if isinstance(status, int) else None


def _database_verdict(error: BaseException) -> bool | None:
    """By SQLSTATE (psycopg, ADBC; psycopg2 calls it pgcode), else a lost or refused connection."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state and state.strip("\0"):
        return str(state).startswith(TRANSIENT_STATES)
    module = type(error).__module__.partition(".")[0]
    names = {kind.__name__ for kind in type(error).__mro__}
    if module in ("psycopg", "psycopg2", "adbc_driver_manager") and names & {
        "OperationalError",
        "InterfaceError",
    }:
        return not any(words in str(error) for words in REFUSED)
    return None
