"""An independent referee, `datacontract test`, and our gate judge the same contracts and the same rows.

One contract has every kind of rule, the other is the one that the project ships for its transactions.
Each case is a table with a defect, or none. Where the referee measures something else than the gate,
the case says so and both verdicts are pinned; what it can't judge at all is in NOT_JUDGED.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.odcs import CONTRACTS, parse_contract
from pipeline_assets.quality.rules import find_duplicates
from pipeline_assets.quality.validation import Verdict, validate
from pipeline_assets.resources import embedded_postgres
from pipeline_assets.warehouse.extract import extract, source_reader
from pipeline_assets_tests import databases
from pipeline_assets_tests.contracts import document

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
REFEREE = PROJECT / ".venv" / "referee"
WINDOW = datetime(2026, 1, 7, tzinfo=UTC), datetime(2026, 1, 8, tzinfo=UTC)
ROWS = 10
COLUMNS = """
    shop text, id bigint, changed_at timestamptz, code text, name text, size text, pattern text,
    kind text, n integer, above numeric(14,2), below numeric(14,2), day date, note text, unit text,
    iban text, email text, tag text, a text, b text, low integer, high integer, gift numeric(14,2)
"""
CLEAN = """
    's', i, '2026-01-07 12:00Z', 'c' || i, 'name', 'abc', 'AB', 'x', 5, 1, 99, '2026-01-01', 'note', 'kg',
    'DE1', 'e' || i, 't' || i, 'a' || i, 'b' || i, 1, 5, 1
"""
SHIPPED_COLUMNS = """
    order_id text, customer_id bigint, ordered_at timestamptz, amount numeric(14,2), currency text,
    quantity integer, status text, updated_at timestamptz, net_amount numeric(14,2), business_day date,
    business_week date
"""
SHIPPED_CLEAN = """
    'o' || i, i, '2026-01-07 11:00Z', 9.5, 'USD', 2, 'completed', '2026-01-07 12:00Z', 9.5, '2026-01-07',
    '2026-01-05'
"""


def _options(name: str, physical_type: str, logical_type: str, **options: Any) -> dict[str, Any]:
    return {
        "name": name,
        "physicalType": physical_type,
        "logicalType": logical_type,
        "logicalTypeOptions": options,
    }


def _quality(name: str, **quality: Any) -> dict[str, Any]:
    # By its id the referee says which rule a result is of.
    bounded = any(key.startswith("must") for key in quality)
    return {"id": name, "name": name, **quality, **({} if bounded else {"mustBe": 0})}


def _text(name: str, *quality: dict[str, Any], **more: Any) -> dict[str, Any]:
    rules = {"quality": list(quality)} if quality else {}
    return {"name": name, "physicalType": "text", "logicalType": "string", **rules, **more}


PROPERTIES: list[dict[str, Any]] = [
    _text("shop", primaryKey=True, primaryKeyPosition=1),
    {
        "name": "id",
        "physicalType": "bigint",
        "logicalType": "integer",
        "primaryKey": True,
        "primaryKeyPosition": 2,
    },
    _text("code", unique=True),
    _text("name", required=True),
    _options("size", "text", "string", minLength=2, maxLength=4),
    _options("pattern", "text", "string", pattern="^[A-Z]{2}$"),
    _text("kind", enum=[{"value": "x"}, {"value": "y"}]),
    _options("n", "integer", "integer", minimum=1, maximum=9),
    _options("above", "numeric(14,2)", "number", exclusiveMinimum=0),
    _options("below", "numeric(14,2)", "number", exclusiveMaximum=100),
    _options("day", "date", "date", minimum="2026-01-01"),
    _text(
        "note", _quality("note_null", metric="nullValues", mustBeLessOrEqualTo=20, unit="percent")
    ),
    _text(
        "unit",
        _quality(
            "unit_known",
            metric="invalidValues",
            arguments={"validValues": ["kg", "m"]},
            mustBeLessThan=2,
        ),
    ),
    _text(
        "iban",
        _quality("iban_form", metric="invalidValues", arguments={"pattern": "^[A-Z]{2}[0-9]+$"}),
    ),
    _text(
        "email",
        _quality(
            "email_missing", metric="missingValues", arguments={"missingValues": [None, "", "N/A"]}
        ),
        _quality("email_twice", metric="duplicateValues"),
    ),
    _text("tag", _quality("tag_repeats", metric="duplicateValues", mustBeLessThan=3)),
    _text("a"),
    _text("b"),
    {"name": "low", "physicalType": "integer", "logicalType": "integer"},
    {"name": "high", "physicalType": "integer", "logicalType": "integer"},
    {
        "name": "gift",
        "physicalType": "numeric(14,2)",
        "logicalType": "number",
        "quality": [
            _quality("gift_positive", metric="invalidValues", arguments={"exclusiveMinimum": 0})
        ],
    },
]
TABLE_QUALITY = [
    _quality("rows_enough", metric="rowCount", mustBeBetween=[5, 100]),
    _quality("a_b_once", metric="duplicateValues", arguments={"properties": ["a", "b"]}),
    _quality("low_high", type="sql", query="SELECT COUNT(*) FROM {object} WHERE low > high"),
    _quality(
        "low_usual", type="sql", query="SELECT COUNT(*) FROM {object} WHERE low > 8", severity="warning"
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A defect that is made in clean rows, and the rules that it breaks."""

    name: str
    defect: str
    broken: tuple[str, ...] = ()
    referee: tuple[str, ...] | None = None
    """The rules broken by the referee's verdict, if it measures something else."""
    shipped: bool = False
    """Whether the contract is the shipped one."""


