"""How assets of every domain run: what is tried again, and what isn't.

A failure can be tried again at three layers, and each knows its kind: a request (`resources.http`), a
step (`RETRY`) and a run. Dagster repeats a run only if its worker died, or its own database went away
under it, from the step it was at (`run_retries` in dagster.yaml, `resources.dagster_instance`): a step
that failed has been tried often enough, or can't be mended.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg

from pipeline_assets.failures import PERMANENT, NotYetError, PermanentError, is_transient
from pipeline_assets.quality.contract import Contract

# What a database or a network needs to come back, and not all workers in the same second.
RETRY = dg.RetryPolicy(
    max_retries=4, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

TRIED_AGAIN = timedelta(hours=1)
"""How long a partition whose run failed is left alone: what was away at 8 may be back at 9."""


def may_do_better(instance: dg.DagsterInstance, record: dg.RunRecord, now: datetime) -> bool:
    """Whether a run failed an hour ago or longer, of what another run may find mended.

    A blocking check that failed isn't: it judged what is stored, and would judge the same again.
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
    """The contract's latency as Dagster's policy: so old may the newest materialization be.

    Daily partitions are due a day apart, each that long after its window began.
    """
    hours = contract.latency_hours
    return dg.FreshnessPolicy.time_window(timedelta(hours=hours)) if hours else None


def with_own_checks(assets: Sequence[dg.AssetsDefinition]) -> dg.AssetSelection:
    """Assets and the checks that their runs bring the results of.

    Not those that others put to them, as operations do: whether a day is there by its time is not for
    the run that loads it.
    """
    checks = [spec.key for asset in assets for spec in asset.check_specs]
    return dg.AssetSelection.assets(*assets).without_checks() | dg.AssetSelection.checks(*checks)


@contextmanager
def permanent_failures() -> Iterator[None]:
    """Keep Dagster from retrying what a retry can't mend: all that `is_transient` doesn't know."""
    try:
        yield
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:
        if is_transient(error):
            raise
        if not isinstance(error, NotYetError):
            _tag_run()
        # A permanent error is worded for people; of another the kind is half of what it says.
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
