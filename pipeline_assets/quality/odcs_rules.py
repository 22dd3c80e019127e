"""Read the rules of an ODCS file: keywords and quality entries, refusing what isn't supported.

This covers a rule's name, the columns it may apply to, its bound and its severity. `odcs` reads the rest
of the file; `rules` tests rows against the rules.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline_assets.quality import types
from pipeline_assets.quality.conditions import parse_condition
from pipeline_assets.quality.contract import OPERATORS, Bound, Column, ContractError, Kind, Rule

if TYPE_CHECKING:
    from open_data_contract_standard.model import DataQuality, SchemaObject, SchemaProperty
    from pydantic import BaseModel

_QUALITY_KEYS = {
    "name", "type", "metric", "arguments", "query", "unit", "severity", "description", *OPERATORS,
} | {"id", "tags", "dimension", "businessImpact", "authoritativeDefinitions"}  # fmt: skip
# The keywords that say which values a column may hold, in `logicalTypeOptions` (where none may break
# them) or as the argument of an `invalidValues` metric (where a bound says how many may), and the
# families of types that they make sense for. ODCS names `validValues` and `pattern` for the metric;
# the others are an extension, where ODCS leaves the arguments open.
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
# Matches a query without its final semicolon: `(.+?)\s*;?\s*` took 22 s for 4,000 spaces.
_QUERY = re.compile(
    r"SELECT\s+COUNT\s*\(\s*\*\s*\)\s+FROM\s+(\S+)\s+WHERE\s+(.+)", re.IGNORECASE | re.DOTALL
)
# Syntax that Python's regular expressions have and RE2, which tests the rows, lacks. Asking RE2 itself
# would cost each process that reads contracts the import of Arrow.
_NO_RE2_ESCAPES = frozenset("123456789ZuUN")
_NO_RE2 = re.compile(r"\(\?(?:<?[=!]|P=|[#>(])|[*+?}]\+")
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_TIMES = re.compile(r"\{[\d,]+\}")
MOST_TIMES = 1000
"""How many repetitions of a part RE2 allows in a pattern."""
LONGEST_TEXT = 1 << 30
"""Most bytes of a value in PostgreSQL."""
LARGEST_BOUND = 1e15
_PLACEHOLDER = re.compile(r"\$?\{\s*(\w+)\s*\}")


def refuse(place: str, value: object, why: str = "is not supported") -> NoReturn:
    """Raise `ContractError` with the place in the file, its value and why that is refused."""
    raise ContractError(f"{place}: {value!r} {why}")


def refuse_others(place: str, node: "BaseModel", known: set[str]) -> None:
    """Refuse every key that is set and not `known`: neither used nor purely informative."""
    for name in sorted(node.model_fields_set - known):
        if getattr(node, name) is not None:
            refuse(f"{place}.{name.rstrip('_')}", getattr(node, name))


def rule_name(*parts: str) -> str:
    """A rule's name from a column's and a keyword's: letters, digits and _, as Dagster wants it."""
    snake = re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", parts[-1])
    return re.sub(r"[^A-Za-z0-9_]", "_", "_".join([*parts[:-1], snake]))


def property_rules(
    prop: "SchemaProperty", key: tuple[str, ...], columns: tuple[Column, ...]
) -> Iterator[Rule]:
    """The rules of a source column, in the order of the file; a derived one has none."""
    if prop.transformSourceObjects:
        return
    name = str(prop.name)
    column = next(column for column in columns if column.name == name)
    if types.may_misfit(column.physical_type):
        yield Rule(rule_name(name, "type"), "type", (name,), column.physical_type)
    if column.required:
        yield Rule(rule_name(name, "required"), "required", (name,))
    if prop.unique or key == (name,):
        yield Rule(rule_name(name, "unique"), "unique", (name,))
    if prop.enum:
        allowed = [entry.value for entry in prop.enum if entry.value is not None]
        argument = _argument(f"{name}.enum", column, "validValues", allowed)
        yield Rule(rule_name(name, "enum"), "validValues", (name,), argument)
    for option, value in (prop.logicalTypeOptions or {}).items():
        place = f"{name}.logicalTypeOptions.{option}"
        if option not in _VALUE_KINDS or option == "validValues":
            refuse(place, value)
        argument = _argument(place, column, option, value)
        yield Rule(rule_name(name, option), _VALUE_KINDS[option][0], (name,), argument)
    for quality in prop.quality or []:
        if quality.type == "sql":
            yield _sql_rule(_place(name, quality), quality, columns, name)
        else:
            yield _property_rule(column, quality)


