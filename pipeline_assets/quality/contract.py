"""A data contract: one table's columns and rules, read from an ODCS v3.1 file.

The file is the single statement of what the data is. This module turns it into the few frozen
objects that the rest works with and refuses whatever it would otherwise have to ignore. How a rule is
tested stands in `validation`, how a column becomes DDL in `ddl`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline_assets.failures import PermanentError
from pipeline_assets.quality.types import may_misfit, normal_type

if TYPE_CHECKING:
    from open_data_contract_standard.model import (
        DataQuality,
        OpenDataContractStandard,
        SchemaObject,
        SchemaProperty,
    )

CONTRACTS = Path(__file__).parent.parent / "contracts"

Kind = Literal[
    "type",
    "required",
    "unique",
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "validValues",
]
# The keywords that say which values a column may hold, in `logicalTypeOptions` (where none may break
# them) or as arguments of an `invalidValues` metric (where a bound says how many may).
VALUE_KINDS: Mapping[str, Kind] = {
    "minimum": "minimum",
    "exclusiveMinimum": "exclusiveMinimum",
    "maximum": "maximum",
    "exclusiveMaximum": "exclusiveMaximum",
    "validValues": "validValues",
}
METRICS: Mapping[str, Kind] = {"nullValues": "required", "duplicateValues": "unique"}
OPERATORS = {
    "mustBe": "==",
    "mustBeLessThan": "<",
    "mustBeLessOrEqualTo": "<=",
}


class ContractError(PermanentError):
    """The contract is malformed or asks for something unsupported; the message says where."""


@dataclass(frozen=True)
class Bound:
    """How many rows may break a rule before the partition is held: none unless the contract says so."""

    operator: Literal["==", "<", "<="] = "=="
    limit: float = 0
    unit: Literal["rows", "percent"] = "rows"

    def holds(self, violations: int, rows: int) -> bool:
        """Whether `violations` among `rows` rows are within the bound. No rows, no violation."""
        measured = violations if self.unit == "rows" else 100 * violations / rows if rows else 0
        if self.operator == "==":
            return measured == self.limit
        return measured < self.limit if self.operator == "<" else measured <= self.limit

    def __str__(self) -> str:
        word = {"==": "exactly", "<": "under", "<=": "at most"}[self.operator]
        return f"{word} {self.limit:g} {'%' if self.unit == 'percent' else 'rows'}"


@dataclass(frozen=True)
class Rule:
    """One thing that rows must keep. Its name is unique in the contract and names its asset check."""

    name: str
    kind: Kind
    columns: tuple[str, ...]
    argument: Any = None
    bound: Bound = field(default_factory=Bound)
    blocking: bool = True
    description: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table. `derived_from` names the columns that a derived one is computed of."""

    name: str
    physical_type: str
    required: bool
    description: str
    derived_from: tuple[str, ...] = ()
    transformation: str = ""


@dataclass(frozen=True)
class Contract:
    """What one table holds, where it comes from and what its rows must keep."""

    name: str
    version: str
    description: str
    owner: str
    source_relation: str
    target_relation: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    change_column: str
    """The source's change time: its day is the row's partition, its value the row's version."""
    rules: tuple[Rule, ...]
    latency_hours: float | None

    @cached_property
    def source_columns(self) -> tuple[Column, ...]:
        """The columns that the source has, in the contract's order."""
        return tuple(column for column in self.columns if not column.derived_from)

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


def load_contract(file: str | Path) -> Contract:
    """Read a contract; a bare name such as `transactions` means the one in `contracts/`.

    Raises:
        ContractError: the file is missing, is no ODCS v3.1 contract of one table, or asks for
            something that would be ignored. The message names the file and the place in it.
    """
    path = file if isinstance(file, Path) else CONTRACTS / f"{file}.odcs.yaml"
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML_LOADER)  # noqa: S506 - a safe loader, in C
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ContractError(f"{path.name}: is not YAML: {error}") from error
    try:
        return parse_contract(document)
    except ContractError as error:
        raise ContractError(f"{path.name}: {error}") from error


# Ten times faster than the Python one, and as safe.
_YAML_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_contract(document: Mapping[str, Any]) -> Contract:
    """Turn an ODCS v3.1 document into a `Contract`. Raises `ContractError`."""
    from open_data_contract_standard.model import OpenDataContractStandard
    from pydantic import ValidationError

    if not str(document.get("apiVersion", "")).startswith("v3.1."):
        raise ContractError(f"apiVersion: {document.get('apiVersion')!r} is not v3.1.x")
    try:
        model = OpenDataContractStandard.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ContractError(f"{place}: {problem['msg']}") from None
    unknown = sorted(set(_paths(document)) - set(_paths(model.model_dump(by_alias=True))))
    if unknown:
        raise ContractError(f"{unknown[0]}: is not part of ODCS v3.1")
    return _contract(model)