def _set(assignment: str, where: str = "id = 1") -> str:
    return f"UPDATE {{table}} SET {assignment} WHERE {where}"


CASES = [
    Case("clean", "SELECT 1"),
    Case("key_twice", _set("shop = 's', id = 2"), ("shop_id_unique",)),
    Case("key_null", _set("shop = NULL"), ("shop_required",)),
    Case("code_twice", _set("code = 'c2'"), ("code_unique",)),
    Case("name_null", _set("name = NULL"), ("name_required",)),
    Case("size_short", _set("size = 'é'"), ("size_min_length",)),
    Case("size_long", _set("size = 'abcde'"), ("size_max_length",)),
    Case("pattern_other", _set("pattern = 'Ab'"), ("pattern_pattern",)),
    Case("kind_other", _set("kind = 'z'"), ("kind_enum",)),
    Case("n_low", _set("n = 0"), ("n_minimum",)),
    Case("n_high", _set("n = 10"), ("n_maximum",)),
    Case("above_zero", _set("above = 0"), ("above_exclusive_minimum",)),
    Case("below_hundred", _set("below = 100"), ("below_exclusive_maximum",)),
    Case("day_early", _set("day = '2025-12-31'"), ("day_minimum",)),
    Case("note_null_20_percent", _set("note = NULL", "id <= 2")),
    Case("note_null_30_percent", _set("note = NULL", "id <= 3"), ("note_null",)),
    Case("unit_one_unknown", _set("unit = 'lb'")),
    Case("unit_two_unknown", _set("unit = 'lb'", "id <= 2"), ("unit_known",)),
    Case("iban_form", _set("iban = 'D1'"), ("iban_form",)),
    Case("email_blank", _set("email = ''"), ("email_missing",)),
    Case("email_null", _set("email = NULL"), ("email_missing",)),
    Case("email_twice", _set("email = 'e2'"), ("email_twice",)),
    Case("a_b_twice", _set("a = 'a2', b = 'b2'"), ("a_b_once",)),
    Case("rows_few", "DELETE FROM {table} WHERE id > 4", ("rows_enough",)),
    Case("low_above_high", _set("low = 6"), ("low_high",)),
    Case("only_a_warning", _set("low = 9, high = 9")),
    Case("nulls_break_nothing_else", _set(", ".join(
        f"{name} = NULL" for name in
        ("size", "pattern", "kind", "n", "above", "below", "day", "unit", "iban", "low", "gift", "a")
    ))),
    Case("code_null_twice", _set("code = NULL", "id <= 2")),
    Case("tag_twice", _set("tag = 't3'", "id = 4")),
    # The referee counts the values that occur more than once; the gate counts, as for all its rules, the
    # rows concerned, and sets them aside.
    Case("tag_thrice", _set("tag = 't3'", "id IN (4, 5)"), ("tag_repeats",), ()),
    Case("shipped_clean", "SELECT 1", shipped=True),
    Case("shipped_nulls", _set(
        "order_id = NULL, customer_id = NULL, ordered_at = NULL, amount = NULL, currency = NULL,"
        " quantity = NULL, status = NULL", "customer_id = 1"
    ), (
        "order_id_required", "customer_id_required", "ordered_at_required", "amount_required",
        "currency_required", "quantity_required", "status_required",
    ), shipped=True),
    Case("shipped_values", "; ".join([
        _set("order_id = '', amount = 0, currency = 'usd', quantity = 0, status = 'lost'", "customer_id = 1"),
        _set("order_id = 'o3', quantity = 1001, ordered_at = '2026-01-08 00:00Z'", "customer_id = 2"),
    ]), (
        "order_id_min_length", "order_id_unique", "amount_positive", "currency_known", "quantity_minimum",
        "quantity_maximum", "status_known", "changed_after_ordered",
    ), shipped=True),
]  # fmt: skip

