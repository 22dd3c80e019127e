"""Read a contract from an ODCS v3.1 or v3.2 file, refusing whatever would have to be ignored.

A file that asks for more than the pipeline does misstates the data, so every key that is neither used
nor purely informative is an error that names its place. `odcs_rules` reads the rules.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline_assets import yaml_files
from pipeline_assets.quality import types
from pipeline_assets.quality.contract import (
    Column,
    Contract,
    ContractError,
    MartContract,
    Rule,
    TableContract,
)
from pipeline_assets.quality.expressions import check_expression
from pipeline_assets.quality.odcs_rules import (
    property_rules,
    refuse,
    refuse_others,
    rule_name,
    table_rules,
)

if TYPE_CHECKING:
    from open_data_contract_standard.model import (
        OpenDataContractStandard,
        SchemaObject,
        SchemaProperty,
    )

_Found = TypeVar("_Found", bound=TableContract)
# Types whose values have the same text in source and warehouse, which are compared by it.
_KEY_TYPES = ("text", "character varying", "smallint", "integer", "bigint", "uuid", "date")
CONTRACTS = Path(__file__).parent.parent / "contracts"

# The keys that a file may have: those used here, and those that inform people and other tools (`servers`
# is for the tests' referee, `datacontract test`) without asking anything of the pipeline.
_ABOUT = {"id", "tags", "businessName", "authoritativeDefinitions", "customProperties", "synonyms"}
_CONTRACT_KEYS = {"apiVersion", "kind", "version", "description", "schema_", "team"} | {
    *_ABOUT, "name", "status", "tenant", "domain", "dataProduct", "slaProperties", "servers",
    "support", "price", "roles", "contractCreatedTs", "context",
}  # fmt: skip
_TABLE_KEYS = {"name", "physicalName", "description", "properties", "quality"} | {
    *_ABOUT, "logicalType", "physicalType", "dataGranularityDescription", "context",
}  # fmt: skip
_PROPERTY_KEYS = {
    "name", "physicalName", "physicalType", "description", "required", "unique", "primaryKey",
    "primaryKeyPosition", "partitioned", "logicalTypeOptions", "enum", "quality",
    "transformSourceObjects", "transformDescription", "transformLogic",
} | {
    *_ABOUT, "logicalType", "partitionKeyPosition", "classification", "criticalDataElement",
    "examples",
}  # fmt: skip
# The logical types that a type, or else its family, may have. Before v3.1, ODCS had only `date` for moments.
_LOGICAL_TYPES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("smallint", "integer", "bigint"), ("integer", "number")),
    **dict.fromkeys(("json", "jsonb"), ("object", "array", "map", "string")),
    "bytea": ("string", "array"), "text": ("string",), "other": ("string",), "number": ("number",),
    "moment": ("timestamp", "date"), "date": ("date",), "time": ("time",), "boolean": ("boolean",),
}  # fmt: skip
_SLA_KEYS = {"property", "value", "unit"} | {"id", "element", "description", "driver"}

LONGEST_NAME = 63
"""Most bytes of a name in PostgreSQL, which truncates longer ones: two could become one."""
LONGEST_TABLE_NAME = 53
"""Limit for a table's name: its quarantine's indexes have names up to ten characters longer."""
_OUR_SCHEMAS = ("pipeline", "quarantine", "information_schema")
"""Schemas that no contract's table may be in: otherwise the ledger could be one."""


def load_contract(file: str | Path) -> Contract:
    """Read a loaded table's contract; a bare name such as `transactions` means the one in `contracts/`.

    Raises:
        ContractError: the file is missing, is no ODCS v3 contract of one table, or asks for
            something that would be ignored. The message names the file, the place in it and the value.
    """
    return _load(file, parse_contract)


def load_mart(file: str | Path) -> MartContract:
    """Read a mart's contract, as `load_contract` does a loaded table's."""
    return _load(file, parse_mart)


def _load(file: str | Path, parse: Callable[[object], _Found]) -> _Found:
    path = file if isinstance(file, Path) else CONTRACTS / f"{file}.odcs.yaml"
    try:
        return parse(yaml_files.read(path))
    except yaml_files.YamlFileError as error:
        raise ContractError(str(error)) from error
    except ContractError as error:
        raise ContractError(f"{path.name}: {error}") from error


def parse_contract(document: object) -> Contract:
    """Turn an ODCS document into a `Contract`. Raises `ContractError`."""
    return _contract(_model(document))


