"""The digest's two assets: the articles of a morning's window, and the edition made of them.

A partition is named by the day on which its window [08:00, 08:00) begins; its edition is that of the
next morning. Each run makes one partition, so a backfill's mornings fail and are retried alone.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets import __version__
from pipeline_assets.metadata import column_schema, preview
from pipeline_assets.news.checks import (
    article_results,
    article_specs,
    digest_results,
    digest_specs,
)
from pipeline_assets.news.items import Run, Window
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import RETRY, freshness, permanent_failures
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.checks import rule_results, rule_specs
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    from pipeline_assets.news.digest import Edition

ARTICLES, DIGEST = "news_articles", "news_digest"
HOUR = 8
"""When an edition is due, and its window ends, in the configured time zone."""


def mornings(settings: Settings) -> dg.DailyPartitionsDefinition:
    """The digest's partitions: windows from 08:00 to 08:00."""
    return dg.DailyPartitionsDefinition(
        settings.news_start_date.isoformat(),
        hour_offset=HOUR,
        timezone=settings.pipeline_timezone,
    )


def news_assets(
    settings: Settings, partitions: dg.DailyPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """`news_articles` and `news_digest`."""
    table = Table(load_contract(ARTICLES))
    contract = table.contract
    archive, digests = settings.pipeline_data_dir / "news", settings.pipeline_data_dir / "digests"
    common: dict[str, Any] = {
        "group_name": "news",
        "partitions_def": partitions,
        "retry_policy": RETRY,
        "owners": [f"team:{contract.owner}"],
        "freshness_policy": freshness(contract),
        "code_version": f"{__version__}/{contract.version}",
    }

    @dg.asset(
        name=ARTICLES,
        kinds={"python", "postgres"},
        pool="warehouse",
        description=(
            "What the outlets published in the window, one row an article: plain text, canonical "
            "address, UTC. Raw answers are archived first and never fetched twice. Rows that break "
            f"the contract are in `quarantine.{ARTICLES}`."
        ),
        metadata={
            "dagster/column_schema": column_schema(contract.columns),
            "dagster/table_name": contract.target_relation,
        },
        check_specs=[
            *rule_specs(contract, ARTICLES, partitions),
            *article_specs(ARTICLES, partitions),
        ],
        **common,
    )
    def articles(
        context: dg.AssetExecutionContext,
        http: dg.ResourceParam[Callable[[], Any]],
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
    ) -> dg.MaterializeResult:
        from pipeline_assets.news.intake import load_articles, save_intake, take_in, to_table
        from pipeline_assets.warehouse.gate import judge
        from pipeline_assets.warehouse.load import load, prepare

        key, window = context.partition_key, Window(*context.partition_time_window)
        run = Run(window, settings, http(), datetime.now(UTC))
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            taken, found = take_in(run, archive)
            save_intake(files, key, taken)
            files.write(f"raw_{ARTICLES}", key, [to_table(found, taken.provider)])
            prepare(connection, table)
            judgement = judge(table, key, window, files, connection, context.run.run_id)
            verdict = judgement.verdict
            valid = load_articles(files, key)
            if verdict.passed:
                load(table, key, files, None, connection, context.run.run_id)
        for name, reason in taken.missing.items():
            context.log.warning(f"{name} {reason}")
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(valid),
                "items": taken.items,
                "duplicates": taken.duplicates,
                "outside_window": taken.outside_window,
                "quarantined": verdict.rejected,
                "sources": taken.sources,
                "sources_missing": len(taken.missing),
                "outlets": len({article.outlet for article in valid}),
                "provider": taken.provider,
                "archive": dg.MetadataValue.path(str(archive / taken.provider / key)),
                "preview": preview(judgement.preview.select(["title", "outlet", "published_at"])),
            },
            check_results=[
                *rule_results(contract, {key: judgement}),
                *article_results(valid, window, taken, settings.news_language),
            ],
        )

    @dg.asset(
        name=DIGEST,
        deps=[
            dg.AssetDep(
                articles,
                # Yesterday's articles say which stories readers know.
                partition_mapping=dg.TimeWindowPartitionMapping(
                    start_offset=-1, allow_nonexistent_upstream_partitions=True
                ),
            )
        ],
        kinds={"html", "csv", "scikitlearn"},
        description=(
            "The morning's edition: articles told apart as stories, ranked by how many outlets carry "
            "them. Saved as `digests/<date>.csv` and `.html` under the date on which it is read, the "
            "day after the partition's, with an index, a feed and a plain text."
        ),
        check_specs=digest_specs(DIGEST, partitions),
        **common,
    )
    def digest(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
    ) -> dg.MaterializeResult:
        from pipeline_assets.news.digest import compose, publish
        from pipeline_assets.news.intake import load_articles, load_intake
        from pipeline_assets.warehouse import ledger

        key, window = context.partition_key, Window(*context.partition_time_window)
        before = (date.fromisoformat(key) - timedelta(days=1)).isoformat()
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            ledger.ensure_schema(connection, contract)
            ledger.passed_batch(connection, contract, key)
            known = ledger.batches(connection, contract, [before]).get(before)
            edition = compose(
                window,
                settings,
                load_intake(files, key),
                load_articles(files, key),
                load_articles(files, before) if known and known.verdict == "passed" else [],
            )
            # One at a time: the index and the neighbours' links must see every edition.
            with ledger.partition_lock(connection, contract, "digests"):
                page = publish(edition, digests, str(settings.news_site_url or ""))
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(edition.stories),
                "articles": edition.articles,
                "updates": sum(story.is_update for story in edition.stories),
                "repeated": edition.repeated,
                "muted": edition.muted,
                "other_languages": edition.other_languages,
                "minutes_to_read": edition.minutes,
                "edition": edition.date.isoformat(),
                "page": _link(page, settings, ".html"),
                "csv": _link(page, settings, ".csv"),
                "preview": _front_page(edition),
            },
            check_results=digest_results(edition, page),
        )

    return [articles, digest]


def _front_page(edition: "Edition") -> dg.MetadataValue[str]:
    """The first stories as a table for the UI; markup in what outlets wrote is escaped."""
    import pyarrow as pa

    rows = [
        {
            "rank": rank,
            "story": f"Update: {story.headline}" if story.is_update else story.headline,
            "outlets": ", ".join([story.outlet, *(outlet for outlet, _ in story.also_at)]),
        }
        for rank, story in enumerate(edition.stories[:10], start=1)
    ]
    schema = pa.schema([("rank", pa.int8()), ("story", pa.string()), ("outlets", pa.string())])
    return preview(pa.Table.from_pylist(rows, schema))


def _link(page: Path, settings: Settings, suffix: str) -> dg.MetadataValue[str]:
    """The URL at which the file is served, or else its path."""
    file = page.with_suffix(suffix)
    if settings.news_site_url:
        return dg.MetadataValue.url(f"{str(settings.news_site_url).rstrip('/')}/{file.name}")
    return dg.MetadataValue.path(str(file))
