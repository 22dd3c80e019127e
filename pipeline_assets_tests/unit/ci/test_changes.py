"""What a change means, read from git: broken contracts, and the asset graph's difference."""

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline_assets.ci import asset_graph
from pipeline_assets.ci.changes import GitError, broken_contracts, graph_difference
from pipeline_assets.quality.contract import ContractError
from pipeline_assets.quality.odcs import CONTRACTS

ROOT = CONTRACTS.parents[1]
GIT = shutil.which("git") or "git"


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")
    subprocess.run([GIT, *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    """The project's contracts in a repository of the test's own, on a branch that left `main`."""
    folder = tmp_path / "contracts"
    folder.mkdir()
    for file in CONTRACTS.glob("*.odcs.yaml"):
        (folder / file.name).write_bytes(file.read_bytes())
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "before")
    git(folder, "switch", "--quiet", "--create", "change")
    return folder


def change(contracts: Path, old: str, new: str) -> None:
    file = contracts / "transactions.odcs.yaml"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_contracts_that_stay_break_nothing(contracts: Path) -> None:
    assert broken_contracts("main", contracts) == ([], [])


def test_a_breaking_change_needs_a_major_version(contracts: Path) -> None:
    change(contracts, "maximum: 1000", "maximum: 100")
    ((found,), told) = broken_contracts("main", contracts)
    assert found.startswith("transactions.odcs.yaml 1.0.0 -> 1.0.0: rule quantity_maximum is tight")
    assert told == []
    change(contracts, "version: 1.0.0", "version: 1.1.0")
    assert len(broken_contracts("main", contracts)[0]) == 1
    change(contracts, "version: 1.1.0", "version: 2.0.0")
    untold, (found,) = broken_contracts("main", contracts)
    assert untold == []
    assert "1.0.0 -> 2.0.0: rule quantity_maximum" in found


def test_what_main_changed_meanwhile_is_not_the_branchs_doing(contracts: Path) -> None:
    git(contracts, "switch", "--quiet", "main")
    change(contracts, "maximum: 1000", "maximum: 9999")
    git(contracts, "commit", "--quiet", "--all", "--message", "wider")
    git(contracts, "switch", "--quiet", "change")
    assert broken_contracts("main", contracts) == ([], [])


def test_a_contract_goes_only_after_it_was_retired(contracts: Path) -> None:
    (contracts / "daily_sales.odcs.yaml").unlink()
    ((found,), _) = broken_contracts("main", contracts)
    assert found == "daily_sales.odcs.yaml is gone; set its status to retired in a version before"
    git(contracts, "checkout", "--quiet", "main", "--", ".")
    file = contracts / "daily_sales.odcs.yaml"
    file.write_text(file.read_text().replace("status: active", "status: retired"))
    git(contracts, "commit", "--quiet", "--all", "--message", "retired")
    git(contracts, "branch", "--force", "main")
    file.unlink()
    assert broken_contracts("main", contracts)[0] == []


def test_a_contract_that_cannot_be_read_is_named(contracts: Path) -> None:
    change(contracts, "physicalType: integer", "physicalType: whole")
    with pytest.raises(ContractError, match=r"transactions\.odcs\.yaml: quantity"):
        broken_contracts("main", contracts)


def test_an_unknown_commit_is_named(contracts: Path) -> None:
    with pytest.raises(GitError, match="nowhere"):
        broken_contracts("nowhere", contracts)


GRAPH: asset_graph.Graph = {
    "assets": {
        "a": {"group": "g", "upstream": [], "checks": ["c"], "code version": "1"},
        "b": {"group": "g", "upstream": ["a"], "checks": [], "code version": "1"},
    },
    "schedules": {"daily": {"cron": "0 8 * * *", "job": "make_a"}},
}


def test_equal_graphs_say_so() -> None:
    assert asset_graph.difference(GRAPH, GRAPH) == "### Asset graph\n\nNothing changes.\n"


def test_a_difference_says_what_was_added_removed_and_changed() -> None:
    after: asset_graph.Graph = {
        "assets": {
            "a": {"group": "g", "upstream": ["z"], "checks": ["d"], "code version": "2"},
            "x": {"group": "h", "upstream": ["a"], "checks": [], "code version": None},
        },
        "schedules": {"daily": {"cron": "0 8|9 * * *", "job": "make_a"}},
    }
    assert asset_graph.difference(GRAPH, after).splitlines()[2:] == [
        "| | | |",
        "| --- | --- | --- |",
        "| changed asset | `a` | upstream and `z`; checks without `c` and `d`; code version `1` → `2` |",
        "| removed asset | `b` |  |",
        "| new asset | `x` | group `h`; upstream `a` |",
        r"| changed schedule | `daily` | cron `0 8 * * *` → `0 8\|9 * * *` |",
    ]


@pytest.mark.slow
def test_the_graph_of_a_commit_is_that_of_its_own_code(tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--shared", str(ROOT), "clone")
    clone = tmp_path / "clone"
    file = clone / "pipeline_assets" / "warehouse" / "tables.py"
    text = file.read_text()
    wanted = ', load_mart("daily_sales")'
    assert wanted in text
    file.write_text(text.replace(wanted, ","))
    found = graph_difference("HEAD", clone)
    assert "| removed asset | `daily_sales` |" in found
    assert "| changed asset | `fct_transactions` |" not in found
    assert (
        "worktree"
        not in subprocess.run(
            [GIT, "worktree", "list"], cwd=clone, capture_output=True, text=True, check=True
        ).stdout.partition("\n")[2]
    )