def _argument(place: str, column: Column, option: str, value: object) -> Any:
    """The constant that values are compared with, as a value of the column's type."""
    kind, families = _VALUE_KINDS[option]
    if types.family(column.physical_type) not in families:
        refuse(place, value, f"is not supported for {column.physical_type}")
    if kind in ("minLength", "maxLength"):
        if isinstance(value, bool) or not (isinstance(value, int) and 0 <= value <= LONGEST_TEXT):
            refuse(place, value, "is no length")
        return value
    if kind == "pattern":
        return _pattern(place, value)
    values = value if kind == "validValues" else [value]
    if not isinstance(values, list) or not values:
        refuse(place, value, "is no list of values")
    try:
        constants = tuple(types.constant(item, column.physical_type) for item in values)
    except ValueError as error:
        refuse(place, value, f"doesn't fit the column: {error}")
    return constants if kind == "validValues" else constants[0]


def _pattern(place: str, value: object) -> str:
    pattern = str(value)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        refuse(place, value, f"is no regular expression: {error}")
    escaped = re.findall(r"\\(.)", pattern)
    plain = _ESCAPE_OR_CLASS.sub("x", pattern)
    if set(escaped) & _NO_RE2_ESCAPES or _NO_RE2.search(plain):
        refuse(place, value, "isn't RE2's syntax, which knows no looking around or back")
    if any(int(times) > MOST_TIMES for times in re.findall(r"\d+", "".join(_TIMES.findall(plain)))):
        refuse(place, value, f"repeats something more than {MOST_TIMES} times")
    return pattern


def _property_rule(column: Column, quality: "DataQuality") -> Rule:
    place, arguments = _place(column.name, quality), quality.arguments or {}
    columns = (column.name,)
    if quality.metric == "nullValues" and not arguments:
        return _bounded(
            place, quality, Rule(rule_name(column.name, "nullValues"), "required", columns)
        )
    if quality.metric == "duplicateValues" and not arguments:
        return _bounded(
            place, quality, Rule(rule_name(column.name, "duplicateValues"), "unique", columns)
        )
    if quality.metric == "missingValues" and set(arguments) <= {"missingValues"}:
        stated = arguments.get("missingValues") or []
        if not isinstance(stated, list):
            refuse(f"{place}.missingValues", stated, "is no list of values")
        missing = [value for value in stated if value is not None]
        argument = _argument(place, column, "validValues", missing) if missing else ()
        rule = Rule(rule_name(column.name, "missingValues"), "missingValues", columns, argument)
        return _bounded(place, quality, rule)
    if (
        quality.metric == "invalidValues"
        and len(arguments) == 1
        and set(arguments) <= set(_VALUE_KINDS)
    ):
        ((option, value),) = arguments.items()
        argument = _argument(f"{place}.{option}", column, option, value)
        rule = Rule(rule_name(column.name, option), _VALUE_KINDS[option][0], columns, argument)
        return _bounded(place, quality, rule)
    refuse(place, quality.metric, f"with arguments {sorted(arguments)} is not supported")


def _place(owner: str, quality: "DataQuality") -> str:
    place = f"{owner}.quality.{quality.name or quality.metric or quality.type}"
    refuse_others(place, quality, _QUALITY_KEYS)
    if quality.type not in (None, "library", "sql"):
        refuse(f"{place}.type", quality.type)
    if quality.metric and quality.query:
        refuse(place, quality.metric, "and a query are two rules")
    if quality.query and quality.type != "sql":
        refuse(f"{place}.type", quality.type, "must be sql for a query")
    if quality.type == "sql" and quality.arguments:
        refuse(f"{place}.arguments", quality.arguments, "are not supported with a query")
    return place


