"""The service level of each contract as an asset check: whether a partition is loaded when it is due.

`FreshnessPolicy`, which the assets have too, looks at the last materialization of any partition: the
backfill of an old day satisfies it. This check is about each partition, as the ledger has it, and a
schedule runs it for the newest one when that is due. The alert doesn't wait for it: see `data.late_data`.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import dagster as dg

from pipeline_assets.quality.contract import Contract
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import RETRY, permanent_failures

if TYPE_CHECKING:
    import psycopg


ON_TIME = "on_time"
"""The name of the check, which the jobs that load partitions leave out."""


@dataclass(frozen=True)
class ServiceLevel:
    """A contract's promise of how late data may be, and the asset and partitions that it is about."""

    contract: Contract
    asset: dg.AssetKey
    partitions: dg.TimeWindowPartitionsDefinition

    @property
    def latency(self) -> timedelta | None:
        """How long a row may be missing after it appeared in the source."""
        hours = self.contract.latency_hours
        return timedelta(hours=hours) if hours else None

    def due(self, key: str) -> datetime | None:
        """When the partition must be loaded: its oldest row may be as old as the start of its window."""
        window = self.partitions.time_window_for_partition_key(key)
        return window.start + self.latency if self.latency else None

    def late(self, warehouse: "psycopg.Connection", now: datetime) -> list[str]:
        """The partitions that are due and neither loaded nor held, oldest first.

        Partitions before the first in the ledger aren't missed; with an empty ledger, only the newest is.
        """
        from pipeline_assets.warehouse.ledger import is_empty, never_loaded

        newest = self.newest_expected(now)
        if newest is None:
            return []
        if is_empty(warehouse, self.contract):
            return [newest]
        first, last = self.partitions.start.date(), date.fromisoformat(newest)
        missing = never_loaded(warehouse, self.contract, first, last)
        return sorted(day for day in missing if self._begins(day))

    def _begins(self, day: str) -> bool:
        """Whether a partition begins on a day: of a week's days only the first is a partition key."""
        window = self.partitions.time_window_for_partition_key(day)
        return window.start.date().isoformat() == day

    def newest_expected(self, now: datetime) -> str | None:
        """The newest partition that must be there by now.

        Days are counted back: to list those of ten years takes Dagster 30 ms, for each table at each look.
        """
        day = now.astimezone(ZoneInfo(self.partitions.timezone)).date()
        while self.latency is not None and day >= self.partitions.start.date():
            window = self.partitions.time_window_for_partition_key(day.isoformat())
            if max(window.end, window.start + self.latency) <= now:
                return day.isoformat()
            day -= timedelta(days=1)
        return None


def on_time_check(level: ServiceLevel) -> dg.AssetChecksDefinition:
    """The check `on_time` of the level's asset."""

    @dg.asset_check(
        asset=level.asset,
        name=ON_TIME,
        description=(
            f"The partition is loaded {level.contract.latency_hours:g} h after its window began, as "
            f"contract `{level.contract.name}` promises."
        ),
        partitions_def=level.partitions,
        retry_policy=RETRY,
    )
    def on_time(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Database]
    ) -> dg.AssetCheckResult:
        from pipeline_assets.warehouse.ledger import batches, ensure_schema

        # The backfill of an asset over a range runs this check too, for all of the range.
        keys = list(
            level.partitions.get_partition_keys_in_range(
                context.op_execution_context.partition_key_range
            )
        )
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            ensure_schema(connection, level.contract)
            found = batches(connection, level.contract, keys)
        missing = [key for key in keys if key not in found or found[key].loaded_hash is None]
        key = min(missing, default=keys[-1])
        return dg.AssetCheckResult(
            passed=not missing,
            severity=dg.AssetCheckSeverity.WARN,
            description=(
                f"{key} is {'not there' if missing else 'there'}; "
                f"it was due {level.due(key):%Y-%m-%d %H:%M %Z}."
            ),
            metadata={"partitions": len(keys), "missing": len(missing)},
        )

    return on_time
