"""A data contract: one table's columns and the rules for its rows, as frozen objects.

`odcs` reads contracts from files, `rules` tests rows against them, `ddl` creates their tables. Nothing
here knows about files, data or databases.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pipeline_assets.failures import PermanentError

Kind = Literal[
    "type",
    "required",
    "missingValues",
    "unique",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "pattern",
    "validValues",
    "sql",
    "rowCount",
]
OPERATORS: Mapping[str, tuple[Callable[..., bool], str]] = {
    "mustBe": (lambda measured, limit: measured == limit, "exactly {}"),
    "mustNotBe": (lambda measured, limit: measured != limit, "other than {}"),
    "mustBeLessThan": (lambda measured, limit: measured < limit, "under {}"),
    "mustBeLessOrEqualTo": (lambda measured, limit: measured <= limit, "at most {}"),
    "mustBeGreaterThan": (lambda measured, limit: measured > limit, "over {}"),
    "mustBeGreaterOrEqualTo": (lambda measured, limit: measured >= limit, "at least {}"),
    "mustBeBetween": (lambda measured, low, high: low <= measured <= high, "between {} and {}"),
    "mustNotBeBetween": (
        lambda measured, low, high: not low <= measured <= high,
        "outside {} to {}",
    ),
}
"""ODCS's operators: each one's test and wording."""

_SENTENCES: Mapping[Kind, str] = {
    "type": "{columns} fits {argument}",
    "required": "{columns} has a value",
    "missingValues": "{columns} has a value other than {argument}",
    "unique": "{columns} occurs once in a partition",
    "minimum": "{columns} is at least {argument}",
    "exclusiveMinimum": "{columns} is above {argument}",
    "maximum": "{columns} is at most {argument}",
    "exclusiveMaximum": "{columns} is below {argument}",
    "minLength": "{columns} has at least {argument} characters",
    "maxLength": "{columns} has at most {argument} characters",
    "pattern": "{columns} matches {argument}",
    "validValues": "{columns} is one of {argument}",
    "sql": "No row has {argument}",
}


class ContractError(PermanentError):
    """The contract is malformed or asks for something unsupported; the message says where."""


@dataclass(frozen=True)
class Bound:
    """The limits of a rule's measure: by default no row may break the rule."""

    operator: str = "mustBe"
    limits: tuple[float, ...] = (0,)
    unit: Literal["rows", "percent"] = "rows"

    def holds(self, measured: int, rows: int) -> bool:
        """Whether `measured` rows among `rows` are within the bound; of 0 rows they are 0 percent."""
        share = measured if self.unit == "rows" else 100 * measured / rows if rows else 0
        return OPERATORS[self.operator][0](share, *self.limits)

    def __str__(self) -> str:
        words = OPERATORS[self.operator][1].format(*self.limits)
        return f"{words} {'%' if self.unit == 'percent' else 'rows'}"


@dataclass(frozen=True)
class Rule:
    """A condition that rows must meet. Its name is unique in the contract and names its asset check.

    Rows that break it are quarantined; if they are more than the bound allows, a `blocking` rule holds
    the whole partition. Only `rowCount` is about the partition: no row breaks it.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...] = ()
    argument: Any = None
    bound: Bound = field(default_factory=Bound)
    blocking: bool = True
    description: str = ""

    @property
    def sentence(self) -> str:
        """The rule in words, with its bound."""
        if self.kind == "rowCount":
            return f"A partition has {self.bound}."
        argument = (
            ", ".join(map(str, self.argument))
            if isinstance(self.argument, tuple)
            else self.argument
        )
        kept = _SENTENCES[self.kind].format(columns=", ".join(self.columns), argument=argument)
        return f"{kept}; {self.bound} may break it."


@dataclass(frozen=True)
class Column:
    """A column of the table. `derived_from` names the columns that a derived one is computed from."""

    name: str
    physical_type: str
    """PostgreSQL's own full name of the type, as `format_type` writes it."""
    required: bool
    description: str
    derived_from: tuple[str, ...] = ()
    transformation: str = ""
    logic: str = ""
    """SQL, for a column of a mart."""


@dataclass(frozen=True, kw_only=True)
class TableContract:
    """What every contract states: a table, its columns and key, and its owner."""

    name: str
    version: str
    description: str
    owner: str
    source_relation: str
    target_relation: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True, kw_only=True)
class Contract(TableContract):
    """A table that is loaded from a source, and what its rows must keep."""

    change_column: str
    """The source's change time: its day is the row's partition, its value the row's version."""
    rules: tuple[Rule, ...]
    latency_hours: float | None

    @cached_property
    def source_columns(self) -> tuple[Column, ...]:
        """The columns that the source has, in the contract's order."""
        return tuple(column for column in self.columns if not column.derived_from)


@dataclass(frozen=True, kw_only=True)
class MartContract(TableContract):
    """A table that groups the rows of another by its key; each column's `logic` is SQL over a group."""