# The referee has no such checks, whatever the rows: it compares a column's declared type and not the
# values that arrive, and knows `invalidValues` only with ODCS's own arguments. Only the gate's unit tests
# cover these rules.
NOT_JUDGED = {
    "clean": {"gift_positive"} | {
        f"{name}_type" for name in ("id", "changed_at", "n", "above", "below", "day", "low", "high", "gift")
    },
    "shipped_clean": {"amount_positive"} | {
        f"{name}_type" for name in ("customer_id", "ordered_at", "amount", "quantity", "updated_at")
    },
}  # fmt: skip
# The referee's checks that are no rules of ours: that a column exists and has the declared type.
SCHEMA_CHECKS = {"field_is_present", "field_type", "field_physical_type"}


@pytest.fixture(scope="module")
def source(server: embedded_postgres.Server) -> Iterator[str]:
    """A database with a table for each case."""
    url = embedded_postgres.ensure_database(server, "referee")
    with psycopg.connect(url, autocommit=True) as connection:
        for case in CASES:
            columns = SHIPPED_COLUMNS if case.shipped else COLUMNS
            clean = SHIPPED_CLEAN if case.shipped else CLEAN
            connection.execute(f"CREATE TABLE {case.name} ({columns})")
            connection.execute(
                f"INSERT INTO {case.name} SELECT {clean} FROM generate_series(1, {ROWS}) AS i"
            )
            connection.execute(case.defect.replace("{table}", case.name))
    yield url
    databases.drop(server, "referee")


def _shipped() -> dict[str, Any]:
    file = CONTRACTS / "transactions.odcs.yaml"
    shipped: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    (table,) = shipped["schema"]
    for owner in (table, *table["properties"]):
        for quality in owner.get("quality", ()):
            quality["id"] = quality["name"]  # as in `_quality`
    return shipped


def _document(case: Case) -> dict[str, Any]:
    """The case's contract, for its table."""
    base = (
        _shipped()
        if case.shipped
        else document(PROPERTIES, quality=TABLE_QUALITY) | {"apiVersion": "v3.2.0"}
    )
    (table,) = base["schema"]
    relation = {"property": "sourceRelation", "value": f"public.{case.name}"}
    return base | {"schema": [table | {"customProperties": [relation]}]}


def _contract(case: Case) -> Contract:
    return parse_contract(_document(case))


@pytest.fixture(scope="module")
def gate_says(source: str) -> dict[str, set[str]]:
    """Case -> the blocking rules that hold it, by our gate."""
    held = {}
    with source_reader(source) as reader:
        for case in CASES:
            contract = _contract(case)
            tables = list(extract(reader, contract, WINDOW))
            duplicates = find_duplicates(
                lambda columns, tables=tables: (each.select(columns) for each in tables),  # type: ignore[misc]  # a default hides its type
                contract,
            )
            verdict = Verdict(contract)
            for table in tables:
                validate(table, contract, verdict, duplicates=duplicates)
            held[case.name] = {rule.name for rule in verdict.broken}
    return held


