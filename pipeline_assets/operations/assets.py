"""The two assets about the deployment itself: its status page, and what retention removed.

They have no partitions: each describes the present.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from pipeline_assets import __version__
from pipeline_assets.resources.dagster_history import Watched, partitions_on_record
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import RETRY, permanent_failures
from pipeline_assets.settings import Settings

GROUP = "operations"
STATUS, RETENTION = "status_report", "retention_report"


def operations_assets(
    settings: Settings, known: Callable[[], Watched]
) -> list[dg.AssetsDefinition]:
    """`retention_report` and `status_report`; `known` returns what to watch, once everything is defined."""
    common: dict[str, Any] = {
        "group_name": GROUP,
        "retry_policy": RETRY,
        "owners": ["team:data-engineering"],
        "code_version": __version__,
    }

    @dg.asset(
        name=STATUS,
        deps=[RETENTION],
        kinds={"dagster", "markdown"},
        description=(
            "Whether everything is fine, and if not, what to do: the `report` below. Made anew every "
            "hour, and by Materialize at once."
        ),
        check_specs=[
            dg.AssetCheckSpec(
                "complete",
                asset=STATUS,
                description="Every part of the status could be read. (That something is wrong "
                "doesn't fail it: that has an alert of its own.)",
            )
        ],
        **common,
    )
    def status_report(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from pipeline_assets.operations.page import details, summary
        from pipeline_assets.operations.status import deployment_status

        status = deployment_status(lambda: context.instance, settings, known())
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(summary(status)),
                "details": dg.MetadataValue.md(details(status)),
                "problems": len(status.problems),
                "partitions_behind": sum(len(table.behind) for table in status.tables),
                "partitions_held": sum(len(table.held) for table in status.tables),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="complete",
                    passed=not status.unknown,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"unreadable": dict(status.unknown)},
                )
            ],
        )

    @dg.asset(
        name=RETENTION,
        kinds={"dagster", "postgres"},
        description=(
            "What the daily retention removed: what runs printed and logged, old ticks, files between "
            "assets, the news' raw answers, the content of quarantined rows (`RETENTION_*_DAYS`). "
            "Materializations, check results and the ledger stay: no partition looks missing."
        ),
        check_specs=[
            dg.AssetCheckSpec(
                "partitions_kept",
                asset=RETENTION,
                description="Every partition that Dagster and the ledger knew before, they know after.",
            )
        ],
        **common,
    )
    def retention_report(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
    ) -> dg.MaterializeResult:
        from pipeline_assets.operations import retention
        from pipeline_assets.resources.dagster_instance import remove_run_logs, remove_ticks

        now = datetime.now(UTC)
        instance = context.instance
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            known_before = partitions_on_record(instance) | retention.ledger_keys(connection)
            runs, events = remove_run_logs(
                instance, retention.cutoff(now, settings.retention_log_days)
            )
            remove_ticks(instance, retention.cutoff(now, settings.retention_tick_days))
            emptied = retention.empty_quarantine(
                connection, retention.cutoff(now, settings.retention_quarantine_days)
            )
            removed_files = files.remove(
                retention.REPRODUCIBLE, retention.cutoff(now, settings.retention_file_days)
            )
            archived = retention.remove_archive(
                settings.pipeline_data_dir / "news",
                retention.cutoff(now, settings.retention_archive_days),
            )
            known_after = partitions_on_record(instance) | retention.ledger_keys(connection)
        lost = sorted(known_before - known_after)
        return dg.MaterializeResult(
            metadata={
                "runs_emptied_of_logs": runs,
                "events_removed": events,
                "files_removed": removed_files,
                "archived_days_removed": archived,
                "quarantined_rows_emptied": emptied,
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="partitions_kept",
                    passed=not lost,
                    metadata={"partitions": len(known_after), "lost": lost[:20]},
                )
            ],
        )

    return [retention_report, status_report]
