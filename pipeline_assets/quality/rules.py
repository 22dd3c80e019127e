"""How each rule of a contract is tested: a mask over typed columns, true where a row breaks the rule.

Rules are Arrow kernels over whole columns: a million rows in milliseconds each. A null breaks
`required` and `missingValues`, and a condition that asks for it, and nothing else. `validation` turns the
masks into verdicts.
"""

import operator
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from math import isnan
from typing import TYPE_CHECKING, Any

from pipeline_assets.quality import types
from pipeline_assets.quality.conditions import parse_condition
from pipeline_assets.quality.contract import Contract, ContractError, Rule
from pipeline_assets.quality.fitting import fit

if TYPE_CHECKING:
    import pyarrow as pa

Keys = frozenset[tuple[Any, ...]]
"""Values of some columns, one tuple per row."""

# A kind's test: in Arrow, and in Python for numbers that are too long for Arrow.
_BREAKS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("less", operator.lt),
    "exclusiveMinimum": ("less_equal", operator.le),
    "maximum": ("greater", operator.gt),
    "exclusiveMaximum": ("greater_equal", operator.ge),
}


def broken(
    rule: Rule,
    typed: "pa.Table",
    contract: Contract,
    misfits: "Mapping[str, pa.ChunkedArray]",
    duplicates: Mapping[str, Keys],
) -> "pa.ChunkedArray | None":
    """Which rows break the rule (boolean, no nulls), or None if it is certain that none does.

    `typed` has the contract's source columns in their types; `misfits` marks the values that didn't fit
    their type, by column; `duplicates` comes from `find_duplicates`.

    Raises:
        ContractError: the rule can't be evaluated on these values, e.g. a product has too many digits.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    mask: pa.ChunkedArray | None
    if rule.kind == "rowCount":
        return None
    if rule.kind == "type":
        mask = misfits.get(rule.columns[0])
    elif rule.kind == "unique":
        mask = _is_among(typed, contract, rule, duplicates.get(rule.name))
    elif rule.kind in ("required", "missingValues"):
        mask = _is_missing(typed, contract, rule, misfits)
    else:
        try:
            if rule.kind == "sql":
                types_of = {column.name: column.physical_type for column in contract.source_columns}
                mask = parse_condition(rule.argument, types_of).evaluate(typed)
            else:
                name = rule.columns[0]
                mask = _breaks_value_rule(typed[name], contract.column(name).physical_type, rule)
        except pa.ArrowInvalid as error:
            raise ContractError(
                f"{contract.name}: rule {rule.name} ({rule.argument}) can't be worked out: {error}"
            ) from error
    return None if mask is None else pc.fill_null(mask, False)


def _is_among(
    typed: "pa.Table", contract: Contract, rule: Rule, keys: Keys | None
) -> "pa.ChunkedArray | None":
    import pyarrow as pa

    if not keys:
        return None
    known = [key in keys for key in key_values(typed, contract, rule)]
    return pa.chunked_array([known], pa.bool_())


def _is_missing(
    typed: "pa.Table", contract: Contract, rule: Rule, misfits: "Mapping[str, pa.ChunkedArray]"
) -> "pa.ChunkedArray | None":
    import pyarrow.compute as pc

    name = rule.columns[0]
    values = typed[name]
    mask = pc.is_null(values) if values.null_count else None
    if mask is not None and name in misfits:  # a misfit isn't missing
        mask = pc.and_not(mask, misfits[name])
    if rule.argument:
        listed = _is_listed(values, contract.column(name).physical_type, rule.argument)
        mask = listed if mask is None else pc.or_kleene(mask, listed)
    return mask


def _breaks_value_rule(
    values: "pa.ChunkedArray", physical_type: str, rule: Rule
) -> "pa.ChunkedArray":
    import pyarrow.compute as pc

    if rule.kind == "validValues":
        return pc.invert(_is_listed(values, physical_type, rule.argument))
    if rule.kind == "pattern":
        return pc.invert(pc.match_substring_regex(values, rule.argument))
    if rule.kind == "minLength":
        return pc.less(pc.utf8_length(types.unpadded(values, physical_type)), rule.argument)
    if rule.kind == "maxLength":
        return pc.greater(pc.utf8_length(types.unpadded(values, physical_type)), rule.argument)
    return _is_beyond(values, physical_type, rule)


def _is_listed(
    values: "pa.ChunkedArray", physical_type: str, constants: tuple[Any, ...]
) -> "pa.ChunkedArray":
    """Which values are among the constants; null stays null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if types.is_long_number(physical_type):
        numbers = types.equal_values(values, physical_type)
        return pa.chunked_array(
            [[None if n is None else n in constants for n in numbers]], pa.bool_()
        )
    known, _ = fit(pa.chunked_array([types.texts(constants)]), physical_type)
    listed = pc.is_in(types.unpadded(values, physical_type), known.drop_null())
    return pc.if_else(pc.is_valid(values), listed, pa.scalar(None, pa.bool_()))


