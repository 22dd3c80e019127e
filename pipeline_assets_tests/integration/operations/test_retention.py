"""Retention removes what is old, and no partition looks missing or out of step afterwards."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from sqlalchemy import text

from pipeline_assets.definitions import build_definitions, build_resources
from pipeline_assets.operations.retention import remove_archive
from pipeline_assets.resources import dagster_instance
from pipeline_assets.resources.dagster_history import checks, watched
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.status import days_to_load
from pipeline_assets.warehouse.tables import load_tables
from pipeline_assets_tests.conftest import Shop

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
DAYS = ("2026-01-07", "2026-01-08")
LONG_AGO = datetime.now(UTC) - timedelta(days=400)


def run(settings: Settings, instance: dg.DagsterInstance, job: str, day: str | None = None) -> Any:
    return (
        build_definitions(settings)
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance, partition_key=day, run_config=QUIET, raise_on_error=False
        )
    )


def age(settings: Settings, instance: dg.DagsterInstance, warehouse: psycopg.Connection) -> None:
    """Make everything that was written so far 400 days older."""
    with instance.event_log_storage.index_transaction() as connection:  # type: ignore[attr-defined]  # PostgreSQL's has it
        connection.execute(
            text("UPDATE event_logs SET timestamp = timestamp - interval '400 days'")
        )
    warehouse.execute(
        "UPDATE quarantine.transactions SET quarantined_at = quarantined_at - interval '400 days'"
    )
    for file in (settings.pipeline_data_dir / "partitions").rglob("*.parquet"):
        os.utime(file, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))


def statuses(settings: Settings, instance: dg.DagsterInstance) -> dict[str, Any]:
    """All that Dagster says of partitions, checks and runs."""
    definitions = build_definitions(settings)
    graph = definitions.resolve_asset_graph()
    partitions = {}
    for key in graph.materializable_asset_keys:
        if definition := graph.get(key).partitions_def:
            found = instance.get_status_by_partition(key, list(DAYS), definition)
            partitions[key.to_user_string()] = {
                day: str(state) for day, state in (found or {}).items()
            }
    return {
        "partitions": partitions,
        "materializations": {
            key.to_user_string(): instance.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION
            )
            for key in graph.materializable_asset_keys
            if key.path[-1] != "retention_report"
        },
        "checks": {
            (check.asset, check.name): (check.partition, check.passed, check.failed_partitions)
            for check in checks(instance, watched(definitions).checks, LONG_AGO)
            if check.asset != "retention_report"
        },
        "runs": {
            record.run_id: (record.status, instance.get_run_stats(record.run_id).end_time)
            for record in instance.get_runs()
            if record.job_name != "apply_retention"
        },
    }


def test_old_history_goes_and_every_partition_and_check_stays(
    settings: Settings,
    instance: dg.DagsterInstance,
    shop: Shop,
    warehouse: psycopg.Connection,
) -> None:
    shop.put("good")
    for number in range(40):
        shop.put(f"fine {number}", second=number)
    shop.put("free", second=50, amount="0.00")  # breaks a rule, within its bound: set aside
    shop.put("bad", day=1, status="lost")  # holds its day
    assert run(settings, instance, "load_transactions", DAYS[0]).success
    held = run(settings, instance, "load_transactions", DAYS[1])
    assert not held.success
    (old_run,) = [found.run_id for found in instance.get_runs() if found.is_success]
    logs = settings.pipeline_data_dir / "compute_logs" / old_run
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "printed.err").write_text("what a step printed")
    age(settings, instance, warehouse)
    before = statuses(settings, instance)
    assert before["partitions"]["fct_transactions"][DAYS[0]].endswith("MATERIALIZED")
    events = len(instance.all_logs(old_run))
    in_step = DAYS[0] not in days_to_load(settings, load_tables()[0])

    result = run(settings, instance, "apply_retention")

    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.passed
    assert evaluation.metadata["partitions"].value >= 4
    (removed,) = result.asset_materializations_for_node("retention_report")
    figures = {name: value.value for name, value in removed.metadata.items()}
    assert figures["runs_emptied_of_logs"] == 2
    assert figures["events_removed"] >= 10
    assert (figures["files_removed"], figures["quarantined_rows_emptied"]) == (4, 1)
    kept = instance.all_logs(old_run)
    assert len(kept) < events
    assert not logs.exists()
    assert statuses(settings, instance) == before
    # The set-aside row stays, emptied, so its day is in step; the held day's row keeps its values.
    assert in_step
    assert DAYS[0] not in days_to_load(settings, load_tables()[0])
    assert warehouse.execute(
        "SELECT split_part(source_identity, '|', 1), broken_rules, source_row ->> 'status'"
        " FROM quarantine.transactions ORDER BY 1"
    ).fetchall() == [("bad", ["status_known"], "lost"), ("free", ["amount_positive"], None)]
    # Nothing is left to do, and a new load of the day works without the files that are gone.
    again = run(settings, instance, "apply_retention")
    (removed,) = again.asset_materializations_for_node("retention_report")
    assert [removed.metadata[name].value for name in ("events_removed", "files_removed")] == [0, 0]
    assert run(settings, instance, "load_transactions", DAYS[0]).success


def test_nothing_young_goes(
    settings: Settings, instance: dg.DagsterInstance, shop: Shop, warehouse: psycopg.Connection
) -> None:
    shop.put("good")
    assert run(settings, instance, "load_transactions", DAYS[0]).success
    (young,) = instance.get_runs()
    events = len(instance.all_logs(young.run_id))
    files = sorted((settings.pipeline_data_dir / "partitions").rglob("*"))
    assert run(settings, instance, "apply_retention").success
    assert len(instance.all_logs(young.run_id)) == events
    assert sorted((settings.pipeline_data_dir / "partitions").rglob("*")) == files


def test_only_layers_that_can_be_made_again_lose_files(settings: Settings) -> None:
    files = build_resources(settings)["files"]
    root = Path(files.root)
    for name in ("raw_x", "validated_x", "training_snapshots"):
        (root / name).mkdir(parents=True)
        (root / name / "2026-01-07.parquet").write_bytes(b"")
    (root / "raw_x" / "2026-01-08.parquet.abc.part").write_bytes(b"")  # of a killed run
    now = datetime.now(UTC)
    assert files.remove(("raw_", "validated_"), now - timedelta(days=1)) == 0
    assert files.remove(("raw_", "validated_"), now + timedelta(days=1)) == 3
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["2026-01-07.parquet"]
    assert (root / "training_snapshots" / "2026-01-07.parquet").exists()


def test_the_archive_loses_old_days_and_keeps_the_figures_beside_them(tmp_path: Path) -> None:
    for name in ("rss/2026-01-01", "rss/2026-02-01", "newsapi/2026-01-01", "rss/notes"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "index.json").write_text("{}")
    (tmp_path / "2026-01-01.json").write_text("{}")
    assert remove_archive(tmp_path, datetime(2026, 2, 1, tzinfo=UTC)) == 2
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
        "rss/2026-02-01",
        "rss/notes",
    ]
    assert (tmp_path / "2026-01-01.json").exists()


def test_its_check_notices_when_a_partition_is_lost(
    settings: Settings,
    instance: dg.DagsterInstance,
    shop: Shop,
    warehouse: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop.put("good")
    assert run(settings, instance, "load_transactions", DAYS[0]).success
    age(settings, instance, warehouse)
    wrong = (*dagster_instance.REMOVABLE_EVENTS, "ASSET_MATERIALIZATION")
    monkeypatch.setattr(dagster_instance, "REMOVABLE_EVENTS", wrong)

    (evaluation,) = run(settings, instance, "apply_retention").get_asset_check_evaluations()

    assert not evaluation.passed
    assert f"fct_transactions/{DAYS[0]}" in evaluation.metadata["lost"].value
