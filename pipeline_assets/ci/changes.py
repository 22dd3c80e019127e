"""What a change of the code means for others: contracts that it breaks, and how the asset graph differs.

The working tree is compared with a commit, usually the one where its branch left main. What is breaking is
defined in `quality.compatibility`, how graphs differ is found in `asset_graph`; this module asks git.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline_assets.ci import asset_graph
from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.compatibility import breaking_changes, is_new_major
from pipeline_assets.quality.contract import ContractError, TableContract
from pipeline_assets.quality.odcs import CONTRACTS, parse_contract, parse_mart

PACKAGE = Path(__file__).parents[1]
SUFFIX = ".odcs.yaml"


class GitError(PermanentError):
    """git can't answer: it isn't there, or doesn't know the commit."""


def broken_contracts(since: str, folder: Path = CONTRACTS) -> tuple[list[str], list[str]]:
    """What the contracts in `folder` break of those at `since`: (unannounced, announced).

    A new major version of the contract announces its changes, the status `retired` its removal. Reading the
    contracts also lints them: whatever isn't supported is an error.

    Raises:
        ContractError: a contract is malformed, now or at `since`; the message names the file.
        GitError: git doesn't know the commit.
    """
    now = {file.name: file.read_text(encoding="utf-8") for file in folder.glob(f"*{SUFFIX}")}
    contracts = {name: _contract(name, text) for name, text in now.items()}
    untold: list[str] = []
    told: list[str] = []
    for name, text in _files_at(_left(since, folder), folder).items():
        if name not in contracts:
            is_retired = yaml.safe_load(text).get("status") == "retired"
            message = f"{name} is gone; set its status to retired in a version before"
            (told if is_retired else untold).append(message)
            continue
        before, after = _contract(name, text), contracts[name]
        version = f"{name} {before.version} -> {after.version}"
        accepted = is_new_major(before.version, after.version)
        for change in breaking_changes(before, after):
            (told if accepted else untold).append(f"{version}: {change}")
    return untold, told


def _contract(name: str, text: str) -> TableContract:
    try:
        document = yaml.safe_load(text)
        tables = document.get("schema") or [{}]
        logic = [prop for prop in tables[0].get("properties", ()) if prop.get("transformLogic")]
        return parse_mart(document) if logic else parse_contract(document)
    except (ContractError, yaml.YAMLError, AttributeError) as error:
        raise ContractError(f"{name}: {error}") from error


def graph_difference(since: str, folder: Path = PACKAGE.parent) -> str:
    """How the asset graph of `folder` differs from that of its checkout at `since`, as Markdown.

    Each is loaded in the environment `dev` by an interpreter of its own, with this one's packages.
    """
    with _checkout(_left(since, folder), folder) as before:
        return asset_graph.difference(_graph(before), _graph(folder))


def _graph(root: Path) -> dict[str, Any]:
    # This version's source, as an older one may lack the module; the definitions are those of `root`.
    program = Path(asset_graph.__file__).read_text(encoding="utf-8")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**environment, "DAGSTER_HOME": str(root), "PIPELINE_ENV": "dev"},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        last = found.stderr.strip().splitlines()[-1:]
        raise PermanentError(f"the definitions of {root} don't load: {' '.join(last)}")
    graph: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return graph


def _git(folder: Path, *arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", *arguments],  # noqa: S607 - the one of the person who calls it
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise GitError("git isn't installed") from None
    if found.returncode:
        raise GitError(f"git {arguments[0]}: {found.stderr.strip()}")
    return found.stdout


def _left(since: str, folder: Path) -> str:
    """Where the checked-out branch left another: that one's later commits aren't part of the change."""
    return _git(folder, "merge-base", since, "HEAD").strip()


def _files_at(commit: str, folder: Path) -> dict[str, str]:
    names = _git(folder, "ls-tree", "--name-only", commit, "./").splitlines()
    return {
        name: _git(folder, "show", f"{commit}:./{name}") for name in names if name.endswith(SUFFIX)
    }


@contextmanager
def _checkout(commit: str, folder: Path) -> Iterator[Path]:
    with TemporaryDirectory() as parent:
        place = Path(parent) / "checkout"
        _git(folder, "worktree", "add", "--quiet", "--detach", str(place), commit)
        try:
            yield place
        finally:
            _git(folder, "worktree", "remove", "--force", str(place))
