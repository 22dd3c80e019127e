"""What becomes of a deployed model: how far its customers have moved, and how its predictions came true.

Figures and plots go to the MLflow run of the model that they are about. `checks` and `automation` decide
when they trigger a new training.
"""

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline_assets.failures import PermanentError
from pipeline_assets.models import drift, plots, registry, snapshots
from pipeline_assets.models.drift import Drift
from pipeline_assets.models.evaluation import Evaluation, evaluate
from pipeline_assets.models.names import SNAPSHOTS
from pipeline_assets.models.registry import Registered
from pipeline_assets.models.scoring import Sample, Scored
from pipeline_assets.models.training import predict
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.local_files import temporary_folder
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.extract import source_reader

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from mlflow import MlflowClient
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline


REALISED_METRICS = ("auc", "average_precision", "log_loss", "calibration")
_BY_VERSION = sql.SQL(
    "SELECT model_version, count(*) FROM analytics.purchase_predictions WHERE cutoff = {cutoff}::date"
    " GROUP BY model_version"
)
_OUTCOMES = sql.SQL(
    "SELECT probability, buyers.customer_id IS NOT NULL AS bought"
    " FROM analytics.purchase_predictions LEFT JOIN ({buyers}) AS buyers USING (customer_id)"
    " WHERE cutoff = {cutoff}::date AND model_version IN ({versions}) ORDER BY customer_id"
)


@dataclass(frozen=True)
class Incomparable:
    """Why there is nothing to compare."""

    reason: str
    as_usual: bool = False
    """Nothing is wrong: this is expected in the first weeks."""
    left_out: int = 0
    """How many predictions aren't forecasts."""


@dataclass(frozen=True)
class Movement:
    """How far this week's customers lie from those that the model learnt from."""

    score: Drift
    features: dict[str, Drift]


def movement(pipeline: "Pipeline", learnt_from: "pa.Table", sample: "pa.Table") -> Movement:
    """Compare a training snapshot, as the model scores it, with a sample of scored customers."""
    return Movement(
        score=drift.measure(predict(pipeline, learnt_from), sample["probability"].to_numpy()),
        features=drift.feature_drift(learnt_from, sample),
    )


@dataclass(frozen=True)
class Realised:
    """Predictions beside what then happened."""

    cutoff: date
    model_version: int
    labels: "NDArray[np.bool_]"
    scores: "NDArray[np.float64]"
    evaluation: Evaluation
    left_out: int
    """How many predictions at that cutoff aren't forecasts."""


def realised(
    client: "MlflowClient", name: str, url: str, cutoff: date, *, timezone: str
) -> Realised | Incomparable:
    """Compare the predictions at a cutoff, whose 28 days are over, with what happened.

    Predictions of a model that learnt from days after the cutoff are no forecasts and are left out. So are
    those of a version that was deleted or damaged in MLflow since: its training can't be checked.
    """
    with source_reader(url) as connection, connection.cursor() as cursor:
        # ADBC's COPY path takes no parameters: psycopg quotes the values.
        cursor.execute(_BY_VERSION.format(cutoff=sql.Literal(cutoff.isoformat())).as_string())
        predicted: dict[int, int] = dict(cursor.fetchall())
        if not predicted:
            return Incomparable("Nothing was predicted four weeks ago.", as_usual=True)
        foresaw = [version for version in predicted if _foresaw(client, name, version, cutoff)]
        left_out = sum(rows for version, rows in predicted.items() if version not in foresaw)
        if not foresaw:
            return Incomparable(
                f"The predictions at {cutoff} aren't forecasts: their model has learnt from days after "
                "it, or can't be asked, as it was deleted or changed in MLflow.",
                as_usual=True,
                left_out=left_out,
            )
        outcomes = _OUTCOMES.format(
            cutoff=sql.Literal(cutoff.isoformat()),
            versions=sql.SQL(", ").join(map(sql.Literal, foresaw)),
            buyers=snapshots.buyers(cutoff, timezone=timezone),
        )
        cursor.execute(outcomes.as_string())
        both = cursor.fetch_arrow_table()
    labels, scores = both["bought"].to_numpy(), both["probability"].to_numpy()
    if not 0 < labels.sum() < len(labels):
        return Incomparable(
            f"{int(labels.sum())} of the {len(labels)} customers scored at {cutoff} bought: with only "
            "one kind there is nothing to tell apart. Look at the warehouse table.",
            left_out=left_out,
        )
    # Only the values are used, not their intervals: one resample is enough.
    evaluation = evaluate(labels, scores, resamples=1)
    return Realised(cutoff, max(foresaw), labels, scores, evaluation, left_out)


