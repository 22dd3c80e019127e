"""What Dagster reports to nobody and this project does.

A test for each row of docs/operations.md that test_alerts.py and test_catch_up.py don't cover.
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import serializable_error_info_from_exc_info
from pydantic import SecretStr

from pipeline_assets.definitions import build_definitions
from pipeline_assets.operations import daemon, runs
from pipeline_assets.operations.data import failed_checks, failing_checks, missed_freshness
from pipeline_assets.operations.failed_runs import failed_runs
from pipeline_assets.operations.metrics import _automation
from pipeline_assets.operations.problems import WORDS, Problem, anchor, moment
from pipeline_assets.operations.runs import View
from pipeline_assets.operations.status import deployment_status
from pipeline_assets.resources.dagster_history import Run, watched
from pipeline_assets.settings import Settings
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.operations.watch import QUIET, load

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = "2026-01-07"
ORIGIN = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def view(settings: Settings, instance: dg.DagsterInstance) -> View:
    return View(instance, settings, NOW, build_definitions(settings).get_repository_def())


def add_run(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    *,
    job: str = "load_transactions",
    day: str = DAY,
    created: datetime = NOW,
    started: datetime | None = None,
    ended: datetime | None = None,
) -> dg.DagsterRun:
    """Store a run with these times."""
    from sqlalchemy import text

    run = dg.DagsterRun(
        job_name=job,
        status=status,
        tags={"dagster/partition": day},
        remote_job_origin=RemoteJobOrigin(ORIGIN, job),
    )
    instance.run_storage.add_run(run)
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]  # SQL's has it
        connection.execute(
            text(
                "UPDATE runs SET create_timestamp = :created, start_time = :started,"
                " end_time = :ended WHERE run_id = :run"
            ),
            {
                "created": created.replace(tzinfo=None),
                "started": started and started.timestamp(),
                "ended": ended and ended.timestamp(),
                "run": run.run_id,
            },
        )
    return run


def only(problems: list[Problem]) -> Problem:
    (problem,) = problems
    assert problem.text
    return problem


def shown(view: View) -> list[str]:
    """The kinds of problems that the status shows."""
    known = watched(build_definitions(view.settings))
    status = deployment_status(lambda: view.instance, view.settings, known, view.now)
    return [problem.kind for problem in status.problems]


def test_a_run_that_never_starts(view: View) -> None:
    add_run(view.instance, dg.DagsterRunStatus.NOT_STARTED, created=NOW - timedelta(minutes=9))
    assert runs.waiting_runs(view) == []
    assert "queued" not in shown(view)
    add_run(view.instance, dg.DagsterRunStatus.STARTING, created=NOW - timedelta(minutes=11))
    problem = only(runs.waiting_runs(view))
    assert (problem.kind, problem.subject) == ("run_waiting", "load_transactions")
    assert DAY in problem.title
    assert problem.facts["Owner"] == "data-engineering"
    assert "queued" in shown(view)


def test_a_queue_that_grows(view: View) -> None:
    limited = View(
        view.instance,
        view.settings.model_copy(update={"alert_queue_length": 2}),
        NOW,
        view.repository,
    )
    for number in range(3):
        add_run(view.instance, dg.DagsterRunStatus.QUEUED, day=f"2026-01-1{number}")
        found = runs.waiting_runs(limited)
        assert bool(found) == (number == 2)
    assert only(found).kind == "queue_long"


def test_what_waits_longest_is_seen_however_many_wait(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_assets.operations.runs.MOST_RUNS", 2)
    queued, began = dg.DagsterRunStatus.QUEUED, NOW - timedelta(hours=5)
    add_run(view.instance, queued, job="reconcile_transactions", created=began)
    for _ in range(2):
        add_run(view.instance, queued)
    few = view.settings.model_copy(update={"alert_queue_length": 1})
    waiting, long = runs.waiting_runs(replace(view, settings=few))
    assert (waiting.kind, waiting.subject) == ("run_waiting", "reconcile_transactions")
    assert (long.kind, long.since) == ("queue_long", began)
    assert "2 or more (the oldest 2 were counted)" in long.text


def test_a_run_that_is_stuck_or_slow(view: View) -> None:
    """Its process is gone, and nothing in Dagster says so for hours."""
    for number in range(1, 4):
        begun = NOW - timedelta(days=number)
        add_run(
            view.instance,
            dg.DagsterRunStatus.SUCCESS,
            day=f"2026-01-1{number}",
            started=begun,
            ended=begun + timedelta(minutes=4),
        )
    add_run(view.instance, dg.DagsterRunStatus.STARTED, started=NOW - timedelta(minutes=11))
    assert runs.slow_runs(view) == []
    assert "stuck" not in shown(view)
    stuck = add_run(view.instance, dg.DagsterRunStatus.STARTED, started=NOW - timedelta(minutes=13))
    problem = only(runs.slow_runs(view))
    assert problem.subject == stuck.run_id
    assert "240 s are usual" in problem.text
    assert shown(view).count("stuck") == 1


def test_a_run_that_writes_nothing_any_more(view: View) -> None:
    """No run of its job ever ended, so no length is usual; its process was killed with its code server."""
    orphan = add_run(
        view.instance,
        dg.DagsterRunStatus.STARTED,
        job="never_ended",
        started=NOW - timedelta(minutes=29),
    )
    assert runs.slow_runs(view) == []
    later = replace(view, now=NOW + timedelta(minutes=1))
    problem = only(runs.slow_runs(later))
    assert problem.subject == orphan.run_id
    assert f"never_ended {DAY}" in problem.title
    assert f"has written nothing since {moment(NOW - timedelta(minutes=29))}" in problem.text
    view.instance.report_engine_event("still here", orphan)
    assert runs.slow_runs(later) == []


@pytest.mark.parametrize(
    ("message", "engine", "told"),
    [
        ("Run timed out due to taking longer than 300 seconds to start.", "", "timed out"),
        (None, "Run execution process unexpectedly exited with signal SIGKILL", "SIGKILL"),
    ],
)
def test_a_run_that_ends_without_a_step_that_failed(
    view: View, message: str | None, engine: str, told: str
) -> None:
    run = add_run(view.instance, dg.DagsterRunStatus.STARTED)
    if engine:
        view.instance.report_engine_event(engine, run)
    view.instance.report_run_failed(run, message)
    view.instance.report_engine_event("Retrying the run", run)
    problem = only(failed_runs(view))
    assert told in problem.facts["Cause"]
    assert "run 1 of 3" in problem.facts["Attempt"]


def test_failures_beyond_the_first_page_are_not_mended(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_assets.operations.failed_runs.MOST_RUNS", 2)
    jobs = [f"job_{number}" for number in range(5)]
    for job in jobs:
        view.instance.report_run_failed(
            add_run(view.instance, dg.DagsterRunStatus.STARTED, job=job)
        )
    found = [problem.subject.split()[0] for problem in failed_runs(view)]
    assert sorted(found) == jobs


def test_a_retry_that_is_on_its_way_is_said(view: View) -> None:
    run = add_run(view.instance, dg.DagsterRunStatus.STARTED)
    view.instance.report_run_failed(run)
    view.instance.add_run_tags(
        run.run_id, {"dagster/will_retry": "true", "dagster/retry_number": "1"}
    )
    assert only(failed_runs(view)).facts["Attempt"] == "run 2 of 3; is retried"


def test_a_failed_run_of_a_check_alone_is_mended_by_the_next_days(
    settings: Settings, view: View
) -> None:
    """Its schedule requests another partition each day, and none of them again."""
    server, _, _ = settings.warehouse_database_url.get_secret_value().rpartition("/")  # type: ignore[union-attr]  # the fixture's
    nowhere = settings.model_copy(update={"warehouse_database_url": SecretStr(f"{server}/nowhere")})

    def check(settings: Settings, day: str) -> bool:
        definitions = build_definitions(settings)
        return (
            definitions.resolve_job_def("check_transactions_on_time")
            .execute_in_process(
                instance=view.instance,
                tags={"dagster/partition": day},
                run_config=QUIET,
                raise_on_error=False,
            )
            .success
        )

    def failed() -> list[Run]:
        known = watched(build_definitions(settings))
        return deployment_status(lambda: view.instance, settings, known).failed

    assert not check(nowhere, "2026-01-07")
    assert not check(nowhere, "2026-01-08")
    problem = only(failed_runs(view))
    assert problem.members == ("2026-01-07", "2026-01-08")
    assert "nowhere" in problem.facts["Cause"]
    assert [run.job for run in failed()] == ["check_transactions_on_time"]
    assert check(settings, "2026-01-09")  # it ran, and found that the day isn't there
    assert failed_runs(view) == []
    assert failed() == []


def test_what_another_run_made_since_mends_a_failure(
    view: View, shop: Shop, settings: Settings
) -> None:
    """Any run may make it: the failed run's job needn't run again."""
    shop.put("a")
    shop.connection.execute("ALTER TABLE shop.transactions RENAME TO elsewhere")
    load(settings, view.instance, DAY)
    assert only(failed_runs(view)).facts["Step"] == "raw_transactions"
    shop.connection.execute("ALTER TABLE shop.elsewhere RENAME TO transactions")
    assets = [
        definition
        for definition in build_definitions(settings).assets or []
        if isinstance(definition, dg.AssetsDefinition)
        and definition.keys
        & {
            dg.AssetKey("raw_transactions"),
            dg.AssetKey("validated_transactions"),
            dg.AssetKey("fct_transactions"),
        }
    ]
    assert len(assets) == 3
    from pipeline_assets.definitions import build_resources

    for definition in assets:
        assert failed_runs(view)
        assert dg.materialize(
            [definition],
            instance=view.instance,
            partition_key=DAY,
            resources=build_resources(settings),
            run_config=QUIET,
        ).success
    assert failed_runs(view) == []


def state(
    instance: dg.DagsterInstance,
    name: str,
    *,
    status: InstigatorStatus = InstigatorStatus.RUNNING,
    cron: str | None = None,
    since: datetime = NOW - timedelta(days=30),
) -> InstigatorState:
    """A sensor's or a schedule's state, as the daemon stores it, switched on at `since`."""
    begun = since.timestamp()
    return instance.add_instigator_state(
        InstigatorState(
            RemoteInstigatorOrigin(ORIGIN, name),
            InstigatorType.SCHEDULE if cron else InstigatorType.SENSOR,
            status,
            ScheduleInstigatorData(cron, begun)
            if cron
            else SensorInstigatorData(last_sensor_start_timestamp=begun),
        )
    )


def tick(
    instance: dg.DagsterInstance, of: InstigatorState, ago: timedelta, status: TickStatus
) -> None:
    error = None
    if status == TickStatus.FAILURE:
        try:
            try:
                raise ConnectionError("no route to host")
            except ConnectionError as cause:
                raise dg.DagsterError("Error occurred during the evaluation") from cause
        except dg.DagsterError:
            error = serializable_error_info_from_exc_info(sys.exc_info())
    instance.create_tick(
        TickData(
            instigator_origin_id=of.instigator_origin_id,
            instigator_name=of.name,
            instigator_type=of.instigator_type,
            status=status,
            timestamp=(NOW - ago).timestamp(),
            selector_id=of.selector_id,
            error=error,
            run_ids=[],
        )
    )


def test_a_tick_that_fails_until_one_works(view: View) -> None:
    sensor = state(view.instance, "missed_mornings")
    tick(view.instance, sensor, timedelta(minutes=3), TickStatus.FAILURE)
    tick(view.instance, sensor, timedelta(0), TickStatus.STARTED)
    problem = only(daemon.failing_ticks(view))
    assert problem.facts["What"] == "missed_mornings"
    assert problem.facts["Cause"] == "ConnectionError: no route to host"
    tick(view.instance, sensor, timedelta(minutes=1), TickStatus.SKIPPED)
    tick(view.instance, sensor, timedelta(0), TickStatus.STARTED)
    assert daemon.failing_ticks(view) == []


def test_a_tick_that_does_not_come(view: View) -> None:
    awake = NOW - timedelta(days=1)
    sensor = state(view.instance, "missed_mornings")
    tick(view.instance, sensor, timedelta(minutes=11), TickStatus.SKIPPED)
    assert only(daemon.late_ticks(view, awake)).subject == "missed_mornings"
    assert daemon.late_ticks(view, NOW - timedelta(minutes=1)) == [], (
        "the daemon has just come back"
    )
    tick(view.instance, sensor, timedelta(minutes=1), TickStatus.SKIPPED)
    assert daemon.late_ticks(view, awake) == []


def test_a_sensor_that_has_just_been_switched_on_is_not_late(view: View) -> None:
    awake = NOW - timedelta(days=2)
    sensor = state(view.instance, "missed_mornings", since=NOW - timedelta(minutes=3))
    tick(view.instance, sensor, timedelta(days=1), TickStatus.SKIPPED)
    assert daemon.late_ticks(view, awake) == []
    later = replace(view, now=NOW + timedelta(minutes=9))
    assert only(daemon.late_ticks(later, awake)).subject == "missed_mornings"


@pytest.mark.parametrize(
    ("interval", "late"), [(60, 11), (600, 60)], ids=["each minute", "each ten minutes"]
)
def test_alerts_status_and_metrics_have_one_idea_of_late(
    view: View, interval: int, late: int
) -> None:
    @dg.sensor(name="looks", minimum_interval_seconds=interval)
    def looks() -> None: ...

    definitions = dg.Definitions(sensors=[looks])
    tick(view.instance, state(view.instance, "looks"), timedelta(0), TickStatus.SKIPPED)

    def are_late(minutes: float) -> tuple[bool, bool, bool]:
        """What alerts, status and metrics say so many minutes after the tick."""
        now = NOW + timedelta(minutes=minutes)
        at = replace(view, now=now, repository=definitions.get_repository_def())
        told = daemon.late_ticks(at, NOW - timedelta(days=1))
        status = deployment_status(lambda: view.instance, view.settings, watched(definitions), now)
        (moment,) = (
            sample.value
            for metric in _automation(status)
            for sample in metric.samples
            if sample.name == "pipeline_tick_late_timestamp_seconds"
        )
        shown = [problem.kind for problem in status.problems if problem.kind == "tick"]
        return bool(told), bool(shown), now.timestamp() >= moment

    assert are_late(late - 0.1) == (False, False, False)
    assert are_late(late) == (True, True, True)


def test_a_look_at_the_ticks_asks_once_for_all(view: View) -> None:
    """Dagster's own query takes 0.1 s per sensor, with a week of a hundred sensors' ticks stored."""
    from sqlalchemy import event

    for sensor in view.repository.sensor_defs:
        tick(
            view.instance, state(view.instance, sensor.name), timedelta(days=1), TickStatus.FAILURE
        )
    asked: list[str] = []
    storage: Any = view.instance.event_log_storage, view.instance.schedule_storage
    for part in storage:
        event.listen(part._engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    for look in (
        daemon.failing_ticks,
        lambda view: daemon.late_ticks(view, NOW - timedelta(days=1)),
    ):
        asked.clear()
        assert len(look(view)) == len(view.repository.sensor_defs) > 1
        assert sum("FROM job_ticks" in statement for statement in asked) == 1


def test_a_schedule_that_does_not_start_its_run(settings: Settings, view: View) -> None:
    """It was due at 05:00."""
    schedule = state(view.instance, "reconcile_transactions_daily", cron="0 5 * * *")
    five = NOW.replace(hour=5, minute=0, second=0)
    day_before = NOW - (five - timedelta(days=1))
    tick(view.instance, schedule, day_before, TickStatus.SUCCESS)

    def seen(minute: int) -> list[Problem]:
        at = View(view.instance, settings, five + timedelta(minutes=minute), view.repository)
        return daemon.late_ticks(at, five - timedelta(days=2))

    assert seen(9) == []
    assert "05:00" in only(seen(11)).facts["Cause"]
    tick(view.instance, schedule, NOW - five, TickStatus.SUCCESS)
    assert seen(11) == []


def test_what_somebody_switched_off_and_forgot(settings: Settings, view: View) -> None:
    state(view.instance, "missed_mornings", status=InstigatorStatus.STOPPED)
    assert daemon.switched_off(view) == [], "where automation is off by default that is normal"
    on = build_definitions(settings.model_copy(update={"pipeline_automation": "running"}))
    running = View(view.instance, settings, NOW, on.get_repository_def())
    assert only(daemon.switched_off(running)).subject == "missed_mornings"


def test_a_freshness_that_dagster_knows_and_tells_nobody(view: View) -> None:
    from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange

    assert missed_freshness(view) == []
    key = dg.AssetKey("fct_transactions")
    for new in (FreshnessState.FAIL, FreshnessState.PASS):
        view.instance.report_runless_asset_event(
            FreshnessStateChange(
                key=key,
                new_state=new,
                previous_state=FreshnessState.UNKNOWN,
                state_change_timestamp=NOW.timestamp(),
            )
        )
        assert [problem.subject for problem in missed_freshness(view)] == (
            ["fct_transactions"] if new == FreshnessState.FAIL else []
        )


def test_every_contract_with_a_latency_gives_its_asset_a_freshness_policy(view: View) -> None:
    graph = view.repository.asset_graph
    fresh = {
        key.to_user_string()
        for key in graph.get_all_asset_keys()
        if graph.get(key).freshness_policy
    }
    assert fresh == {"fct_transactions", "news_articles", "news_digest", "purchase_predictions"}


def test_a_backfill_that_dagster_gave_up(view: View) -> None:
    from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

    view.instance.add_backfill(
        PartitionBackfill(
            backfill_id="abcdefgh",
            status=BulkActionStatus.FAILED,
            from_failure=False,
            tags={},
            backfill_timestamp=NOW.timestamp(),
            partition_names=[],
            reexecution_steps=None,
            title="January",
        )
    )
    assert only(runs.failed_backfills(view)).title == "Backfill failed: January"


def test_a_daemon_that_is_silent(view: View) -> None:
    from dagster._daemon.types import DaemonHeartbeat

    def beat(at: datetime) -> None:
        for kind in view.instance.get_required_daemon_types():
            view.instance.add_daemon_heartbeat(DaemonHeartbeat(at.timestamp(), kind, "id", []))

    beat(NOW - timedelta(minutes=6))
    assert only(daemon.silent_daemons(view.instance, NOW)).kind == "daemon_silent"
    beat(datetime.now(UTC))
    assert daemon.silent_daemons(view.instance, NOW) == []


def test_failing_checks_are_what_dagsters_own_api_says(
    view: View, shop: Shop, settings: Settings
) -> None:
    """Our query is compared with Dagster's API, which takes ten times as long."""
    shop.put("bad", status="lost")
    shop.put("good", day=1)
    shop.put("worse", day=2, quantity=0)
    for day in ("2026-01-07", "2026-01-08", "2026-01-09"):
        load(settings, view.instance, day)
    shop.put("worse", day=2, quantity=1)
    load(settings, view.instance, "2026-01-09")
    keys = sorted(view.repository.asset_graph.asset_check_keys)
    ours = {
        (failed.key, failed.partition)
        for failed in failing_checks(view.instance, view.ago(runs.HORIZON))
    }
    theirs = {
        (info.check_key, info.partition_key)
        for info in view.instance.event_log_storage.get_asset_check_partition_info(keys)
        if info.latest_execution_status.value == "FAILED"
    }
    status = dg.AssetCheckKey(dg.AssetKey("validated_transactions"), "status_known")
    assert ours == theirs
    assert (status, "2026-01-07") in ours


