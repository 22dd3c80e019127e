"""The model's and the digest's jobs under attack: what changes, what runs, which oracle judges.

They are the project's own jobs with their steps' retries, on an instance as `dagster.yaml` describes it. All
of their databases are on the server that is killed.
"""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import dagster as dg
import psycopg
from dagster._core.errors import DagsterAssetCheckFailedError

from pipeline_assets.definitions import build_definitions
from pipeline_assets.models import judgement, training
from pipeline_assets.models.snapshots import FEATURES, HORIZON, holdout_cutoff, schema
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets_tests.model_world import QUIET, WEEK
from pipeline_assets_tests.reliability import digest_oracle, oracle, registry_oracle
from pipeline_assets_tests.reliability.kills import Trap, ended, start
from pipeline_assets_tests.reliability.site import Site

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = Path(__file__).parents[2]
MODEL = "dev.purchase_propensity"
LEARNT_FROM = ("2026-09-07", "2026-10-05")
"""The snapshots that a model of `WEEK` learns from if there are two."""
TRAIN = "train_from_snapshots"
"""In deployments: the job `train_model` without its first asset, snapshots, which a `ModelSite` writes."""
CUSTOMERS = 500
FIRST_MORNING, MORNINGS = date(2026, 7, 1), 120


def run_job(settings: Settings, job: str, key: str, assets: list[str]) -> None:
    """Run a job over a partition, in the attacked child; a model that the gate refuses is no failure."""
    for name in ("dagster_database_url", "mlflow_tracking_uri"):
        os.environ[name.upper()] = getattr(settings, name).get_secret_value()
    os.environ["PIPELINE_DATA_DIR"] = str(settings.pipeline_data_dir)
    temporary_folder(settings).mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary_folder(settings))
    be_quick()
    with (
        dg.DagsterInstance.from_config(str(ROOT)) as instance,
        suppress(DagsterAssetCheckFailedError),
    ):
        build_definitions(settings).resolve_job_def(job).execute_in_process(
            instance=instance,
            partition_key=key,
            run_config=QUIET,
            asset_selection=[dg.AssetKey(name) for name in assets],
        )


def be_quick() -> None:
    """One of three candidates and none of six plots: the kills are aimed at how models are stored."""
    training.CANDIDATES = {"logistic_regression": training.CANDIDATES["logistic_regression"]}
    judgement.images = lambda *_: {}


def temporary_folder(settings: Settings) -> Path:
    """Where the children's temporary files are."""
    return settings.pipeline_data_dir / "tmp"


@dataclass
class JobSite(Site):
    """Where a job is attacked. However a run of it ends, the job is run again, as its sensor would do."""

    databases: ClassVar[tuple[str, ...]] = ("source", "warehouse", "dagster", "mlflow")

    def connect(self, role: str) -> psycopg.Connection:
        if role != "mlflow":
            return super().connect(role)
        assert self.settings.mlflow_tracking_uri
        uri = self.settings.mlflow_tracking_uri.get_secret_value()
        return psycopg.connect(uri, autocommit=True)

    def check(self, *, finished: bool) -> list[str]:
        """What is wrong, at any moment or once the job has been run again."""
        raise NotImplementedError

    def recover(self, what: str) -> None:
        self.restart_server()
        assert self.check(finished=False) == [], what
        assert ended(self.begin()) == 0, what
        assert self.check(finished=True) == [], what
        left = self.left_behind()
        assert left == [], f"{what}: {left}"


@dataclass
class ModelSite(JobSite):
    """Each change writes other snapshots, so that there is a version to train, judge and deploy."""

    trained: int = 0
    refused: float = 0.0
    """The share of the models that the gate refuses."""

    def change(self) -> None:
        self.trained += 1
        files = PartitionFiles(self.settings.files_url)
        for week in LEARNT_FROM:
            files.write("training_snapshots", week, [snapshot(self.random, week)])
        is_bad = self.random.random() < self.refused
        files.write("training_snapshots", WEEK, [snapshot(self.random, WEEK, is_bad=is_bad)])

    def begin(self, trap: Trap | None = None) -> Any:
        assets = ["trained_model", "deployed_model"]
        return start(run_job, (self.settings, "train_model", WEEK, assets), trap)

    def check(self, *, finished: bool) -> list[str]:
        with self.connect("warehouse") as warehouse, self.connect("mlflow") as mlflow:
            found = registry_oracle.torn(mlflow, warehouse, MODEL)
            if finished:
                found += registry_oracle.unfinished(mlflow, warehouse, MODEL, self.trained)
            return found


def snapshot(random: Random, week: str, *, is_bad: bool = False) -> "pa.Table":
    """Customers who buy at a rate of their own until they lose interest, as in BG/NBD.

    With `is_bad` the label is inverted.
    """
    import pyarrow as pa

    cutoff = holdout_cutoff(date.fromisoformat(week))
    rows = []
    for customer in range(CUSTOMERS):
        age, day, days = random.randrange(100, 300), 0.0, []
        rate, leaves = random.gammavariate(1.5, 1 / 40), random.betavariate(0.8, 3)
        while (day := day + random.expovariate(rate)) < age + HORIZON.days:
            days.append(day)
            if random.random() < leaves:
                break
        known = [int(day) for day in days if day < age]
        features = {name: random.random() for name in FEATURES} | {
            "repeat_purchases": len(known),
            "days_since_last": age - max(known, default=0),
            "age_days": age,
        }
        bought = len(days) > len(known)
        about = {"customer_id": customer, "cutoff": cutoff, "bought": bought != is_bad}
        rows.append(about | {name: float(value) for name, value in features.items()})
    return pa.Table.from_pylist(rows, schema())


@dataclass
class DigestSite(JobSite):
    """Each change makes another morning due, in random order."""

    mornings: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.settings.pipeline_data_dir / "digests"

    def change(self) -> None:
        due = {str(FIRST_MORNING + timedelta(days=day)) for day in range(MORNINGS)}
        self.mornings.append(self.random.choice(sorted(due - {*self.mornings})))

    def begin(self, trap: Trap | None = None) -> Any:
        return start(publish, (self.settings, self.mornings[-1]), trap)

    def check(self, *, finished: bool) -> list[str]:
        found = digest_oracle.torn(self.folder)
        found += oracle.broken_files(self.root)
        if finished:
            found += digest_oracle.unfinished(self.folder, len(self.mornings))
        return found

    def undisturbed(self, settings: Settings) -> dict[str, bytes]:
        """The files of the same mornings, published in the same order where nothing was killed."""
        for key in self.mornings:
            assert ended(start(publish, (settings, key))) == 0
        return contents(settings.pipeline_data_dir / "digests")


def publish(settings: Settings, key: str) -> None:
    """Publish the edition of a morning, in the attacked child."""
    run_job(settings, "publish_digest", key, ["news_articles", "news_digest"])


def with_changes(settings: Settings, **changes: Any) -> Settings:
    """The settings with changes."""
    return Settings.model_validate({**dict(settings), **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder: name -> bytes."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