def parse_mart(document: object) -> MartContract:
    """Turn an ODCS document into a `MartContract`. Raises `ContractError`.

    The key's columns are columns of the source relation; every other one has SQL in `transformLogic`.
    """
    model = _model(document)
    table = _table(model)
    properties = table.properties or []
    for prop in properties:
        if bool(prop.primaryKey) == bool(prop.transformLogic):
            refuse(str(prop.name), prop.transformLogic, "as transformLogic: all but keys need it")
        try:
            check_expression(prop.transformLogic or "")
        except ValueError as error:
            refuse(f"{prop.name}.transformLogic", prop.transformLogic, f"is not supported: {error}")
        if prop.quality or prop.logicalTypeOptions or prop.enum or prop.unique or prop.partitioned:
            raise ContractError(f"{prop.name}: rules hold for loaded tables, this is a mart")
    if table.quality or model.slaProperties:
        raise ContractError("schema: rules and SLA hold for loaded tables, this is a mart")
    return MartContract(**_shape(model))


def _model(document: object) -> "OpenDataContractStandard":
    from open_data_contract_standard.model import OpenDataContractStandard
    from pydantic import ValidationError

    if not isinstance(document, Mapping):
        raise ContractError("the file holds no mapping of keys to values")
    if not re.fullmatch(r"v3\.[12]\.\d+", str(document.get("apiVersion"))):
        raise ContractError(f"apiVersion: {document.get('apiVersion')!r} is not v3.1.x or v3.2.x")
    try:
        model = OpenDataContractStandard.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ContractError(f"{place}: {problem['msg']}, got {problem['input']!r}") from None
    stated = model.model_dump(by_alias=True, exclude_unset=True)
    unknown = sorted(set(_paths(document)) - set(_paths(stated)))
    if unknown:
        raise ContractError(f"{unknown[0]}: is not part of ODCS")
    refuse_others("contract", model, _CONTRACT_KEYS)
    return model


