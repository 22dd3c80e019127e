"""How progress over many partitions is shown: not at all in Dagster's runs, as a bar in a terminal."""

from collections.abc import Callable, Iterable, Iterator

Progress = Callable[[Iterable[str], str], Iterator[str]]
"""Wraps the partitions that an asset (the second argument) iterates over, and yields them."""


def no_progress(partitions: Iterable[str], asset: str) -> Iterator[str]:
    """Show nothing: Dagster's UI shows a run's steps."""
    del asset
    return iter(partitions)
