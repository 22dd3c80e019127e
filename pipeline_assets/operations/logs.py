"""The log lines of the project's processes: their format, and what they must not contain.

In staging and production each process writes JSON objects, with environment, run, job, step, asset and
partition, so that a log store can be queried for all lines of a partition. In dev a line has Dagster's own
format. In both no line shows the value of a secret setting or the password of a URL. How long logs are kept
is not decided here.

Dagster has no setting for the format of a run's lines: every run builds the logger that prints them, and
loggers given to the definitions are used only by runs whose config names them, which those started from
the UI don't. But Dagster takes the logger's class from `logging.getLoggerClass`, Python's hook for this, so
this module sets that class.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

from pipeline_assets.settings import Settings
from pipeline_assets.settings.rotation import replacements

MASK = "***"
SHORTEST_SECRET = 4
"""Characters; masking a shorter one, such as every "a", would hide the text and reveal the secret."""
RUN_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
URL_PASSWORD = re.compile(r"(?<=://)([^\s/?#@:]*):[^\s/?#]*@(?=[^\s@])")


def configure_logging(settings: Settings) -> None:
    """Give every handler of this process, present and future, the environment's format."""
    secrets = secret_values(settings)
    as_json = settings.pipeline_env != "dev"
    environment = settings.pipeline_env

    def format_of(handler: logging.Handler) -> logging.Formatter:
        if as_json:
            return MaskingFormatter(JsonFormatter(environment), secrets)
        inner = handler.formatter
        if isinstance(inner, MaskingFormatter):  # this process was configured before
            inner = inner.inner
        return MaskingFormatter(inner or logging.Formatter(), secrets)

    class Logger(logging.Logger):
        """A logger that sets this format on every stream handler that is added to it."""

        def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802  # logging's own name
            if isinstance(hdlr, logging.StreamHandler):
                hdlr.setFormatter(format_of(hdlr))
            logging.Logger.addHandler(self, hdlr)

    before = logging.getLoggerClass()
    logging.setLoggerClass(Logger)
    # Python's fallback handler, for lines that no other handles: those of libraries outside of runs. In a
    # run Dagster handles these too and adds its context (`python_logs` in dagster.yaml).
    if logging.lastResort:
        logging.lastResort.setFormatter(format_of(logging.lastResort))
        if as_json:
            # Python's warnings wouldn't be JSON or, captured without a handler, would be lost.
            logging.captureWarnings(capture=True)
            logging.getLogger("py.warnings").addHandler(logging.lastResort)
    for name in [None, *logging.root.manager.loggerDict]:
        logger = logging.getLogger(name)
        if type(logger) in (logging.Logger, before):
            # The webserver's own logger gets its handlers after this.
            logger.__class__ = Logger
        for present in logger.handlers:
            if isinstance(present, logging.StreamHandler):
                present.setFormatter(format_of(present))


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    `run_id`, `job`, `step`, `asset`, `partition` are null where a line belongs to none: a run's start has
    no asset. Dagster attaches its context to the record as `dagster_meta`.
    """

    def __init__(self, environment: str) -> None:
        super().__init__()
        self.environment = environment

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its line break."""
        meta: dict[str, Any] = getattr(record, "dagster_meta", None) or {}
        event = meta.get("dagster_event")
        tags = meta.get("job_tags") or {}
        step = meta.get("step_key")
        key = getattr(event, "asset_key", None)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "environment": self.environment,
            "run_id": meta.get("run_id") or _run_named(record),
            "job": meta.get("job_name"),
            "step": step,
            # An asset's step has its name; in a step of several assets the event names its asset.
            "asset": key.to_user_string() if key else step,
            "partition": getattr(event, "partition", None) or _partition(tags),
            "event": event.event_type_value if event else None,
            "message": meta.get("orig_message") or record.getMessage(),
        }
        if error := _error(event):
            line["error"] = error
        elif record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _run_named(record: logging.LogRecord) -> str | None:
    """The run that a line of the daemon is about; only the line's text names it."""
    if not record.name.startswith("dagster"):
        return None
    named = set(RUN_ID.findall(record.getMessage()))
    return named.pop() if len(named) == 1 else None


def _partition(tags: dict[str, str]) -> str | None:
    """The run's partition, or its range as `first..last`."""
    if found := tags.get("dagster/partition"):
        return found
    span = [tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end")]
    return "..".join(filter(None, span)) or None


def _error(event: Any) -> str | None:
    data = getattr(event, "event_specific_data", None)
    error = getattr(data, "error", None)
    return error.to_string() if error else None


class MaskingFormatter(logging.Formatter):
    """Another formatter's text without secrets."""

    def __init__(self, inner: logging.Formatter, secrets: Iterable[str]) -> None:
        super().__init__()
        self.inner = inner
        self.secrets = sorted(secrets, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The text, with `***` for each secret."""
        secrets = self.secrets
        if newer := replacements():
            secrets = sorted({*secrets, *_forms(_secrets(newer))}, key=len, reverse=True)
        return mask(self.inner.format(record), secrets)


def mask(text: str, secrets: Iterable[str]) -> str:
    """`text` without the secrets (longest first) and without the passwords of URLs."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return URL_PASSWORD.sub(rf"\1:{MASK}@", text)


def secret_values(settings: BaseModel) -> set[str]:
    """Every secret of the settings, and those that replaced one since: its value, a URL's password, and both
    as JSON writes them."""
    return _forms(_secrets([dict(settings), replacements()]))


def _forms(values: Iterable[str]) -> set[str]:
    found = set()
    for value in values:
        found.add(value)
        try:
            password = urlsplit(value).password
        except ValueError:  # no URL
            password = None
        if password:
            found |= {password, unquote(password)}
    found |= {json.dumps(value)[1:-1] for value in found}
    return {value for value in found if len(value) >= SHORTEST_SECRET}


def _secrets(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        yield from _secrets(dict(value))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _secrets(part)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _secrets(part)
