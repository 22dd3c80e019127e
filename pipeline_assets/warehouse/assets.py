"""A table's assets: its source, `raw_<table>`, `validated_<table>`, the warehouse table, its marts.

Assets declare inputs and outputs and report metadata to Dagster; the work is done in `extract`,
`gate` and `load`. Each takes one partition or a range: a range streams one partition after another in
one process, and only the partitions that break their contract are held back.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

import dagster as dg

from pipeline_assets import __version__
from pipeline_assets.metadata import column_lineage, column_schema, daily_plot, preview
from pipeline_assets.partitions import partition_windows
from pipeline_assets.quality.contract import Contract, TableContract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.postgres import Database
from pipeline_assets.resources.progress import Progress
from pipeline_assets.running import RETRY, freshness, permanent_failures
from pipeline_assets.warehouse.checks import (
    complete_result,
    complete_spec,
    in_step_result,
    in_step_spec,
    log_partitions,
    rebuild_result,
    rebuild_spec,
    rule_results,
    rule_specs,
    source_key,
)
from pipeline_assets.warehouse.tables import Table

if TYPE_CHECKING:
    import psycopg

    from pipeline_assets.warehouse.load import Loaded
    from pipeline_assets.warehouse.reconcile import Windows

GROUP = "warehouse"


def target_name(contract: TableContract) -> str:
    """The name of the warehouse table's asset: the table's own, without its schema."""
    return contract.target_relation.rpartition(".")[2]


def table_assets(
    table: Table, partitions: dg.DailyPartitionsDefinition
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The assets of one table, from its contract."""
    return [
        source_asset(table.contract),
        raw_asset(table, partitions),
        validated_asset(table, partitions),
        warehouse_assets(table, partitions),
    ]


def source_asset(contract: Contract) -> dg.AssetSpec:
    """The source relation, kept by another system, so that the lineage starts where the data does."""
    return dg.AssetSpec(
        source_key(contract),
        group_name=GROUP,
        description=f"`{contract.source_relation}`, as another system keeps it.",
        owners=[f"team:{contract.owner}"],
        kinds={"postgres"},
        metadata={"dagster/column_schema": column_schema(contract.source_columns)},
    )


