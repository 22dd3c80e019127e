"""The metrics as Prometheus gets them, from a real instance and warehouse, and what is built on them."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import requests
from pydantic import SecretStr

from pipeline_assets.definitions import build_definitions
from pipeline_assets.operations import metrics
from pipeline_assets.operations.status import Status, TableState, deployment_status, table_states
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.dagster_history import watched
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.ledger import ensure_schema
from pipeline_assets_tests.conftest import Shop
from pipeline_assets_tests.integration.operations.test_retention import DAYS, run

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
NAMED = re.compile(r"\bpipeline_[a-z_]+")


def reader(settings: Settings, instance: dg.DagsterInstance) -> Callable[[], Status]:
    """A function that reads the state of a test's instance and warehouse."""
    known = watched(build_definitions(settings))
    return lambda: deployment_status(lambda: instance, settings, known)


@contextmanager
def served(read: Callable[[], Status]) -> Iterator[str]:
    """The endpoint's address until the block ends."""
    server, thread = metrics.serve(read, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def scrape(address: str) -> dict[tuple[str, ...], float]:
    """(metric, label values in the order of their names) -> value."""
    from prometheus_client.parser import text_string_to_metric_families

    answer = requests.get(address, timeout=60)
    answer.raise_for_status()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_the_metrics_say_what_happened(
    settings: Settings, instance: dg.DagsterInstance, shop: Shop
) -> None:
    shop.put("good")
    for number in range(60):
        shop.put(f"fine {number}", second=number)
    shop.put("free", second=60, amount="0.00")
    shop.put("bad", day=1, status="lost")
    assert run(settings, instance, "load_transactions", DAYS[0]).success
    assert not run(settings, instance, "load_transactions", DAYS[1]).success

    with served(reader(settings, instance)) as address:
        found = scrape(address)

    assert found["pipeline_up", "dagster"] == found["pipeline_up", "warehouse"] == 1
    assert found["pipeline_runs", "success"] == found["pipeline_runs", "failure"] == 1
    assert found["pipeline_failed_runs", "load_transactions"] == 1
    assert found["pipeline_oldest_run_seconds", "queued"] == 0
    assert 0 < found["pipeline_run_duration_seconds", "load_transactions"] < 300
    assert found["pipeline_rows_loaded", "transactions"] == 61
    assert found["pipeline_rows_quarantined", "transactions"] == 2
    assert found["pipeline_partitions_loaded", "transactions"] == 1
    assert found["pipeline_partitions_held", "transactions"] == 1
    first = settings.warehouse_start_date
    closed = (datetime.now(UTC).date() - first).days
    # One is loaded and one held. In the hour after midnight that a load may take, the newest isn't behind.
    assert found["pipeline_partitions_behind", "transactions"] in (closed - 2, closed - 3)
    assert (
        found["pipeline_newest_change_timestamp_seconds", "transactions"]
        == datetime(2026, 1, 7, 0, 1, tzinfo=UTC).timestamp()
    )
    assert found["pipeline_check_failed", "validated_transactions", "status_known"] == 1
    assert found["pipeline_check_failed", "validated_transactions", "amount_positive"] == 0
    assert found["pipeline_problems", "held"] == 1
    assert found["pipeline_problems", "any"] >= 3


def test_weekly_tables_and_those_that_only_have_held_partitions_have_their_rows(
    settings: Settings, warehouse: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for contract in map(load_contract, ("purchase_predictions", "news_articles")):
        ensure_schema(warehouse, contract)
    warehouse.execute(
        """INSERT INTO pipeline.batches (table_name, partition_key, window_start, window_end, verdict,
               rows_extracted, rows_valid, rows_quarantined, violations, broken_rules, content_hash,
               contract_version, code_version, validated_by, loaded_hash)
           SELECT name, key, key::timestamptz, key::timestamptz + length::interval, verdict,
               9, 9, 0, '{}', '{}', 'h', '1', '1', 'run', loaded
           FROM (VALUES ('purchase_predictions', '2026-06-01', '7 days', 'passed', 'h'),
                        ('purchase_predictions', '2026-06-15', '7 days', 'passed', 'h'),
                        ('news_articles', '2026-06-27', '1 day', 'failed', NULL)
                ) AS found (name, key, length, verdict, loaded)"""
    )

    def states(now: datetime) -> dict[str, TableState]:
        return {state.name: state for state in table_states(settings, now)}

    monday = states(datetime(2026, 6, 29, 23, 59, tzinfo=UTC))
    weeks, mornings = monday["purchase_predictions"], monday["news_articles"]
    assert (weeks.loaded, weeks.rows_loaded, weeks.behind) == (2, 18, ["2026-06-08"])
    assert (mornings.loaded, mornings.held) == (0, ["2026-06-27"])
    tuesday = states(datetime(2026, 6, 30, tzinfo=UTC))
    assert tuesday["purchase_predictions"].behind == ["2026-06-08", "2026-06-22"]

    # Without the table that the model learnt from, nothing makes the weeks after its last one.
    monkeypatch.setattr("pipeline_assets.operations.status.load_tables", list)
    assert list(states(datetime(2026, 6, 30, tzinfo=UTC))) == ["news_articles"]


def test_a_database_that_is_down_is_a_sample_not_a_crash(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    gone = settings.model_copy(
        update={"warehouse_database_url": SecretStr("postgresql://me:hidden@127.0.0.1:1/none")}
    )
    with served(reader(gone, instance)) as address:
        found = scrape(address)
    assert (found["pipeline_up", "dagster"], found["pipeline_up", "warehouse"]) == (1, 0)
    assert ("pipeline_partitions_behind", "transactions") not in found
    status = reader(gone, instance)()
    assert [problem.kind for problem in status.problems] == ["unreadable"]
    assert "hidden" not in str(status)

    def refused() -> dg.DagsterInstance:
        raise ConnectionError("could not connect to server")

    known = watched(build_definitions(settings))
    with served(lambda: deployment_status(refused, settings, known)) as address:
        found = scrape(address)
    assert (found["pipeline_up", "dagster"], found["pipeline_up", "warehouse"]) == (0, 1)
    assert found["pipeline_problems", "unreadable"] == 1


def test_scrapers_at_the_same_moment_cost_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    def state() -> Status:
        nonlocal read
        read += 1
        return Status(datetime.now(UTC), "dev", automated=False, late=timedelta(0))

    monkeypatch.setattr(metrics, "FRESH", 3600.0)
    with served(state) as address:
        assert scrape(address) == scrape(address)
    assert read == 1


def test_rules_and_dashboard_name_only_metrics_that_exist(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    with served(reader(settings, instance)) as address:
        text = requests.get(address, timeout=60).text
    exist = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    on_dashboard = set(NAMED.findall(" ".join(queries)))
    in_rules = set(NAMED.findall((MONITORING / "alerts.rules.yaml").read_text()))
    assert in_rules <= exist
    assert on_dashboard <= exist
    # And the other way round: a metric that neither of them uses needn't exist.
    assert exist - on_dashboard - in_rules == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def promtool(*arguments: str) -> None:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is missing: it comes with Debian's package prometheus")
    done = subprocess.run(
        [path, *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_alert_rules_fire_when_they_should() -> None:
    promtool("check", "rules", "alerts.rules.yaml")
    promtool("test", "rules", "alerts.test.yaml")
    promtool("check", "config", "prometheus.yaml")
    rules = set(re.findall(r"alert: (\w+)", (MONITORING / "alerts.rules.yaml").read_text()))
    proven = set(
        re.findall(
            r"alertname: (\w+)\n\s+exp_alerts", (MONITORING / "alerts.test.yaml").read_text()
        )
    )
    assert rules == proven
