"""The service level of each contract as an asset check: whether a partition is there by its time.

`FreshnessPolicy`, which the assets have too, looks at the last materialization of any partition: the
backfill of an old day satisfies it. This check is about each partition, told by the ledger. The sensor
`alerts` stores its results; in the UI it can be run for any partition.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg

from pipeline_assets.quality.contract import Contract
from pipeline_assets.resources.postgres import Database
from pipeline_assets.warehouse.checks import ON_TIME


@dataclass(frozen=True)
class ServiceLevel:
    """A contract's promise of how late data may be, and the asset and partitions that it is about."""

    contract: Contract
    asset: dg.AssetKey
    partitions: dg.TimeWindowPartitionsDefinition

    @property
    def latency(self) -> timedelta | None:
        """How long after it came to be in the source a row may be missing."""
        hours = self.contract.latency_hours
        return timedelta(hours=hours) if hours else None

    def due(self, key: str) -> datetime | None:
        """When the partition must be there: its oldest row is as old as its window."""
        window = self.partitions.time_window_for_partition_key(key)
        return window.start + self.latency if self.latency else None

    def newest_expected(self, now: datetime) -> str | None:
        """The newest partition that must be there by now."""
        if self.latency is None:
            return None
        keys = self.partitions.get_partition_keys(current_time=now)
        return next((key for key in reversed(keys) if (self.due(key) or now) <= now), None)


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
    )
    def on_time(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Database]
    ) -> dg.AssetCheckResult:
        key = context.partition_key
        passed = is_loaded(warehouse, level.contract, key)
        evaluation = on_time_evaluation(level, key, passed=passed)
        return dg.AssetCheckResult(
            passed=passed, severity=evaluation.severity, description=evaluation.description
        )

    return on_time


def is_loaded(warehouse: Database, contract: Contract, key: str) -> bool:
    """Whether the partition was loaded, by the ledger."""
    from pipeline_assets.warehouse.ledger import batches, ensure_schema

    with warehouse.connect(autocommit=True) as connection:
        ensure_schema(connection, contract)
        batch = batches(connection, contract, [key]).get(key)
    return batch is not None and batch.loaded_hash is not None


def on_time_evaluation(level: ServiceLevel, key: str, *, passed: bool) -> dg.AssetCheckEvaluation:
    """The result of `on_time` for one partition."""
    due = level.due(key)
    return dg.AssetCheckEvaluation(
        asset_key=level.asset,
        check_name=ON_TIME,
        passed=passed,
        partition=key,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{key} {'is there' if passed else 'is not there'}; it is due "
            f"{due:%Y-%m-%d %H:%M %Z}, {level.contract.latency_hours:g} h after its window began."
        ),
        metadata={},
    )
