"""The deployment's state as Prometheus metrics, on an HTTP port of its own.

The state is read when Prometheus scrapes, at most once in `FRESH` seconds, from the same `status` as the
page; no process that does work has to be instrumented or reached. A gauge is a state that may go down.
Timestamps are exported, not ages: `time() - x` in PromQL keeps growing while the exporter can't read.
"""

import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline_assets.operations.status import Status

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import Metric
    from prometheus_client.core import GaugeMetricFamily

FRESH = 5.0
"""Seconds for which a state is served again: several scrapers at once cost one reading."""


def serve(
    read: Callable[[], Status], host: str, port: int
) -> tuple["WSGIServer", threading.Thread]:
    """Serve `/metrics` in a thread until the server is shut down; port 0 takes a free one."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(StatusCollector(read))
    return start_http_server(port, host, registry)


class StatusCollector:
    """Reads the status when Prometheus asks."""

    def __init__(self, read: Callable[[], Status]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._metrics: list[Metric] = []

    def describe(self) -> Iterable["Metric"]:
        """Nothing: registering must not read a database."""
        return []

    def collect(self) -> Iterable["Metric"]:
        """The current metrics, or those that were read less than `FRESH` seconds ago."""
        with self._lock:
            if time.monotonic() - self._read_at > FRESH:
                begun = time.perf_counter()
                status = self._read()
                self._metrics = [*_metrics(status), _took(time.perf_counter() - begun)]
                self._read_at = time.monotonic()
            return self._metrics


def _metrics(status: Status) -> Iterable["Metric"]:
    """A part that can't be read has no samples, and its `pipeline_up` is 0."""
    up = _gauge("up", "Whether the database could be read.", "database")
    for database in ("dagster", "warehouse"):
        up.add_metric([database], database not in status.unknown)
    yield up
    problems = _gauge("problems", "What needs attention, as on the status page.", "kind")
    kinds = [problem.kind for problem in status.problems]
    for kind in sorted({*kinds, "any"}):
        problems.add_metric([kind], len(kinds) if kind == "any" else kinds.count(kind))
    yield problems
    if "dagster" not in status.unknown:
        yield from _runs(status)
        yield from _automation(status)
        yield from _alerts(status)
    if "warehouse" not in status.unknown:
        yield from _tables(status)


def _runs(status: Status) -> Iterable["Metric"]:
    runs = _gauge("runs", "Runs in Dagster's storage.", "status")
    for name, count in status.runs.items():
        runs.add_metric([name], count)
    yield runs

    ages = {"queued": 0.0, "running": 0.0}
    for run in status.unfinished:
        state = "queued" if run.status == "queued" else "running"
        since = run.created if state == "queued" else run.started or run.created
        ages[state] = max(ages[state], (status.at - since).total_seconds())
    oldest = _gauge(
        "oldest_run_seconds", "For how long the oldest run has been waiting, or running.", "state"
    )
    for state, age in ages.items():
        oldest.add_metric([state], age)
    yield oldest

    duration = _gauge(
        "run_duration_seconds", "What the job's last successful run took.", "job_name"
    )
    waited = _gauge(
        "run_queued_seconds", "How long the job's last run waited to start.", "job_name"
    )
    seen: set[tuple[str, str]] = set()
    for run in status.ended:  # newest first
        if run.started and ("waited", run.job) not in seen:
            seen.add(("waited", run.job))
            waited.add_metric([run.job], (run.started - run.created).total_seconds())
        if run.status == "success" and run.started and run.ended:
            if ("took", run.job) not in seen:
                duration.add_metric([run.job], (run.ended - run.started).total_seconds())
            seen.add(("took", run.job))
    yield from (duration, waited)

    failed = _gauge(
        "failed_runs",
        "Failed runs among the newest of the last week with no later run of their work.",
        "job_name",
    )
    for job in sorted({run.job for run in status.ended}):
        failed.add_metric([job], sum(run.job == job for run in status.failed))
    yield failed


