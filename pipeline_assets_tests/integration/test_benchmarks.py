"""The benchmark's harness runs, and judges what a tool leaves behind; its figures aren't tested."""

import json
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
from typer.testing import CliRunner

from benchmarks import data, growth, load, orchestrators, report, services, systems_report
from benchmarks.growth_data import Tables
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
    # The sections after the load are tested on their own.
    monkeypatch.setattr(report, "GROWTH_RESULTS", tmp_path / "none.json")
    monkeypatch.setattr(systems_report, "SYSTEM_RESULTS", tmp_path / "none.json")
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
    ("ratios", "word"),
    [
        ([0.4, 0.5], "keeps"),
        ([0.51, 0.6], "misses"),
        ([0.5, 0.51], "unclear"),
        ([-214.0, 0.3], "unclear"),
        ([0.0, 0.3], "unclear"),
    ],
)
def test_a_bound_is_judged_only_where_all_rounds_agree(ratios: list[float], word: str) -> None:
    assert report.verdict(ratios, 0.5) == word


def test_the_page_shows_and_draws_the_systems_and_withholds_a_verdict_by_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems_report, "SYSTEM_RESULTS", tmp_path / "systems.json")
    scheduled: dict[str, list[float]] = {
        "pipeline_assets": [2, 2, 2],
        "Airflow": [4, 5, 5],
        "Prefect": [-0.5, 8.25, 8.25],
    }
    systems_report.merge_systems(
        [
            {
                "name": name,
                "version": "1",
                "configuration": "as it comes",
                "rounds": [
                    {**dict.fromkeys(systems_report.FIGURES, 1.0), "scheduled": seconds}
                    for seconds in rounds
                ],
            }
            for name, rounds in scheduled.items()
        ]
    )
    plot = tmp_path / "systems.svg"
    section = systems_report.section(plot)
    assert (
        "| scheduled run, from its moment to its end"
        " | 0.40 (0.40 to 0.50), keeps 0.7 | 0.24 (-4.00 to 0.24), unclear 0.5 |\n" in section
    )
    assert f"]({plot.name})" in section
    drawn = plot.read_text()
    assert all(f">{text}</text>" in drawn for text in ("Prefect", "8.25"))
    assert plot.stat().st_size < 60_000


def test_the_page_says_how_growth_was_measured_and_which_ticks_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "GROWTH_RESULTS", tmp_path / "growth.json")
    plot = tmp_path / "growth.svg"

    def section(measured: report.Rounds) -> str:
        figures = {"sensor ticks a minute": measured}
        report.merge_growth({"tables": 1000, "days": 20, "recent": 3, "figures": figures})
        return report.growth_section(plot)

    before = section({"median": 192, "min": 124, "max": 361})
    assert report.SIZE_BY_SIZE in before
    assert "1,000 tables want 1,002 ticks a minute and get 192: each table is looked at" in before
    in_rounds = section({"median": 1002, "min": 1002, "max": 1002, "rounds": 5})
    assert report.SIZE_BY_SIZE not in in_rounds
    assert "ticks a minute and get" not in in_rounds
    assert f"]({plot.name})" in in_rounds
    assert ">1,000 tables</text>" in plot.read_text()


def test_each_round_of_growth_has_all_numbers_of_tables(
    server: embedded_postgres.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "GROWTH_RESULTS", tmp_path / "growth.json")
    monkeypatch.setattr(growth, "connect_or_start", lambda _: server)
    asked: list[int] = []

    def part(tables: Tables, _: float) -> dict[str, float]:
        asked.append(tables.count)
        return {"definitions, s": float(len(asked))}

    monkeypatch.setitem(growth.PARTS, "definitions", part)
    arguments = ["--tables=1", "--tables=2", "--runs=3", "--part=definitions"]
    done = CliRunner().invoke(growth.app, [*arguments, f"--folder={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert asked == [1, 2] * 3
    assert [result["figures"]["definitions, s"] for result in report.load_growth()] == [
        {"median": 3, "min": 1, "max": 5, "rounds": 3},
        {"median": 4, "min": 2, "max": 6, "rounds": 3},
    ]


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
        arguments = ["--tables=2", "--days=20", "--recent=3", "--runs=1", "--minutes=0.1"]
        arguments += [f"--folder={tmp_path / 'bench'}", *(f"--part={part}" for part in parts)]
        done = CliRunner().invoke(growth.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    def figures() -> dict[str, report.Rounds]:
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
    assert {each.get("rounds") for each in found.values()} == {1}
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
