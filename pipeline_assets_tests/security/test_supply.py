"""What is installed is what was locked, and a bill of materials says what that is."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.security
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
WANTED = "six"
"""A small, pure-Python package in the lock, without dependencies."""


def blocks(lock: str) -> dict[str, str]:
    """Package -> its lines in a lock file."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        name = re.match(r"([A-Za-z0-9._-]+)==", block)
        assert name, f"{lock}: {block[:80]} is not pinned"
        # A package may be locked in two versions, for two Pythons.
        found[name[1]] = found.get(name[1], "") + block + "\n"
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_with_hashes_and_comes_from_no_named_host(lock: str) -> None:
    """So `pip-audit --require-hashes -r requirements.lock` can read it, as pip does."""
    from pip._internal.network.session import PipSession
    from pip._internal.req import parse_requirements

    for name, block in blocks(lock).items():
        assert HASH.search(block), name
    read = list(parse_requirements(str(ROOT / lock), session=PipSession()))
    assert len(read) >= len(blocks(lock))
    for requirement in read:
        assert re.match(
            r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^*]+$", requirement.requirement.split(";")[0].strip()
        )
        assert requirement.options
        assert requirement.options["hashes"]["sha256"]
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|^-", text, re.MULTILINE), "an address, or an option of pip"


def test_what_is_installed_is_what_the_locks_say() -> None:
    from importlib.metadata import distributions

    installed = {
        found.metadata["Name"].lower().replace("_", "-"): found for found in distributions()
    }
    locked = blocks("requirements.lock")
    assert len(set(installed) & set(locked)) > 150
    for name in set(installed) & set(locked):
        assert f"{installed[name].version} " in locked[name].replace(";", " ").replace("==", " "), (
            name
        )


INSTALLS = {
    f"{lock} in {file}": options
    for file in ("Makefile", "deploy/Dockerfile")
    for options, lock in re.findall(r"/uv pip (install .*) -r (\S+)", (ROOT / file).read_text())
}
"""Every command that installs from a lock, without its last words."""


def test_each_lock_is_installed() -> None:
    assert list(INSTALLS) == [
        *(f"{lock} in Makefile" for lock in LOCKS),
        f"{LOCKS[0]} in deploy/Dockerfile",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", INSTALLS)
def test_a_tampered_hash_fails_the_install(tmp_path: Path, command: str) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    options = re.sub(r"--python \S+", f"--python {python}", INSTALLS[command])
    assert str(python) in options, "else it would change the tests' own environment"
    lock = tmp_path / "requirements.lock"

    def install(text: str) -> subprocess.CompletedProcess[str]:
        lock.write_text(text)
        return subprocess.run(
            [str(BIN / "uv"), "pip", *options.split(), "--no-cache", "-r", str(lock)],
            capture_output=True,
            text=True,
            check=False,
        )

    good = blocks("requirements.lock")[WANTED]
    refused = install(HASH.sub(f"--hash=sha256:{'0' * 64}", good))
    assert refused.returncode != 0
    assert "hash" in refused.stderr.lower()
    assert not list(python.parents[1].rglob(f"{WANTED}.py"))

    assert install(HASH.sub("", good).replace("\\", "")).returncode != 0, "nor without any hash"

    installed = install(good)
    assert installed.returncode == 0, installed.stderr
    assert list(python.parents[1].rglob(f"{WANTED}.py"))


@pytest.mark.slow
def test_the_bill_of_materials_is_valid_and_names_every_locked_package(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    recipe = next(
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith("\t@$(BIN)/cyclonedx-py")
    )
    command = (
        recipe.strip("\t@")
        .replace("$(BIN)", str(BIN))
        .replace("$(or $(SBOM),sbom.json)", str(file))
    )
    assert "--no-validate" not in command  # what isn't valid fails the command
    subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)

    bill = json.loads(file.read_text())
    named = {component["name"].lower() for component in bill["components"]}
    assert named >= {name.lower() for name in blocks("requirements.lock")}
    assert all(component["version"] and component["purl"] for component in bill["components"])
    hashed = [
        reference["hashes"]
        for component in bill["components"]
        for reference in component["externalReferences"]
        if "hashes" in reference
    ]
    assert len(hashed) == len(bill["components"])