def _automation(status: Status) -> Iterable["Metric"]:
    beat = _gauge("daemon_heartbeat_timestamp_seconds", "The daemon's last sign of life.", "daemon")
    for daemon, moment in status.heartbeats.items():
        beat.add_metric([daemon], moment.timestamp())
    yield beat

    tick = _gauge(
        "tick_timestamp_seconds",
        "The last tick of a schedule or sensor that is on.",
        "name",
        "kind",
    )
    late = _gauge(
        "tick_late_timestamp_seconds", "From when on the next tick is late.", "name", "kind"
    )
    failures = _gauge("tick_failures", "Failed ticks in a row, to the newest.", "name", "kind")
    for each in status.instigators:
        if each.last_tick:
            tick.add_metric([each.name, each.kind], each.last_tick.timestamp())
        if each.late_from:
            late.add_metric([each.name, each.kind], each.late_from.timestamp())
        failures.add_metric([each.name, each.kind], each.failures)
    yield from (tick, late, failures)

    broken = _gauge(
        "check_failed",
        "Whether the check failed for its asset's newest partition.",
        "asset",
        "check",
    )
    partitions = _gauge(
        "check_failed_partitions", "Partitions whose last result is a failure.", "asset", "check"
    )
    for check in status.checks:
        broken.add_metric([check.asset, check.name], not check.passed)
        partitions.add_metric([check.asset, check.name], check.failed_partitions)
    yield from (broken, partitions)

    edition = _gauge(
        "digest_edition_timestamp_seconds", "The day of the digest's newest edition, UTC."
    )
    if status.edition:
        midnight = datetime.combine(status.edition, datetime.min.time(), status.at.tzinfo)
        edition.add_metric([], midnight.timestamp())
    yield edition


def _alerts(status: Status) -> Iterable["Metric"]:
    from prometheus_client.core import CounterMetricFamily

    book = status.alerts
    alerts = _gauge("alerts_open", "Alerts that were told and are not over.", "kind")
    kinds = [alert.kind for alert in book.alerts.values()]
    for kind in sorted(set(kinds)):
        alerts.add_metric([kind], kinds.count(kind))
    yield alerts

    waiting = _gauge("alert_messages_waiting", "Messages that some channel has yet to get.")
    waiting.add_metric([], len(book.messages))
    yield waiting

    delivered = CounterMetricFamily(
        "pipeline_alert_deliveries", "Messages that a channel took.", labels=["channel"]
    )
    failures = _gauge("alert_delivery_failures", "Failed deliveries in a row.", "channel")
    for name, channel in book.channels.items():
        delivered.add_metric([name], channel.delivered)
        failures.add_metric([name], channel.failures)
    yield from (delivered, failures)


def _tables(status: Status) -> Iterable["Metric"]:
    figures = {
        name: _gauge(name, text, "table")
        for name, text in {
            "partitions_loaded": "Partitions that are loaded.",
            "partitions_behind": "Closed partitions that were never loaded and aren't held.",
            "partitions_held": "Partitions that the contract holds back.",
            "rows_loaded": "Rows that kept the contract, of loaded partitions.",
            "rows_quarantined": "Rows that broke the contract.",
            "newest_change_timestamp_seconds": "The newest change of the source that was loaded.",
            "newest_partition_timestamp_seconds": "The end of the newest partition that was loaded.",
        }.items()
    }
    for table in status.tables:
        values = {
            "partitions_loaded": table.loaded,
            "partitions_behind": len(set(table.behind) - set(table.held)),
            "partitions_held": len(table.held),
            "rows_loaded": table.rows_loaded,
            "rows_quarantined": table.rows_quarantined,
            "newest_change_timestamp_seconds": table.newest_change,
            "newest_partition_timestamp_seconds": table.newest_window,
        }
        for name, value in values.items():
            if value is not None:
                number = value.timestamp() if isinstance(value, datetime) else value
                figures[name].add_metric([table.name], number)
    yield from figures.values()


def _took(seconds: float) -> "Metric":
    metric = _gauge("scrape_duration_seconds", "What reading the state took.")
    metric.add_metric([], seconds)
    return metric


def _gauge(name: str, text: str, *labels: str) -> "GaugeMetricFamily":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"pipeline_{name}", text, labels=labels)