def _is_beyond(values: "pa.ChunkedArray", physical_type: str, rule: Rule) -> "pa.ChunkedArray":
    """Which values are on the wrong side of the limit. PostgreSQL's NaN is above all numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kernel, compare = _BREAKS[rule.kind]
    limit, nan_breaks = rule.argument, rule.kind in ("maximum", "exclusiveMaximum")

    def is_beyond(number: Decimal | int | None) -> bool | None:
        if number is None:
            return None
        return nan_breaks if isnan(number) else compare(number, limit)

    is_float = pa.types.is_floating(values.type)
    try:
        if types.is_long_number(physical_type):
            values = values.cast(pa.decimal256(76, 38))
        constant = (
            pa.scalar(float(limit), values.type) if is_float else pa.scalar(types.comparable(limit))
        )
        mask = getattr(pc, kernel)(values, constant)
    except pa.ArrowInvalid:  # NaN among long numbers, or more digits than Arrow's decimals have
        numbers = types.equal_values(values, physical_type)
        return pa.chunked_array([list(map(is_beyond, numbers))], pa.bool_())
    if nan_breaks and is_float:
        return pc.or_(mask, pc.is_nan(values))
    return mask


def key_values(typed: "pa.Table", contract: Contract, rule: Rule) -> Iterable[tuple[Any, ...]]:
    """The rule's columns, one tuple per row; tuples are equal where PostgreSQL's values are."""

    def values(name: str) -> list[Any]:
        physical_type = contract.column(name).physical_type
        found = types.equal_values(typed[name], physical_type)
        if not types.may_be_nan(physical_type):
            return found
        # To PostgreSQL, NaN equals itself; to Python it doesn't.
        return ["NaN" if value is not None and isnan(value) else value for value in found]

    return zip(*map(values, rule.columns), strict=True)


def find_duplicates(
    batches: Callable[[list[str]], Iterable["pa.Table"]], contract: Contract
) -> dict[str, Keys]:
    """Rule name -> the keys that occur more than once in the partition, for each `unique` rule.

    `batches` reads the requested columns of the partition: once to hash the keys, and a second time, to
    compare the keys themselves, only if hashes repeat. Memory: 8 bytes a row. A key that has a null part
    is no duplicate of anything.
    """
    found = {}
    for rule in contract.rules:
        if rule.kind == "unique":
            suspects = _repeated_hashes(_keys(batches, contract, rule))
            if suspects:
                counts = Counter(
                    key
                    for keys in _keys(batches, contract, rule)
                    for key in keys
                    if hash(key) in suspects
                )
                if repeated := frozenset(key for key, count in counts.items() if count > 1):
                    found[rule.name] = repeated
    return found


def _keys(
    batches: Callable[[list[str]], Iterable["pa.Table"]], contract: Contract, rule: Rule
) -> Iterable[Iterable[tuple[Any, ...]]]:
    """The complete keys of each batch."""
    import pyarrow as pa

    for table in batches(list(rule.columns)):
        typed = {
            name: fit(table[name], contract.column(name).physical_type)[0] for name in rule.columns
        }
        yield key_values(pa.table(typed).drop_null(), contract, rule)


def _repeated_hashes(keys: Iterable[Iterable[tuple[Any, ...]]]) -> set[int]:
    # Arrow's own value_counts takes twice as long over a million texts, and keeps them all.
    import numpy as np

    hashes = array("q")
    for batch in keys:
        hashes.frombytes(np.fromiter(map(hash, batch), np.int64).tobytes())
    ordered = np.frombuffer(hashes, np.int64)
    ordered.sort()
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
