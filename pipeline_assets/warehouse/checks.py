"""The asset checks of a table: one for each rule of its contract, and whether all rows arrived.

Every spec has the asset's partitions: without them a good day's result would unblock a bad day. For a
ranged run Dagster stores a check once for the whole range, which states how many partitions keep the
rule; each partition's own result is logged in addition.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from uuid import uuid4

import dagster as dg

from pipeline_assets.metadata import preview
from pipeline_assets.partitions import partition_windows
from pipeline_assets.quality.contract import Contract, Rule
from pipeline_assets.resources.postgres import Database
from pipeline_assets.running import RETRY, permanent_failures

if TYPE_CHECKING:
    from pipeline_assets.warehouse.gate import Judgement
    from pipeline_assets.warehouse.reconcile import Comparison

NAMED = 20
"""How many partitions a result names; the ledger has them all."""


def rule_specs(
    contract: Contract, asset: str, partitions: dg.PartitionsDefinition[str]
) -> list[dg.AssetCheckSpec]:
    """A check for each rule; the blocking ones stop the downstream assets."""
    return [
        dg.AssetCheckSpec(
            rule.name,
            asset=asset,
            description=f"{rule.sentence} {rule.description}".strip(),
            blocking=rule.blocking,
            partitions_def=partitions,
        )
        for rule in contract.rules
    ]


def rule_results(
    contract: Contract, judgements: "Mapping[str, Judgement]"
) -> list[dg.AssetCheckResult]:
    """The result of each rule's check over the run's partitions.

    A blocking check that fails at ERROR stops the rest of the run. If some partitions of a range passed,
    the failure is reported as WARN, so that they are loaded; the load holds back the others and fails.
    """
    some_passed = any(judgement.verdict.passed for judgement in judgements.values())
    results = []
    for rule in contract.rules:
        broken = {
            key: judgement
            for key, judgement in judgements.items()
            if not judgement.verdict.keeps(rule)
        }
        blocks = rule.blocking and not some_passed
        results.append(
            dg.AssetCheckResult(
                check_name=rule.name,
                passed=not broken,
                severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
                description=_outcome(rule, broken, len(judgements)),
                metadata=_evidence(contract, rule, judgements, broken),
            )
        )
    return results


def log_partitions(
    context: dg.AssetExecutionContext,
    asset: str,
    results: Iterable[tuple[str, Iterable[dg.AssetCheckResult]]],
) -> None:
    """Store an asset's results for each single partition of a ranged run.

    Dagster itself stores them only for the range as a whole, and then shows every partition's checks
    as skipped. `context.log_event`, which can't batch, takes 4 ms per event.
    """
    from dagster._core.events import DagsterEvent, DagsterEventBatchMetadata, DagsterEventType

    step, batch = context.op_execution_context.get_step_execution_context(), uuid4().hex
    each = ((partition, result) for partition, found in results for result in found)
    following = next(each, None)
    while following:
        (partition, result), following = following, next(each, None)
        verdict = "passed" if result.passed else "did not pass"
        DagsterEvent.from_step(
            DagsterEventType.ASSET_CHECK_EVALUATION,
            step,
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(asset),
                check_name=str(result.check_name),
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
                partition=partition,
            ),
            f"Check {result.check_name} of {asset} {verdict} for {partition}.",
            DagsterEventBatchMetadata(batch, is_end=following is None),
        )


def _outcome(rule: Rule, broken: "Mapping[str, Judgement]", partitions: int) -> str:
    if not broken:
        return "Kept."
    for judgement in broken.values():
        if why := judgement.verdict.unworkable.get(rule.name):
            return why
    held = sum(not judgement.verdict.passed for judgement in broken.values())
    if partitions == 1:
        return f"Broken: the partition is {'held back' if held else 'loaded all the same'}."
    return f"Broken by {len(broken)} of {partitions} partitions, of which {held} are held back."


def _evidence(
    contract: Contract,
    rule: Rule,
    judgements: "Mapping[str, Judgement]",
    broken: "Mapping[str, Judgement]",
) -> dict[str, dg.MetadataValue]:
    rows = sum(judgement.verdict.rows for judgement in judgements.values())
    count = sum(judgement.verdict.violations[rule.name] for judgement in judgements.values())
    from pipeline_assets.warehouse.ledger import quarantine_query

    evidence: dict[str, dg.MetadataValue] = {
        "violations": dg.MetadataValue.int(count),
        "rows": dg.MetadataValue.int(rows),
        "percent": dg.MetadataValue.float(round(100 * count / rows, 3) if rows else 0.0),
        "bound": dg.MetadataValue.text(str(rule.bound)),
    }
    breaking = [
        key for key, judgement in judgements.items() if judgement.verdict.violations[rule.name]
    ]
    if broken or breaking:
        worst = next(iter(broken or breaking))
        evidence["quarantine"] = dg.MetadataValue.text(quarantine_query(contract, worst, rule.name))
        if rule.name in judgements[worst].samples:
            evidence["sample"] = preview(judgements[worst].samples[rule.name])
        if broken and len(judgements) > 1:
            evidence["partitions"] = dg.MetadataValue.text(", ".join(list(broken)[:NAMED]))
    return evidence


def complete_spec(asset: str, partitions: dg.PartitionsDefinition[str]) -> dg.AssetCheckSpec:
    """Whether the file has as many rows as the source counts."""
    return dg.AssetCheckSpec(
        "complete",
        asset=asset,
        description="The file has as many rows as the source counts in the partition's window.",
        partitions_def=partitions,
    )


def complete_result(
    extracted: Mapping[str, int], counted: "Mapping[str, int]"
) -> dg.AssetCheckResult:
    """Compare rows read with rows counted; a source that changes meanwhile is a warning."""
    short = {
        key: f"{rows} of {counted[key]}" for key, rows in extracted.items() if rows != counted[key]
    }
    return dg.AssetCheckResult(
        check_name="complete",
        passed=not short,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"rows": sum(extracted.values()), "differing": dict(list(short.items())[:NAMED])},
    )


def in_step_spec(asset: str, partitions: dg.PartitionsDefinition[str]) -> dg.AssetCheckSpec:
    """Whether source and warehouse hold the same rows."""
    return dg.AssetCheckSpec(
        "in_step_with_source",
        asset=asset,
        description=(
            "Source and warehouse (with its quarantine) hold the same keys and versions in the "
            "partition's window, by count and digest."
        ),
        partitions_def=partitions,
    )


def in_step_result(asset: str, comparisons: "Mapping[str, Comparison]") -> dg.AssetCheckResult:
    """Name the partitions that differ from the source, which may have changed since it was read."""
    differing = {
        key: f"source {comparison.source}, warehouse {comparison.warehouse}"
        for key, comparison in comparisons.items()
        if not comparison.in_step
    }
    return dg.AssetCheckResult(
        check_name="in_step_with_source",
        asset_key=asset,
        passed=not differing,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "partitions": len(comparisons),
            "rows": sum(comparison.source.rows for comparison in comparisons.values()),
            "differing": dict(list(differing.items())[:NAMED]),
        },
    )


def rebuild_spec(
    asset: str, loaded: str, partitions: dg.PartitionsDefinition[str]
) -> dg.AssetCheckSpec:
    """Whether a mart equals a rebuild of it."""
    return dg.AssetCheckSpec(
        "equals_rebuild",
        asset=asset,
        description=f"The groups of the partition's rows are what {loaded} gives when rebuilt.",
        partitions_def=partitions,
    )


def rebuild_result(asset: str, differing: int) -> dg.AssetCheckResult:
    """How many of the mart's rows differ from a rebuild."""
    return dg.AssetCheckResult(
        check_name="equals_rebuild",
        asset_key=asset,
        passed=differing == 0,
        metadata={"differing_rows": differing},
    )


