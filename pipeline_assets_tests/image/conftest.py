"""Podman, and the image that it builds on a base of Debian's packages; the base is made once per machine.

This needs root, PyPI and a mirror of Debian, but no image registry. IMAGE names an existing image, which
is then tested instead of a new one.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PODMAN = shutil.which("podman") or ""
BASE = "localhost/debian-python:bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    missing = not (PODMAN and shutil.which("debootstrap")) or os.geteuid() != 0
    reason = (
        "needs root and Debian's podman, runc, netavark, aardvark-dns, catatonit and debootstrap"
    )
    for item in here:
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.image)
        item.add_marker(pytest.mark.skipif(missing, reason=reason))


def ask_podman(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Podman, with the configuration beside this file."""
    environment = {
        **os.environ,
        "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf")),
    }
    return subprocess.run(
        [PODMAN, "--log-level", "fatal", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def podman(*arguments: str, check: bool = True) -> str:
    """Run Podman; returns what it prints."""
    found = ask_podman(*arguments)
    assert not check or found.returncode == 0, found.stderr or found.stdout
    return found.stdout


@pytest.fixture(scope="session")
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
        # The certificate authorities that this machine trusts.
        *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
        *("--file", "deploy/Dockerfile", "--tag", "pipeline-assets", "."),
    )
    return "pipeline-assets"
