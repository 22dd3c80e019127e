"""The image as Podman builds and runs it: `make image-test`."""

import json
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from pipeline_assets_tests.image.conftest import podman
from pipeline_assets_tests.waiting import until

GRACE = 30
"""Seconds within which a container has to end once it is asked to."""


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


def test_what_is_in_it(image: str, request: pytest.FixtureRequest) -> None:
    (about,) = json.loads(podman("inspect", image))
    assert about["Config"]["User"] == "10001:10001"
    assert about["Config"]["Entrypoint"] == ["/usr/bin/tini", "--"]
    assert about["Healthcheck"]["Test"]
    run = ("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c")
    # No build tools, nothing that only tests need, and no file that the process could change.
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
        until(lambda: _is_well(name), "healthy")
        begun = time.monotonic()
        podman("stop", "--time", str(GRACE), name)
        took = time.monotonic() - begun
        (state,) = json.loads(podman("inspect", name))
        assert state["State"]["ExitCode"] != 137, "it had to be killed"
        assert took < GRACE
    finally:
        podman("rm", "--force", name)


def _is_well(name: str) -> bool:
    """Run the image's own check, which prints `unhealthy` or nothing, and read the container's health."""
    podman("healthcheck", "run", name, check=False)
    (state,) = json.loads(podman("inspect", name))
    assert state["State"]["Running"], podman("logs", name)
    return bool(
        state["State"].get("Health", state["State"].get("Healthcheck"))["Status"] == "healthy"
    )
