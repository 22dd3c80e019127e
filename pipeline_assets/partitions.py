"""The windows of time that Dagster's partitions stand for."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import TimeWindowPartitionsDefinition


def partition_windows(
    partitions: "TimeWindowPartitionsDefinition", keys: Iterable[str]
) -> dict[str, tuple[datetime, datetime]]:
    """Partition key -> its window [start, end), in the order of the keys."""
    windows = {key: partitions.time_window_for_partition_key(key) for key in keys}
    return {key: (window.start, window.end) for key, window in windows.items()}
