"""Faults between crashes: bad networks, full disks, no free connections, concurrent loads, old backups.

A run may fail, but only with an error that is retried; after the rerun nothing is wrong.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pipeline_assets.settings import Settings
from pipeline_assets_tests.load_steps import KEYS
from pipeline_assets_tests.reliability.kills import TRANSIENT, ended, start
from pipeline_assets_tests.reliability.proxy import Fault, proxy
from pipeline_assets_tests.reliability.site import Site, load_all

ROLES = ["source", "warehouse"]
DISK = "64m"
"""Room for what a test writes."""
PAGE = 4096
"""The least that a disk has room for, in bytes."""


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """A short case for `make test` and a long one for `make test-reliability`."""
    return pytest.mark.parametrize(
        "rounds",
        [
            pytest.param(few, marks=pytest.mark.slow),
            pytest.param(many, marks=pytest.mark.reliability),
        ],
    )


@rounds(1, 25)
def test_a_bad_network_loses_and_doubles_nothing(
    site: Site, rounds: int, tell: Callable[[str], None]
) -> None:
    failed = 0
    for number in range(rounds):
        for role in ROLES:
            for fault in (
                Fault("reset", resets_after=site.random.randrange(20_000)),
                Fault(
                    "silence, then reset", resets_after=site.random.randrange(20_000), stalls=0.3
                ),
                Fault("latency", delays=0.002),
                Fault("partial reads", piece=site.random.randrange(7, 99)),
            ):
                site.change()
                with behind(site.settings, role, fault) as settings:
                    code = ended(start(load_all, (settings,)))
                what = f"{fault} before {role}, round {number}"
                assert code == 0 or (code == TRANSIENT and fault.resets_after is not None), what
                failed += code == TRANSIENT
                site.recover(what)
    assert failed or rounds == 1, "no connection was ever reset under a load"
    tell(
        f"{rounds * 8} loads over bad networks: {failed} failed, to be tried again; all days agree"
    )


@contextmanager
def behind(settings: Settings, role: str, fault: Fault) -> Iterator[Settings]:
    """The settings with a database behind a proxy."""
    name = "mlflow_tracking_uri" if role == "mlflow" else f"{role}_database_url"
    parts = psycopg.conninfo.conninfo_to_dict(getattr(settings, name).get_secret_value())
    with proxy(str(parts["host"]), int(str(parts["port"])), fault) as port:
        url = f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:{port}/{parts['dbname']}"
        yield Settings.model_validate({**dict(settings), name: url})


@rounds(2, 30)
def test_the_same_days_loaded_by_three_at_once(
    site: Site, rounds: int, tell: Callable[[str], None]
) -> None:
    """As when a sensor and a backfill, or two daemons, start the same days; in opposite order too."""
    codes: list[int] = []
    for number in range(rounds):
        site.change()
        orders = [KEYS, KEYS[::-1], KEYS]
        runs = [start(load_all, (site.settings, keys)) for keys in orders]
        codes += [ended(run) for run in runs]
        assert set(codes) <= {0, TRANSIENT}, codes
        site.recover(f"round {number}")
    tell(
        f"{len(codes)} loads of the same days at once: {codes.count(0)} succeeded, the others again"
    )


@rounds(1, 5)
def test_a_server_out_of_connections_is_tried_again(site: Site, rounds: int) -> None:
    for _ in range(rounds):
        site.change()
        taken = list(all_connections(site))
        assert ended(start(load_all, (site.settings,))) == TRANSIENT
        for connection in taken:
            connection.close()
        site.recover("connections were back")


def all_connections(site: Site) -> Iterator[psycopg.Connection]:
    """Connections until the server has no more."""
    with suppress(psycopg.OperationalError):
        while True:
            yield site.connect("warehouse")


@rounds(1, 10)
def test_a_full_disk_leaves_no_half_written_file(site: Site, rounds: int) -> None:
    with small_disk(site.settings.pipeline_data_dir) as fill:
        for number in range(rounds):
            site.change()
            room = (site.random.randrange(1, 5) if number else 1) * PAGE
            with fill(room):
                code = ended(start(load_all, (site.settings,)))
            # What a page can't hold, four may: a file's predecessor goes when it is replaced.
            assert code in ((0, TRANSIENT) if number else (TRANSIENT,)), room
            site.recover("there is space again")
            assert site.left_behind() == []


@contextmanager
def small_disk(data: Path) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """Mount a small disk as the data folder; yields a function that fills it up to so many bytes."""
    tmpfs = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs"]
    if os.geteuid() != 0 or not mounted("mount", *tmpfs, str(data)):
        pytest.skip("only root, where it may mount, can make a small disk")

    @contextmanager
    def fill(room: int) -> Iterator[None]:
        filler = data / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(data).free - room))
        yield
        filler.unlink()

    try:
        yield fill
    finally:
        assert mounted("umount", "--lazy", str(data))


def mounted(program: str, *arguments: str) -> bool:
    return (
        subprocess.run([shutil.which(program) or program, *arguments], check=False).returncode == 0
    )


@rounds(1, 10)
@pytest.mark.parametrize("role", ROLES)
def test_a_database_restored_from_an_older_backup_is_in_step_again(
    site: Site, role: str, rounds: int
) -> None:
    """Then the days' files are newer than the warehouse, or the warehouse is newer than the source."""
    url = getattr(site.settings, f"{role}_database_url").get_secret_value()
    name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(url)["dbname"]))
    backup = sql.Identifier(f"backup_of_{role}")
    for _ in range(rounds):
        site.change()
        site.recover("before the backup")
        with psycopg.connect(site.server.url(), autocommit=True) as server:
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(backup, name))
            site.change()
            site.recover("after the backup")
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            server.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(backup, name))
        site.recover(f"the {role} is as it was")