def test_a_check_of_a_run_that_was_deleted_blinds_nobody(
    view: View, shop: Shop, settings: Settings
) -> None:
    """Dagster deletes a run's events with the run, and keeps its checks' results."""
    shop.put("bad", status="lost")
    shop.put("worse", day=1, quantity=0)
    deleted = load(settings, view.instance, "2026-01-07").run_id
    load(settings, view.instance, "2026-01-08")
    view.instance.delete_run(deleted)
    found = failing_checks(view.instance, view.ago(runs.HORIZON))
    assert {failed.partition for failed in found} == {"2026-01-08"}


def test_a_refused_model_is_one_problem_until_a_later_one_is_accepted(view: View) -> None:
    def report(week: str, check: str, severity: str, *, passed: bool) -> list[Problem]:
        view.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("trained_model"),
                check_name=check,
                passed=passed,
                metadata={},
                partition=week,
                severity=dg.AssetCheckSeverity(severity),
            )
        )
        return failed_checks(view, failing_checks(view.instance, view.ago(runs.HORIZON)))

    report("2026-05-05", "auc_sufficient", "ERROR", passed=False)
    refused = only(report("2026-05-05", "calibrated", "ERROR", passed=False))
    assert refused.fingerprint == "model_refused trained_model"
    assert refused.members == ("2026-05-05",)
    assert "auc_sufficient" in refused.facts["Cause"]
    assert "calibrated" in refused.facts["Cause"]
    report("2026-05-12", "auc_sufficient", "ERROR", passed=True)
    assert report("2026-05-12", "calibrated", "WARN", passed=False) == []