def _paths(node: object, prefix: str = "") -> Iterator[str]:
    """Every key in a document with its place. Free-form parts end the walk."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{prefix}.{key}" if prefix else str(key)
            yield place
            if key not in ("arguments", "logicalTypeOptions", "value", "examples"):
                yield from _paths(value, place)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _paths(value, f"{prefix}[{index}]")


def _contract(model: "OpenDataContractStandard") -> Contract:
    if len(model.schema_ or ()) != 1:
        raise ContractError("schema: must have exactly one table")
    table = (model.schema_ or [])[0]
    properties = table.properties or []
    columns = tuple(_column(prop) for prop in properties)
    key = tuple(
        str(prop.name)
        for prop in sorted(properties, key=lambda prop: prop.primaryKeyPosition or 0)
        if prop.primaryKey
    )
    changes = [str(prop.name) for prop in properties if prop.partitioned]
    if not key:
        raise ContractError("schema: no property has primaryKey: true; rows are upserted by it")
    if len(changes) != 1:
        raise ContractError("schema: one property must have partitioned: true, the change time")
    rules = tuple(rule for prop in properties for rule in _rules(prop))
    names = [rule.name for rule in rules]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ContractError(f"quality: two rules are named {min(doubled)}")
    if table.quality:
        raise ContractError("schema.quality: rules of a whole table are not supported yet")
    team = model.team if not isinstance(model.team, list) else None
    if team is None or not team.name:
        raise ContractError("team.name: must say who owns the table")
    return Contract(
        name=str(table.name),
        version=str(model.version),
        description=str(table.description or (model.description and model.description.purpose)),
        owner=team.name,
        source_relation=_custom(table, "sourceRelation"),
        target_relation=table.physicalName or f"analytics.{table.name}",
        columns=columns,
        key=key,
        change_column=changes[0],
        rules=rules,
        latency_hours=_latency_hours(model),
    )


def _custom(table: "SchemaObject", name: str) -> str:
    for custom in table.customProperties or []:
        if custom.property == name:
            return str(custom.value)
    raise ContractError(f"schema.customProperties: {name} is missing")


def _latency_hours(model: "OpenDataContractStandard") -> float | None:
    hours = None
    for sla in model.slaProperties or []:
        factor = {"d": 24, "day": 24, "days": 24, "h": 1, "hour": 1, "hours": 1}.get(sla.unit or "")
        if sla.property != "latency" or factor is None:
            raise ContractError(f"slaProperties: {sla.property} in {sla.unit} is not supported")
        hours = float(str(sla.value)) * factor
    return hours


def _column(prop: "SchemaProperty") -> Column:
    return Column(
        name=str(prop.name),
        physical_type=normal_type(str(prop.physicalType), str(prop.name)),
        required=bool(prop.required or prop.primaryKey),
        description=str(prop.description or ""),
        derived_from=tuple(prop.transformSourceObjects or ()),
        transformation=prop.transformDescription or "",
    )


def _rules(prop: "SchemaProperty") -> Iterator[Rule]:
    name = str(prop.name)
    columns = (name,)
    options = prop.logicalTypeOptions or {}
    if prop.transformSourceObjects:
        if prop.quality or options:
            raise ContractError(f"{name}: rules hold for source columns; this one is derived")
        return
    if may_misfit(str(prop.physicalType)):
        yield Rule(f"{name}_type", "type", columns, prop.physicalType)
    if prop.required or prop.primaryKey:
        yield Rule(f"{name}_required", "required", columns)
    if prop.unique:
        yield Rule(f"{name}_unique", "unique", columns)
    for option, value in options.items():
        if option not in VALUE_KINDS:
            raise ContractError(f"{name}.logicalTypeOptions: {option} is not supported")
        yield Rule(f"{name}_{_snake(option)}", VALUE_KINDS[option], columns, value)
    for quality in prop.quality or []:
        yield _quality_rule(name, quality)


def _quality_rule(column: str, quality: "DataQuality") -> Rule:
    metric, arguments = quality.metric or "", quality.arguments or {}
    place = f"{column}.quality.{quality.name or metric}"
    if (quality.type or "library") != "library":
        raise ContractError(f"{place}: type {quality.type} is not supported")
    argument = None
    if metric == "invalidValues" and len(arguments) == 1 and set(arguments) <= set(VALUE_KINDS):
        ((option, argument),) = arguments.items()
        kind = VALUE_KINDS[option]
    elif metric in METRICS and not arguments:
        option, kind = metric, METRICS[metric]
    else:
        raise ContractError(f"{place}: metric {metric} with {sorted(arguments)} is not supported")
    return Rule(
        name=quality.name or f"{column}_{_snake(option)}",
        kind=kind,
        columns=(column,),
        argument=argument,
        bound=_bound(place, quality),
        blocking=(quality.severity or "error") == "error",
        description=(quality.description or "").strip(),
    )


def _bound(place: str, quality: "DataQuality") -> Bound:
    stated = {
        name: value
        for name, value in quality.model_dump(exclude_none=True).items()
        if name.startswith("must")
    }
    if len(stated) > 1 or not set(stated) <= set(OPERATORS):
        raise ContractError(
            f"{place}: {', '.join(stated)} is not supported; use mustBeLessOrEqualTo"
        )
    if quality.unit not in (None, "rows", "percent"):
        raise ContractError(f"{place}: unit {quality.unit} is not supported; use rows or percent")
    for name, value in stated.items():
        return Bound(OPERATORS[name], float(value), quality.unit or "rows")  # type: ignore[arg-type]  # checked above
    return Bound()


def _snake(keyword: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in keyword)
