"""A worker host that is lost mid-run: what it had to do is done by the other, once, by itself.

Nothing is simulated: two hosts with a network of their own, PostgreSQL, RabbitMQ and S3 on a third, and
Dagster's daemon, queue and run processes there. `make test-cluster` runs all of it, `make test` nothing.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest

from pipeline_assets_tests.cluster import hosts
from pipeline_assets_tests.cluster.hosts import Cluster, Host, until
from pipeline_assets_tests.conftest import SOURCE_SCHEMA

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing()),
]
ORDERS = 200
"""Orders a day."""


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two worker hosts and a daemon, and a source of ninety days."""
    with hosts.cluster(tmp_path_factory.mktemp("cluster") / "c") as found:
        with found.connect("source") as source:
            source.execute(SOURCE_SCHEMA)
            source.execute(
                "INSERT INTO shop.transactions SELECT day || '-' || n, n, moment, 10, 'USD', 1,"
                " 'completed', moment FROM generate_series(0, 89) AS day, generate_series(1, %s) AS n,"
                " LATERAL (SELECT timestamptz '2026-01-07' + day * interval '1 day'"
                "   + n * interval '1 s' AS moment) AS m",
                [ORDERS],
            )
        for host in found.workers:
            found.start_worker(host)
        found.start_daemon()
        yield found


def days(count: int) -> list[str]:
    return [(date(2026, 1, 7) + timedelta(days=n)).isoformat() for n in range(count)]


def loaded(cluster: Cluster) -> int:
    """How many days the ledger has as loaded, whole."""
    query = "SELECT count(*) FROM pipeline.batches WHERE verdict = 'passed' AND loaded_hash = content_hash"
    with cluster.connect("warehouse") as warehouse:
        try:
            (count,) = warehouse.execute(query).fetchone() or (0,)
        except psycopg.errors.UndefinedTable:
            return 0
    return int(count)


def taken_over(cluster: Cluster, lost: set[str], others: Sequence[Host]) -> float:
    """Seconds until other hosts have been given every lost step."""
    begun = time.monotonic()
    until(
        lambda: lost <= set().union(*(cluster.received(host) for host in others)),
        "the lost steps on the other host",
    )
    return time.monotonic() - begun


def lose(cluster: Cluster, host: Host, *, cut: bool) -> float:
    """Lose a host that is at work; seconds until its steps were taken over."""
    lost = until(lambda: cluster.at_work(host), f"a step on {host.name}")
    (host.cut if cut else host.kill)()
    others = [other for other in cluster.workers if other is not host]
    return taken_over(cluster, lost, others)


def assert_done_once(cluster: Cluster, count: int) -> None:
    """Every run succeeded, every day is loaded, and no row was ever written again."""
    until(
        lambda: loaded(cluster) == count,
        f"{count} days in the ledger",
        longest=max(600.0, 40.0 * count),
    )
    until(lambda: set(cluster.runs()) <= {"SUCCESS", "FAILURE"}, "the runs' end")
    with cluster.connect("warehouse") as warehouse:
        query = "SELECT count(*), count(DISTINCT order_id) FROM analytics.fct_transactions"
        assert warehouse.execute(query).fetchone() == (count * ORDERS, count * ORDERS)
        query = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'fct_transactions'"
        assert warehouse.execute(query).fetchone() == (0,)
        query = "SELECT count(*) FROM pipeline.batches"
        assert warehouse.execute(query).fetchone() == (count,)


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say a figure in the test's report."""
    writer = request.config.get_terminal_writer()
    return lambda line: writer.line(f"\n{line}")


def test_a_host_that_dies_and_one_that_is_cut_off_lose_nothing(
    cluster: Cluster, tell: Callable[[str], None]
) -> None:
    first, second = cluster.workers
    cluster.launch("load_transactions", days(6))
    until(lambda: loaded(cluster) >= 1, "the first day")
    after_death = lose(cluster, second, cut=False)
    cluster.start_worker(second)
    after_cut = lose(cluster, first, cut=True)
    assert_done_once(cluster, 6)
    tell(f"steps taken over {after_death:.1f} s after a death, {after_cut:.1f} s after a cut")

    # Back on the network it works again, by itself.
    first.join()
    before = cluster.received(first)
    cluster.launch("load_transactions", days(8)[6:])
    until(lambda: cluster.received(first) - before, "a step on the host that is back")
    assert_done_once(cluster, 8)
    with cluster.connect("dagster") as dagster:
        query = "SELECT client_addr::text, count(*) FROM pg_stat_activity GROUP BY 1"
        assert max(dict(dagster.execute(query).fetchall()).values()) < 40


@pytest.mark.parametrize("cut", [False, True], ids=["killed", "cut off"])
def test_sixty_days_survive_the_loss_of_a_host(
    cluster: Cluster, tell: Callable[[str], None], *, cut: bool
) -> None:
    cluster.launch("load_transactions", days(60))
    until(lambda: loaded(cluster) >= 15, "a quarter of the days", longest=600)
    lost_for = lose(cluster, cluster.workers[1], cut=cut)
    assert_done_once(cluster, 60)
    tell(f"steps taken over after {lost_for:.1f} s")


def test_a_step_that_takes_its_workers_with_it_is_given_up(cluster: Cluster) -> None:
    cluster.launch("load_transactions", days(1))
    until(lambda: loaded(cluster) == 1, "the first day")
    with cluster.connect("warehouse") as locker:
        locker.autocommit = False
        locker.execute("LOCK TABLE analytics.fct_transactions")
        cluster.launch("load_transactions", days(2)[1:])
        for _ in range(3):
            os.kill(until(lambda: _waiting_process(cluster), "the load"), signal.SIGKILL)
        until(lambda: cluster.runs().get("FAILURE"), "the run's end")
    with cluster.connect("dagster") as dagster:
        query = "SELECT count(*) FROM event_logs WHERE event LIKE '%%workers died in fct_transactions%%'"
        assert dagster.execute(query).fetchone() != (0,)
        query = "SELECT value FROM run_tags WHERE key = 'dagster/max_retries'"
        assert dagster.execute(query).fetchall() == [("0",)]
    assert sum(cluster.runs().values()) == 2, "it wasn't tried again"


def _waiting_process(cluster: Cluster) -> int | None:
    """The process on a worker host whose statement waits for the locked table."""
    query = (
        "SELECT client_addr::text, client_port FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    )
    with cluster.connect("warehouse") as warehouse:
        found = warehouse.execute(query).fetchone()
    if found is None:
        return None
    address, port = found
    (host,) = (host for host in cluster.workers if host.address == address.partition("/")[0])
    (line,) = host.run(
        ["ss", "-Htnp", "sport", "=", str(port)], dict(os.environ), Path("/")
    ).splitlines()
    return int(line.partition("pid=")[2].partition(",")[0])
