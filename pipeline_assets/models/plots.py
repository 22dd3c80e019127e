"""The plots of a model, as matplotlib figures: one question per plot, and its title is the answer.

pyplot isn't used, as its figures are global and stay in memory. Scores and estimates come from elsewhere
and are drawn in one palette: the model in question is blue, what it is compared with is grey or amber.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pipeline_assets.models.drift import MOVED, MOVED_FAR, Drift
from pipeline_assets.models.evaluation import LOSSES, METRICS, Estimate, evaluate

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Scores = Mapping[str, NDArray[np.float64]]
    """Who scored (`model`, `BG/NBD`, `champion`) -> scores; the first is the model in question."""

MODEL = "#2563eb"
OTHERS = ("#d97706", "#64748b", "#0d9488")
GOOD, BAD, QUIET = "#15803d", "#dc2626", "#94a3b8"
MARGIN = timedelta(days=6)
"""The space before the first and after the last week of the history."""
LONGEST_BAR = 0.75
"""Longer drift bars are cut off here: beside a PSI of 3 the bounds would be too close to tell apart."""
INK, FAINT, GRID = "#1e293b", "#64748b", "#e2e8f0"
BEHIND_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}


@dataclass(frozen=True)
class HistoryPoint:
    """A week's model in the metric history; `outcome` is what became of it."""

    week: date
    version: str
    estimate: Estimate
    outcome: Literal["promoted", "refused", "kept"]
    """`kept`: it passed, and wasn't deployed (yet)."""


