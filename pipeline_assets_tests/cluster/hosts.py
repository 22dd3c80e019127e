"""Hosts on one machine: network namespaces on a switch, each with a hostname and programs of its own.

A host's programs can be killed, all at once, and a host can be cut off, so that its packets vanish and
no peer is notified; a power cut is the two together. What runs on the hosts is in `services`. Needs root.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline_assets_tests import waiting

SERVICES = "10.80.0.1"
"""The address of the first host."""
SWITCH = "pa-switch"
IP = shutil.which("ip") or "ip"
LONGEST = 1200.0
"""Seconds until a wait gives up."""
until = partial(waiting.until, longest=LONGEST)
CGROUPS = Path("/sys/fs/cgroup")


def missing() -> str:
    """What keeps this machine from having such hosts; empty if nothing does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if not shutil.which("ip"):
        return "needs Debian's iproute2"
    probe = subprocess.run([IP, "netns", "add", "pipeline-probe"], capture_output=True, check=False)
    subprocess.run([IP, "netns", "delete", "pipeline-probe"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "this machine lets nobody make network namespaces"


@dataclass
class Host:
    """A network namespace and what runs in it."""

    name: str
    address: str
    logs: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self,
        what: str,
        command: Sequence[str],
        environment: dict[str, str],
        cwd: Path,
        ready: Callable[[], Any] | None = None,
    ) -> None:
        """Start a program on the host, and wait until it is ready; its output goes to a file of that name."""
        output = self.logs / f"{what}.log"
        with output.open("ab") as log:
            process = subprocess.Popen(
                self._there(command),
                env=environment,
                cwd=cwd,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        if ready:
            until(lambda: ready() or process.poll() is not None, what)
            assert process.poll() is None, f"{what} ended: {output.read_text()[-2000:]}"

    def run(self, command: Sequence[str], environment: dict[str, str], cwd: Path) -> str:
        """Run a program on the host to its end; returns what it printed."""
        return subprocess.run(
            self._there(command),
            env=environment,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        ).stdout

    def _there(self, command: Sequence[str]) -> list[str]:
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return [IP, "netns", "exec", self.name, *named, *command]

    def pids(self) -> list[int]:
        """Every process on the host."""
        found = subprocess.run(
            [IP, "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        """End everything on the host at once; unlike in a power cut, its kernel closes the connections."""
        while self._signal(signal.SIGKILL):
            for process in self.processes:
                process.poll()  # a zombie still counts as one of the host's
            time.sleep(0.05)

    def freeze(self) -> None:
        """Stop all that runs on the host, until it is thawed or killed."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all that runs on the host go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        pids = self.pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)

    def cut(self) -> None:
        """Take the host off the network: its packets vanish, while its own link stays up."""
        _ip("-n", SWITCH, "link", "set", self.name, "nomaster")

    def join(self) -> None:
        """Put the host back on the network."""
        _ip("-n", SWITCH, "link", "set", self.name, "master", "bridge")

    def limit(self, cores: float) -> None:
        """Limit the host's processes, and those that they start, to so many of the machine's cores."""
        quota, period = round(cores * 100_000), 100_000  # microseconds
        if (CGROUPS / "cgroup.controllers").exists():
            group = CGROUPS / self.name
            group.mkdir(exist_ok=True)
            (group / "cpu.max").write_text(f"{quota} {period}")
        else:
            group = CGROUPS / "cpu" / self.name
            group.mkdir(exist_ok=True)
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        for pid in self.pids():
            (group / "cgroup.procs").write_text(str(pid))


def make_hosts(workers: int, logs: Path) -> list[Host]:
    """A host for services, at `SERVICES`, and hosts of workers."""
    hosts = [Host("pa-services", SERVICES, logs)]
    hosts += [Host(f"pa-worker{n}", f"10.80.0.{n + 1}", logs) for n in range(1, workers + 1)]
    # The switch has its own namespace: a bridge on one of the hosts would answer a host that is cut off.
    remove_hosts(hosts)  # of a test that was killed
    _ip("netns", "add", SWITCH)
    _ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
    _ip("-n", SWITCH, "link", "set", "bridge", "up")
    for host in hosts:
        _ip("netns", "add", host.name)
        _ip("-n", host.name, "link", "set", "lo", "up")
        pair = ["type", "veth", "peer", "eth0", "netns", host.name]
        _ip("-n", SWITCH, "link", "add", host.name, *pair)
        _ip("-n", SWITCH, "link", "set", host.name, "master", "bridge", "up")
        _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.name, "link", "set", "eth0", "up")
    return hosts


def remove_hosts(hosts: Sequence[Host]) -> None:
    """End all that runs on hosts, the hosts, and their switch."""
    for host in hosts:
        host.kill()
        for group in (CGROUPS / host.name, CGROUPS / "cpu" / host.name):
            if group.exists():
                group.rmdir()
    for name in (SWITCH, *(host.name for host in hosts)):
        subprocess.run([IP, "netns", "delete", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True, capture_output=True)
