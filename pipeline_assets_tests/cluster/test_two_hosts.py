"""Daily loads on two worker hosts, and what becomes of a lost host's steps.

Nothing is simulated: two hosts with a network of their own, PostgreSQL, RabbitMQ and S3 on a third, and
Dagster's daemon, queue and run processes there. `make test-cluster` runs all of them, `make test` none.
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from itertools import pairwise

import pytest

from pipeline_assets.failures import PERMANENT
from pipeline_assets_tests.cluster.hosts import Host, until
from pipeline_assets_tests.cluster.services import POOL_LIMIT, Cluster, program
from pipeline_assets_tests.conftest import SOURCE_SCHEMA
from pipeline_assets_tests.reliability import oracle

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
ORDERS = 200
"""Orders a day, the last of which breaks the contract."""
STEPS = ("raw_transactions", "validated_transactions", "fct_transactions")
QUARTER = 0.25
"""Cores of a worker host: few, so that the services have the rest of a small machine."""
Tell = Callable[[str], None]


@pytest.fixture
def cluster(empty_cluster: Cluster) -> Cluster:
    """A worker on each host and a daemon, and a source without orders."""
    return start(empty_cluster, empty_cluster.workers)


def start(cluster: Cluster, workers: list[Host]) -> Cluster:
    with cluster.connect("source") as source:
        source.execute(SOURCE_SCHEMA)
    cluster.prepare()
    for host in workers:
        cluster.start_worker(host)
    cluster.start_daemon()
    return cluster


def load(cluster: Cluster, first: int, count: int) -> None:
    """Put days of orders into the source, and queue a run for each."""
    with cluster.connect("source") as source:
        source.execute(
            "INSERT INTO shop.transactions SELECT day || '-' || n, n, moment, %(orders)s - n, 'USD', 1,"
            " 'completed', moment FROM generate_series(%(first)s::int, %(last)s) AS day,"
            " generate_series(1, %(orders)s::int) AS n, LATERAL (SELECT timestamptz '2026-01-07'"
            " + day * interval '1 day' + n * interval '1 s' AS moment) AS m",
            {"orders": ORDERS, "first": first, "last": first + count - 1},
        )
    days = [str(date(2026, 1, 7) + timedelta(days=first + n)) for n in range(count)]
    cluster.launch("load_transactions", days)


def loaded(cluster: Cluster) -> int:
    """How many days the ledger has as loaded, whole."""
    query = "SELECT count(*) FROM pipeline.batches WHERE verdict = 'passed' AND loaded_hash = content_hash"
    with cluster.connect("warehouse") as warehouse:
        (count,) = warehouse.execute(query).fetchone() or (0,)
    return int(count)


def lose(cluster: Cluster, host: Host, *, cut: bool) -> str:
    """Lose a host while it is at work; returns how long its steps took to begin, and to end, elsewhere."""

    def frozen_at_work() -> set[str]:
        host.freeze()  # so that its log stays true until it is thawed
        if not (lost := cluster.at_work(host)):
            host.thaw()
        return lost

    lost: set[str] = until(frozen_at_work, f"a step on {host.name}")
    if cut:
        host.cut()
        host.thaw()
    else:
        host.kill()
    begun = time.monotonic()
    others = [other for other in cluster.workers if other is not host]

    def by_others(what: Callable[[Host], set[str]]) -> float:
        until(lambda: lost <= set().union(*map(what, others)), "the lost steps elsewhere")
        return time.monotonic() - begun

    again, done = by_others(cluster.received), by_others(cluster.succeeded)
    what = "was cut off" if cut else "was killed"
    return f"{host.name} {what}: its step began elsewhere after {again:.1f} s, was done after {done:.1f} s"


def assert_done_once(cluster: Cluster, count: int) -> None:
    """Every run succeeded, each day was loaded by one transaction, and nothing is lost or doubled."""
    until(lambda: cluster.runs() == {"SUCCESS": count}, f"{count} runs that succeeded")
    assert loaded(cluster) == count
    assert cluster.most_at_once() <= POOL_LIMIT
    with cluster.connect("source") as source, cluster.connect("warehouse") as warehouse:
        assert oracle.source_differences(source, warehouse) == []
        assert oracle.mart_differences(warehouse) == []
        # Each row's xmin is the transaction that wrote it last.
        query = (
            "SELECT count(*), sum(transactions) FROM (SELECT count(DISTINCT xmin::text) AS transactions"
            " FROM analytics.fct_transactions GROUP BY business_day) AS days"
        )
        assert warehouse.execute(query).fetchone() == (count, count)
        query = "SELECT count(*), sum(rows_valid), sum(rows_quarantined) FROM pipeline.batches"
        valid = count * (ORDERS - 1)
        assert warehouse.execute(query).fetchone() == (count, valid, count)


def test_each_host_does_steps_and_hands_their_data_on(cluster: Cluster, tell: Tell) -> None:
    load(cluster, 0, 12)
    assert_done_once(cluster, 12)
    executions = cluster.executions()
    assert Counter(step for _, step, _ in executions) == dict.fromkeys(STEPS, 12)
    hosts_of = {
        day: [
            host for step in STEPS for host, done, key in executions if (done, key) == (step, day)
        ]
        for _, _, day in executions
    }
    for day, names in sorted(hosts_of.items()):
        tell(
            f"{day}: "
            + ", ".join(f"{step} on {host}" for step, host in zip(STEPS, names, strict=True))
        )
    # What one host wrote the other one read, and neither has it on its own disk.
    assert any(a != b for names in hosts_of.values() for a, b in pairwise(names))
    for host in cluster.workers:
        assert not list((cluster.folder / host.name).rglob("*.parquet"))
        check = [program("pipeline-assets"), "worker", "--check"]
        host.run(check, cluster.on(host), cluster.folder)


def test_sixty_days_survive_a_host_that_is_killed_and_one_that_is_cut_off(
    cluster: Cluster, tell: Tell
) -> None:
    first, second = cluster.workers
    load(cluster, 0, 60)
    begun = time.monotonic()
    until(lambda: loaded(cluster) >= 15, "a quarter of the days")
    tell(lose(cluster, second, cut=False))
    cluster.start_worker(second)  # as the host's init system does it
    until(lambda: loaded(cluster) >= 30, "half of the days")
    tell(lose(cluster, first, cut=True))
    assert_done_once(cluster, 60)
    took = time.monotonic() - begun
    tell(
        f"60 days in {took:.0f} s; steps begun: {Counter(host for host, *_ in cluster.executions())}"
    )
    assert cluster.most_at_once() == POOL_LIMIT, (
        "neither more than the pool has room for, nor fewer"
    )

    # Back on the network the host works again, by itself.
    first.join()
    before = cluster.received(first)
    load(cluster, 60, 6)
    until(lambda: cluster.received(first) - before, "a step on the host that is back")
    assert_done_once(cluster, 66)
    with cluster.connect("dagster") as dagster:
        query = "SELECT client_addr::text, count(*) FROM pg_stat_activity GROUP BY 1"
        assert max(dict(dagster.execute(query).fetchall()).values()) < 40


def test_a_load_that_is_cut_off_holds_nobody_up(cluster: Cluster, tell: Tell) -> None:
    load(cluster, 0, 1)
    until(lambda: loaded(cluster) == 1, "the first day")
    with locked(cluster):
        load(cluster, 1, 1)
        host, _ = until(lambda: waiting(cluster), "the load")
        host.cut()
        begun = time.monotonic()
    # Its session goes on now: it still holds the day's lock, and its answers don't reach the host.
    assert_done_once(cluster, 2)
    tell(f"the day was loaded by the other host after {time.monotonic() - begun:.0f} s")


def test_a_step_that_takes_its_workers_with_it_is_given_up(cluster: Cluster) -> None:
    load(cluster, 0, 1)
    until(lambda: loaded(cluster) == 1, "the first day")
    with locked(cluster):
        load(cluster, 1, 1)
        for _ in range(3):
            _, pid = until(lambda: waiting(cluster), "the load")
            os.kill(pid, signal.SIGKILL)
        until(lambda: cluster.runs().get("FAILURE"), "the run's end")
    with cluster.connect("dagster") as dagster:
        query = "SELECT count(*) FROM event_logs WHERE event LIKE '%%3 workers died in fct_transactions%%'"
        assert dagster.execute(query).fetchone() != (0,)
        # Neither Dagster nor the project's own sensors try it again.
        query = "SELECT value FROM run_tags WHERE key = ANY(%s) ORDER BY 1"
        tags = dagster.execute(query, [["dagster/max_retries", PERMANENT]]).fetchall()
        assert tags == [("0",), ("true",)]
    assert sum(cluster.runs().values()) == 2, "it wasn't tried again"
    # The workers go on.
    load(cluster, 2, 2)
    until(lambda: loaded(cluster) == 3, "the days after it")


@contextmanager
def locked(cluster: Cluster) -> Iterator[None]:
    """Keep every load from touching the orders for as long as the block lasts."""
    with cluster.connect("warehouse") as warehouse, warehouse.transaction():
        warehouse.execute("LOCK TABLE analytics.fct_transactions")
        yield


def waiting(cluster: Cluster) -> tuple[Host, int] | None:
    """A process whose statement waits for a lock, and the worker host that it is on."""
    query = (
        "SELECT client_addr::text, client_port FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    )
    with cluster.connect("warehouse") as warehouse:
        sessions = warehouse.execute(query).fetchall()
    for address, port in sessions:
        (host,) = (host for host in cluster.workers if host.address == address.partition("/")[0])
        ss = ["ss", "-Htnp", "sport", "=", str(port)]
        # The session of a killed process may still have a socket, but no process owns it.
        if found := re.search(r"pid=(\d+)", host.run(ss, dict(os.environ), cluster.folder)):
            return host, int(found[1])
    return None


def test_two_workers_against_one(empty_cluster: Cluster, tell: Tell) -> None:
    cluster = start(empty_cluster, empty_cluster.workers[:1])
    first, second = cluster.workers
    first.limit(QUARTER)
    slow_alone = days_a_minute(cluster, 0)
    cluster.start_worker(second)
    second.limit(QUARTER)
    slow_both = days_a_minute(cluster, 20)
    for host in cluster.workers:
        host.limit(cores())
    both = days_a_minute(cluster, 40)
    second.kill()
    alone = days_a_minute(cluster, 60)
    assert_done_once(cluster, 80)
    assert slow_both > slow_alone
    tell(
        f"days a minute, one worker and two: {slow_alone:.1f} and {slow_both:.1f}"
        f" ({slow_both / slow_alone:.2f} times) with {QUARTER} of a core a worker, {alone:.1f} and"
        f" {both:.1f} ({both / alone:.2f} times) with all {cores()} cores, which all hosts share"
    )


def cores() -> int:
    return os.cpu_count() or 1


def days_a_minute(cluster: Cluster, first: int) -> float:
    """How many days are loaded a minute, from the fifth to the sixteenth of twenty: all hosts have work."""
    load(cluster, first, 20)
    until(lambda: loaded(cluster) >= first + 4, "four days")
    begun, before = time.monotonic(), loaded(cluster)
    after = until(lambda: (count := loaded(cluster)) >= first + 16 and count, "sixteen days")
    rate: float = 60 * (after - before) / (time.monotonic() - begun)
    until(lambda: cluster.runs() == {"SUCCESS": first + 20}, "twenty days")
    return rate