def _foresaw(client: "MlflowClient", name: str, version: int, cutoff: date) -> bool:
    """Whether the last label that a version learnt from was known at the cutoff."""
    try:
        record = registry.training_record(registry.by_version(client, name, version))
    except registry.RegistryError:
        return False
    return record.window.closes <= cutoff


@dataclass(frozen=True)
class Monitored:
    """What monitoring found for a week's scores."""

    mean: float
    """Of the scores."""
    shares: list[float] | Incomparable
    """Shares of buyers in the snapshots that the model learnt from."""
    moved: Movement | Incomparable
    came_true: Realised | Incomparable
    images: dict[str, bytes]
    """Plot -> PNG."""

    @property
    def drift_figures(self) -> dict[str, float]:
        """The drift of the scores, as figures; empty if it couldn't be measured."""
        return {"score_psi": self.moved.score.psi} if isinstance(self.moved, Movement) else {}

    @property
    def realised_figures(self) -> dict[str, float]:
        """The realised metrics, as figures; empty if they couldn't be measured."""
        if isinstance(self.came_true, Incomparable):
            return {}
        return {name: self.came_true.evaluation[name].value for name in REALISED_METRICS}


def look_back(
    client: "MlflowClient",
    champion: Registered,
    scored: Scored,
    cutoff: date,
    files: PartitionFiles,
    url: str,
    settings: Settings,
) -> Monitored:
    """Compare a week's scores with the training, and those of four weeks ago with what happened.

    Figures and plots are added to the models' MLflow runs. `url` is the warehouse's.
    """
    import pyarrow.compute as pc

    moved, shares = _against_training(champion, scored, files)
    came_true = realised(
        client,
        champion.name,
        url,
        cutoff - snapshots.HORIZON,
        timezone=settings.pipeline_timezone,
    )
    return Monitored(
        mean=pc.mean(scored.sample["probability"]).as_py() or 0.0,  # null if there are no customers
        shares=shares,
        moved=moved,
        came_true=came_true,
        images=_log(client, champion, moved, came_true, week=cutoff - snapshots.WEEK),
    )


def _against_training(
    champion: Registered, scored: Scored, files: PartitionFiles
) -> tuple[Movement | Incomparable, list[float] | Incomparable]:
    """Movement since the champion's newest training snapshot, and the shares of buyers in all of them.

    A promoted champion was trained in another environment: its snapshots may never have been built here.
    """
    try:
        weeks = [
            str(cutoff + snapshots.HORIZON - snapshots.WEEK)
            for cutoff in registry.training_record(champion).window.cutoffs
        ]
        shares = [_share_of_buyers(files, week) for week in weeks]
        learnt_from = Sample()
        for part in files.read(SNAPSHOTS, weeks[-1]):
            learnt_from.add(part)
        return movement(scored.pipeline, learnt_from.table(), scored.sample), shares
    except PermanentError as error:
        # The rows are loaded already: a comparison that is impossible mustn't fail the run.
        reason = Incomparable(
            f"There is nothing to compare with what {champion} learnt from: {error}."
        )
        return reason, reason


def _share_of_buyers(files: PartitionFiles, monday: str) -> float:
    import pyarrow.compute as pc

    label = snapshots.LABEL
    parts = [part[label] for part in files.read(SNAPSHOTS, monday, [label])]
    return float(sum(pc.sum(part).as_py() or 0 for part in parts) / sum(map(len, parts)))


def _log(
    client: "MlflowClient",
    champion: Registered,
    moved: Movement | Incomparable,
    came_true: Realised | Incomparable,
    *,
    week: date,
) -> dict[str, bytes]:
    """Add figures (the step is the model's age in weeks) and plots to the models' runs; plot -> PNG."""
    images = {}
    if isinstance(moved, Movement):
        client.log_metric(
            champion.run_id, "score_psi", moved.score.psi, step=(week - champion.week).days // 7
        )
        images = {"drift": plots.png(plots.drift({"score": moved.score, **moved.features}))}
        _log_images(client, champion.run_id, images, week)
    if isinstance(came_true, Incomparable):
        return images
    predicted_by = registry.by_version(client, champion.name, came_true.model_version)
    for name in REALISED_METRICS:
        client.log_metric(
            predicted_by.run_id,
            f"realised_{name}",
            came_true.evaluation[name].value,
            step=(week - predicted_by.week).days // 7,
        )
    realised_images = {
        "realised": plots.png(plots.reliability(came_true.labels, {"model": came_true.scores}))
    }
    _log_images(client, predicted_by.run_id, realised_images, week)
    return images | realised_images


def _log_images(client: "MlflowClient", run_id: str, images: dict[str, bytes], week: date) -> None:
    with temporary_folder() as folder:
        for name, image in images.items():
            (folder / f"{name}.png").write_bytes(image)
        client.log_artifacts(run_id, str(folder), f"monitoring/{week}")
