"""The sample shop, a day a minute, under all schedules and sensors: nothing grows, nothing is late or behind.

All is as `make dev` starts it: the embedded server, the project's dagster.yaml, the daemon, a code server,
warm runs. Orders appear as the shop's clock reaches them; some are refunded later, some deleted without a
trace.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from statistics import median

import dagster as dg
import psutil
import psycopg
import pytest
from dagster._core.scheduler.instigation import SensorInstigatorData

from pipeline_assets.resources import embedded_postgres
from pipeline_assets.resources.postgres import Database, embedded_folder
from pipeline_assets.settings import Settings
from pipeline_assets.settings.model import DATABASE_URLS
from pipeline_assets_tests.reliability import oracle
from pipeline_assets_tests.reliability.deployment import Deployment, deployment
from pipeline_assets_tests.reliability.kills import postmaster
from pipeline_assets_tests.reliability.shop_time import ShopTime
from pipeline_assets_tests.waiting import until

SPEED = 1440
"""A day a minute."""
BEGINS = datetime(2026, 1, 9, 0, 30, tzinfo=UTC)
"""Two days after the shop opened."""
STARTS_IN = 30
"""Seconds until the shop's clock runs: Dagster's processes have started by then."""
LOOKS = 5.0
"""Seconds between two looks at memory and connections."""
QUIET_MINUTES = 2
"""The shop's last days, without deletions: only the daily comparison finds those of old days."""
GROWS = 1.1
"""The last quarter's median over the second's, at most."""
LATE = 60
"""Seconds. No schedule ticks later than that, no sensor pauses for so much longer than its interval."""
IN_STEP = 120.0
"""Seconds after the shop's last order until all of it is loaded."""