def raw_asset(table: Table, partitions: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """`raw_<table>`: what changed in the source on a day, as a file."""
    contract = table.contract
    name = f"raw_{contract.name}"

    @dg.asset(
        name=name,
        deps=[source_key(contract)],
        kinds={"postgres", "parquet"},
        pool="source",
        description=f"The rows of `{contract.source_relation}` that changed on the day, as they are.",
        metadata=_source_columns(contract, source_key(contract)),
        check_specs=[complete_spec(name, partitions)],
        **_common(contract, partitions),
    )
    def raw(
        context: dg.AssetExecutionContext,
        source: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        from pipeline_assets.warehouse.extract import check_source, extract, source_reader
        from pipeline_assets.warehouse.gate import SAMPLE_ROWS
        from pipeline_assets.warehouse.reconcile import source_counts

        windows = partition_windows(partitions, context.partition_keys)
        extracted = {}
        with (
            permanent_failures(),
            source.connect(autocommit=True) as connection,
            source_reader(source.url()) as reader,
        ):
            check_source(connection, contract)
            for key in progress(windows, name):
                begun = perf_counter()
                batches = extract(reader, contract, windows[key])
                extracted[key] = files.write(name, key, batches).rows
                context.add_asset_metadata(
                    {
                        "dagster/row_count": extracted[key],
                        "rows_per_second": round(extracted[key] / (perf_counter() - begun)),
                        "path": files.path(name, key),
                    },
                    partition_key=key,
                )
            counted = source_counts(connection, contract, windows)
        newest = max(windows)
        for rows in islice(files.read(name, newest), 1):
            shown = {"preview": preview(rows.slice(0, SAMPLE_ROWS))}
            context.add_asset_metadata(shown, partition_key=newest)
        if len(windows) > 1:
            by_day = (
                (key, [complete_result({key: rows}, counted)]) for key, rows in extracted.items()
            )
            log_partitions(context, name, by_day)
        return dg.MaterializeResult(check_results=[complete_result(extracted, counted)])

    return raw


def validated_asset(table: Table, partitions: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """`validated_<table>`: the rows that keep the contract, and the gate."""
    contract = table.contract
    name = f"validated_{contract.name}"

    @dg.asset(
        name=name,
        deps=[f"raw_{contract.name}"],
        kinds={"pandas", "parquet"},
        pool="warehouse",
        description=(
            f"The day's rows that keep contract `{contract.name}` {contract.version}. The others are in "
            f"`quarantine.{contract.name}` with the rules they break. A broken rule holds the day back."
        ),
        metadata={
            **_source_columns(contract, dg.AssetKey(f"raw_{contract.name}")),
            "contract": dg.MetadataValue.path(f"contracts/{contract.name}.odcs.yaml"),
        },
        check_specs=rule_specs(contract, name, partitions),
        **_common(contract, partitions),
    )
    def validated(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult:
        from pipeline_assets.warehouse import ledger
        from pipeline_assets.warehouse.gate import judge

        windows = partition_windows(partitions, context.partition_keys)
        judgements = {}
        with permanent_failures(), warehouse.connect(autocommit=True) as connection:
            ledger.ensure_schema(connection, contract)
            for key in progress(windows, name):
                begun = perf_counter()
                judgement = judge(table, key, windows[key], files, connection, context.run.run_id)
                judgements[key] = judgement
                verdict = judgement.verdict
                context.add_asset_metadata(
                    {
                        "dagster/row_count": verdict.rows - verdict.rejected,
                        "rows_extracted": verdict.rows,
                        "rows_quarantined": verdict.rejected,
                        "violations": sum(verdict.violations.values()),
                        "violations_by_rule": dict(verdict.violations),
                        "rows_per_second": round(verdict.rows / (perf_counter() - begun)),
                        "verdict": "passed" if verdict.passed else "failed",
                        "preview": preview(judgement.preview),
                    },
                    partition_key=key,
                )
            newest = max(windows)
            counts = ledger.rows_by_day(connection, contract, newest)
            context.add_asset_metadata({"recent_days": daily_plot(counts)}, partition_key=newest)
        if len(windows) > 1:
            by_day = (
                (key, rule_results(contract, {key: judgement}))
                for key, judgement in judgements.items()
            )
            log_partitions(context, name, by_day)
        return dg.MaterializeResult(check_results=rule_results(contract, judgements))

    return validated


def warehouse_assets(table: Table, partitions: dg.DailyPartitionsDefinition) -> dg.AssetsDefinition:
    """The warehouse table and its marts, updated in one transaction per partition."""
    contract, marts = table.contract, table.marts
    target = target_name(contract)

    @dg.multi_asset(
        name=target,
        pool="warehouse",
        specs=[
            _spec(contract, dg.AssetKey(f"validated_{contract.name}")),
            *(_spec(mart, dg.AssetKey(target)) for mart in marts),
        ],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        check_specs=[
            in_step_spec(target, partitions),
            *(rebuild_spec(target_name(mart), target, partitions) for mart in marts),
        ],
    )
    def warehouse_tables(
        context: dg.AssetExecutionContext,
        source: dg.ResourceParam[Database],
        warehouse: dg.ResourceParam[Database],
        files: dg.ResourceParam[PartitionFiles],
        progress: dg.ResourceParam[Progress],
    ) -> Iterator[dg.MaterializeResult]:
        from pipeline_assets.warehouse.ledger import GateError
        from pipeline_assets.warehouse.load import load, prepare
        from pipeline_assets.warehouse.reconcile import settled, source_digests, warehouse_digests

        windows = partition_windows(partitions, context.partition_keys)
        loads: dict[str, dict[str, dict[str, Any]]] = {}
        held = {}
        with (
            permanent_failures(),
            source.connect(autocommit=True) as source_connection,
            warehouse.connect(autocommit=True) as connection,
            ThreadPoolExecutor(max_workers=1) as beside,
        ):
            # The source is queried while the warehouse writes; the load's own queries to it wait.
            at_source = beside.submit(source_digests, source_connection, contract, windows)
            prepare(connection, table)
            for key in progress(windows, target):
                begun = perf_counter()
                try:
                    loaded = load(
                        table, key, files, source_connection, connection, context.run.run_id
                    )
                except GateError as error:
                    held[key] = str(error)
                else:
                    loads[key] = _counts(table, loaded, perf_counter() - begun)
            if newest := max(loads, default=""):
                loads[newest][target] |= _look(connection, files, table, newest)
            done = {key: windows[key] for key in loads}
            here, there = warehouse_digests(connection, contract, done), at_source.result()
            comparisons = settled(source_connection, connection, contract, done, there, here)
            differing = _differing(connection, table, done)
        if held:  # Dagster records nothing else of a step that fails
            _log_loads(context, loads)
        else:
            _add_loads(context, loads)
            yield dg.MaterializeResult(target, check_results=[in_step_result(target, comparisons)])
            for name, groups in differing.items():
                yield dg.MaterializeResult(name, check_results=[rebuild_result(name, groups)])
        if len(windows) > 1:
            by_day = (
                (key, [in_step_result(target, {key: found})]) for key, found in comparisons.items()
            )
            log_partitions(context, target, by_day)
            for name, groups in differing.items():
                rebuilt = [rebuild_result(name, groups)]
                log_partitions(context, name, ((key, rebuilt) for key in comparisons))
        if held:
            raise _failure(held, len(windows))

    return warehouse_tables


def _source_columns(contract: Contract, upstream: dg.AssetKey) -> dict[str, Any]:
    """Metadata on the source's columns, which come unchanged from the upstream asset."""
    return {
        "dagster/column_schema": column_schema(contract.source_columns),
        "dagster/column_lineage": column_lineage(contract.source_columns, upstream),
    }


def _common(contract: Contract, partitions: dg.DailyPartitionsDefinition) -> dict[str, Any]:
    return {
        "group_name": GROUP,
        "partitions_def": partitions,
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "retry_policy": RETRY,
        "owners": [f"team:{contract.owner}"],
        "code_version": f"{__version__}/{contract.version}",
    }


def _spec(contract: TableContract, upstream: dg.AssetKey) -> dg.AssetSpec:
    """A warehouse table as an asset, with what its contract says."""
    return dg.AssetSpec(
        target_name(contract),
        deps=[upstream],
        group_name=GROUP,
        description=contract.description,
        freshness_policy=freshness(contract) if isinstance(contract, Contract) else None,
        owners=[f"team:{contract.owner}"],
        code_version=f"{__version__}/{contract.version}",
        kinds={"postgres"},
        metadata={
            "dagster/column_schema": column_schema(contract.columns),
            "dagster/column_lineage": column_lineage(contract.columns, upstream),
            "dagster/table_name": contract.target_relation,
        },
    )


def _counts(table: Table, loaded: "Loaded", seconds: float) -> dict[str, dict[str, Any]]:
    """Asset -> the metadata on what a partition's load did to it."""
    about = {
        "dagster/partition_row_count": loaded.batch.rows_valid,
        "rows_extracted": loaded.batch.rows_extracted,
        "rows_quarantined": loaded.batch.rows_quarantined,
        "rows_written": loaded.rows_written,
        "rows_deleted": loaded.rows_deleted,
        "rows_per_second": round(loaded.batch.rows_valid / seconds),
    }
    groups = {
        target_name(mart): {"groups_computed": loaded.groups.get(mart.name, 0)}
        for mart in table.marts
    }
    return {target_name(table.contract): about, **groups}


def _look(
    warehouse: "psycopg.Connection", files: PartitionFiles, table: Table, key: str
) -> dict[str, Any]:
    """Metadata to look at: a few of the partition's rows as loaded, and a plot of the days up to it."""
    from pipeline_assets.quality.validation import apply
    from pipeline_assets.warehouse.gate import SAMPLE_ROWS
    from pipeline_assets.warehouse.ledger import rows_by_day

    look = {"recent_days": daily_plot(rows_by_day(warehouse, table.contract, key))}
    for rows in islice(files.read(f"validated_{table.contract.name}", key), 1):
        look["preview"] = preview(apply(table.derive, rows.slice(0, SAMPLE_ROWS)))
    return look


def _differing(warehouse: "psycopg.Connection", table: Table, windows: "Windows") -> dict[str, int]:
    """Mart -> how many of its rows differ from a rebuild, in groups with rows in the windows' span."""
    from pipeline_assets.warehouse.marts import differing_groups

    if not windows:
        return {}
    span = (min(windows.values())[0], max(windows.values())[1])
    return {
        target_name(mart): differing_groups(warehouse, table.contract, mart, span)
        for mart in table.marts
    }


def _add_loads(
    context: dg.AssetExecutionContext, loads: dict[str, dict[str, dict[str, Any]]]
) -> None:
    """Add each partition's metadata to the materializations that the step yields."""
    for key, by_asset in loads.items():
        for name, metadata in by_asset.items():
            context.add_asset_metadata(metadata, asset_key=name, partition_key=key)


def _log_loads(
    context: dg.AssetExecutionContext, loads: dict[str, dict[str, dict[str, Any]]]
) -> None:
    """Record the materialization of each loaded partition, whatever becomes of the step."""
    for key, by_asset in loads.items():
        for name, metadata in by_asset.items():
            context.log_event(dg.AssetMaterialization(name, metadata=metadata, partition=key))


def _failure(held: dict[str, str], partitions: int) -> dg.Failure:
    """The step's failure that names the held partitions, and why the first one is held."""
    from pipeline_assets.warehouse.ledger import GateError

    why = next(iter(held.values()))
    failure = dg.Failure(
        f"{len(held)} of {partitions} partitions held back: {', '.join(held)}. {why}",
        metadata=held,
        allow_retries=False,
    )
    failure.__cause__ = GateError(why)
    return failure
