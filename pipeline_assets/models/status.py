"""Where the model stands, for the terminal: the gate's findings beside its thresholds, and production."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline_assets.models import records, registry
from pipeline_assets.models.records import Deployment, Verdict
from pipeline_assets.quality.ddl import exist
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings


@dataclass(frozen=True)
class ModelStatus:
    """The newest verdict, the deployment in production, and the newest scored week with its version."""

    name: str
    newest: Verdict | None
    deployment: Deployment | None
    scored: tuple[str, int] | None


def model_status(settings: Settings) -> ModelStatus:
    """Read the model's current status from the warehouse."""
    name = registry.model_name(settings.pipeline_env)
    with Database("warehouse", settings).connect(autocommit=True) as warehouse:
        records.ensure_schema(warehouse)
        verdicts = records.verdicts(warehouse, name)
        moves = records.deployments(warehouse, name)
        scored = records.scored_weeks(warehouse)
    return ModelStatus(
        name,
        max(verdicts, key=lambda verdict: (verdict.week, verdict.decided_at), default=None),
        _standing(moves),
        max(scored.items(), default=None),
    )


def in_production(settings: Settings) -> Deployment | None:
    """The deployment of today's champion; creates no tables to look it up."""
    with Database("warehouse", settings).connect(autocommit=True) as warehouse:
        if not exist(warehouse, ["pipeline.champion_deployments"]):
            return None
        moves = records.deployments(warehouse, registry.model_name(settings.pipeline_env))
    return _standing(moves)


def _standing(moves: list[Deployment]) -> Deployment | None:
    """The last move, unless it was a withdrawal."""
    return moves[-1] if moves and moves[-1].champion_after else None


def figures_in_words(figures: Mapping[str, float | str]) -> str:
    """A finding's figures, what was found and what was needed, in a line."""
    words = []
    for name, value in figures.items():
        if name.endswith(("_lower", "_upper")) and name.rpartition("_")[0] in figures:
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        if f"{name}_lower" in figures:
            text += f" ({figures[f'{name}_lower']:.4g} to {figures[f'{name}_upper']:.4g})"
        words.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(words)
