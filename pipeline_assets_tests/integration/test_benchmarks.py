"""The benchmark's harness runs, and judges what a tool leaves behind; its figures aren't tested."""

import json
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
from typer.testing import CliRunner

from benchmarks import data, growth, load, orchestrators, report, services
from benchmarks.systems import Dagster
from pipeline_assets.resources import embedded_postgres


@pytest.mark.slow
def test_the_harness_measures_and_finds_what_a_tool_did_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "load.json")
    # Too few rows for one in 60,000 to be older or deleted, enough for one in 1,000 to be bad.
    load.main(
        rows=12_000, runs=1, case=["mixed6"], tool=["floor", "functions"], folder=tmp_path / "bench"
    )
    results = {result["tool"]: result for result in json.loads(report.RESULTS.read_text())}
    floor, ours = (
        results["psql: COPY, sorted upsert"],
        results["pipeline_assets, warm, without Dagster"],
    )
    assert floor["case"] == ours["case"] == "2k mixed into 12k"
    assert floor["wrong"]["bad"] > 0
    assert set(ours["wrong"].values()) == {0}
    for result in (floor, ours):
        assert result["runs"] == 1
        assert 0 < result["seconds"]["min"] <= result["seconds"]["max"]
        assert result["server_cpu_seconds"] > 0
        assert result["peak_mb"] > 0


def test_the_page_judges_the_bounds_of_the_tools_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "load.json")
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(report, "PLOT", tmp_path / "benchmarks.svg")
    ours = "pipeline_assets, warm, without Dagster"
    measured = {"psql: COPY, sorted upsert": 10.0, ours: 11.4, "Sling": 20.0}
    report.merge(
        [
            {
                "case": "1M mixed into 6M",
                "tool": tool,
                "version": "1",
                "runs": 1,
                "seconds": {"median": median, "min": median, "max": median},
                "cpu_seconds": 1,
                "server_cpu_seconds": 1,
                "peak_mb": 1,
                "wrong_rows": None,
                "wrong": None,
            }
            for tool, median in measured.items()
        ]
    )
    report.write_page()
    page = report.PAGE.read_text()
    assert (
        "| 1M mixed into 6M | psql: COPY, sorted upsert | 1.15 |  |  |  | 1.14, keeps |\n" in page
    )
    assert "| 1M mixed into 6M | Sling | 0.50 |  |  |  | 0.57, misses |\n" in page
    assert "| 1M mixed into 6M | ingestr | 0.71 |  |  |  |  |\n" in page


@pytest.mark.parametrize(
    "with_daemon",
    [
        pytest.param(False, marks=pytest.mark.slow),
        pytest.param(True, marks=pytest.mark.reliability),  # its sensors tick once a minute
    ],
)
def test_growth_is_measured_part_by_part(
    with_daemon: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "GROWTH_RESULTS", tmp_path / "growth.json")

    def measure(*parts: str) -> None:
        arguments = ["--tables=2", "--days=20", "--recent=3", "--runs=2", "--minutes=0.1"]
        arguments += [f"--folder={tmp_path / 'bench'}", *(f"--part={part}" for part in parts)]
        done = CliRunner().invoke(growth.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def figures() -> dict[str, report.Spread]:
        (result,) = report.load_growth()
        assert (result["tables"], result["days"], result["recent"]) == (2, 20, 3)
        return result["figures"]

    measure("set_up", "history")
    server = embedded_postgres.connect_or_start(tmp_path / "bench" / "postgres")
    with psycopg.connect(server.url("growth_2_dagster")) as history:
        assert (
            history.execute(
                """SELECT partition, asset_key FROM event_logs
               WHERE dagster_event_type = 'ASSET_MATERIALIZATION' AND asset_key LIKE '%validated%'"""
            ).rowcount
            == 20 + 3
        )
    measure("definitions", "ticks")
    found = figures()
    assert 0 < found["definitions, a run's CPU s"]["min"] < found["definitions, CPU s"]["max"]
    assert found["a table's tick, s"]["median"] > 0
    if not with_daemon:
        return
    # The sensors look at every table, and start nothing.
    measure("daemon")
    watched = figures()
    assert found.items() < watched.items()
    assert watched["sensor ticks a minute"]["median"] > 0
    assert watched["daemon, MB"]["min"] > 50


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
def test_the_harness_has_dagster_run_a_day_and_leaves_no_process(
    server: embedded_postgres.Server, tmp_path: Path
) -> None:
    before = set(psutil.Process().children(recursive=True))
    orchestrators.make_data(server)
    orchestrators.set_up(server, Dagster(), tmp_path)
    with (
        data.connect(server, orchestrators.TARGET_DATABASE) as target,
        data.connect(server, "bench_dagster_made") as history,
    ):
        found = target.execute(
            "SELECT count(*), min(amount), min(ordered_at::date)::text FROM analytics.orders"
        ).fetchone()
        runs = history.execute("SELECT pipeline_name, status FROM runs").fetchall()
    # Ten of 10,000 rows have an amount below zero.
    assert found is not None
    assert (found[0], found[2]) == (9_990, orchestrators.SET_UP)
    assert found[1] > 0
    assert runs == [("daily", "SUCCESS")]
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
def test_an_interrupt_ends_services_and_all_that_they_have_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "STOPS_WITHIN", 0.5)
    # One ignores the interrupt, one has left the session, and the parent of one has gone.
    script = "sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; wait"
    found: list[psutil.Process] = []

    def interrupted() -> None:
        with services.Services(tmp_path, {"PATH": "/usr/bin:/bin"}) as started:
            started.start([["sh", "-c", script]])
            while len(found) < 4:
                found[:] = started.processes()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [process for process in found if process.is_running()]
