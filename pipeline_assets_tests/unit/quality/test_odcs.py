"""Reading a contract: what is used, and that nothing it asks for is ignored."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_assets.quality.contract import Bound, Column, ContractError
from pipeline_assets.quality.odcs import CONTRACTS, load_contract, parse_contract
from pipeline_assets.warehouse.tables import load_tables
from pipeline_assets_tests.contracts import contract, document


def x(**keys: Any) -> dict[str, Any]:
    return document([{"name": "x", "physicalType": "text"} | keys])


def sql(condition: str, **keys: Any) -> dict[str, Any]:
    query = f"SELECT COUNT(*) FROM {{object}} WHERE {condition}"
    rule = {"name": "rule", "type": "sql", "query": query, "mustBe": 0}
    columns = {"n": "integer", "code": "char(3)", "blob": "bytea", "ref": "uuid"}
    properties = [{"name": name, "physicalType": kind} for name, kind in columns.items()]
    return document(properties, quality=[rule | keys])


def rule(**keys: Any) -> dict[str, Any]:
    return x(quality=[{"metric": "nullValues", "mustBe": 0} | keys])


def table_rule(**keys: Any) -> dict[str, Any]:
    return document([], quality=[{"metric": "rowCount", "mustBe": 0} | keys])


def with_(**keys: Any) -> dict[str, Any]:
    return document([]) | keys


SLA = {"property": "latency", "value": 1, "unit": "d"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        # The file as a whole.
        (["a list"], "the file holds no mapping"),
        (with_(apiVersion="v2.2.2"), "apiVersion: 'v2.2.2' is not v3.1.x or v3.2.x"),
        (with_(apiVersion=None), "apiVersion: None is not v3.1.x"),
        (with_(version=1), "version: Input should be a valid string, got 1"),
        (with_(colour="red"), "colour: Extra inputs are not permitted, got 'red'"),
        (with_(version=None), "version: is missing"),
        (with_(team=None), "team.name: must say who owns the table"),
        (with_(schema=[]), "schema: has 0 tables"),
        (with_(schema=document([])["schema"] * 2), "schema: has 2 tables"),
        (with_(slaDefaultElement="x"), "contract.slaDefaultElement: 'x' is not supported"),
        (with_(slaProperties=[SLA | {"property": "retention"}]), "slaProperties: 'retention in d'"),
        (with_(slaProperties=[SLA | {"unit": "y"}]), "slaProperties: 'latency in y'"),
        (with_(slaProperties=[SLA | {"value": "soon"}]), "slaProperties.latency: 'soon' is no number"),
        (with_(slaProperties=[SLA | {"schedule": "0 1 * * *"}]), "slaProperties.schedule: '0 1 *"),
        (with_(slaProperties=[SLA | {"element": "things.id"}]),
         "slaProperties.element: 'things.id' must be things.changed_at"),
        (with_(slaProperties=[SLA | {"element": "orders"}]), "slaProperties.element: 'orders' must be"),
        (with_(slaProperties=[SLA, SLA]), "slaProperties: more than one is not supported"),
        # The table.
        (document([], name="Things!"), "schema.name: 'Things!' must be lower-case"),
        (document([], physicalType="view"), "schema.physicalType: 'view' must be table"),
        (document([], logicalType="array"), "schema.logicalType: 'array' must be object"),
        (document([], physicalName="things"), "schema.physicalName: 'things' must be a schema"),
        (document([], relationships=[{"to": "a.b"}]), "schema.relationships: "),
        (document([], customProperties=[]), "schema.customProperties: sourceRelation is missing"),
        (
            document([], customProperties=[{"property": "sourceRelation", "value": "a.b"}] * 2),
            "schema.customProperties.sourceRelation: ['a.b', 'a.b'] is there more than once",
        ),
        (document([{"name": "id", "physicalType": "bigint"}]), "no property has primaryKey"),
        (document([{"name": "changed_at", "physicalType": "timestamptz"}]), "one source column"),
        (
            document([{"name": "changed_at", "physicalType": "date", "partitioned": True}]),
            "one source column, a timestamp, must have partitioned: true",
        ),
        (x(partitioned=True), "one source column, a timestamp"),
        (document([{"name": "x", "physicalType": "text"}] * 2), "schema.properties: 'x' is there"),
        # A column.
        (x(physicalType="money"), "x: physicalType money is not supported"),
        (x(physicalType="text[]"), "x: physicalType text[] is not supported"),
        (x(physicalType="text(3)"), "x: physicalType text(3) is not supported"),
        (x(physicalType="timestamptz(3)"), "x: physicalType timestamptz(3) is not supported"),
        (x(physicalType="numeric(2,3)"), "x: physicalType numeric(2,3) has no such digits"),
        (x(physicalType="numeric(1001)"), "x: physicalType numeric(1001) has no such digits"),
        (x(physicalType=None), "x: physicalType None is not supported"),
        (x(physicalType="bigint", logicalType="boolean"),
         "x.logicalType: 'boolean' contradicts bigint, which is integer or number"),
        (x(physicalType="numeric(14,2)", logicalType="integer"), "contradicts numeric(14,2)"),
        (x(logicalType="date"), "x.logicalType: 'date' contradicts text, which is string"),
        (x(physicalType="date", logicalType="timestamp"), "contradicts date, which is date"),
        (x(physicalName="y"), "x.physicalName: 'y' must be the property's name"),
        (x(encryptedName="y"), "x.encryptedName: 'y' is not supported"),
        (x(transformLogic="a + b"), "x.transformLogic: 'a + b' is for marts"),
        (x(properties=[{"name": "y"}]), "x.properties: "),
        (x(transformSourceObjects=["id"], unique=True), "x: rules and keys are for source columns"),
        (x(transformSourceObjects=["id"], partitioned=True), "x: rules and keys are for source"),
        (x(primaryKeyPosition=2), "x.primaryKeyPosition: 2 needs primaryKey: true"),
        # Keywords.
        (x(logicalTypeOptions={"format": "email"}), "x.logicalTypeOptions.format: 'email' is not"),
        (x(logicalTypeOptions={"validValues": ["a"]}), "logicalTypeOptions.validValues: ['a'] is not"),
        (x(logicalTypeOptions={"minimum": 1}), "minimum: 1 is not supported for text"),
        (x(logicalTypeOptions={"minLength": -1}), "minLength: -1 is no length"),
        (x(logicalTypeOptions={"maxLength": "3"}), "maxLength: '3' is no length"),
        (x(logicalTypeOptions={"pattern": "("}), "pattern: '(' is no regular expression: missing )"),
        (x(logicalTypeOptions={"pattern": "(?=a)"}), "pattern: '(?=a)' isn't RE2's syntax"),
        (x(logicalTypeOptions={"pattern": "(a)\\1"}), "isn't RE2's syntax"),
        (x(physicalType="integer", logicalTypeOptions={"minLength": 1}), "not supported for integer"),
        (x(physicalType="integer", logicalTypeOptions={"minimum": "a"}), "'a' doesn't fit the column"),
        (x(physicalType="integer", logicalTypeOptions={"minimum": True}), "True is no integer"),
        (x(physicalType="numeric", logicalTypeOptions={"minimum": "NaN"}), "'NaN' is no number"),
        (x(physicalType="date", logicalTypeOptions={"minimum": "soon"}), "minimum: 'soon' doesn't"),
        (
            x(physicalType="timestamp", logicalTypeOptions={"minimum": "2026-01-01T00:00Z"}),
            "has a zone, and timestamp without time zone has none",
        ),
        (x(physicalType="uuid", enum=[{"value": "a"}]), "x.enum: ['a'] is not supported for uuid"),
        (x(physicalType="integer", enum=[{"value": "a"}]), "x.enum: ['a'] doesn't fit the column"),
        # Quality rules.
        (rule(type="text", metric=None), "x.quality.text.type: 'text' is not supported"),
        (rule(type="custom", engine="soda"), "x.quality.nullValues.engine: 'soda' is not supported"),
        (rule(schedule="0 1 * * *"), "x.quality.nullValues.schedule: '0 1 * * *' is not supported"),
        (rule(rule="nullValues", metric=None), "rule: 'nullValues' is not supported"),
        (rule(metric="freshness"), "'freshness' with arguments [] is not supported"),
        (rule(metric="rowCount"), "'rowCount' with arguments [] is not supported"),
        (rule(metric=None), "x.quality.None: None with arguments [] is not supported"),
        (rule(arguments={"a": 1}), "'nullValues' with arguments ['a'] is not supported"),
        (rule(metric="invalidValues"), "'invalidValues' with arguments [] is not supported"),
        (
            rule(metric="invalidValues", arguments={"validValues": ["a"], "pattern": "a"}),
            "'invalidValues' with arguments ['pattern', 'validValues'] is not supported",
        ),
        (rule(metric="invalidValues", arguments={"validValues": "a"}), "'a' is no list of values"),
        (rule(metric="missingValues", arguments={"missingValues": "N/A"}), "'N/A' is no list of values"),
        (rule(metric="missingValues", arguments={"missingValues": 5}), "5 is no list of values"),
        (rule(mustBe=[0, 5]), "mustBe: [0, 5] has another number of limits"),
        (rule(metric="invalidValues", arguments={"validValues": []}), "[] is no list of values"),
        (rule(metric="invalidValues", arguments={"validValues": [1]}), "1 is no text"),
        (rule(name="a b"), "x.quality.a b.name: 'a b' must be letters, digits and _"),
        (x(required=True, quality=[{"metric": "nullValues", "mustBe": 0, "name": "x_required"}]),
         "quality.name: 'x_required' names two rules"),
        (rule(severity="fatal"), "severity: 'fatal' is none of error, warning, info"),
        (rule(unit="dozens"), "unit: 'dozens' is neither rows nor percent"),
        (rule(mustBe=None), "[] must be one of mustBe, mustNotBe"),
        (rule(mustBeLessThan=2), "['mustBe', 'mustBeLessThan'] must be one of"),
        (rule(mustBe="none"), "mustBe: 'none' is no number"),
        (rule(mustBe=True), "mustBe: True is no number"),
        (rule(mustBe=3), "mustBe: 3 asks for rows that break the rule"),
        (rule(mustBe=None, mustBeGreaterThan=0), "mustBeGreaterThan: 0 asks for rows that break"),
        (rule(mustBe=None, mustBeBetween=[2, 1]), "mustBeBetween: [2, 1] must have the smaller"),
        (rule(mustBe=None, mustBeBetween=[2]), "mustBeBetween: List should have at least 2 items"),
        (table_rule(unit="percent"), "things.quality.rowCount.unit: 'percent' is no unit of a row"),
        (table_rule(metric="nullValues"), "things.quality.nullValues: 'nullValues' with arguments []"),
        (table_rule(metric="duplicateValues"), "'duplicateValues' with arguments [] is not supported"),
        (
            table_rule(metric="duplicateValues", arguments={"properties": ["x"]}),
            "properties: ['x'] are not source columns",
        ),
        # SQL.
        (sql("n > 1", name=None), "'SELECT COUNT(*) FROM {object} WHERE n > 1' needs a name"),
        (sql("n > 1", query="SELECT MAX(n) FROM {object}"), "rule.query: 'SELECT MAX(n) FROM"),
        (sql("n > 1", query="SELECT COUNT(*) FROM other WHERE n > 1"), "write SELECT COUNT(*) FROM"),
        (sql("n > 1", query=None), "rule.query: None is not supported"),
        (sql("n > 1", metric="nullValues"), "'nullValues' and a query are two rules"),
        (sql("n > 1", type=None), "rule.type: None must be sql for a query"),
        (sql("n > 1", arguments={"a": 1}), "rule.arguments: {'a': 1} are not supported with a query"),
        (sql("{property} > 1"), "'{property}' stands for nothing here"),
        (sql("m > 1"), "'m > 1' is not supported: m is no source column of the table"),
        (sql("n > 'a'"), "'a' is no"),
        (sql("n > 1 GROUP BY n"), "can't go on before 'GROUP BY n'"),
        (sql("n > 1; DROP TABLE x"), "can't read '; DROP TABLE x'"),
        (sql("n"), "it is a number, not a condition"),
        (sql("1 = 1"), "it names no column"),
        (sql("n >"), "it ends too early"),
        (sql("n > 1 AND"), "it ends too early"),
        (sql("(n > 1"), "expected ) at the end"),
        (sql("n = NULL"), "expected a value before 'NULL'"),
        (sql("n IN (SELECT 1)"), "select is no source column"),
        (sql("n NOT NULL"), "expected IN, BETWEEN or LIKE before 'NULL'"),
        (sql("n LIKE 'a'"), "LIKE compares text with a constant"),
        (sql("code LIKE 'a'"), "LIKE sees the padding of a char(n)"),
        (sql("blob = '\\x00'"), "a bytea can't be compared"),
        (sql("ref = 'a'"), "badly formed hexadecimal UUID string"),
        (sql("n AND n > 1"), "AND, OR and NOT join conditions, not a number"),
        (sql("sqrt(n) > 1"), "sqrt() isn't one of"),
        (sql("lower(n) = 'a'"), "lower() takes a text, not a number"),
        (sql("changed_at > n"), "can't be compared with a number"),
        (sql("changed_at > 'soon'"), "Invalid isoformat string: 'soon'"),
        (sql("changed_at * 2 > changed_at"), "timestamp with time zone * number is not supported"),
        (sql("changed_at + INTERVAL '1 moon' > changed_at"), "an interval is a number of seconds"),
        (sql("n / 2 > 1"), "can't read '/ 2 > 1'"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_an_error_with_its_place_and_value(
    asked: Any, message: str
) -> None:
    with pytest.raises(ContractError, match=re.escape(message)):
        parse_contract(asked)


@pytest.mark.parametrize(
    ("pattern", "supported"),
    [
        *((pattern, True) for pattern in (
            r"^[A-Z]{3}$", r"a\++", r"[*+?]+", r"[]+]+b", r"a*\.+", r"\\Z", r"(?i)a|b", r"(?:a)(?P<b>c)",
            r"a{1000}", r"\d+\s\bx", r"[^\]]+", r"a{2,}?", "é+",
        )),
        *((pattern, False) for pattern in (
            r"(?=a)", r"(?<!a)b", r"(a)\1", r"(?P<a>b)(?P=a)", r"a\Z", r"a++", r"a?+", r"a{2}+", r"(?>a)",
            r"a{1001}", r"a{2,1001}", r"(?#c)", r"\u0041", r"\N{BULLET}", r"(a)(?(1)b|c)",
        )),
    ],
)  # fmt: skip
def test_a_pattern_is_supported_if_the_rows_can_be_judged_by_it(
    pattern: str, supported: bool
) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        pc.match_substring_regex(pa.array(["text"]), pattern)
    except pa.ArrowInvalid:
        assert not supported
    else:
        assert supported
    asked = x(logicalTypeOptions={"pattern": pattern})
    if supported:
        assert parse_contract(asked).rules[-1].argument == pattern
    else:
        with pytest.raises(ContractError, match=r"x\.logicalTypeOptions\.pattern: "):
            parse_contract(asked)


def test_an_unknown_key_deep_in_the_file_is_named_with_its_place() -> None:
    asked = x(requird=True)
    with pytest.raises(ContractError, match=r"schema\[0\].properties\[2\].requird: is not part"):
        parse_contract(asked)


def test_a_message_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "things.odcs.yaml"
    with pytest.raises(ContractError, match=r"things.odcs.yaml: cannot be read: No such file"):
        load_contract(file)
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(ContractError, match=r"things.odcs.yaml: is not YAML"):
        load_contract(file)
    file.write_text(yaml.safe_dump(x(physicalType="money")), encoding="utf-8")
    with pytest.raises(ContractError, match=r"^things.odcs.yaml: x: physicalType money"):
        load_contract(file)


def test_every_rule_has_a_name_a_kind_a_bound_and_words() -> None:
    its = contract(
        [
            {"name": "code", "physicalType": "varchar(9)", "required": True, "unique": True,
             "logicalTypeOptions": {"minLength": 1, "pattern": "^[a-z]"}, "enum": [{"value": "a"}]},
            {"name": "Größe (cm)", "physicalType": "integer", "quality": [
                {"metric": "invalidValues", "arguments": {"exclusiveMinimum": 0},
                 "mustBeLessOrEqualTo": 2.5, "unit": "percent", "severity": "warning",
                 "description": " Nobody has none. "},
                {"metric": "missingValues", "arguments": {"missingValues": [-1]}, "mustBe": 0},
            ]},
        ],
        quality=[
            {"metric": "rowCount", "mustBeBetween": [1, 1000]},
            {"name": "sane", "type": "sql", "mustBe": 0,
             "query": "select count(*)\n  from {table} where code = 'a'\n  and id > 5;"},
        ],
    )  # fmt: skip
    assert {rule.name: rule.sentence for rule in its.rules} == {
        "id_type": "id fits bigint; exactly 0 rows may break it.",
        "id_required": "id has a value; exactly 0 rows may break it.",
        "id_unique": "id occurs once in a partition; exactly 0 rows may break it.",
        "changed_at_type": "changed_at fits timestamp with time zone; exactly 0 rows may break it.",
        "code_type": "code fits character varying(9); exactly 0 rows may break it.",
        "code_required": "code has a value; exactly 0 rows may break it.",
        "code_unique": "code occurs once in a partition; exactly 0 rows may break it.",
        "code_enum": "code is one of a; exactly 0 rows may break it.",
        "code_min_length": "code has at least 1 characters; exactly 0 rows may break it.",
        "code_pattern": "code matches ^[a-z]; exactly 0 rows may break it.",
        "Gr__e__cm__type": "Größe (cm) fits integer; exactly 0 rows may break it.",
        "Gr__e__cm__exclusive_minimum": "Größe (cm) is above 0; at most 2.5 % may break it.",
        "Gr__e__cm__missing_values": "Größe (cm) has a value other than -1; exactly 0 rows may break it.",
        "row_count": "A partition has between 1 and 1000 rows.",
        "sane": "No row has code = 'a' and id > 5; exactly 0 rows may break it.",
    }
    (rule,) = [rule for rule in its.rules if rule.kind == "exclusiveMinimum"]
    assert (rule.bound, rule.blocking, rule.description) == (
        Bound("mustBeLessOrEqualTo", (2.5,), "percent"), False, "Nobody has none.",
    )  # fmt: skip
    (sane,) = [rule for rule in its.rules if rule.kind == "sql"]
    assert sane.columns == ("code", "id")


def test_a_contract_says_what_the_table_is() -> None:
    derived = {
        "name": "day", "physicalType": "date", "transformSourceObjects": ["changed_at"],
        "transformDescription": "The day of it.", "description": "A day.",
    }  # fmt: skip
    asked = document([derived]) | {"slaProperties": [SLA | {"value": 2}]}
    before = copy.deepcopy(asked)
    its = parse_contract(asked)
    assert asked == before
    assert (its.name, its.version, its.owner) == ("things", "1.0.0", "testers")
    assert (its.source_relation, its.target_relation) == ("public.source", "public.things")
    assert (its.key, its.change_column, its.latency_hours) == (("id",), "changed_at", 48)
    assert [column.name for column in its.source_columns] == ["id", "changed_at"]
    assert its.column("day") == Column(
        "day", "date", False, "A day.", ("changed_at",), "The day of it."
    )


@pytest.mark.parametrize(
    ("physical_type", "logical_types"),
    [
        *(("varchar(3)", "string"), ("char", "string"), ("uuid", "string"), ("jsonb", "object array")),
        *(("bytea", "string"), ("int2", "integer number"), ("decimal(9)", "integer number")),
        *(("numeric", "number"), ("float8", "number"), ("bool", "boolean"), ("date", "date")),
        *(("time", "time"), ("timestamptz", "timestamp date"), ("timestamp", "timestamp date")),
    ],
)  # fmt: skip
def test_a_column_may_say_its_logical_type(physical_type: str, logical_types: str) -> None:
    for logical_type in logical_types.split():
        its = parse_contract(x(physicalType=physical_type, logicalType=logical_type))
        assert its.column("x").name == "x"


@pytest.mark.parametrize("element", ["things", "things.changed_at"])
def test_a_latency_may_name_what_it_is_of(element: str) -> None:
    asked = with_(slaProperties=[SLA | {"element": element}])
    assert parse_contract(asked).latency_hours == 24


def test_every_contract_of_the_project_is_in_use() -> None:
    tables = load_tables()
    used = {table.contract.name for table in tables}
    used |= {mart.name for table in tables for mart in table.marts}
    # Tables that are loaded by assets of their own.
    used |= {"news_articles", "purchase_predictions"}
    assert {file.name for file in CONTRACTS.iterdir()} == {f"{name}.odcs.yaml" for name in used}
