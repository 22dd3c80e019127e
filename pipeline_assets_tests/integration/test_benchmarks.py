"""The benchmark's harness runs, and judges what a tool leaves behind; figures are no test."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import data, load, orchestrators, report, services
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
