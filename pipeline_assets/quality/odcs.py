"""Reading a contract from an ODCS v3.1 or v3.2 file, refusing whatever would have to be ignored.

A file that asks for more than the pipeline does is wrong about the data, so every key that isn't
either used or plain information is an error that names its place. What the rules mean for a row
stands in `rules`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml

from pipeline_assets.quality import types
from pipeline_assets.quality.conditions import parse_condition
from pipeline_assets.quality.contract import (
    OPERATORS,
    Bound,
    Column,
    Contract,
    ContractError,
    Kind,
    MartContract,
    Rule,
    TableContract,
)

if TYPE_CHECKING:
    from open_data_contract_standard.model import (
        DataQuality,
        OpenDataContractStandard,
        SchemaObject,
        SchemaProperty,
    )
    from pydantic import BaseModel

_Found = TypeVar("_Found", bound=TableContract)
CONTRACTS = Path(__file__).parent.parent / "contracts"

# What a file may say: what is used here, and what informs people and other tools (`servers` is for
# the referee) and asks nothing of the pipeline.
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
_QUALITY_KEYS = {
    "name", "type", "metric", "arguments", "query", "unit", "severity", "description", *OPERATORS,
} | {"id", "tags", "dimension", "businessImpact", "authoritativeDefinitions"}  # fmt: skip
_SLA_KEYS = {"property", "value", "unit"} | {"id", "element", "description", "driver"}

# The keywords that say which values a column may hold, in `logicalTypeOptions` (where none may break
# them) or as the argument of an `invalidValues` metric (where a bound says how many may), and the
# families of types that they make sense for. ODCS names `validValues` and `pattern` for the metric;
# the others are an extension in the place that it leaves open.
_ORDERED: set[types.Family] = {"number", "moment", "date", "time"}
_VALUE_KINDS: Mapping[str, tuple[Kind, set[types.Family]]] = {
    "minimum": ("minimum", _ORDERED),
    "exclusiveMinimum": ("exclusiveMinimum", _ORDERED),
    "maximum": ("maximum", _ORDERED),
    "exclusiveMaximum": ("exclusiveMaximum", _ORDERED),
    "minLength": ("minLength", {"text"}),
    "maxLength": ("maxLength", {"text"}),
    "pattern": ("pattern", {"text"}),
    "validValues": ("validValues", {"text", "boolean", *_ORDERED}),
}
_SEVERITIES = {"error": True, "warning": False, "info": False}
_QUERY = re.compile(
    r"\s*SELECT\s+COUNT\s*\(\s*\*\s*\)\s+FROM\s+(\S+)\s+WHERE\s+(.+?)\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
_PLACEHOLDER = re.compile(r"\$?\{\s*(\w+)\s*\}")

# Ten times faster than the Python one, and as safe.
_YAML_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_contract(file: str | Path) -> Contract:
    """Read a loaded table's contract; a bare name such as `transactions` means that in `contracts/`.

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
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML_LOADER)  # noqa: S506 - a safe loader, in C
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContractError(f"{path.name}: is not YAML: {error}") from error
    try:
        return parse(document)
    except ContractError as error:
        raise ContractError(f"{path.name}: {error}") from error


def parse_contract(document: object) -> Contract:
    """Turn an ODCS document into a `Contract`. Raises `ContractError`."""
    return _contract(_model(document))


def parse_mart(document: object) -> MartContract:
    """Turn an ODCS document into a `MartContract`. Raises `ContractError`.

    The key's columns are those of the source relation, every other has SQL in `transformLogic`.
    """
    model = _model(document)
    table = _table(model)
    properties = table.properties or []
    for prop in properties:
        if bool(prop.primaryKey) == bool(prop.transformLogic):
            _refuse(str(prop.name), prop.transformLogic, "as transformLogic: all but keys need it")
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
    unknown = sorted(set(_paths(document)) - set(_paths(model.model_dump(by_alias=True))))
    if unknown:
        raise ContractError(f"{unknown[0]}: is not part of ODCS")
    _refuse_others("contract", model, _CONTRACT_KEYS)
    return model


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


def _refuse(place: str, value: object, why: str = "is not supported") -> NoReturn:
    raise ContractError(f"{place}: {value!r} {why}")


def _refuse_others(place: str, node: "BaseModel", known: set[str]) -> None:
    """Whatever is stated and is neither used nor information."""
    for name in sorted(node.model_fields_set - known):
        if getattr(node, name) is not None:
            _refuse(f"{place}.{name.rstrip('_')}", getattr(node, name))


