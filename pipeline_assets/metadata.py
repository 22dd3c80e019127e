"""What Dagster shows of a table: its column schema, its column lineage and a few rows."""

from collections.abc import Iterable
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
