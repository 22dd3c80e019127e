"""How assets of every domain run: what is tried again, and what isn't.

A failure can be tried again at three layers, each for its own kind: a request (`resources.http`), a step
(`RETRY`) and a run. Dagster repeats a run, from the step it was at, only if its worker died or Dagster's own
database went away meanwhile (`run_retries` in dagster.yaml, `resources.dagster_instance`): a step that
failed has been tried often enough, or trying again can't help.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg

from pipeline_assets.failures import PERMANENT, NotYetError, PermanentError, is_transient
from pipeline_assets.quality.contract import Contract

# Long enough for a database or a network to come back, and jittered: not all workers in the same second.
RETRY = dg.RetryPolicy(
    max_retries=4, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

TRIED_AGAIN = timedelta(hours=1)
"""How long a partition whose run failed is left alone: what was away at 8 may be back at 9."""

NOT_FINISHED = [
    status
    for status in dg.DagsterRunStatus
    if status.value not in ("SUCCESS", "FAILURE", "CANCELED")
]


def under_way(
    instance: dg.DagsterInstance, jobs: Collection[str], assets: Collection[dg.AssetKey]
) -> list[dg.DagsterRun]:
    """The unfinished runs of the jobs, and others that materialize one of the assets.

    What is started from the graph in the UI, or by a backfill, is of no job of ours.
    """
    return [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED))
        if run.job_name in jobs or set(assets) & (run.asset_selection or set())
    ]


def may_do_better(instance: dg.DagsterInstance, record: dg.RunRecord, now: datetime) -> bool:
    """Whether a run failed at least an hour ago, for a reason that may be gone by now.

    A failed blocking check isn't such a reason: it judged what is stored, and would judge the same again.
    """
    run = record.dagster_run
    if run.status != dg.DagsterRunStatus.FAILURE or PERMANENT in run.tags:
        return False
    if now - datetime.fromtimestamp(record.end_time or 0, UTC) < TRIED_AGAIN:
        return False
    return not _blocked(instance, run.run_id)


def _blocked(instance: dg.DagsterInstance, run_id: str) -> bool:
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    for entry in instance.all_logs(run_id, of_type=kind):
        found = entry.dagster_event and entry.dagster_event.event_specific_data
        if (
            isinstance(found, dg.AssetCheckEvaluation)
            and found.blocking
            and not found.passed
            and found.severity == dg.AssetCheckSeverity.ERROR
        ):
            return True
    return False


def freshness(contract: Contract) -> dg.FreshnessPolicy | None:
    """The contract's latency as Dagster's policy: how old the newest materialization may be.

    Daily partitions are due a day apart, each that long after its window began.
    """
    hours = contract.latency_hours
    return dg.FreshnessPolicy.time_window(timedelta(hours=hours)) if hours else None


def with_own_checks(assets: Sequence[dg.AssetsDefinition]) -> dg.AssetSelection:
    """Assets and the checks whose results their own runs report.

    Not the checks that others define on them, as operations do: whether a day is there on time is not for
    the run that loads it to say.
    """
    checks = [spec.key for asset in assets for spec in asset.check_specs]
    return dg.AssetSelection.assets(*assets).without_checks() | dg.AssetSelection.checks(*checks)


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Keep Dagster from retrying what a retry can't fix: every error that isn't `is_transient`."""
    try:
        yield
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:
        if is_transient(error):
            raise
        if not isinstance(error, NotYetError):
            _tag_run()
        # A PermanentError is worded for people; any other error's class is half of what it says.
        message = str(error) if isinstance(error, PermanentError) else _named(error)
        raise dg.Failure(message, allow_retries=False) from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _tag_run() -> None:
    try:
        context = dg.AssetExecutionContext.get()
    except dg.DagsterInvariantViolationError:  # called outside of a run
        return
    context.instance.add_run_tags(context.run.run_id, {PERMANENT: "true"})
