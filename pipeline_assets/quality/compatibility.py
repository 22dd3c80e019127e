"""Breaking changes: whether a contract still keeps what an older version of it promised.

A change is breaking if `ddl` would refuse to alter the older table accordingly, or if rows that were loaded
until now would be held back. By semantic versioning a contract with a breaking change has a new major
version, which tells its users. Nothing here knows where contracts come from.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline_assets.quality.contract import Bound, Contract, Rule, TableContract
from pipeline_assets.quality.types import is_wider

# Whether a rule's new argument admits fewer values than the old one. For other kinds this can't be
# decided, so a different argument counts as tighter.
_TIGHTER: Mapping[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda new, old: new > old,
    "exclusiveMinimum": lambda new, old: new > old,
    "minLength": lambda new, old: new > old,
    "maximum": lambda new, old: new < old,
    "exclusiveMaximum": lambda new, old: new < old,
    "maxLength": lambda new, old: new < old,
    "validValues": lambda new, old: not set(old) <= set(new),
    "missingValues": lambda new, old: not set(new or ()) <= set(old or ()),
}
_UPPER = ("mustBeLessThan", "mustBeLessOrEqualTo")
_LOWER = ("mustBeGreaterThan", "mustBeGreaterOrEqualTo")


def breaking_changes(old: TableContract, new: TableContract) -> list[str]:
    """What `new` breaks of `old`, a sentence each; none if tables and rows of `old` still fit.

    Breaking are: another target, key or change time; a removed column (renaming one removes and adds it);
    a changed type that isn't wider; a new required column, or one that becomes required; and for loaded
    tables a rule that is new, tighter than it was, or newly blocking.
    """
    return [*_of_table(old, new), *_of_columns(old, new), *_of_rules(old, new)]


def is_new_major(old: str, new: str) -> bool:
    """Whether `new` (such as 2.0.0) has a higher major version than `old`; a word counts as 0."""
    numbers = [re.match(r"v?(\d+)", version) for version in (new, old)]
    first, second = (int(number[1]) if number else 0 for number in numbers)
    return first > second


def _of_table(old: TableContract, new: TableContract) -> Iterator[str]:
    if new.target_relation != old.target_relation:
        yield f"the table is {new.target_relation}, it was {old.target_relation}"
    if new.key != old.key:
        yield f"the key is ({', '.join(new.key)}), it was ({', '.join(old.key)})"
    if isinstance(old, Contract) != isinstance(new, Contract):
        yield "a loaded table became a mart, or a mart a loaded table"
    elif (
        isinstance(old, Contract)
        and isinstance(new, Contract)
        and new.change_column != old.change_column
    ):
        yield f"the change time is {new.change_column}, it was {old.change_column}"


def _of_columns(old: TableContract, new: TableContract) -> Iterator[str]:
    columns = {column.name: column for column in new.columns}
    for before in old.columns:
        after = columns.pop(before.name, None)
        if after is None:
            yield f"column {before.name} is gone"
            continue
        types = after.physical_type, before.physical_type
        if types[0] != types[1] and not is_wider(*types):
            yield f"column {before.name} is {types[0]}, which can't hold all of {types[1]}"
        if after.required and not before.required:
            yield f"column {before.name} became required"
    for added in columns.values():
        if added.required:
            yield f"column {added.name} is new and required: rows that are there have no value"


def _of_rules(old: TableContract, new: TableContract) -> Iterator[str]:
    if not isinstance(old, Contract) or not isinstance(new, Contract):
        return
    rules = {rule.name: rule for rule in old.rules}
    known = {column.name for column in old.columns}
    required = {column.name for column in new.columns if column.required}
    for rule in new.rules:
        # `_of_columns` reports types and required columns, but not how many values may be missing.
        told = rule.kind == "type" or (rule.kind == "required" and required >= {*rule.columns})
        if told or (rule.columns and not known & {*rule.columns}):
            continue
        before = rules.get(rule.name)
        if before is None:
            yield f"rule {rule.name} is new: {rule.sentence}"
        elif rule.kind != before.kind or rule.columns != before.columns:
            yield f"rule {rule.name} is another: {rule.sentence}"
        elif _is_tighter(rule, before):
            yield f"rule {rule.name} is tighter: {rule.sentence} It was: {before.sentence}"
        elif rule.blocking and not before.blocking:
            yield f"rule {rule.name} holds a partition from now on, it only warned before"


def _is_tighter(new: Rule, old: Rule) -> bool:
    if new.argument != old.argument:
        compare = _TIGHTER.get(new.kind)
        if compare is None or compare(new.argument, old.argument):
            return True
    return new.bound != old.bound and not _is_looser(new.bound, old.bound)


def _is_looser(new: Bound, old: Bound) -> bool:
    """Whether the new bound holds whenever the old one does, as far as that can be told."""
    if old.operator == "mustBe" and old.limits == (0,):
        # No row at all, in any unit: every upper bound is at least as loose.
        return new.operator in _UPPER and (new.limits[0] > 0 or new.operator == _UPPER[1])
    if new.unit != old.unit or new.operator != old.operator:
        return False
    if new.operator in _UPPER:
        return new.limits >= old.limits
    if new.operator in _LOWER:
        return new.limits <= old.limits
    if new.operator == "mustBeBetween":
        return new.limits[0] <= old.limits[0] and old.limits[1] <= new.limits[1]
    return False
