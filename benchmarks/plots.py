"""Results as pictures: bars of medians with their range, a panel for each measure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from benchmarks.report import Spread


class Bar(NamedTuple):
    """One bar of a panel."""

    label: str
    measured: "Spread"
    ours: bool
    """Whether it is this project's, which is drawn in colour."""


def figure(value: float) -> str:
    """A measured number in as many digits as mean something."""
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def draw(file: Path, panels: Mapping[str, Sequence[Bar]], caption: str, *, columns: int) -> None:
    """Write a picture of panels by title, each on a scale of its own, from left to right."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    groups = list(panels.values())
    heights = [
        max(map(len, groups[start : start + columns])) for start in range(0, len(groups), columns)
    ]
    size = (8, sum(0.75 + 0.26 * bars for bars in heights))
    picture = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08))
    grid = picture.subplots(
        len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axis in grid.flat[len(panels) :]:
        axis.remove()
    for axis, (title, bars) in zip(grid.flat, panels.items(), strict=False):
        measured = [bar.measured for bar in bars]
        drawn = axis.barh(
            [bar.label for bar in bars],
            [each["median"] for each in measured],
            xerr=[
                [each["median"] - each["min"] for each in measured],
                [each["max"] - each["median"] for each in measured],
            ],
            # The outline shows where light grey on white alone would be too faint.
            color=["tab:blue" if bar.ours else "lightgrey" for bar in bars],
            edgecolor=["tab:blue" if bar.ours else "grey" for bar in bars],
        )
        axis.bar_label(drawn, [figure(each["median"]) for each in measured], padding=4, fontsize=8)
        lowest, highest = (
            min(each["min"] for each in measured),
            max(each["max"] for each in measured),
        )
        axis.set_xlim(min(0, lowest), 1.15 * highest)
        axis.locator_params(axis="x", nbins=5)
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    picture.supxlabel(caption, fontsize=10)
    # Text stays text, for a tenth of the size, and few fonts are named. The same figures give the same file.
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": file.stem, "font.sans-serif": ["DejaVu Sans"]}
    ):
        picture.savefig(file, metadata={"Date": None})
