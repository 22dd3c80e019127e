"""A table's assets: its source, `raw_<table>`, `validated_<table>` and the warehouse table.

They say where data comes from and goes to, and tell Dagster about it; the work is in `extract`,
`gate` and `load`. Each takes one partition or a range: a range streams one partition after another in
one process, and one that breaks its contract is held back alone.
"""

from datetime import datetime
from time import perf_counter
from typing import Any

import dagster as dg

from pipeline_assets import __version__
from pipeline_assets.metadata import column_lineage, column_schema, preview
from pipeline_assets.quality.contract import Contract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.postgres import Database
from pipeline_assets.resources.progress import Progress
from pipeline_assets.running import RETRY, permanent_failures
from pipeline_assets.warehouse.checks import (
    complete_result,
    complete_spec,
    in_step_result,
    in_step_spec,
    rule_results,
    rule_specs,
)
from pipeline_assets.warehouse.tables import Table

GROUP = "warehouse"


def source_key(contract: Contract) -> dg.AssetKey:
    """The source relation as an asset, so that the lineage starts where the data does."""
    return dg.AssetKey(["source", *contract.source_relation.split(".")])


def target_name(contract: Contract) -> str:
    """The warehouse table's asset has the table's own name."""
    return contract.target_relation.rpartition(".")[2]