OUT_OF_STEP = "out_of_step"
"""The reconciliation's metadata entry that lists the days that differ, separated by blanks."""


def source_key(contract: Contract) -> dg.AssetKey:
    """The source relation as an asset, so that the lineage starts where the data does."""
    return dg.AssetKey(["source", *contract.source_relation.split(".")])


def reconciliation(
    contract: Contract, partitions: dg.DailyPartitionsDefinition
) -> dg.AssetChecksDefinition:
    """The check that all closed days of a source are in the warehouse.

    It belongs to the source asset, which has no partitions, because it covers all days at once; so no run
    that materializes one day pays for it.
    """

    @dg.asset_check(
        asset=source_key(contract),
        name="reconciled",
        description=(
            f"Every closed day of `{contract.source_relation}` is in `{contract.target_relation}` or "
            "the quarantine, by count and digest. The sensor loads again what differs."
        ),
        retry_policy=RETRY,
    )
    def reconciled(
        source: dg.ResourceParam[Database], warehouse: dg.ResourceParam[Database]
    ) -> dg.AssetCheckResult:
        from pipeline_assets.warehouse.ledger import ensure_schema
        from pipeline_assets.warehouse.reconcile import compare, rows_outside

        windows = partition_windows(partitions, partitions.get_partition_keys())
        with (
            permanent_failures(),
            source.connect(autocommit=True) as at_source,
            warehouse.connect(autocommit=True) as at_warehouse,
        ):
            ensure_schema(at_warehouse, contract)
            found = compare(at_source, at_warehouse, contract, windows)
            without_a_day, before = rows_outside(at_source, contract, partitions.start)
        late = [day for day, comparison in found.items() if not comparison.in_step]
        return dg.AssetCheckResult(
            passed=not late and not without_a_day,
            description=(
                f"{len(late)} of {len(found)} days differ; {without_a_day} rows belong to none: their "
                f"{contract.change_column} is missing, in no year from 1 to 9999, or days ahead. "
                f"{before} rows last changed before {partitions.start:%Y-%m-%d}, the first day that is "
                "loaded (WAREHOUSE_START_DATE)."
            ),
            metadata={
                "days": len(found),
                "rows": sum(comparison.source.rows for comparison in found.values()),
                "rows_without_a_day": without_a_day,
                "rows_before_the_first_day": before,
                OUT_OF_STEP: " ".join(late),
            },
        )

    return reconciled