@pytest.mark.parametrize("check", ["score_drift", "realised_performance"])
def test_of_the_predictions_state_only_the_newest_week_tells(view: View, check: str) -> None:
    def report(week: str, name: str, *, passed: bool) -> list[tuple[str, tuple[str, ...]]]:
        view.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("purchase_predictions"),
                check_name=name,
                passed=passed,
                metadata={},
                partition=week,
                severity=dg.AssetCheckSeverity.WARN,
            )
        )
        found = failed_checks(view, failing_checks(view.instance, view.ago(runs.HORIZON)))
        return [(problem.subject, problem.members) for problem in found]

    subject = f"purchase_predictions {check}"
    assert report("2026-05-04", check, passed=False) == [(subject, ("2026-05-04",))]
    # A newer week's result replaces it, failed or passed; that of an older week, scored later, doesn't.
    assert report("2026-05-11", check, passed=False) == [(subject, ("2026-05-11",))]
    assert report("2026-04-27", check, passed=False) == [(subject, ("2026-05-11",))]
    assert report("2026-05-18", check, passed=True) == []
    assert report("2026-04-20", check, passed=False) == []
    # For the other checks, each week counts by itself.
    distribution = "purchase_predictions distribution"
    report("2026-05-04", "distribution", passed=False)
    assert report("2026-05-11", "distribution", passed=True) == [(distribution, ("2026-05-04",))]


