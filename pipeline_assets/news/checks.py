"""The asset checks of the digest's two assets, beside the rules of the articles' contract.

Every spec is partitioned like its asset: otherwise a good morning would hide a bad one.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from pipeline_assets.news.items import Window

if TYPE_CHECKING:
    from pipeline_assets.news.articles import Article
    from pipeline_assets.news.digest import Edition
    from pipeline_assets.news.intake import Intake

OTHER_LANGUAGES = 0.5
"""Above this share of articles in other languages the feeds or NEWS_LANGUAGE are wrong."""


def article_specs(asset: str, partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The checks of the articles, besides those of their contract."""
    return [
        dg.AssetCheckSpec(
            "inside_window",
            asset=asset,
            description="Every article was published inside the partition's window.",
            blocking=True,
            partitions_def=partitions,
        ),
        dg.AssetCheckSpec(
            "every_source_answered",
            asset=asset,
            description="No source failed or lacks history. The edition appears without it.",
            partitions_def=partitions,
        ),
        dg.AssetCheckSpec(
            "language_share",
            asset=asset,
            description=(
                f"At most {OTHER_LANGUAGES:.0%} of the articles are in another language than "
                "NEWS_LANGUAGE."
            ),
            partitions_def=partitions,
        ),
    ]


def article_results(
    articles: "Sequence[Article]", window: Window, intake: "Intake", language: str
) -> list[dg.AssetCheckResult]:
    """The results for `article_specs`."""
    outside = [
        f"{article.url} {article.published_at:%Y-%m-%d %H:%M}"
        for article in articles
        if not window.start <= article.published_at < window.end
    ]
    languages = Counter(article.language for article in articles)
    foreign = 1 - languages[language] / len(articles) if articles else 0.0
    warn = dg.AssetCheckSeverity.WARN
    return [
        dg.AssetCheckResult(
            check_name="inside_window",
            passed=not outside,
            metadata={"articles": len(articles), "outside": outside[:10]},
        ),
        dg.AssetCheckResult(
            check_name="every_source_answered",
            passed=not intake.missing,
            severity=warn,
            metadata={"sources": intake.sources, "missing": dict(intake.missing)},
        ),
        dg.AssetCheckResult(
            check_name="language_share",
            passed=foreign <= OTHER_LANGUAGES,
            severity=warn,
            metadata={"other_languages": round(foreign, 3), "languages": dict(languages)},
        ),
    ]


def digest_specs(asset: str, partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The checks of an edition."""
    return [
        dg.AssetCheckSpec(
            "files_readable",
            asset=asset,
            description="The saved CSV reads back with all stories, and the page has a link to each.",
            blocking=True,
            partitions_def=partitions,
        ),
        dg.AssetCheckSpec(
            "no_story_twice",
            asset=asset,
            description="No story, headline or address occurs twice in the edition.",
            partitions_def=partitions,
        ),
    ]


def digest_results(edition: "Edition", page: Path) -> list[dg.AssetCheckResult]:
    """The results for `digest_specs`, from the files as they are on disk."""
    from markupsafe import escape

    from pipeline_assets.news.digest import COLUMNS

    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    html = page.read_text(encoding="utf-8")
    urls = [row[COLUMNS.index("url")] for row in rows if len(row) == len(COLUMNS)]
    wrong = []
    if tuple(header) != COLUMNS:
        wrong.append("the CSV's header isn't the documented one")
    if urls != [story.url for story in edition.stories]:
        wrong.append("the CSV's rows aren't the edition's stories")
    if html.count("<article") != len(edition.stories) or "</html>" not in html:
        wrong.append("the page doesn't show every story")
    if any(str(escape(story.url)) not in html for story in edition.stories):
        wrong.append("the page doesn't have a link to every story")
    twice = [
        value
        for values in (
            [story.story_id for story in edition.stories],
            [story.headline.casefold() for story in edition.stories],
            [story.url for story in edition.stories],
        )
        for value, count in Counter(values).items()
        if count > 1
    ]
    return [
        dg.AssetCheckResult(
            check_name="files_readable",
            passed=not wrong,
            metadata={"stories": len(edition.stories), "wrong": wrong},
        ),
        dg.AssetCheckResult(
            check_name="no_story_twice",
            passed=not twice,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"stories": len(edition.stories), "twice": twice[:10]},
        ),
    ]
