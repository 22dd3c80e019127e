"""Which rows keep a contract, and whether a partition passes: Arrow tables in, verdicts out.

Rows come in batches; what needs the whole partition, a key's uniqueness, is checked first from the key's
columns alone (`rules.find_duplicates`). `rules` tests each rule. Nothing here reads or writes anything.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.contract import Contract, ContractError, Rule
from pipeline_assets.quality.fitting import as_source, fit
from pipeline_assets.quality.rules import Keys
from pipeline_assets.quality.rules import broken as broken_by
from pipeline_assets.quality.types import arrow_type, may_misfit

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Frames = Callable[["pd.DataFrame"], "pd.DataFrame"]
"""A pure function from frame to frame (Arrow dtypes), rows in the same order."""


class SchemaMismatchError(PermanentError):
    """Data doesn't have the columns that its contract names."""


@dataclass(frozen=True)
class Batch:
    """One batch after the rules: typed valid rows, and the others as the source had them.

    `rejected` has a further column `broken_rules` (list of rule names).
    """

    valid: "pa.Table"
    rejected: "pa.Table"


@dataclass
class Verdict:
    """How many of a partition's rows break which of the contract's rules."""

    contract: Contract
    rows: int = 0
    rejected: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    """Rule name -> number of rows that break it."""
    unworkable: dict[str, str] = field(default_factory=dict)
    """Rule name -> why it can't be worked out on some rows, which counts as broken."""

    @property
    def broken(self) -> list[Rule]:
        """The blocking rules whose bound is exceeded, in the contract's order."""
        return [rule for rule in self.contract.rules if rule.blocking and not self.keeps(rule)]

    @property
    def passed(self) -> bool:
        """Whether the partition may be loaded."""
        return not self.broken

    def keeps(self, rule: Rule) -> bool:
        """Whether the rule's violations are within its bound."""
        if rule.name in self.unworkable:
            return False
        measured = self.rows if rule.kind == "rowCount" else self.violations[rule.name]
        return rule.bound.holds(measured, self.rows)


def unchanged(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The normalisation or derivation of a table that needs none."""
    return frame


def validate(
    table: "pa.Table",
    contract: Contract,
    verdict: Verdict,
    *,
    duplicates: Mapping[str, Keys] | None = None,
    normalise: Frames = unchanged,
) -> Batch:
    """Split one batch of source rows by the contract's rules and add its counts to `verdict`.

    `table` has the contract's source columns; `duplicates` comes from `find_duplicates` over the whole
    partition; `normalise` unifies harmless variants (case, blanks) in the typed frame before the rules
    are tested, but must not change a column that must be unique: duplicates were found before. Rejected
    rows stay exactly as the source had them, whatever the severity of the rule that they break; columns
    with moments outside the calendar (`infinity`) become text in them.

    Raises:
        SchemaMismatchError: a column is missing, or its type, or a value of it, can't become the contract's.
        ContractError: `normalise` changes a key.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    fitted, misfits = _typed(table, contract)
    typed = apply(normalise, fitted)
    _check_keys_unchanged(fitted, typed, contract)
    verdict.rows += table.num_rows
    masks, any_broken = {}, None
    for rule in contract.rules:
        try:
            mask = broken_by(rule, typed, contract, misfits, duplicates or {})
        except ContractError as error:  # holds this partition, and not the others of a range
            verdict.unworkable[rule.name] = str(error)
            continue
        if mask is not None and (count := pc.sum(mask).as_py()):
            verdict.violations[rule.name] += count
            masks[rule.name] = mask
            any_broken = mask if any_broken is None else pc.or_(any_broken, mask)
    if any_broken is None:
        reasons = pa.array([], pa.list_(pa.string()))
        return Batch(typed, table.slice(0, 0).append_column("broken_rules", reasons))
    rejected = table.filter(any_broken)
    for index, name in enumerate(rejected.column_names):
        if name in misfits:
            rejected = rejected.set_column(index, name, as_source(rejected[name]))
    reasons = [
        [name for name, is_broken in row.items() if is_broken]
        for row in pa.table(masks).filter(any_broken).to_pylist()
    ]
    verdict.rejected += rejected.num_rows
    return Batch(
        typed.filter(pc.invert(any_broken)),
        rejected.append_column("broken_rules", pa.array(reasons, pa.list_(pa.string()))),
    )


def _check_keys_unchanged(before: "pa.Table", after: "pa.Table", contract: Contract) -> None:
    if after is before:
        return
    for rule in contract.rules:
        for name in rule.columns if rule.kind == "unique" else ():
            if not after[name].equals(before[name]):
                raise ContractError(
                    f"{contract.name}: the normalisation changes {name}, which rule {rule.name} "
                    "compares as the source has it; normalise other columns only"
                )


def apply(function: Frames, table: "pa.Table") -> "pa.Table":
    """Run a function of pandas frames on an Arrow table, exact types both ways."""
    import pandas as pd
    import pyarrow as pa

    if function is unchanged:
        return table
    frame = function(table.to_pandas(types_mapper=pd.ArrowDtype))
    return pa.table({name: _arrow(frame[name]) for name in frame.columns})


def _arrow(series: "pd.Series[Any]") -> "pa.ChunkedArray":
    import pyarrow as pa

    values = pa.array(series)
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])


def _typed(table: "pa.Table", contract: Contract) -> "tuple[pa.Table, dict[str, pa.ChunkedArray]]":
    import pyarrow as pa

    columns, misfits = {}, {}
    for column in contract.source_columns:
        if column.name not in table.column_names:
            raise SchemaMismatchError(
                f"{contract.name}: column {column.name} of the contract is missing in the data"
            )
        try:
            columns[column.name], mask = fit(table[column.name], column.physical_type)
        except pa.ArrowNotImplementedError:
            raise SchemaMismatchError(
                f"{contract.name}: column {column.name} comes as {table[column.name].type}, of which "
                f"no {column.physical_type} can be made; correct its physicalType"
            ) from None
        if mask is None:
            continue
        if not may_misfit(column.physical_type):  # no rule looks at it: the values would be lost
            raise SchemaMismatchError(
                f"{contract.name}: column {column.name} comes as {table[column.name].type}, with values of "
                f"which no {column.physical_type} can be made; correct its physicalType"
            )
        misfits[column.name] = mask
    return pa.table(columns), misfits


def empty(contract: Contract) -> "pa.Table":
    """No rows, in the types that valid rows have."""
    import pyarrow as pa

    fields = [(column.name, arrow_type(column.physical_type)) for column in contract.source_columns]
    return pa.schema(fields).empty_table()
