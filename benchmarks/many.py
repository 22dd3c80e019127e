"""2.4 million customers through the model's real path: the cohort a hundred times over.

`benchmarks.models` runs each function in a process of its own, whose peak memory is measured.
"""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import psycopg
import pyarrow as pa

from pipeline_assets.models import monitoring, registry, scoring, snapshots
from pipeline_assets.models.evaluation import compare, evaluate
from pipeline_assets.models.registry import Registered
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.mlflow import Mlflow
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CUTOFF = date(2027, 6, 7)
"""The scores' cutoff, a Monday; its 28 days close on the day before the cohort's last."""


@dataclass(frozen=True)
class Part:
    """What a part took: seconds, and megabytes at most with the imports."""

    customers: int
    seconds: float
    megabytes: float


@contextmanager
def clock(parts: list[Part], customers: Callable[[], int]) -> Iterator[None]:
    """Append the block's seconds and peak memory to `parts`."""
    begun = time.perf_counter()
    yield
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts.append(Part(customers(), seconds, peak))


def score(fields: Mapping[str, str], url: str, champion: Registered) -> Part:
    """`score_week`: features, scores, the contract's gate, the load."""
    settings = Settings.model_validate(fields)
    Mlflow(settings).client()
    files, monday = PartitionFiles(settings.files_url), CUTOFF - snapshots.WEEK
    start = datetime(monday.year, monday.month, monday.day, tzinfo=UTC)
    parts: list[Part] = []
    with psycopg.connect(url, autocommit=True, options="-c TimeZone=UTC") as warehouse:
        found: list[int] = []
        with clock(parts, lambda: found[0]):
            scored = scoring.score_week(
                Table(load_contract("purchase_predictions")),
                champion,
                (monday.isoformat(), (start, start + timedelta(weeks=1))),
                files,
                url,
                warehouse,
                "benchmark",
                timezone="UTC",
            )
            found.append(scored.judgement.verdict.rows)
    return parts[0]


def look_back(fields: Mapping[str, str], url: str, champion: Registered) -> tuple[Part, Part]:
    """`realised`, and then the gate's thousand resamples of all who were scored: model and champion."""
    client = Mlflow(Settings.model_validate(fields)).client()
    parts: list[Part] = []
    found: list[monitoring.Realised] = []
    with clock(parts, lambda: len(found[0].labels)):
        came_true = monitoring.realised(client, champion.name, url, CUTOFF, timezone="UTC")
        assert isinstance(came_true, monitoring.Realised), came_true  # noqa: S101 - a benchmark
        found.append(came_true)
    labels, scores = found[0].labels, found[0].scores
    other = np.sqrt(scores * scores.mean())
    with clock(parts, lambda: len(labels)):
        compare(evaluate(labels, scores), evaluate(labels, other))
    return parts[0], parts[1]


def register(fields: Mapping[str, str], pipeline: "Pipeline", training: pa.Table) -> Registered:
    """Register a fitted pipeline as a version in the benchmark's own registry."""
    import mlflow

    settings = Settings.model_validate(fields)
    ours = Mlflow(settings)
    client, window = ours.client(), snapshots.describe(training)
    mlflow.set_experiment(ours.experiment)
    with mlflow.start_run() as run:
        record = registry.TrainingRecord(window, {}, "benchmark")
        uri = registry.log_model(pipeline, training, record)
        tags = {"week": str(CUTOFF - snapshots.WEEK), "candidate": "chosen", "fingerprint": "one"}
        name = registry.model_name(settings.pipeline_env)
        return registry.register(client, name, uri, run.info.run_id, tags)