def _table(model: "OpenDataContractStandard") -> "SchemaObject":
    if len(model.schema_ or ()) != 1:
        raise ContractError(
            f"schema: has {len(model.schema_ or ())} tables; one a file is supported"
        )
    table = (model.schema_ or [])[0]
    _refuse_others("schema", table, _TABLE_KEYS)
    if not table.name or not re.fullmatch(r"[a-z][a-z0-9_]*", table.name):
        _refuse(
            "schema.name", table.name, "must be lower-case letters, digits and _: it names assets"
        )
    return table


def _shape(model: "OpenDataContractStandard") -> dict[str, Any]:
    """What contracts of either kind say, by field."""
    table = _table(model)
    properties = table.properties or []
    columns = tuple(_column(prop) for prop in properties)
    if doubled := _doubled(column.name for column in columns):
        _refuse("schema.properties", doubled, "is there twice")
    keys = [prop for prop in properties if prop.primaryKey]
    if not keys:
        raise ContractError("schema: no property has primaryKey: true; rows are upserted by it")
    team = model.team if not isinstance(model.team, list) else None
    if team is None or not team.name:
        raise ContractError("team.name: must say who owns the table")
    return {
        "name": table.name,
        "version": str(model.version),
        "description": str(table.description or (model.description and model.description.purpose)),
        "owner": team.name,
        "source_relation": _relation("sourceRelation", _custom(table, "sourceRelation")),
        "target_relation": _relation(
            "schema.physicalName", table.physicalName or f"analytics.{table.name}"
        ),
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
            _refuse(f"{prop.name}.transformLogic", prop.transformLogic, "is for marts")
    rules = (
        *(rule for prop in properties for rule in _property_rules(prop, key, columns)),
        *([Rule(_name(*key, "unique"), "unique", key)] if len(key) > 1 else []),
        *_table_rules(table, columns),
    )
    if doubled := _doubled(rule.name for rule in rules):
        _refuse("quality.name", doubled, "names two rules; give each a name of its own")
    return Contract(
        **shape,
        change_column=_change_column(properties, columns),
        rules=rules,
        latency_hours=_latency_hours(model),
    )


def _doubled(names: Iterator[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]  # add() is there for its effect


def _custom(table: "SchemaObject", name: str) -> str:
    values = {custom.property: custom.value for custom in table.customProperties or []}
    if not values.get(name):
        raise ContractError(f"schema.customProperties: {name} is missing")
    return str(values[name])


def _relation(place: str, name: str) -> str:
    if len(name.split(".")) != 2 or not all(name.split(".")):
        _refuse(place, name, "must be a schema and a name, with a dot between")
    return name


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


def _latency_hours(model: "OpenDataContractStandard") -> float | None:
    hours = None
    for sla in model.slaProperties or []:
        _refuse_others("slaProperties", sla, _SLA_KEYS)
        factor = {"d": 24, "day": 24, "days": 24, "h": 1, "hour": 1, "hours": 1}.get(sla.unit or "")
        if sla.property != "latency" or factor is None:
            _refuse("slaProperties", f"{sla.property} in {sla.unit}")
        try:
            hours = float(str(sla.value)) * factor
        except ValueError:
            _refuse("slaProperties.latency", sla.value, "is no number")
    return hours


def _column(prop: "SchemaProperty") -> Column:
    place = str(prop.name)
    _refuse_others(place, prop, _PROPERTY_KEYS)
    if prop.physicalName not in (None, prop.name):
        _refuse(f"{place}.physicalName", prop.physicalName, "must be the property's name")
    try:
        physical_type = types.normal_type(str(prop.physicalType))
    except types.UnsupportedTypeError as error:
        raise ContractError(f"{place}: {error}") from None
    if prop.transformSourceObjects and (
        prop.quality or prop.logicalTypeOptions or prop.enum or prop.unique or prop.primaryKey
    ):
        raise ContractError(f"{place}: rules and keys are for source columns; this one is derived")
    return Column(
        name=place,
        physical_type=physical_type,
        required=bool(prop.required or prop.primaryKey),
        description=str(prop.description or ""),
        derived_from=tuple(prop.transformSourceObjects or ()),
        transformation=prop.transformDescription or "",
        logic=prop.transformLogic or "",
    )


def _name(*parts: str) -> str:
    """A rule's name from a column's and a keyword's: letters, digits and _, as Dagster wants it."""
    snake = re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", parts[-1])
    return re.sub(r"[^A-Za-z0-9_]", "_", "_".join([*parts[:-1], snake]))


def _property_rules(
    prop: "SchemaProperty", key: tuple[str, ...], columns: tuple[Column, ...]
) -> Iterator[Rule]:
    if prop.transformSourceObjects:
        return
    name = str(prop.name)
    column = next(column for column in columns if column.name == name)
    if types.may_misfit(column.physical_type):
        yield Rule(_name(name, "type"), "type", (name,), column.physical_type)
    if column.required:
        yield Rule(_name(name, "required"), "required", (name,))
    if prop.unique or key == (name,):
        yield Rule(_name(name, "unique"), "unique", (name,))
    if prop.enum:
        allowed = [entry.value for entry in prop.enum if entry.value is not None]
        argument = _argument(f"{name}.enum", column, "validValues", allowed)
        yield Rule(_name(name, "enum"), "validValues", (name,), argument)
    for option, value in (prop.logicalTypeOptions or {}).items():
        place = f"{name}.logicalTypeOptions.{option}"
        if option not in _VALUE_KINDS or option == "validValues":
            _refuse(place, value)
        argument = _argument(place, column, option, value)
        yield Rule(_name(name, option), _VALUE_KINDS[option][0], (name,), argument)
    for quality in prop.quality or []:
        if quality.type == "sql":
            yield _sql_rule(_place(name, quality), quality, columns, name)
        else:
            yield _property_rule(column, quality)


def _argument(place: str, column: Column, option: str, value: object) -> Any:
    """The constant that values are compared with, as a value of the column's type."""
    kind, families = _VALUE_KINDS[option]
    if types.family(column.physical_type) not in families:
        _refuse(place, value, f"is not supported for {column.physical_type}")
    if kind in ("minLength", "maxLength"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            _refuse(place, value, "is no length")
        return value
    if kind == "pattern":
        return _pattern(place, value)
    values = value if kind == "validValues" else [value]
    if not isinstance(values, list) or not values:
        _refuse(place, value, "is no list of values")
    try:
        constants = tuple(types.constant(item, column.physical_type) for item in values)
    except ValueError as error:
        _refuse(place, value, f"doesn't fit the column: {error}")
    return constants if kind == "validValues" else constants[0]


def _pattern(place: str, value: object) -> str:
    try:
        re.compile(str(value))
    except re.error as error:
        _refuse(place, value, f"is no regular expression: {error}")
    if re.search(r"\(\?<?[=!]|\(\?P=|\\[1-9]", str(value)):
        _refuse(place, value, "looks around or back, which a pattern can't do here (RE2's syntax)")
    return str(value)


def _property_rule(column: Column, quality: "DataQuality") -> Rule:
    place, arguments = _place(column.name, quality), quality.arguments or {}
    columns = (column.name,)
    if quality.metric == "nullValues" and not arguments:
        return _bounded(place, quality, Rule(_name(column.name, "nullValues"), "required", columns))
    if quality.metric == "duplicateValues" and not arguments:
        return _bounded(
            place, quality, Rule(_name(column.name, "duplicateValues"), "unique", columns)
        )
    if quality.metric == "missingValues" and set(arguments) <= {"missingValues"}:
        missing = [value for value in arguments.get("missingValues") or [] if value is not None]
        argument = _argument(place, column, "validValues", missing) if missing else ()
        rule = Rule(_name(column.name, "missingValues"), "missingValues", columns, argument)
        return _bounded(place, quality, rule)
    if (
        quality.metric == "invalidValues"
        and len(arguments) == 1
        and set(arguments) <= set(_VALUE_KINDS)
    ):
        ((option, value),) = arguments.items()
        argument = _argument(f"{place}.{option}", column, option, value)
        rule = Rule(_name(column.name, option), _VALUE_KINDS[option][0], columns, argument)
        return _bounded(place, quality, rule)
    _refuse(place, quality.metric, f"with arguments {sorted(arguments)} is not supported")


def _place(owner: str, quality: "DataQuality") -> str:
    place = f"{owner}.quality.{quality.name or quality.metric or quality.type}"
    _refuse_others(place, quality, _QUALITY_KEYS)
    if quality.type not in (None, "library", "sql"):
        _refuse(f"{place}.type", quality.type)
    if quality.metric and quality.query:
        _refuse(place, quality.metric, "and a query are two rules")
    return place


def _table_rules(table: "SchemaObject", columns: tuple[Column, ...]) -> Iterator[Rule]:
    known = {column.name for column in columns if not column.derived_from}
    for quality in table.quality or []:
        place, arguments = _place(str(table.name), quality), quality.arguments or {}
        if quality.type == "sql":
            yield _sql_rule(place, quality, columns, None)
        elif quality.metric == "rowCount" and not arguments:
            if quality.unit not in (None, "rows"):
                _refuse(f"{place}.unit", quality.unit, "is no unit of a row count")
            yield _bounded(place, quality, Rule("row_count", "rowCount"))
        elif quality.metric == "duplicateValues" and set(arguments) == {"properties"}:
            names = arguments["properties"]
            if not isinstance(names, list) or not names or not set(names) <= known:
                _refuse(f"{place}.properties", names, "are not source columns")
            rule = Rule(_name(*names, "duplicateValues"), "unique", tuple(names))
            yield _bounded(place, quality, rule)
        else:
            _refuse(place, quality.metric, f"with arguments {sorted(arguments)} is not supported")


def _sql_rule(
    place: str, quality: "DataQuality", columns: tuple[Column, ...], column: str | None
) -> Rule:
    """A rule whose violations are the rows that a query's WHERE picks; they are told row by row."""
    match = _QUERY.fullmatch(quality.query or "")
    if not match or _PLACEHOLDER.sub("", match[1]):
        _refuse(
            f"{place}.query",
            quality.query,
            "is not supported; write SELECT COUNT(*) FROM {object} WHERE <what a row must not be>",
        )
    if not quality.name:
        _refuse(place, quality.query, "needs a name")

    def quoted(placeholder: "re.Match[str]") -> str:
        if column is None or placeholder[1] not in ("property", "column", "field"):
            _refuse(f"{place}.query", placeholder[0], "stands for nothing here")
        return '"' + column.replace('"', '""') + '"'

    condition = _PLACEHOLDER.sub(quoted, match[2])
    try:
        parsed = parse_condition(
            condition, {each.name: each.physical_type for each in columns if not each.derived_from}
        )
    except ValueError as error:
        _refuse(f"{place}.query", condition, f"is not supported: {error}")
    return _bounded(place, quality, Rule("", "sql", parsed.columns, " ".join(condition.split())))


def _bounded(place: str, quality: "DataQuality", rule: Rule) -> Rule:
    """The rule with what every quality entry may say: a name, a bound, a severity, a description."""
    if quality.name is not None and not re.fullmatch(r"[A-Za-z0-9_]+", quality.name):
        _refuse(f"{place}.name", quality.name, "must be letters, digits and _: it names a check")
    severity = quality.severity or "error"
    if severity not in _SEVERITIES:
        _refuse(f"{place}.severity", severity, f"is none of {', '.join(_SEVERITIES)}")
    return Rule(
        name=quality.name or rule.name,
        kind=rule.kind,
        columns=rule.columns,
        argument=rule.argument,
        bound=_bound(place, quality, rule.kind),
        blocking=_SEVERITIES[severity],
        description=(quality.description or "").strip(),
    )


def _bound(place: str, quality: "DataQuality", kind: Kind) -> Bound:
    stated = {
        name: getattr(quality, name) for name in OPERATORS if getattr(quality, name) is not None
    }
    if len(stated) != 1:
        _refuse(place, list(stated), f"must be one of {', '.join(OPERATORS)}")
    ((operator, value),) = stated.items()
    limits = tuple(value) if isinstance(value, list) else (value,)
    if any(isinstance(limit, bool) or not isinstance(limit, int | float) for limit in limits):
        _refuse(f"{place}.{operator}", value, "is no number")
    if len(limits) == 2 and limits[0] > limits[1]:
        _refuse(f"{place}.{operator}", value, "must have the smaller number first")
    if quality.unit not in (None, "rows", "percent"):
        _refuse(f"{place}.unit", quality.unit, "is neither rows nor percent")
    bound = Bound(operator, limits, quality.unit or "rows")  # type: ignore[arg-type]  # checked above
    if kind != "rowCount" and not bound.holds(0, 1):
        _refuse(f"{place}.{operator}", value, "asks for rows that break the rule")
    return bound
