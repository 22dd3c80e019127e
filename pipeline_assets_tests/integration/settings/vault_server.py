"""A real Vault (OpenBao) server for tests: a secret, a policy and an AppRole of each test's own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    import hvac

ROOT_TOKEN = "root-of-a-test"
_numbers = count()


@dataclass(frozen=True)
class VaultServer:
    """A server in memory, unsealed, with a KV engine at `secret` and AppRole logins."""

    address: str
    process: subprocess.Popen[bytes]

    def root(self) -> "hvac.Client":
        """A client that may do everything."""
        import hvac

        return hvac.Client(self.address, token=ROOT_TOKEN)

    def approle(self, values: dict[str, Any], **role: Any) -> dict[str, str]:
        """Write a secret, and make a role that may read it; returns the variables to read it with."""
        root, name = self.root(), f"pipeline-{next(_numbers)}"
        path = f"pipeline-assets/{name}"
        self.put(path, values)
        rule = f'path "secret/data/{path}" {{ capabilities = ["read"] }}'
        root.sys.create_or_update_policy(name, rule)
        root.auth.approle.create_or_update_approle(name, token_policies=[name], **role)
        return {
            "VAULT_ADDR": self.address,
            "VAULT_PATH": path,
            "VAULT_ROLE_ID": root.auth.approle.read_role_id(name)["data"]["role_id"],
            "VAULT_SECRET_ID": root.auth.approle.generate_secret_id(name)["data"]["secret_id"],
        }

    def put(self, path: str, values: dict[str, Any]) -> None:
        """Write a new version of a secret."""
        self.root().secrets.kv.v2.create_or_update_secret(path, values)


@contextmanager
def vault_server(folder: Path) -> Iterator[VaultServer]:
    """A server until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(str(Path(sys.executable).with_name("bao")), "server", "-dev", "-dev-no-store-token"),
        *(f"-dev-listen-address={address}", f"-dev-root-token-id={ROOT_TOKEN}"),
    ]
    log = (folder / "vault.log").open("wb")
    with (
        log,
        subprocess.Popen(
            command,
            env={"HOME": str(folder), "PATH": os.environ["PATH"]},
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        server = VaultServer(f"http://{address}", process)
        deadline = time.monotonic() + 60
        try:
            while not _is_ready(server.address):
                assert process.poll() is None, (folder / "vault.log").read_text()
                assert time.monotonic() < deadline, (folder / "vault.log").read_text()
                time.sleep(0.05)
            server.root().sys.enable_auth_method("approle")
            yield server
        finally:
            process.terminate()


def _is_ready(address: str) -> bool:
    # The engine at `secret` is mounted a moment after the server answers.
    try:
        mounts = requests.get(
            f"{address}/v1/sys/mounts", headers={"X-Vault-Token": ROOT_TOKEN}, timeout=2
        )
    except requests.RequestException:
        return False
    return mounts.ok and "secret/" in mounts.json()
