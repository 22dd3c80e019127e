"""The pages match the repository: each file, heading, name, path and command that they name exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from pipeline_assets.cli import app
from pipeline_assets.quality.odcs import parse_contract

ROOT = Path(__file__).parents[2]
MAKEFILE = ROOT / "Makefile"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[(?P<text>[^][]*)\]\((?P<target>[^()\s]+)\)")
NAMED = re.compile(r"`(?P<file>[\w/.]+\.py)::(?P<name>\w+)`")
"""A function, class or setting, written `folder/file.py::name`."""
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"^\s*(?:\w+=\S+ )*(make|pipeline-assets)((?: [a-z][a-z-]*)+)", re.MULTILINE)
"""A command at the start of a line, after any variables set for it, without its options and arguments."""
PATH = re.compile(r"^(?:deploy|docs|benchmarks|pipeline_assets|pipeline_assets_tests)/[\w./-]+$")
MADE = {"deploy/compose/secrets"}
"""Paths that aren't in the repository: the page says what creates them."""


def links(page: Path) -> list[tuple[str, str]]:
    """Text and target of the links to the project's own files."""
    found = LINK.findall(CODE.sub("", page.read_text()))
    return [(text, target) for text, target in found if "://" not in target]


@cache
def names(file: Path) -> set[str]:
    """All that a Python file defines, inside of functions and classes too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {
                    each.id
                    for target in targets
                    for each in ast.walk(target)
                    if isinstance(each, ast.Name)
                }
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


@cache
def anchors(page: Path) -> set[str]:
    """The page's headings as addresses, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong(page: Path) -> list[str]:
    """The page's links and names that lead nowhere."""
    found = []
    for text, target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        named = NAMED.fullmatch(text)
        if (
            not file.exists()
            or (anchor and anchor not in anchors(file))
            or (text.endswith(".py`") and not str(file).endswith(f"/{text.strip('`')}"))
            or (named and not str(file).endswith(f"/{named['file']}"))
            or (named and named["name"] not in names(file))
        ):
            found.append(f"[{text}]({target})")
    for file, name in NAMED.findall(page.read_text()):
        if not any(
            (ROOT / top / file).is_file() and name in names(ROOT / top / file) for top in TOPS
        ):
            found.append(f"{file}::{name}")
    return found


def is_there(program: str, words: list[str]) -> bool:
    """Whether the Makefile, or the project's own program, has that command."""
    if program == "make":
        return set(words) <= set(re.findall(r"^([a-z-]+):", MAKEFILE.read_text(), re.MULTILINE))
    command = get_command(app)
    for word in words:
        if not (commands := getattr(command, "commands", {})):
            return True  # the rest are arguments
        if word not in commands:
            return False
        command = commands[word]
    return True


def unknown(page: Path) -> list[str]:
    """The page's commands and paths, written as code, that aren't there."""
    text = page.read_text()
    spans = SPAN.findall(CODE.sub("", text))
    commands = COMMAND.findall("\n".join([*spans, *CODE.findall(text)]))
    found = [name + words for name, words in commands if not is_there(name, words.split())]
    paths = (path for path in spans if PATH.match(path) and path not in MADE)
    return found + [path for path in paths if not (ROOT / path).exists()]


TOPS = (".", "pipeline_assets", "pipeline_assets_tests")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_name_leads_somewhere(page: Path) -> None:
    assert wrong(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_path_is_there(page: Path) -> None:
    assert unknown(page) == []


def test_the_contract_to_copy_is_one() -> None:
    page = (ROOT / "docs" / "contracts.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    contract = parse_contract(yaml.safe_load(example))
    assert (contract.name, contract.key) == ("orders", ("order_id",))


def test_every_alert_rule_names_an_entry_of_the_runbook() -> None:
    rules = (ROOT / "deploy" / "monitoring" / "alerts.rules.yaml").read_text()
    named = re.findall(r"runbook: docs/runbook\.md#(\S+)", rules)
    assert len(named) == rules.count("- alert:") > 5
    assert set(named) - anchors(ROOT / "docs" / "runbook.md") == set()


def test_a_command_or_path_that_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`make run` `pipeline-assets run` `deploy/Dockerfile` `pipeline-assets ci smoke --url x`\n"
    )
    assert unknown(page) == []
    page.write_text(
        "`make walk` `deploy/Dockerfiles` `pipeline-assets ci smok`\n```\nA=b pipeline-assets runs --all\n```"
    )
    assert unknown(page) == [
        "make walk",
        "pipeline-assets ci smok",
        "pipeline-assets runs",
        "deploy/Dockerfiles",
    ]


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.py").write_text("def a() -> None:\n    b = 1\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n[x](there.py) [x](#one-heading) [`there.py::b`](there.py) [w](https://w.invalid)\n"
    )
    assert wrong(page) == ["there.py::b"]  # names are looked up in the project's files too
    page.write_text(
        "[x](gone.md) [x](#none) [`there.py::c`](there.py) [`other.py::b`](there.py) [`o.py`](there.py)\n"
    )
    assert wrong(page) == [
        "[x](gone.md)",
        "[x](#none)",
        "[`there.py::c`](there.py)",
        "[`other.py::b`](there.py)",
        "[`o.py`](there.py)",
        "there.py::c",
        "other.py::b",
    ]
