"""The image as Podman builds and runs it: `make image-test`, on Linux as root, with no image registry.

The base is made by debootstrap, once a machine, so that this needs Debian's packages and PyPI and nothing
else. IMAGE names an image that is there already, and only runs that one.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

ROOT = Path(__file__).parents[2]
PODMAN = shutil.which("podman") or ""
BASE = "localhost/debian-python:bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
GRACE = 30
"""Seconds that a container has to end in, once it is asked to."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.image,
    pytest.mark.skipif(
        not (PODMAN and shutil.which("debootstrap")) or os.geteuid() != 0,
        reason="needs root and Debian's podman, runc, netavark, catatonit and debootstrap",
    ),
]


def podman(*arguments: str, check: bool = True) -> str:
    """What Podman prints; its configuration stands beside this file."""
    environment = {
        **os.environ,
        "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf")),
    }
    found = subprocess.run(
        [PODMAN, "--log-level", "fatal", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or found.returncode == 0, found.stderr or found.stdout
    return found.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image that IMAGE names, or one that is built on a base of Debian's packages."""
    if stated := os.environ.get("IMAGE"):
        return stated
    if not podman("images", "--quiet", BASE):
        folder = tmp_path_factory.mktemp("base")
        packages = "--include=ca-certificates,python3-minimal,libpython3-stdlib,python3-venv"
        for command in (
            ["debootstrap", "--variant=minbase", packages, "bookworm", str(folder / "root")],
            [
                "tar",
                "--create",
                "--file",
                str(folder / "base.tar"),
                "-C",
                str(folder / "root"),
                ".",
            ],
        ):
            subprocess.run(command, check=True, capture_output=True)
        podman("import", str(folder / "base.tar"), BASE)
    podman(
        *("build", "--format", "docker", "--network", "host", "--build-arg", f"BASE={BASE}"),
        # The authorities that this machine trusts.
        *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
        *("--file", "deploy/Dockerfile", "--tag", "pipeline-assets", "."),
    )
    return "pipeline-assets"


@pytest.fixture
def volume() -> Iterator[str]:
    name = f"pipeline-assets-{uuid4().hex[:8]}"
    podman("volume", "create", name)
    yield name
    podman("volume", "rm", "--force", name)


def hardened(volume: str) -> list[str]:
    """How a deployment runs the image: nothing but /data and /tmp can be written."""
    return [
        *("--read-only", "--tmpfs", "/tmp", "--volume", f"{volume}:/data"),  # noqa: S108 - in the container
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"),
    ]


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_what_is_in_it(image: str, request: pytest.FixtureRequest) -> None:
    (about,) = json.loads(podman("inspect", image))
    assert about["Config"]["User"] == "10001:10001"
    assert about["Config"]["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert about["Healthcheck"]["Test"]
    run = ("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c")
    # What builds isn't there, nor what only tests need, nor a file that the process could change.
    tools = "for tool in gcc cc make git uv pip pip3 pytest moto_server; do command -v $tool; done; true"
    assert podman(*run, tools) == ""
    assert podman(*run, "find /app -writable -not -type l | head -1") == ""
    source = "find /app/.venv/lib/python3*/site-packages/pipeline_assets -name '*.py' | wc -l"
    assert podman(*run, source) == podman(*run, source.replace("*.py'", "*.pyc'"))
    largest = podman(*run, "cd /app/.venv/lib/python3*/site-packages && du -sm * | sort -rn | head")
    writer = request.config.get_terminal_writer()
    writer.line(f"\n{image}: {about['Size'] / 1e6:,.0f} MB, of it in MB:\n{largest}")


def test_a_partition_is_materialized_inside(image: str, volume: str) -> None:
    execute = (
        "touch /app/new 2>/dev/null && exit 3; id -u; dagster job execute -m pipeline_assets.definitions"
        """ -j load_transactions --tags '{"dagster/partition": "2026-11-20"}' 2>&1"""
    )
    start = ("--env", "WAREHOUSE_START_DATE=2026-11-19")
    printed = podman("run", "--rm", *hardened(volume), *start, image, "sh", "-c", execute)
    assert printed.startswith("10001\n")
    assert "RUN_SUCCESS" in printed
    status = podman(
        "run", "--rm", *hardened(volume), *start, image, "pipeline-assets", "status", check=False
    )
    assert "days loaded" in status


def test_it_gets_healthy_and_ends_when_asked(image: str, volume: str) -> None:
    name = f"pipeline-assets-{uuid4().hex[:8]}"
    podman("run", "--detach", "--name", name, *hardened(volume), image)
    try:
        until(lambda: _is_well(name), "it never got healthy")
        begun = time.monotonic()
        podman("stop", "--time", str(GRACE), name)
        took = time.monotonic() - begun
        (state,) = json.loads(podman("inspect", name))
        assert state["State"]["ExitCode"] != 137, "it had to be killed"
        assert took < GRACE
    finally:
        podman("rm", "--force", name)


def _is_well(name: str) -> bool:
    """What the image's own check says: it prints that the container is unhealthy, or nothing."""
    podman("healthcheck", "run", name, check=False)
    (state,) = json.loads(podman("inspect", name))
    assert state["State"]["Running"], podman("logs", name)
    return bool(
        state["State"].get("Health", state["State"].get("Healthcheck"))["Status"] == "healthy"
    )
