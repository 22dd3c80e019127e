"""What a deployment can choose about the model: how it is trained and what it must reach.

Belongs here: the fields and their defaults. Each field's name in capitals is its environment
variable; the project's one `Settings` inherits them. What the rules mean is in `gate`.
"""

from datetime import date
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GateThresholds(BaseModel):
    """What a model must reach on the holdout before it may be deployed."""

    model_config = ConfigDict(frozen=True)

    models_min_auc: float = Field(default=0.75, ge=0.5, lt=1)
    models_min_precision_over_base_rate: float = Field(default=3.5, ge=1)
    """Average precision divided by the base rate, which is what a random ranking reaches."""
    models_min_precision_over_baseline: float = Field(default=0.0, ge=-1, le=1)
    """Average precision minus that of a BG/NBD refitted at the holdout's cutoff."""
    models_champion_precision_margin: float = Field(default=0.005, ge=0)
    """How far below 0 the lower 95 % bound of the average precision's difference may lie."""
    models_champion_log_loss_margin: float = Field(default=0.001, ge=0)
    """How far above 0 the upper 95 % bound of the log loss' difference may lie."""
    models_calibration_fail: tuple[float, float] = (0.6, 1.6)
    """Predicted over actual buyers: a model outside these bounds is refused."""
    models_calibration_warn: tuple[float, float] = (0.8, 1.25)

    @model_validator(mode="after")
    def _nested_bounds(self) -> Self:
        (refused, too_many), (low, high) = (
            self.models_calibration_fail,
            self.models_calibration_warn,
        )
        if not 0 < refused <= low < 1 < high <= too_many:
            raise ValueError(
                "MODELS_CALIBRATION_WARN must lie inside MODELS_CALIBRATION_FAIL, and 1 inside both; "
                f"they are {low} to {high} and {refused} to {too_many}"
            )
        return self


class ModelsSettings(GateThresholds):
    """How the model is trained, and the thresholds of its gate."""

    models_start_date: date = date(2026, 3, 2)
    """The first week of `training_snapshots`, a Monday: its cutoff lies three weeks before."""
    models_training_snapshots: int = Field(default=8, ge=2, le=26)
    """How many snapshots, four weeks apart, a model learns from; fewer while fewer exist."""
    models_missing_days: float = Field(default=0.0, ge=0, le=1)
    """The share of a snapshot's days that may be held or missing in the warehouse: up to it a
    warning, above it an error."""

    models_max_score_drift: float = Field(default=2.0, gt=0)
    """Population stability index of the scores against training: above it a new model is due. Where few
    customers are new, as in the sample shop, eight weeks of ageing alone give 0.6 to 1.3."""
    models_retraining_cooldown_days: int = Field(default=3, ge=1)
    """Days after the gate's last verdict before drift or realised performance may trigger a training."""

    @model_validator(mode="after")
    def _starts_on_monday(self) -> Self:
        if self.models_start_date.weekday() != 0:
            raise ValueError(
                f"MODELS_START_DATE must be a Monday; {self.models_start_date} is a "
                f"{self.models_start_date:%A}"
            )
        return self