@dataclass
class Watch:
    """What was seen of memory (RSS), of handles and of connections, look by look.

    Not PSS: a process that others are forked from shares a varying part of its pages. PostgreSQL's is the
    memory that its processes don't share: its buffers have a fixed size.
    """

    seen: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def look(self, deployed: Deployment, server: psycopg.Connection) -> None:
        for kind, processes in deployed.processes().items():
            if kind == "runs":
                continue
            with suppress(psutil.Error):
                memory = sum(each.memory_info().rss for each in processes)
                self.seen[f"{kind}, MB"].append(memory / (1 << 20))
                self.seen[f"{kind}, files"].append(sum(each.num_fds() for each in processes))
                self.seen[f"{kind}, threads"].append(sum(each.num_threads() for each in processes))
        with suppress(psutil.Error):
            database = psutil.Process(postmaster(server.info.backend_pid))
            own = [each.memory_full_info().uss for each in [database, *database.children()]]
            self.seen["PostgreSQL, MB a process"].append(sum(own) / len(own) / (1 << 20))
        (count,) = server.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        ).fetchone() or (0,)
        self.seen["connections"].append(count)

    def quarters(self) -> dict[str, tuple[float, float, float]]:
        """The medians of the second and the last quarter of the looks, and the greatest of all."""
        found = {}
        for what, values in self.seen.items():
            quarter = max(len(values) // 4, 1)
            second, last = values[quarter : 2 * quarter] or values, values[-quarter:]
            found[what] = (median(second), median(last), max(values))
        return found


@dataclass
class Soak:
    """A deployment on the embedded server, and its shop."""

    settings: Settings
    time: ShopTime
    random: Random

    def connect(self, role: str) -> psycopg.Connection:
        return Database(role, self.settings).connect(autocommit=True)  # type: ignore[arg-type]  # is one

    def open_shop(self) -> None:
        """Let the sample shop's orders appear by the shop's own clock."""
        with self.connect("source") as source:
            source.execute(
                "CREATE OR REPLACE VIEW shop.transactions AS SELECT * FROM shop.orders"
                f" WHERE updated_at <= {self.time.sql()}"
            )

    def disturb(self, source: psycopg.Connection) -> None:
        """Refund some orders of any age, and delete one."""
        left = datetime.fromisoformat(self.time.ends) - self.time.now()
        # The clock stops half an hour after midnight: a change made then is of a day that isn't loaded yet.
        if left < timedelta(hours=1):
            return
        number = self.random.randrange(2**31)
        chosen = f"SELECT order_id FROM shop.transactions ORDER BY md5(order_id || {number})"
        source.execute(
            f"UPDATE shop.orders SET status = 'refunded', updated_at = {self.time.sql()}"
            f" WHERE order_id IN ({chosen} LIMIT 3)"
        )
        if left > timedelta(days=QUIET_MINUTES):
            source.execute(f"DELETE FROM shop.orders WHERE order_id IN ({chosen} DESC LIMIT 1)")

    def behind(self) -> list[str]:
        """Where source and warehouse differ, and what is torn or not loaded."""
        root = self.settings.pipeline_data_dir / "partitions"
        with self.connect("source") as source, self.connect("warehouse") as warehouse:
            if warehouse.execute("SELECT to_regclass('analytics.daily_sales')").fetchone() == (
                None,
            ):
                return ["nothing is loaded"]
            return (
                oracle.source_differences(source, warehouse)
                + oracle.torn(warehouse, root)
                + oracle.unloaded(warehouse, root)
            )


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def soak(tmp_path_factory: pytest.TempPathFactory, minutes: int, seed: int) -> Iterator[Soak]:
    with pytest.MonkeyPatch.context() as patch:
        for name in (*DATABASE_URLS, "mlflow_tracking_uri"):
            patch.delenv(name.upper(), raising=False)
        settings = Settings(pipeline_data_dir=tmp_path_factory.mktemp("data"))
        starts = time.time() + STARTS_IN
        ends = BEGINS + timedelta(days=minutes)
        shop_time = ShopTime(BEGINS.isoformat(), ends.isoformat(), SPEED, starts)
        found = Soak(settings, shop_time, Random(seed))
        found.open_shop()
        yield found
    folder = embedded_folder(settings)
    embedded_postgres.release(folder)
    embedded_postgres.stop(folder)


@pytest.mark.reliability
@pytest.mark.parametrize(
    "minutes", [os.environ.get("RELIABILITY_SOAK_MINUTES", "20")], indirect=True
)
def test_a_fast_shop_leaves_nothing_growing_late_or_behind(
    soak: Soak,
    minutes: int,
    tmp_path_factory: pytest.TempPathFactory,
    tell: Callable[[str], None],
) -> None:
    environment = {
        "PIPELINE_DATA_DIR": str(soak.settings.pipeline_data_dir),
        "PIPELINE_AUTOMATION": "running",
        "NEWS_START_DATE": f"{BEGINS - timedelta(days=3):%Y-%m-%d}",
        **soak.time.environment(),
    }
    watch = Watch()
    module = "pipeline_assets_tests.reliability.shop_time"
    with deployment(tmp_path_factory.mktemp("h"), module, environment) as deployed:
        stands = soak.time.started + 60 * minutes
        with soak.connect("source") as source, soak.connect("warehouse") as server:
            while time.time() < stands:
                next_look = time.time() + LOOKS
                watch.look(deployed, server)
                if time.time() > soak.time.started:
                    soak.disturb(source)
                time.sleep(max(next_look - time.time(), 0))
        until(lambda: deployed.is_idle() and not soak.behind(), "in step")
        in_step = time.time() - stands
        late = ticks(deployed, tell)
        report(deployed, watch, tell)
        tell(f"{minutes} days of the shop in as many minutes; all in step {in_step:.0f} s later")
        assert late == []
        assert in_step < IN_STEP
        failed = [record.dagster_run for record in deployed.runs(dg.DagsterRunStatus.FAILURE)]
        assert failed == []
        left = [each for found in deployed.processes().values() for each in found]

    assert soak.behind() == []
    assert [each for each in left if each.is_running()] == []
    if minutes >= 10:
        for what, (second, last, _) in watch.quarters().items():
            assert last <= GROWS * second + 2, f"{what} grew from {second:g} to {last:g}"


def ticks(deployed: Deployment, tell: Callable[[str], None]) -> list[str]:
    """Ticks that failed, were late or left out, and what never ticked; prints how late ticks were."""
    found, delays, pauses = [], [], []
    states = deployed.instance.all_instigator_state()
    for state in states:
        every = deployed.instance.get_ticks(state.instigator_origin_id, state.selector_id)
        found += [f"{state.instigator_name}: {tick.error}" for tick in every if tick.is_failure]
        times = sorted(tick.timestamp for tick in every)
        steps = [after - before for before, after in pairwise(times)]
        data = state.instigator_data
        if isinstance(data, SensorInstigatorData):
            late = [step - (data.min_interval or 0) for step in steps]
            pauses += steps
        else:
            late = [tick.end_timestamp - tick.timestamp for tick in every if tick.end_timestamp]
            delays += late
            found += [
                f"{state.instigator_name} left out {step - 60:.0f} s" for step in steps if step > 60
            ]
        found += [f"{state.instigator_name} was {each:.0f} s late" for each in late if each > LATE]
        found += [] if every else [f"{state.instigator_name} never ticked"]
        if state.instigator_name == "alerts":
            tell(f"alerts: {max(every, key=lambda tick: tick.timestamp).skip_reason}")
    tell(
        f"{len(states)} schedules and sensors: ticks of schedules {median(delays):.1f} s after their time, "
        f"{max(delays):.1f} s at most; sensors paused {max(pauses, default=0):.0f} s at most"
    )
    return found


def report(deployed: Deployment, watch: Watch, tell: Callable[[str], None]) -> None:
    """Print the figures for docs/reliability.md."""
    records = deployed.runs()
    took = [
        each.end_time - each.start_time for each in records if each.end_time and each.start_time
    ]
    waited = [
        each.start_time - each.create_timestamp.timestamp() for each in records if each.start_time
    ]
    jobs = Counter(record.dagster_run.job_name for record in records)
    tell(f"{len(records)} runs: " + ", ".join(f"{n} {job}" for job, n in jobs.most_common()))
    tell(
        f"a run took {median(took):.1f} s, at most {max(took):.1f}; it waited {median(waited):.1f} s, "
        f"at most {max(waited):.1f}"
    )
    for what, (second, last, most) in sorted(watch.quarters().items()):
        tell(
            f"{what}: {second:.0f} in the second quarter, {last:.0f} in the last, {most:.0f} at most"
        )