def test_the_runbook_has_an_entry_for_each_alert() -> None:
    headings = {
        line.removeprefix("## ").lower().replace(" ", "-").replace("'", "")
        for line in (ROOT / "docs" / "runbook.md").read_text().splitlines()
        if line.startswith("## ")
    }
    assert {anchor(kind) for kind in WORDS} <= headings


def test_a_service_level_is_a_check_that_runs_when_the_newest_day_is_due(
    settings: Settings, view: View, shop: Shop
) -> None:
    from pipeline_assets.definitions import build_resources

    shop.put("a")
    definitions = build_definitions(settings)
    schedule = definitions.get_repository_def().get_schedule_def("check_transactions_on_time_daily")
    assert schedule.cron_schedule == "00 02 * * *", "26 hours after a day began"
    tick = schedule.evaluate_tick(
        dg.build_schedule_context(
            instance=view.instance,
            repository_def=definitions.get_repository_def(),
            scheduled_execution_time=datetime(2026, 1, 8, 2, tzinfo=UTC),
        )
    )
    (request,) = tick.run_requests or []
    assert request.tags["dagster/partition"] == DAY

    def passed() -> bool:
        result = definitions.resolve_job_def("check_transactions_on_time").execute_in_process(
            instance=view.instance,
            tags=request.tags,
            run_config=QUIET,
            resources=build_resources(settings),
        )
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation.passed

    assert not passed()
    assert load(settings, view.instance, DAY).success
    assert passed()


def test_a_weekly_service_level_is_checked_when_the_newest_week_is_due(
    settings: Settings, view: View
) -> None:
    repository = build_definitions(settings).get_repository_def()
    schedule = repository.get_schedule_def("check_purchase_predictions_on_time_weekly")
    assert schedule.cron_schedule == "00 00 * * 2", "Tuesday, 8 days after a week began"

    def requested(day: int) -> str:
        tick = schedule.evaluate_tick(
            dg.build_schedule_context(
                instance=view.instance,
                repository_def=repository,
                scheduled_execution_time=datetime(2026, 6, day, tzinfo=UTC),
            )
        )
        (request,) = tick.run_requests or []
        return request.tags["dagster/partition"]

    assert (requested(9), requested(16)) == ("2026-06-01", "2026-06-08")
    steps = {node.name for node in repository.get_job("score_customers").nodes}
    assert steps == {"purchase_predictions"}, (
        "whether a week is there isn't for the run that makes it"
    )