def precision_recall(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """Precision over recall, with the base rate."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    base_rate = float(labels.mean())
    areas = {who: float(average_precision_score(labels, each)) for who, each in scores.items()}
    first = next(iter(areas.values()))
    figure, axes = _canvas(
        f"Average precision {first:.3f}, {first / base_rate:.1f} times chance",
        "Of the customers above a score, how many buy (precision), over how many of all buyers they are",
        ("Recall", "Precision"),
    )
    for who, each, look in _series(scores):
        precision, recall, _ = precision_recall_curve(labels, each)
        # The first few customers make a meaningless spike to 0 or 1: the line starts at 1 % recall.
        shown = recall >= 0.01
        axes.step(
            recall[shown], precision[shown], where="post", **look, label=f"{who}  {areas[who]:.3f}"
        )
    axes.axhline(base_rate, color=QUIET, linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(
        f"base rate {base_rate:.1%}",
        (0.01, base_rate),
        (0, 4),
        textcoords="offset points",
        color=FAINT,
        fontsize=9,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _percent(axes)
    _legend(axes, "upper right")
    return figure


def roc(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """True over false positive rate."""
    from sklearn.metrics import roc_auc_score, roc_curve

    areas = {who: float(roc_auc_score(labels, each)) for who, each in scores.items()}
    figure, axes = _canvas(
        f"A buyer scores above another customer in {next(iter(areas.values())):.1%} of pairs",
        "ROC: the share of buyers found, over the share of the others taken along. The number is the AUC",
        ("Others taken along", "Buyers found"),
    )
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(
        "chance", (0.7, 0.7), (6, -12), textcoords="offset points", color=FAINT, fontsize=9
    )
    for who, each, look in _series(scores):
        others, buyers, _ = roc_curve(labels, each)
        axes.plot(others, buyers, **look, label=f"{who}  {areas[who]:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    _percent(axes)
    _legend(axes, "lower right")
    return figure


def reliability(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """Actual over predicted share of buyers, by tenths of the customers."""
    import numpy as np

    ratios = {who: float(each.sum() / labels.sum()) for who, each in scores.items()}
    ratio = next(iter(ratios.values()))
    figure, axes = _canvas(
        f"Predicted {ratio:.2f} times the buyers that there were",
        "Each dot is a tenth of the customers by score: on the line as many bought as were predicted",
        ("Predicted share of buyers", "Actual share of buyers"),
    )
    highest = 0.0
    for who, each, look in _series(scores):
        tenths = np.array_split(np.argsort(each, kind="stable"), 10)
        predicted = np.array([each[rows].mean() for rows in tenths])
        actual = np.array([labels[rows].mean() for rows in tenths])
        spread = 1.96 * np.sqrt(actual * (1 - actual) / np.array([len(rows) for rows in tenths]))
        axes.errorbar(
            predicted,
            actual,
            yerr=spread,
            **look,
            marker="o",
            markersize=5,
            elinewidth=1,
            label=f"{who}  {ratios[who]:.2f}",
        )
        highest = max(highest, predicted.max(), (actual + spread).max())
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=(0, (4, 3)), linewidth=1, zorder=0)
    axes.set(xlim=(0, highest * 1.05), ylim=(0, highest * 1.05))
    _percent(axes)
    _legend(axes, "upper left")
    return figure


def lift(labels: "NDArray[np.bool_]", scores: "Scores") -> "Figure":
    """Gain and lift over the share of customers reached."""
    import numpy as np

    model = next(iter(scores.values()))
    captured = evaluate(labels, model, resamples=1)["top_decile_capture"].value
    figure, axes = _canvas(
        f"The top 10% of customers hold {captured:.0%} of the buyers",
        "Buyers reached when customers are addressed in the order of their scores",
        ("Customers addressed", "Buyers reached"),
    )
    reached = np.arange(1, len(labels) + 1) / len(labels)
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=(0, (4, 3)), linewidth=1)
    axes.annotate(
        "in any order", (0.7, 0.7), (6, -12), textcoords="offset points", color=FAINT, fontsize=9
    )
    for name, values, look in _series(scores):
        gained = labels[np.argsort(-values, kind="stable")].cumsum() / labels.sum()
        axes.plot(reached, gained, **look, label=name)
    axes.plot(
        [0.1, 0.1, 0], [0, captured, captured], color=MODEL, linewidth=1, linestyle=(0, (1, 2))
    )
    axes.plot([0.1], [captured], color=MODEL, marker="o", markersize=6)
    axes.annotate(
        f"{captured:.0%} of the buyers:\n{captured / 0.1:.1f} times as many as by chance",
        (0.1, captured),
        (10, -6),
        textcoords="offset points",
        va="top",
        color=INK,
        fontsize=9,
        bbox=BEHIND_TEXT,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    _percent(axes)
    _legend(axes, "lower right")
    return figure


def history(
    points: Sequence[HistoryPoint], *, metric: str, threshold: float | None = None
) -> "Figure":
    """A metric over the weeks, with its intervals, promotions and refusals marked."""
    counts = dict.fromkeys(("promoted", "refused", "kept"), 0)
    for point in points:
        counts[point.outcome] += 1
    figure, axes = _canvas(
        f"{METRICS.get(metric, metric)} by week: {counts['promoted']} promoted, {counts['refused']} refused",
        "Each week's model on its own holdout, with 95% intervals; the figure is the registry's version",
        ("", METRICS.get(metric, metric)),
    )
    ordered = sorted(points, key=lambda point: point.week)  # of a week as they were judged
    # Matplotlib accepts dates, but its type hints don't say so.
    weeks: list[Any] = [point.week for point in ordered]
    axes.plot(
        weeks, [point.estimate.value for point in ordered], color=GRID, linewidth=1.5, zorder=1
    )
    looks = {
        "promoted": ("o", MODEL, MODEL),
        "kept": ("o", "white", MODEL),
        "refused": ("X", BAD, BAD),
    }
    for outcome, (marker, face, edge) in looks.items():
        chosen = [point for point in ordered if point.outcome == outcome]
        if not chosen:
            continue
        values = [point.estimate.value for point in chosen]
        spread = [
            [max(point.estimate.value - point.estimate.lower, 0) for point in chosen],
            [max(point.estimate.upper - point.estimate.value, 0) for point in chosen],
        ]
        days: list[Any] = [point.week for point in chosen]
        axes.errorbar(
            days,
            values,
            yerr=spread,
            linestyle="none",
            marker=marker,
            markersize=7,
            markerfacecolor=face,
            markeredgecolor=edge,
            ecolor=edge,
            elinewidth=1,
            label=outcome,
        )
    # If there are more versions than fit, only every n-th is labelled, counted back from the newest.
    every = max(1, len(ordered) // 15)
    for point in ordered[::-1][::every]:
        axes.annotate(
            point.version,
            (point.week, point.estimate.upper),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color=FAINT,
            fontsize=8,
        )
    if threshold is not None:
        axes.axhline(threshold, color=BAD, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(
            f"the gate: {threshold:g}",
            (0, threshold),
            (4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=BAD,
            fontsize=9,
        )
    axes.margins(y=0.15)
    axes.set_xlim(weeks[0] - MARGIN, weeks[-1] + MARGIN)
    _weeks(axes)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def champion_comparison(
    differences: Mapping[str, Estimate], margins: Mapping[str, float]
) -> "Figure":
    """Challenger minus champion by metric, with intervals and the gate's bounds (metric -> bound).

    Only metrics with a bound are drawn, each on a scale of its own.
    """
    import numpy as np

    figure = _figure(
        _verdict(differences, margins),
        "The difference on the same holdout, with its 95% interval over 1,000 paired resamples",
    )
    rows = figure.subplots(len(margins), 1, squeeze=False)[:, 0]
    for axes, (metric, bound) in zip(rows, margins.items(), strict=True):
        difference, is_loss = differences[metric], metric in LOSSES
        color = GOOD if _within(metric, difference, bound) else BAD
        reach = 1.5 * np.abs([difference.lower, difference.upper, bound]).max()
        refused = (bound, reach) if is_loss else (-reach, bound)
        axes.axvspan(*refused, color=BAD, alpha=0.07, linewidth=0)
        axes.axvline(bound, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.axvline(0, color=QUIET, linewidth=1)
        axes.plot(
            [difference.lower, difference.upper],
            [0, 0],
            color=color,
            linewidth=3,
            solid_capstyle="round",
        )
        axes.plot([difference.value], [0], color=color, marker="o", markersize=9)
        axes.annotate(
            f"{difference.value:+.4f}  ({difference.lower:+.4f} to {difference.upper:+.4f})",
            (difference.value, 0),
            (0, 12),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
        axes.annotate(
            f"refused beyond {bound:+g}",
            (bound, -1),
            (4 if is_loss else -4, 4),
            textcoords="offset points",
            ha="left" if is_loss else "right",
            color=BAD,
            fontsize=8,
        )
        better = "lower is better" if is_loss else "higher is better"
        axes.set_title(
            f"{METRICS.get(metric, metric)}, {better}", loc="left", fontsize=10, color=INK
        )
        axes.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
        _plain(axes)
        axes.spines["left"].set_visible(False)
    return figure


def drift(drifts: Mapping[str, Drift]) -> "Figure":
    """Population stability index by feature, with the usual bounds."""
    ordered = sorted(drifts.items(), key=lambda item: item[1].psi)
    moved = [name for name, found in ordered if found.psi > MOVED_FAR]
    figure, axes = _canvas(
        f"{len(moved)} of {len(ordered)} moved far from what the model learnt from"
        if moved
        else "Nothing moved far from what the model learnt from",
        "Population stability index (bar) and Kolmogorov-Smirnov distance (figure at its end)",
        ("PSI", ""),
        height=1.6 + 0.3 * len(ordered),
    )
    colors = [
        BAD if found.psi > MOVED_FAR else OTHERS[0] if found.psi > MOVED else MODEL
        for _, found in ordered
    ]
    lengths = [min(found.psi, LONGEST_BAR) for _, found in ordered]
    for bound, text in ((MOVED, "moved"), (MOVED_FAR, "moved far")):
        axes.axvline(bound, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, zorder=0)
        axes.annotate(
            text,
            (bound, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=FAINT,
            fontsize=8.5,
        )
    bars = axes.barh([name for name, _ in ordered], lengths, color=colors, height=0.62)
    axes.bar_label(
        bars,
        [f"{found.psi:.3f}   KS {found.ks:.3f}" for _, found in ordered],
        padding=6,
        color=FAINT,
        fontsize=8.5,
        bbox=BEHIND_TEXT,
    )
    axes.set_xlim(0, max(*lengths, MOVED_FAR) * 1.35)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG, the same bytes every time."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    # Without Matplotlib's version, which would change the bytes.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]  # matplotlib types it not
    return buffer.getvalue()


def _within(metric: str, difference: Estimate, bound: float) -> bool:
    """Whether the bound holds, for the upper end of a loss or the lower end of others, as in the gate."""
    return difference.upper < bound if metric in LOSSES else difference.lower > bound


def _verdict(differences: Mapping[str, Estimate], margins: Mapping[str, float]) -> str:
    crossed = [
        METRICS.get(metric, metric).lower()
        for metric, bound in margins.items()
        if not _within(metric, differences[metric], bound)
    ]
    return (
        f"Worse than the champion: {' and '.join(crossed)}"
        if crossed
        else "Not worse than the champion, within the gate's bounds"
    )


def _figure(title: str, subtitle: str, *, height: float = 4.6) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    room = 0.72 / height  # for title and subtitle, in shares of the height given in inches
    figure = Figure(
        figsize=(7.4, height),
        dpi=140,
        facecolor="white",
        layout=ConstrainedLayoutEngine(rect=(0.005, 0.005, 0.985, 0.99 - room)),
    )
    left: dict[str, Any] = {"x": 0.018, "ha": "left", "va": "top"}
    figure.text(y=1 - 0.14 / height, s=title, fontsize=13, fontweight="bold", color=INK, **left)
    figure.text(y=1 - 0.43 / height, s=subtitle, fontsize=9, color=FAINT, **left)
    return figure


def _canvas(
    title: str, subtitle: str, labels: tuple[str, str], *, height: float = 4.6
) -> "tuple[Figure, Axes]":
    figure = _figure(title, subtitle, height=height)
    axes = figure.subplots()
    axes.set_xlabel(labels[0], color=FAINT, fontsize=9)
    axes.set_ylabel(labels[1], color=FAINT, fontsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    _plain(axes)
    return figure, axes


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=FAINT, labelsize=8.5)
    axes.set_axisbelow(True)


def _series(scores: "Scores") -> "Iterable[tuple[str, NDArray[np.float64], dict[str, Any]]]":
    """Who scored, the scores, and the line's look; the model last, so that it lies on top."""
    looks = ({"color": MODEL, "linewidth": 2.2}, *({"color": c, "linewidth": 1.5} for c in OTHERS))
    return reversed(
        [(who, each, look) for (who, each), look in zip(scores.items(), looks, strict=False)]
    )


def _legend(axes: "Axes", place: 'Literal["upper left", "upper right", "lower right"]') -> None:
    handles, names = axes.get_legend_handles_labels()
    # The model is drawn last but listed first.
    axes.legend(
        handles[::-1],
        names[::-1],
        loc=place,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.6,
    )


def _percent(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _weeks(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(maxticks=8)  # type: ignore[no-untyped-call]  # matplotlib.dates has no types
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]  # nor here