def table_rules(table: "SchemaObject", columns: tuple[Column, ...]) -> Iterator[Rule]:
    """The rules of a table as a whole: row count, keys of several columns, SQL conditions."""
    known = {column.name for column in columns if not column.derived_from}
    for quality in table.quality or []:
        place, arguments = _place(str(table.name), quality), quality.arguments or {}
        if quality.type == "sql":
            yield _sql_rule(place, quality, columns, None)
        elif quality.metric == "rowCount" and not arguments:
            if quality.unit not in (None, "rows"):
                refuse(f"{place}.unit", quality.unit, "is no unit of a row count")
            yield _bounded(place, quality, Rule("row_count", "rowCount"))
        elif quality.metric == "duplicateValues" and set(arguments) == {"properties"}:
            names = arguments["properties"]
            if not isinstance(names, list) or not names or not set(names) <= known:
                refuse(f"{place}.properties", names, "are not source columns")
            rule = Rule(rule_name(*names, "duplicateValues"), "unique", tuple(names))
            yield _bounded(place, quality, rule)
        else:
            refuse(place, quality.metric, f"with arguments {sorted(arguments)} is not supported")


def _sql_rule(
    place: str, quality: "DataQuality", columns: tuple[Column, ...], column: str | None
) -> Rule:
    """A rule broken by the rows that a query's WHERE selects; it is evaluated row by row."""
    match = _QUERY.fullmatch((quality.query or "").strip().removesuffix(";").rstrip())
    if not match or _PLACEHOLDER.sub("", match[1]):
        refuse(
            f"{place}.query",
            quality.query,
            "is not supported; write SELECT COUNT(*) FROM {object} WHERE <what a row must not be>",
        )
    if not quality.name:
        refuse(place, quality.query, "needs a name")

    def quoted(placeholder: "re.Match[str]") -> str:
        if column is None or placeholder[1] not in ("property", "column", "field"):
            refuse(f"{place}.query", placeholder[0], "stands for nothing here")
        return '"' + column.replace('"', '""') + '"'

    condition = _PLACEHOLDER.sub(quoted, match[2])
    try:
        parsed = parse_condition(
            condition, {each.name: each.physical_type for each in columns if not each.derived_from}
        )
    except ValueError as error:
        refuse(f"{place}.query", condition, f"is not supported: {error}")
    return _bounded(place, quality, Rule("", "sql", parsed.columns, " ".join(condition.split())))


def _bounded(place: str, quality: "DataQuality", rule: Rule) -> Rule:
    """The rule with what every quality entry may say: a name, a bound, a severity, a description."""
    if quality.name is not None and not re.fullmatch(r"[A-Za-z0-9_]+", quality.name):
        refuse(f"{place}.name", quality.name, "must be letters, digits and _: it names a check")
    severity = quality.severity or "error"
    if severity not in _SEVERITIES:
        refuse(f"{place}.severity", severity, f"is none of {', '.join(_SEVERITIES)}")
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
        refuse(place, list(stated), f"must be one of {', '.join(OPERATORS)}")
    ((operator, value),) = stated.items()
    limits = tuple(value) if isinstance(value, list) else (value,)
    if any(isinstance(limit, bool) or not isinstance(limit, int | float) for limit in limits):
        refuse(f"{place}.{operator}", value, "is no number")
    if len(limits) != (2 if operator.endswith("Between") else 1):
        refuse(f"{place}.{operator}", value, "has another number of limits than it takes")
    if not all(-LARGEST_BOUND <= limit <= LARGEST_BOUND for limit in limits):  # refuses NaN too
        refuse(f"{place}.{operator}", value, "is no number of rows or percent")
    if len(limits) == 2 and limits[0] > limits[1]:
        refuse(f"{place}.{operator}", value, "must have the smaller number first")
    if quality.unit not in (None, "rows", "percent"):
        refuse(f"{place}.unit", quality.unit, "is neither rows nor percent")
    bound = Bound(operator, limits, quality.unit or "rows")  # type: ignore[arg-type]  # checked above
    if kind != "rowCount" and not bound.holds(0, 1):
        refuse(f"{place}.{operator}", value, "asks for rows that break the rule")
    return bound
