"""The workflows: valid, with no more rights than needed, and made of the commands that people run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yaml"
GITLAB = ROOT / ".gitlab-ci.yml"
GITHUB_JOBS: dict[str, dict[str, Any]] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
NOT_JOBS = {"stages", "workflow", "default", "variables"}
GITLAB_JOBS: dict[str, dict[str, Any]] = {
    name: job for name, job in yaml.safe_load(GITLAB.read_text()).items() if name not in NOT_JOBS
}
# Commands that make sense in CI only: logins, comments, handing data from one job to the next.
GLUE = re.compile(
    r"docker login |base64 |install -m 600 |echo \"\w+=(?:\$\(|ghcr)|apk add |mkdir |echo \"\$CI_REGISTRY_"
)


def github_commands(*jobs: str) -> list[str]:
    return [
        line.strip()
        for name in jobs or GITHUB_JOBS
        for step in GITHUB_JOBS[name]["steps"]
        for line in step.get("run", "").strip().splitlines()
    ]


def gitlab_commands(*jobs: str) -> list[str]:
    return [
        line
        for name in jobs or GITLAB_JOBS
        for part in ("before_script", "script")
        for line in GITLAB_JOBS[name].get(part, [])
    ]


def targets(commands: list[str]) -> set[str]:
    """The make targets that commands call; .ci/run counts as one."""
    found = {
        match[1] for line in commands if (match := re.match(r"make (?:--silent )?(\w+)", line))
    }
    return found | ({".ci/run"} & set(commands))


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)],
        [
            *("check-jsonschema", "--builtin-schema", "vendor.gitlab-ci"),
            *("--data-transform", "gitlab-ci", str(GITLAB)),
        ],
        ["zizmor", "--offline", "--no-progress", str(WORKFLOW.parent)],
    ],
    ids=["github", "gitlab", "zizmor"],
)
def test_the_files_are_valid(command: list[str]) -> None:
    found = subprocess.run(
        [str(BIN / command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", GITHUB_JOBS)
def test_every_job_has_a_time_limit_few_rights_and_pinned_actions(name: str) -> None:
    job = GITHUB_JOBS[name]
    assert job["timeout-minutes"] <= 90
    writes = {right for right, kind in job["permissions"].items() if kind == "write"}
    assert writes == {"comment": {"pull-requests"}, "image": {"packages"}}.get(name, set())
    if name == "comment":  # the only job that may write in a pull request
        assert not any("uses" in step for step in job["steps"])
    for step in job["steps"]:
        assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40))


def test_nothing_is_done_there_that_no_command_of_ours_does() -> None:
    for line in github_commands() + gitlab_commands():
        assert targets([line]) or GLUE.match(line), line


def test_both_run_the_same_commands_and_each_exists() -> None:
    assert targets(github_commands()) == targets(gitlab_commands())
    makefile = (ROOT / "Makefile").read_text()
    for target in targets(github_commands()) - {".ci/run"}:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_make_ci_runs_what_a_change_has_to_pass() -> None:
    of_a_change = targets(github_commands("check", "test"))
    assert of_a_change == targets(gitlab_commands("check", "test"))
    (recipe,) = re.findall(r"^ci:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text()
    called = re.findall(r"^make (?:--\S+ (?:\d+ )?)*(\w+)", script, re.MULTILINE)
    runs = {*re.findall(r"\w+|\.ci/run", recipe), *called}
    assert of_a_change | {"sbom"} <= runs


def test_production_gets_what_staging_had_and_a_person_agreed_to() -> None:
    for jobs in (GITHUB_JOBS, GITLAB_JOBS):
        assert jobs["staging"]["environment"] == "staging"
        assert jobs["production"]["environment"] == "production"
    staging, production = GITHUB_JOBS["staging"], GITHUB_JOBS["production"]
    assert "staging" in production["needs"]
    # By digest: `make publish` asks the registry for it.
    assert staging["env"]["IMAGE"] == production["env"]["IMAGE"]
    assert "RepoDigests" in (ROOT / "Makefile").read_text()
    assert staging["concurrency"] != production["concurrency"]
    assert not production["concurrency"]["cancel-in-progress"]
    (rule,) = GITLAB_JOBS["production"]["rules"]
    assert rule["when"] == "manual"
    assert GITLAB_JOBS["production"]["extends"] == GITLAB_JOBS["staging"]["extends"]
    assert GITLAB_JOBS["production"]["resource_group"] != GITLAB_JOBS["staging"]["resource_group"]
