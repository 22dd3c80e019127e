"""The project's rules for all definitions: what every asset, check, job and schedule must have."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest

import pipeline_assets
from pipeline_assets.definitions import build_definitions
from pipeline_assets.settings import Settings

DEFINITIONS = build_definitions(Settings())
REPOSITORY = DEFINITIONS.get_repository_def()
GRAPH = REPOSITORY.asset_graph
MATERIALIZABLE = sorted(GRAPH.materializable_asset_keys)
ALL = sorted(GRAPH.get_all_asset_keys())
# Nouns that name the data, with their layer.
NAME = re.compile(r"(raw|validated|fct|dim)_[a-z]+(_[a-z]+)*|[a-z]+_[a-z]+(_[a-z]+)*")
VERBS = ("load_", "get_", "fetch_", "make_", "run_", "update_", "process_")
DOMAINS = {"news", "warehouse", "models", "operations"}
# Modules that report on Dagster itself, and so need to import it.
ABOUT_DAGSTER = {
    ("operations", name) for name in ("runs", "failed_runs", "data", "daemon", "watching")
}
# Training, evaluation, deployment and scoring are separate groups in the graph.
GROUPS = {
    "news",
    "warehouse",
    "models_training",
    "models_evaluation",
    "models_deployment",
    "models_scoring",
    "operations",
}


@pytest.mark.parametrize("key", ALL, ids=str)
def test_every_asset_says_what_it_is_and_whose(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)
    assert node.description
    assert node.group_name in GROUPS
    assert node.owners
    assert node.kinds


@pytest.mark.parametrize("key", MATERIALIZABLE, ids=str)
def test_every_asset_of_ours_is_partitioned_checked_versioned_and_retried(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)
    # Assets that report on the deployment describe the present, not a day.
    assert (node.partitions_def is None) == (node.group_name == "operations")
    assert node.check_keys, f"{key} has no check"
    assert node.code_version
    (op,) = REPOSITORY.assets_defs_by_key[key].node_def.iterate_node_defs()
    assert isinstance(op, dg.OpDefinition)
    policy = op.retry_policy
    assert policy is not None
    assert (policy.backoff, policy.jitter) == (dg.Backoff.EXPONENTIAL, dg.Jitter.PLUS_MINUS)


@pytest.mark.parametrize("key", MATERIALIZABLE, ids=str)
def test_names_are_nouns_with_their_layer(key: dg.AssetKey) -> None:
    (name,) = key.path
    assert NAME.fullmatch(name)
    assert not name.startswith(VERBS)


def test_every_check_has_the_partitions_of_its_asset() -> None:
    """Without them a good day would open the gate for a bad one."""
    for key in sorted(GRAPH.asset_check_keys):
        check = GRAPH.get(key)
        assert check.partitions_def == GRAPH.get(key.asset_key).partitions_def, key
        assert check.description, key


def test_there_is_no_orphan_and_no_cycle() -> None:
    for key in ALL:
        assert GRAPH.get(key).parent_keys or GRAPH.get(key).child_keys, f"{key} stands alone"
    assert sum(len(level) for level in GRAPH.toposorted_asset_keys_by_level) == len(ALL)


def test_every_schedule_and_sensor_starts_something_that_exists() -> None:
    jobs = {job.name for job in REPOSITORY.get_all_jobs() if job.name != "__ASSET_JOB"}
    started = {schedule.job_name for schedule in REPOSITORY.schedule_defs}
    started |= {target.job_name for sensor in REPOSITORY.sensor_defs for target in sensor.targets}
    assert started
    assert started <= jobs
    assert all(job == job.lower() for job in jobs)


def test_automation_is_on_only_where_the_environment_says_so() -> None:
    for wanted in ("running", "stopped"):
        settings = Settings(pipeline_automation=wanted)
        repository = build_definitions(settings).get_repository_def()
        found = {schedule.default_status.value.lower() for schedule in repository.schedule_defs}
        found |= {sensor.default_status.value.lower() for sensor in repository.sensor_defs}
        assert found == {wanted}


def test_definitions_load_without_connecting_or_heavy_imports(tmp_path: Path) -> None:
    """Every run pays for what is imported here: pandas alone would add half of Dagster's own time."""
    code = (
        "import sys, pipeline_assets.definitions\n"
        "heavy = {'pandas', 'pyarrow', 'psycopg', 'requests', 'mlflow', 'sklearn', 'matplotlib', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PIPELINE_DATA_DIR": str(tmp_path / "data"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
    assert not (tmp_path / "data").exists()


def test_the_layers_name_every_plain_module_of_a_domain() -> None:
    """In a domain only three modules may import Dagster; the linter must cover all others, new ones too."""
    root = Path(pipeline_assets.__file__).parents[1]
    configuration = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    (plain,) = [found for found in configuration["contracts"] if found["type"] == "forbidden"]
    domains = [root / "pipeline_assets" / name for name in DOMAINS]
    modules = {
        f"pipeline_assets.{file.parent.name}.{file.stem}"
        for domain in domains
        for file in domain.glob("*.py")
        if file.stem not in ("__init__", "assets", "checks", "automation")
        and (file.parent.name, file.stem) not in ABOUT_DAGSTER
    }
    assert modules <= set(plain["source_modules"])


@pytest.mark.parametrize("name", ["fct_transactions", "news_articles", "purchase_predictions"])
def test_a_latency_that_is_promised_is_watched(name: str) -> None:
    assert GRAPH.get(dg.AssetKey(name)).freshness_policy


@pytest.mark.parametrize("name", ["trained_model", "deployed_model", "purchase_predictions"])
def test_what_works_on_the_warehouse_takes_a_place_in_its_pool(name: str) -> None:
    assert DEFINITIONS.resolve_assets_def(name).op.pool == "warehouse"
