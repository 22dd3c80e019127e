"""What Dagster shows of a table: its column schema, its column lineage, a few rows, a plot of days."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.quality.contract import Column, TableContract

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


def column_lineage(contract: TableContract, upstream: dg.AssetKey) -> dg.TableColumnLineage:
    """Which of the upstream asset's columns each column is made of."""
    return dg.TableColumnLineage(
        {
            column.name: [
                dg.TableColumnDep(upstream, name) for name in column.derived_from or (column.name,)
            ]
            for column in contract.columns
        }
    )


def preview(rows: "pa.Table") -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table. What the data says stays text: pipes and markup are escaped."""
    header = " | ".join(_cell(name) for name in rows.column_names)
    line = " | ".join("---" for _ in rows.column_names)
    body = (" | ".join(_cell(value) for value in row.values()) for row in rows.to_pylist())
    return dg.MetadataValue.md("\n".join(f"| {text} |" for text in (header, line, *body)))


MARKUP = str.maketrans({character: f"\\{character}" for character in "\\|*_`<>[]&"} | {"\n": " "})
LONGEST_CELL = 80


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return (text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + "…").translate(MARKUP)


DAYS_SHOWN = 60
"""How many days a plot looks back on."""


def daily_plot(
    days: Sequence[str], bars: Mapping[str, Sequence[int]], marks: Mapping[str, Sequence[int]]
) -> dg.MarkdownMetadataValue:
    """A small picture of counts by day (ISO dates): `bars` stacked, `marks` on an axis of their own."""
    import base64
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    places = range(len(days))
    floor = [0] * len(days)
    for (name, values), shade in zip(bars.items(), ("#9fb4d8", "#4f43dd"), strict=False):
        left.bar(places, values, bottom=floor, label=name, color=shade, width=0.8)
        floor = [sum(pair) for pair in zip(floor, values, strict=True)]
    for name, values in marks.items():
        # Days without any are no news.
        seen = [(place, value) for place, value in zip(places, values, strict=True) if value]
        right.scatter(
            [place for place, _ in seen],
            [value for _, value in seen],
            s=14,
            color="#c2321f",
            label=name,
        )
    ticks = sorted({round(place) for place in (0, (len(days) - 1) / 2, len(days) - 1)})
    left.set_xticks(ticks, [days[tick] for tick in ticks])
    left.set_ylabel(", ".join(bars))
    right.set_ylabel(", ".join(marks), color="#c2321f")
    right.set_ylim(bottom=0)
    right.locator_params(axis="y", integer=True, nbins=4)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    encoded = base64.b64encode(picture.getvalue()).decode()
    return dg.MetadataValue.md(f"![counts by day](data:image/png;base64,{encoded})")
