"""The plots say in words what they show, repeat byte for byte, and survive extremes."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline_assets.models import plots
from pipeline_assets.models.drift import Drift
from pipeline_assets.models.evaluation import Estimate
from pipeline_assets.models.plots import HistoryPoint
from pipeline_assets.models.settings import GateThresholds
from pipeline_assets_tests.unit.models.builders import differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

random = np.random.default_rng(0)
SCORES = random.beta(1, 8, 2000)
LABELS = random.random(2000) < SCORES
SCORED = {"model": SCORES, "BG/NBD": SCORES.round(2), "champion": SCORES**2}
MARGINS = {"average_precision": -0.005, "log_loss": 0.001}


def points(count: int, outcome: str = "promoted") -> list[HistoryPoint]:
    return [
        HistoryPoint(
            date(2026, 6, 1) + timedelta(weeks=number),
            str(number + 1),
            Estimate(0.33, 0.31, 0.35),
            "refused" if number % 5 == 3 else outcome,  # type: ignore[arg-type]  # one of the three
        )
        for number in range(count)
    ]


FIGURES: dict[str, Callable[[], "Figure"]] = {
    "precision and recall": lambda: plots.precision_recall(LABELS, SCORED),
    "ROC": lambda: plots.roc(LABELS, SCORED),
    "reliability": lambda: plots.reliability(LABELS, SCORED),
    "lift": lambda: plots.lift(LABELS, SCORED),
    "history": lambda: plots.history(points(20), metric="average_precision", threshold=0.2),
    "comparison": lambda: plots.champion_comparison(
        differences((-0.001, 0.02), (-0.01, 0.0002)), MARGINS
    ),
    "drift": lambda: plots.drift({"age_days": Drift(3.0, 0.4), "spend_4w": Drift(0.01, 0.02)}),
}


def words(figure: "Figure") -> str:
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    return "\n".join(text.get_text() for text in texts if isinstance(text, Text))


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_is_a_png_and_the_same_every_time(name: str) -> None:
    image = plots.png(FIGURES[name]())
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000
    assert plots.png(FIGURES[name]()) == image


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_picture(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib types it not
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]  # nor this
    width, height = canvas.get_width_height()
    # Ticks beyond an axis are there but aren't drawn.
    ticks = [
        tick for axes in figure.axes for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text() and text not in ticks:
            box = text.get_window_extent(renderer)
            assert -1 <= box.x0 <= box.x1 <= width + 1, text.get_text()
            assert -1 <= box.y0 <= box.y1 <= height + 1, text.get_text()


def test_titles_are_the_answer() -> None:
    ratio = SCORES.sum() / LABELS.sum()
    assert f"Predicted {ratio:.2f} times the buyers" in words(FIGURES["reliability"]())
    assert "times chance" in words(FIGURES["precision and recall"]())
    assert "16 promoted, 4 refused" in words(FIGURES["history"]())
    assert "1 of 2 moved far" in words(FIGURES["drift"]())
    assert "Not worse than the champion" in words(FIGURES["comparison"]())
    worse = plots.champion_comparison(differences((-0.02, 0.02), (-0.01, 0.0002)), MARGINS)
    assert "Worse than the champion: average precision" in words(worse)


def test_a_history_may_have_one_week_or_two_years() -> None:
    for count in (1, 104):
        assert plots.png(plots.history(points(count), metric="auc")).startswith(b"\x89PNG")


def test_figures_do_not_pile_up_in_pyplot() -> None:
    import sys

    FIGURES["lift"]()
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_a_margin_of_nothing_has_the_direction_of_its_metric() -> None:
    """-0.0 isn't below 0: the gate accepted a model that the plot called worse."""
    thresholds = GateThresholds(
        models_champion_precision_margin=0, models_champion_log_loss_margin=0
    )
    margins = {
        "average_precision": -thresholds.models_champion_precision_margin,
        "log_loss": thresholds.models_champion_log_loss_margin,
    }
    better = words(plots.champion_comparison(differences((0.01, 0.02), (-0.02, -0.01)), margins))
    assert "Not worse than the champion" in better
    assert "Average precision, higher is better" in better
    assert "Log loss, lower is better" in better
    worse = words(plots.champion_comparison(differences((-0.01, 0.02), (-0.02, 0.01)), margins))
    assert "Worse than the champion: average precision and log loss" in worse