def table_assets(
    table: Table, partitions: dg.DailyPartitionsDefinition
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The assets of one table, from its contract."""
    contract = table.contract
    name, target = contract.name, target_name(contract)
    raw_name, validated_name = f"raw_{name}", f"validated_{name}"
    common: dict[str, Any] = {
        "group_name": GROUP,
        "partitions_def": partitions,
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "retry_policy": RETRY,
        "owners": [f"team:{contract.owner}"],
        "code_version": f"{__version__}/{contract.version}",
    }
    source = dg.AssetSpec(
        source_key(contract),
        group_name=GROUP,
        description=f"The source of {name}: `{contract.source_relation}`, kept by another system.",
        owners=common["owners"],
        kinds={"postgres"},
        metadata={"dagster/column_schema": column_schema(contract.source_columns)},
    )

    @dg.asset(
        name=raw_name,
        deps=[source],
        kinds={"postgres", "parquet"},
        description=f"The rows of `{contract.source_relation}` that changed on the day, as they are.",
        metadata={"dagster/column_schema": column_schema(contract.source_columns)},
        check_specs=[complete_spec(raw_name, partitions)],
        **common,
    )
    def raw(
        context: dg.AssetExecutionContext,
        source: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        from pipeline_assets.warehouse.extract import check_source, extract, source_reader
        from pipeline_assets.warehouse.reconcile import source_digests

        windows = _windows(context)
        extracted = {}
        with (
            permanent_failures(),
            source.connect(autocommit=True) as connection,
            source_reader(source.url()) as reader,
        ):
            check_source(connection, contract)
            for key in progress(windows, raw_name):
                begun = perf_counter()
                batches = extract(reader, contract, windows[key])
                extracted[key] = files.write(raw_name, key, batches).rows
                context.add_asset_metadata(
                    {
                        "dagster/row_count": extracted[key],
                        "rows_per_second": round(extracted[key] / (perf_counter() - begun)),
                        "path": files.path(raw_name, key),
                    },
                    partition_key=key,
                )
            held = source_digests(connection, contract, windows)
        return dg.MaterializeResult(check_results=[complete_result(extracted, held)])

    @dg.asset(
        name=validated_name,
        deps=[raw],
        kinds={"pandas", "parquet"},
        description=(
            f"The day's rows that keep contract `{name}` {contract.version}. The others are in "
            f"`quarantine.{name}` with the rules they break. A broken rule holds the day back."
        ),
        metadata={
            "dagster/column_schema": column_schema(contract.source_columns),
            "contract": dg.MetadataValue.path(f"contracts/{name}.odcs.yaml"),
        },
        check_specs=rule_specs(contract, validated_name, partitions),
        **common,
    )
    def validated(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        from pipeline_assets.warehouse import ledger
        from pipeline_assets.warehouse.gate import judge

        windows = _windows(context)
        judgements = {}
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            ledger.ensure_schema(connection, contract)
            for key in progress(windows, validated_name):
                judgement = judge(table, key, windows[key], files, connection, context.run.run_id)
                judgements[key] = judgement
                verdict = judgement.verdict
                context.add_asset_metadata(
                    {
                        "dagster/row_count": verdict.rows - verdict.rejected,
                        "rows_extracted": verdict.rows,
                        "rows_quarantined": verdict.rejected,
                        "violations": dict(verdict.violations),
                        "verdict": "passed" if verdict.passed else "failed",
                        "preview": preview(judgement.preview),
                    },
                    partition_key=key,
                )
        return dg.MaterializeResult(check_results=rule_results(contract, judgements))

    @dg.asset(
        name=target,
        deps=[validated],
        kinds={"postgres"},
        description=contract.description,
        metadata={
            "dagster/column_schema": column_schema(contract.columns),
            "dagster/column_lineage": column_lineage(contract, dg.AssetKey(validated_name)),
            "dagster/table_name": contract.target_relation,
        },
        check_specs=[in_step_spec(target, partitions)],
        **common,
    )
    def warehouse_table(
        context: dg.AssetExecutionContext,
        source: dg.ResourceParam[Database],
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        from pipeline_assets.warehouse import ledger
        from pipeline_assets.warehouse.load import load
        from pipeline_assets.warehouse.reconcile import compare

        windows = _windows(context)
        loads, held = {}, {}
        with (
            permanent_failures(),
            source.connect(autocommit=True) as source_connection,
            warehouse.connect(autocommit=True) as connection,
        ):
            ledger.ensure_schema(connection, contract)
            for key in progress(windows, target):
                begun = perf_counter()
                try:
                    loaded = load(
                        table, key, files, source_connection, connection, context.run.run_id
                    )
                except ledger.GateError as error:
                    held[key] = str(error)
                    continue
                loads[key] = {
                    "dagster/partition_row_count": loaded.rows_valid,
                    "rows_written": loaded.rows_written,
                    "rows_deleted": loaded.rows_deleted,
                    "rows_per_second": round(loaded.rows_valid / (perf_counter() - begun)),
                }
            if not held:
                comparisons = compare(source_connection, connection, contract, windows)
        if held:
            _report_held(context, loads, held)
        for key, metadata in loads.items():
            context.add_asset_metadata(metadata, partition_key=key)
        return dg.MaterializeResult(check_results=[in_step_result(comparisons)])

    return [source, raw, validated, warehouse_table]


def _windows(context: dg.AssetExecutionContext) -> dict[str, tuple[datetime, datetime]]:
    """The run's partitions, oldest first, and their windows [start, end)."""
    partitions = context.assets_def.partitions_def
    assert isinstance(partitions, dg.TimeWindowPartitionsDefinition)  # noqa: S101 - for the type checker
    windows = {}
    for key in context.partition_keys:
        window = partitions.time_window_for_partition_key(key)
        windows[key] = (window.start, window.end)
    return windows


def _report_held(
    context: dg.AssetExecutionContext, loads: dict[str, dict[str, int]], held: dict[str, str]
) -> None:
    """End the step as failed, naming what is held, with what was loaded on record.

    A failed step materializes nothing in Dagster's eyes, so the loaded partitions are logged first.
    """
    for key, metadata in loads.items():
        context.log_event(
            dg.AssetMaterialization(context.asset_key, metadata=metadata, partition=key)
        )
    raise dg.Failure(
        f"{len(held)} of {len(held) + len(loads)} partitions held back: {', '.join(held)}. "
        f"{next(iter(held.values()))}",
        metadata=held,
        allow_retries=False,
    )
