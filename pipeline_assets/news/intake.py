"""A window's intake: from the providers to articles in a table, and the figures that go with them.

Belongs here: the steps between `feeds` and the gate, and the form that articles have outside of
Python. The edition shows the figures to readers and may be made on another host, so they are saved
among the files between assets.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from pipeline_assets.news.articles import Article, clean
from pipeline_assets.news.feeds import collect
from pipeline_assets.news.items import Run
from pipeline_assets.resources.files import MissingPartitionError, PartitionFiles

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Intake:
    """Counts for a window: the sources asked, the items received, and those that became no article.

    `missing` has sources by name, with the reason in words that complete "<source> ...".
    """

    provider: str
    sources: int
    items: int
    outside_window: int
    duplicates: int
    missing: dict[str, str]


_INTAKE = TypeAdapter(Intake)
_ASSET = "news_articles"
_FIGURES, _VALIDATED = f"intake_{_ASSET}", f"validated_{_ASSET}"


def take_in(run: Run, archive: Path) -> tuple[Intake, list[Article]]:
    """Collect and clean the window's articles. Raises as `collect` does."""
    collected = collect(run, archive)
    cleaned = clean(collected.items, run.window, run.settings.news_language)
    intake = Intake(
        provider=run.settings.news_provider,
        sources=collected.asked,
        items=len(collected.items),
        outside_window=cleaned.outside,
        duplicates=cleaned.duplicates,
        missing=collected.missing,
    )
    return intake, cleaned.articles


def save_intake(files: PartitionFiles, key: str, intake: Intake) -> None:
    """Save the figures of a partition."""
    import pyarrow as pa

    files.write(_FIGURES, key, [pa.table({"figures": [_INTAKE.dump_json(intake).decode()]})])


def load_intake(files: PartitionFiles, key: str) -> Intake:
    """The figures of a partition that was taken in. Raises `MissingPartitionError` if it wasn't."""
    (table,) = _read(files, _FIGURES, key)
    return _INTAKE.validate_json(table["figures"][0].as_py())


def to_table(articles: Iterable[Article], provider: str) -> "pa.Table":
    """Articles as the contract's columns; empty texts are null."""
    import pyarrow as pa

    columns = [field.name for field in fields(Article)]
    types = {"published_at": pa.timestamp("us", "UTC"), "fetched_at": pa.timestamp("us", "UTC")}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in [*columns, "provider"]])
    rows = [
        {name: value if value != "" else None for name, value in asdict(article).items()}
        | {"provider": provider}
        for article in articles
    ]
    return pa.Table.from_pylist(rows, schema)


def load_articles(files: PartitionFiles, key: str) -> list[Article]:
    """The articles of a partition that passed the gate. Raises `MissingPartitionError` if none did."""
    names = [field.name for field in fields(Article)]
    articles = []
    for table in _read(files, _VALIDATED, key):
        for row in table.select(names).to_pylist():
            values: dict[str, Any] = {name: row[name] or "" for name in names}
            for name in ("published_at", "fetched_at"):
                values[name] = row[name].astimezone(UTC)
            articles.append(Article(**values))
    return articles


def _read(files: PartitionFiles, name: str, key: str) -> "list[pa.Table]":
    """Read one of the files of `news_articles`, which writes all that carry its name."""
    try:
        return list(files.read(name, key))
    except MissingPartitionError:
        raise MissingPartitionError(
            f"{files.path(name, key)} is missing: materialize partition {key} of {_ASSET} first"
        ) from None
