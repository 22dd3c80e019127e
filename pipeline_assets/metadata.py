"""What Dagster shows of a table: its column schema, its column lineage, a few rows, a plot of days."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets import markdown
from pipeline_assets.quality.contract import Column

if TYPE_CHECKING:
    import pyarrow as pa


def column_schema(columns: Iterable[Column]) -> dg.TableSchema:
    """The contract's columns as Dagster's UI lists them."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                column.name,
                column.physical_type,
                " ".join(filter(None, [column.description, column.transformation])),
                dg.TableColumnConstraints(nullable=not column.required),
            )
            for column in columns
        ]
    )


def column_lineage(columns: Iterable[Column], upstream: dg.AssetKey) -> dg.TableColumnLineage:
    """Which of the upstream asset's columns each column is made of."""
    return dg.TableColumnLineage(
        {
            column.name: [
                dg.TableColumnDep(upstream, name) for name in column.derived_from or (column.name,)
            ]
            for column in columns
        }
    )


def preview(rows: "pa.Table") -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table. What the data says stays text: pipes and markup are escaped."""
    header = " | ".join(_cell(name) for name in rows.column_names)
    line = " | ".join("---" for _ in rows.column_names)
    body = (" | ".join(_cell(value) for value in row.values()) for row in rows.to_pylist())
    return dg.MetadataValue.md("\n".join(f"| {text} |" for text in (header, line, *body)))


def image(png: bytes) -> dg.MarkdownMetadataValue:
    """A plot, in the metadata itself."""
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{b64encode(png).decode()})")


LONGEST_CELL = 80


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return markdown.escape(text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + "…")


WIDTH, BARS_HIGH, BAND_HIGH = 640, 60, 84  # pixels
COLORS = ("#4f43dd", "#c2321f")


def daily_plot(counts: Mapping[str, Mapping[str, int]]) -> dg.MarkdownMetadataValue:
    """A small plot of `counts`, name -> day -> count; all names have the same days.

    One band of bars for each name, with its largest count beside it. Written as SVG by hand: matplotlib's
    import alone would cost a run half of its CPU.
    """
    drawn = []
    days = list(next(iter(counts.values())))
    step = WIDTH / max(len(days), 1)
    for band, (name, by_day) in enumerate(counts.items()):
        top = band * BAND_HIGH + 16
        bottom = top + BARS_HIGH
        largest = max(by_day.values(), default=0)
        told = f"at most {largest:,} a day" if largest else "none"
        drawn.append(
            f'<text y="{top - 4}">{escape(name)}: {told}</text>'
            f'<path d="M0 {bottom}.5H{WIDTH}" stroke="#ccc"/>'
        )
        for place, count in enumerate(by_day.values()):
            if count:
                high = max(count * BARS_HIGH / largest, 1)
                drawn.append(
                    f'<rect x="{place * step:.1f}" y="{bottom - high:.1f}" height="{high:.1f}"'
                    f' width="{max(step - 1, 1):.1f}" fill="{COLORS[band % len(COLORS)]}"/>'
                )
    height = len(counts) * BAND_HIGH + 8
    if days:
        drawn.append(
            f'<text y="{height - 4}">{escape(days[0])}</text>'
            f'<text x="{WIDTH}" y="{height - 4}" text-anchor="end">{escape(days[-1])}</text>'
        )
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' font-family="sans-serif" font-size="11" fill="#777">{"".join(drawn)}</svg>'
    )
    encoded = b64encode(picture.encode()).decode()
    return dg.MetadataValue.md(f"![counts by day](data:image/svg+xml;base64,{encoded})")
