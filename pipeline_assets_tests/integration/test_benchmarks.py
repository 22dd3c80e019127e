"""The benchmark's harness runs, and judges what a tool leaves behind; figures are no test."""

import json
from pathlib import Path

import pytest

from benchmarks import load, report


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