def _paths(node: object, prefix: str = "") -> Iterator[str]:
    """Every key in a document with its place. The walk doesn't enter free-form parts."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{prefix}.{key}" if prefix else str(key)
            yield place
            if key not in ("arguments", "logicalTypeOptions", "value", "examples"):
                yield from _paths(value, place)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _paths(value, f"{prefix}[{index}]")


def _table(model: "OpenDataContractStandard") -> "SchemaObject":
    if len(model.schema_ or ()) != 1:
        raise ContractError(
            f"schema: has {len(model.schema_ or ())} tables; one a file is supported"
        )
    table = (model.schema_ or [])[0]
    refuse_others("schema", table, _TABLE_KEYS)
    for key, only in {"physicalType": "table", "logicalType": "object"}.items():
        if getattr(table, key) not in (None, only):
            refuse(f"schema.{key}", getattr(table, key), f"must be {only}: nothing else is created")
    if not table.name or not re.fullmatch(r"[a-z][a-z0-9_]*", table.name):
        refuse(
            "schema.name", table.name, "must be lower-case letters, digits and _: it names assets"
        )
    if len(table.name) > LONGEST_TABLE_NAME:
        refuse("schema.name", table.name, f"has more than {LONGEST_TABLE_NAME} characters")
    return table


def _shape(model: "OpenDataContractStandard") -> dict[str, Any]:
    """The fields that contracts of both kinds have."""
    table = _table(model)
    properties = table.properties or []
    columns = tuple(_column(prop) for prop in properties)
    if doubled := _doubled(column.name for column in columns):
        refuse("schema.properties", doubled, "is there twice")
    keys = [prop for prop in properties if prop.primaryKey]
    for prop in keys:
        column = next(column for column in columns if column.name == prop.name)
        if types.parts(column.physical_type)[0] not in _KEY_TYPES:
            refuse(
                column.name, column.physical_type, f"can't be a key; {', '.join(_KEY_TYPES)} can"
            )
    if not keys:
        raise ContractError("schema: no property has primaryKey: true; rows are upserted by it")
    if not model.version:
        raise ContractError("version: is missing")
    team = model.team if not isinstance(model.team, list) else None
    if team is None or not team.name:
        raise ContractError("team.name: must say who owns the table")
    return {
        "name": table.name,
        "version": model.version,
        "description": table.description or (model.description and model.description.purpose) or "",
        "owner": team.name,
        "source_relation": _relation("sourceRelation", _custom(table, "sourceRelation")),
        "target_relation": _target(table.physicalName or f"analytics.{table.name}"),
        "columns": columns,
        "key": tuple(str(p.name) for p in sorted(keys, key=lambda p: p.primaryKeyPosition or 0)),
    }


def _contract(model: "OpenDataContractStandard") -> Contract:
    shape = _shape(model)
    columns, key = shape["columns"], shape["key"]
    table = _table(model)
    properties = table.properties or []
    for prop in properties:
        if prop.transformLogic:
            refuse(f"{prop.name}.transformLogic", prop.transformLogic, "is for marts")
    change_column = _change_column(properties, columns)
    rules = (
        *(rule for prop in properties for rule in property_rules(prop, key, columns)),
        *([Rule(rule_name(*key, "unique"), "unique", key)] if len(key) > 1 else []),
        *table_rules(table, columns),
    )
    if doubled := _doubled(rule.name for rule in rules):
        refuse("quality.name", doubled, "names two rules; give each a name of its own")
    return Contract(
        **shape,
        change_column=change_column,
        rules=rules,
        latency_hours=_latency_hours(model, shape["name"], change_column),
    )


def _doubled(names: Iterator[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]  # add() is there for its effect


def _custom(table: "SchemaObject", name: str) -> str:
    values = [custom.value for custom in table.customProperties or [] if custom.property == name]
    if len(values) > 1:
        refuse(f"schema.customProperties.{name}", values, "is there more than once")
    if not any(values):
        raise ContractError(f"schema.customProperties: {name} is missing")
    return str(values[0])


def _relation(place: str, name: str) -> str:
    if len(name.split(".")) != 2 or not all(name.split(".")):
        refuse(place, name, "must be a schema and a name, with a dot between")
    for part in name.split("."):
        _check_name(place, part)
    return name


def _target(name: str) -> str:
    place = "schema.physicalName"
    schema = _relation(place, name).partition(".")[0]
    if schema in _OUR_SCHEMAS or schema.startswith("pg_"):
        refuse(place, name, f"is in the schema {schema}, which is not for tables of contracts")
    return name


def _check_name(place: str, name: str) -> None:
    """Refuse a name that PostgreSQL would truncate, or psycopg would take for a placeholder."""
    if len(name.encode()) > LONGEST_NAME or "%" in name or not name.isprintable():
        refuse(place, name, f"must be printable, without %, and have {LONGEST_NAME} bytes at most")


def _change_column(properties: "list[SchemaProperty]", columns: tuple[Column, ...]) -> str:
    changes = [
        column
        for prop, column in zip(properties, columns, strict=True)
        if prop.partitioned and not column.derived_from
    ]
    if len(changes) != 1 or types.family(changes[0].physical_type) != "moment":
        raise ContractError(
            "schema: one source column, a timestamp, must have partitioned: true: the change time"
        )
    return changes[0].name


def _latency_hours(
    model: "OpenDataContractStandard", table: str, change_column: str
) -> float | None:
    hours = None
    if len(model.slaProperties or []) > 1:
        raise ContractError("slaProperties: more than one is not supported")
    for sla in model.slaProperties or []:
        refuse_others("slaProperties", sla, _SLA_KEYS)
        factor = {"d": 24, "day": 24, "days": 24, "h": 1, "hour": 1, "hours": 1}.get(sla.unit or "")
        if sla.property != "latency" or factor is None:
            refuse("slaProperties", f"{sla.property} in {sla.unit}")
        if sla.element not in (None, table, measured := f"{table}.{change_column}"):
            refuse(
                "slaProperties.element", sla.element, f"must be {measured}: latency is its days'"
            )
        try:
            hours = float(str(sla.value)) * factor
        except ValueError:
            refuse("slaProperties.latency", sla.value, "is no number")
        if not 0 < hours <= 10_000:  # refuses NaN too
            refuse("slaProperties.latency", sla.value, "is no time that a table can be late by")
    return hours


def _logical_types(physical_type: str) -> tuple[str, ...]:
    base, _, scale = types.parts(physical_type)
    if base == "numeric" and scale == 0:
        base = "bigint"
    return _LOGICAL_TYPES.get(base) or _LOGICAL_TYPES[types.family(physical_type)]


def _column(prop: "SchemaProperty") -> Column:
    place = str(prop.name)
    refuse_others(place, prop, _PROPERTY_KEYS)
    _check_name("schema.properties.name", place)
    if prop.physicalName not in (None, prop.name):
        refuse(f"{place}.physicalName", prop.physicalName, "must be the property's name")
    try:
        physical_type = types.normal_type(str(prop.physicalType))
    except types.UnsupportedTypeError as error:
        raise ContractError(f"{place}: {error}") from None
    logical_types = _logical_types(physical_type)
    if prop.logicalType not in (None, *logical_types):
        why = f"contradicts {physical_type}, which is {' or '.join(logical_types)}"
        refuse(f"{place}.logicalType", prop.logicalType, why)
    if prop.transformSourceObjects and (
        prop.quality
        or prop.logicalTypeOptions
        or prop.enum
        or prop.unique
        or prop.primaryKey
        or prop.partitioned
    ):
        raise ContractError(f"{place}: rules and keys are for source columns; this one is derived")
    if prop.primaryKeyPosition is not None and not prop.primaryKey:
        refuse(f"{place}.primaryKeyPosition", prop.primaryKeyPosition, "needs primaryKey: true")
    return Column(
        name=place,
        physical_type=physical_type,
        required=bool(prop.required or prop.primaryKey),
        description=str(prop.description or ""),
        derived_from=tuple(prop.transformSourceObjects or ()),
        transformation=prop.transformDescription or "",
        logic=prop.transformLogic or "",
    )