@pytest.fixture(scope="module")
def referee_says(
    source: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """Case -> rule -> what `datacontract test` says of it: one run over the tables of all cases."""
    subprocess.run(
        ["/usr/bin/env", "make", "--silent", f"{REFEREE.relative_to(PROJECT)}/installed"],
        cwd=PROJECT,
        check=True,
    )
    folder = tmp_path_factory.mktemp("referee")
    address = psycopg.conninfo.conninfo_to_dict(source)
    base = _document(CASES[0]) | {
        "schema": [
            table | {"name": case.name, "physicalName": case.name}
            for case in CASES
            for table in _document(case)["schema"]
        ],
        "servers": [
            {
                "server": "test",
                "type": "postgres",
                "host": address["host"],
                "port": int(str(address["port"])),
                "database": address["dbname"],
                "schema": "public",
            }
        ],
    }
    file, results = folder / "things.odcs.yaml", folder / "results.json"
    file.write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
    command: list[str | Path] = [
        REFEREE / "bin" / "datacontract",
        "test",
        file,
        "--output",
        results,
        "--output-format",
        "json",
    ]
    ran = subprocess.run(
        command,
        env=os.environ
        | {
            "DATACONTRACT_POSTGRES_USERNAME": str(address["user"]),
            "DATACONTRACT_POSTGRES_PASSWORD": str(address["password"]),
        },
        capture_output=True,
        text=True,
        check=False,  # it exits with 1 when a rule is broken
    )
    assert results.exists(), ran.stdout + ran.stderr
    says: dict[str, dict[str, str]] = {case.name: {} for case in CASES}
    for check in json.loads(results.read_text(encoding="utf-8"))["checks"]:
        if check["type"] not in SCHEMA_CHECKS:
            rule, results_so_far = _rule(check), says[check["model"]]
            if results_so_far.get(rule) in (None, "passed"):
                results_so_far[rule] = check["result"]
    return says


# What the referee calls the checks that it derives from keywords.
CHECK_NAMES = {
    "field_primary_key_required": "required",
    "field_required": "required",
    "field_unique": "unique",
    "field_min_length": "min_length",
    "field_max_length": "max_length",
    "field_regex": "pattern",
    "field_enum": "enum",
    "field_minimum": "minimum",
    "field_maximum": "maximum",
}


def _rule(check: dict[str, Any]) -> str:
    """The name that our rule has."""
    if check["type"] == "primary_key_unique":
        return "shop_id_unique"
    if check["field"] in (
        "above",
        "below",
    ):  # an exclusive limit is two checks there, in one message
        return f"{check['field']}_exclusive_{'minimum' if check['field'] == 'above' else 'maximum'}"
    return check["qualityId"] or f"{check['field']}_{CHECK_NAMES[check['type']]}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gate_and_referee_hold_a_table_for_the_same_rules(
    case: Case, gate_says: dict[str, set[str]], referee_says: dict[str, dict[str, str]]
) -> None:
    failed = {rule for rule, result in referee_says[case.name].items() if result == "failed"}
    assert gate_says[case.name] == set(case.broken)
    judged = set(case.broken if case.referee is None else case.referee)
    assert failed == judged - NOT_JUDGED["shipped_clean" if case.shipped else "clean"]


@pytest.mark.parametrize(
    ("clean", "unknown"), [("clean", "gift_positive"), ("shipped_clean", "amount_positive")]
)
def test_the_referee_judges_every_rule_but_those_it_has_no_check_for(
    clean: str, unknown: str, referee_says: dict[str, dict[str, str]]
) -> None:
    (contract,) = (_contract(case) for case in CASES if case.name == clean)
    says = referee_says[clean]
    judged = {rule for rule, result in says.items() if result == "passed"}
    rules = {rule.name for rule in contract.rules}
    assert rules - judged == NOT_JUDGED[clean]
    # It looks at the derived columns too, which are there only after the gate.
    assert judged - rules == {
        f"{its.name}_required" for its in contract.columns if its.derived_from
    }
    assert {rule: result for rule, result in says.items() if result != "passed"} == {
        unknown: "warning"
    }


def test_a_warning_holds_nothing_back_on_either_side(
    gate_says: dict[str, set[str]], referee_says: dict[str, dict[str, str]]
) -> None:
    assert referee_says["only_a_warning"]["low_usual"] == "warning"
    assert not gate_says["only_a_warning"]


def test_every_rule_has_a_case_that_breaks_it() -> None:
    broken = {rule for case in CASES for rule in case.broken}
    blocking = {rule.name for case in CASES for rule in _contract(case).rules if rule.blocking}
    # The first is of the same kind as shop_required; a row without a change time is in no partition.
    without = {"id_required", "changed_at_required", "updated_at_required"}
    assert blocking - set().union(*NOT_JUDGED.values()) - broken <= without
