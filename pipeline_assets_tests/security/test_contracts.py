"""Hostile contract files: each is refused in one line that names it, before it costs time or memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_assets.quality.contract import ContractError
from pipeline_assets.quality.odcs import load_contract, load_mart, parse_contract, parse_mart
from pipeline_assets_tests.contracts import contract, document

pytestmark = pytest.mark.security

LAUGHS = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
MERGES = "\n".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 12))
BOMBS = {
    "aliases to aliases": f"l0: &l0 [lol]\n{LAUGHS}\n",
    "merges of merges": f"m0: &m0 {{a: 1}}\n{MERGES}\n",
    "an alias to what it is in": "a: &a [*a]\n",
    "a hundred thousand brackets": "[" * 100_000,
    "deep mappings": "".join(f"{' ' * n}a:\n" for n in range(400)),
    "a large file": "a: " + "x" * 5_000_000,
    "a Python object": "!!python/object/apply:os.system ['touch pwned']",
    "a Python name": "a: !!python/name:os.system",
    "no date": "a: 2026-13-45",
    "a number of 5,000 digits": f"a: {'9' * 5000}",
    "no mapping": "- 1",
    "no text": "\udcff",
}
READ = """
import json, resource, sys
from pathlib import Path
{reader}
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), used + (500 << 20)))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for file in sys.argv[1:]:
    try:
        read(Path(file))
        print(json.dumps("was taken"), flush=True)
    except Refused as error:
        print(json.dumps(str(error)), flush=True)
"""
CONTRACT = """
import open_data_contract_standard.model
from pipeline_assets.quality.contract import ContractError as Refused
from pipeline_assets.quality.odcs import load_contract as read
"""


def assert_bombs_are_refused(reader: str, file_name: str, folder: Path) -> None:
    """Each is refused in one line that names the file.

    All are read in a process with little memory and 20 s of CPU: without the defence, a bomb would kill
    this one. `reader` is code that defines `read` and the error `Refused`.
    """
    files = [folder / str(number) / file_name for number in range(len(BOMBS))]
    for file, bomb in zip(files, BOMBS.values(), strict=True):
        file.parent.mkdir()
        file.write_bytes(bomb.encode(errors="surrogateescape"))

    program = READ.format(reader=reader)
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )

    said = dict(zip(BOMBS, map(json.loads, ran.stdout.splitlines()), strict=False))
    assert ran.returncode == 0, f"after {list(said)}: {ran.stderr}"
    for name, message in said.items():
        assert message.startswith(f"{file_name}: "), f"{name}: {message}"
        assert len(message) < 1000, name
        assert "\n" not in message, name
    assert list(said) == list(BOMBS)
    assert not (folder / "pwned").exists()


def test_a_bomb_is_refused_by_name(tmp_path: Path) -> None:
    assert_bombs_are_refused(CONTRACT, "hostile.odcs.yaml", tmp_path)


def refused(**table: Any) -> str:
    properties = table.pop("properties", [])
    with pytest.raises(ContractError) as caught:
        contract(properties, **table)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b", "a b", "a;b", 'a"b', "a'b", "a\n", "A", "", "a" * 54]
)
def test_a_table_name_is_a_plain_word(name: str) -> None:
    """It becomes part of the names of assets, files, relations and indexes."""
    assert refused(name=name).startswith("schema.name: ")


@pytest.mark.parametrize(
    "name",
    [
        "pipeline.batches",
        "quarantine.things",
        "pg_catalog.pg_authid",
        "information_schema.tables",
        "pg_temp.staged",
        "public.a\x00b",
        "public.a%s",
        f"public.{'a' * 64}",
        "public",
        "a.b.c",
    ],
)
def test_a_table_lies_in_no_schema_of_the_pipeline_or_the_server(name: str) -> None:
    assert refused(physicalName=name).startswith("schema.physicalName: ")


@pytest.mark.parametrize("name", ["a%(start)s", "100%", "a\x00", "a\nb", "\u202ea", "é" * 32])
def test_a_column_name_is_what_postgresql_will_keep(name: str) -> None:
    message = refused(properties=[{"name": name, "physicalType": "text"}])
    assert message.startswith("schema.properties.name: ")


@pytest.mark.parametrize(
    "physical_type",
    ["text; DROP TABLE x", "text)", "numeric(10,2)) --", "text[]", "pg_catalog.text", "int4\n;"],
)
def test_a_type_is_one_that_is_known(physical_type: str) -> None:
    assert "physicalType" in refused(properties=[{"name": "a", "physicalType": physical_type}])


@pytest.mark.parametrize(
    "pattern",
    ["(" * 3000 + ")" * 3000, "a{99999999999999999999}", "(a)\\1", "(?=a)a", "[", "(?P<n>a)(?P=n)"],
)
def test_a_pattern_that_no_engine_takes_is_refused(pattern: str) -> None:
    options = {"pattern": pattern}
    message = refused(
        properties=[{"name": "a", "physicalType": "text", "logicalTypeOptions": options}]
    )
    assert message.startswith("a.logicalTypeOptions.pattern: ")


SLOW = [
    "SELECT COUNT(*) FROM t WHERE a" + " " * 20_000 + "b" + " " * 20_000 + ";x;",
    "SELECT COUNT(*) FROM " + "t " * 20_000,
    "SELECT COUNT(*) FROM {object} WHERE " + "(" * 20_000,
    "SELECT COUNT(*) FROM {object} WHERE " + "NOT " * 350 + "a = 1",
    "SELECT COUNT(*) FROM {object} WHERE " + "(" * 190 + "a = 1" + ")" * 190,
    "SELECT COUNT(*) FROM {object} WHERE " + " OR ".join(["a = 1"] * 5000),
    "SELECT COUNT(*) FROM {object} WHERE a = " + "'" * 20_001,
    "SELECT COUNT(*) FROM {object} WHERE a = " + "9" * 4000,
    "SELECT COUNT(*) FROM {object} WHERE changed_at > changed_at - INTERVAL '99999999999999 days'",
    "SELECT COUNT(*) FROM {object} WHERE a = 1; DROP TABLE public.things",
    "SELECT COUNT(*) FROM {object} WHERE a = (SELECT 1)",
    "SELECT COUNT(*) FROM {object} WHERE pg_sleep(1000) IS NULL",
    "DELETE FROM things",
]
PARSE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from pipeline_assets.quality.contract import ContractError
from pipeline_assets_tests.contracts import contract
from pipeline_assets_tests.security.test_contracts import SLOW, sql_rule
for query in SLOW:
    try:
        contract([{"name": "a", "physicalType": "integer"}], quality=[sql_rule(query)])
        print("taken", query[:60])
    except ContractError as error:
        print("refused", str(error)[:60])
"""


def sql_rule(query: str) -> dict[str, Any]:
    return {"name": "hostile", "type": "sql", "query": query, "mustBe": 0}


def test_no_condition_overflows_the_stack_or_takes_long() -> None:
    """All within 20 s of CPU, 1 s of it for imports: the first query alone took hours."""
    parsed = subprocess.run(
        [sys.executable, "-c", PARSE], capture_output=True, text=True, check=False, timeout=300
    )
    assert parsed.returncode == 0, parsed.stderr
    assert parsed.stdout.count("refused things.quality.hostile") == len(SLOW), parsed.stdout


@pytest.mark.parametrize(
    "text", ["NOT " * 297 + "a = 1", f"a IN ({', '.join(['1'] * 145)})", "-" * 290 + "a = -1"]
)
def test_the_longest_condition_that_is_taken_can_be_worked_out(text: str) -> None:
    """Deep inside Dagster's own calls, which take a hundred of the thousand that Python allows."""
    import pyarrow as pa

    from pipeline_assets.quality.conditions import parse_condition

    condition = parse_condition(text, {"a": "integer"})

    def at_depth(calls: int) -> Any:
        return at_depth(calls - 1) if calls else condition.evaluate(pa.table({"a": [1, 2]}))

    assert len(at_depth(150).to_pylist()) == 2


def test_a_pattern_that_backtracks_elsewhere_takes_linear_time() -> None:
    """`(a+)+$` on 30 a's and a b takes a backtracking engine an hour; these values are 100,000 long."""
    import pyarrow as pa

    from pipeline_assets.quality.rules import broken

    options = {"pattern": "^(a+)+$"}
    found = contract([{"name": "a", "physicalType": "text", "logicalTypeOptions": options}])
    (rule,) = (rule for rule in found.rules if rule.kind == "pattern")
    rows = pa.table({"a": ["a" * 100_000, "a" * 100_000 + "b"]})

    mask = broken(rule, rows, found, {}, {})

    assert mask is not None
    assert mask.to_pylist() == [False, True]


@pytest.mark.parametrize(
    "value", [".nan", ".inf", "-.inf", "1e999", "0x" + "f" * 400, "1" + "0" * 40]
)
@pytest.mark.parametrize("operator", ["mustBe", "mustNotBe", "mustBeLessOrEqualTo"])
def test_a_bound_is_a_number_that_can_be_reached(value: str, operator: str) -> None:
    """No count is above NaN: a rule bound by it would hold nothing back."""
    rule = {"metric": "rowCount", operator: yaml.safe_load(value)}
    assert refused(quality=[rule]).startswith("things.quality.rowCount")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, "1e400", 10**9, "soon"])
def test_a_latency_is_a_time(value: object) -> None:
    hostile = document([]) | {
        "slaProperties": [{"property": "latency", "value": value, "unit": "h"}]
    }
    with pytest.raises(ContractError, match=r"^slaProperties\.latency"):
        parse_contract(hostile)


@pytest.mark.parametrize("length", [-1, 10**30, True, 1.5, "many"])
def test_a_length_is_one_that_a_text_can_have(length: object) -> None:
    options = {"maxLength": length}
    message = refused(
        properties=[{"name": "a", "physicalType": "text", "logicalTypeOptions": options}]
    )
    assert message.startswith("a.logicalTypeOptions.maxLength: ")


INJECTIONS = [
    "1); DROP TABLE analytics.fct_transactions; --",
    "(SELECT rolpassword FROM pg_authid LIMIT 1)",
    "sum(amount)) FROM analytics.fct_transactions; DELETE FROM pipeline.batches WHERE (true",
    "pg_read_file('/etc/passwd')",
    "\"pg_read_file\"('/etc/passwd')",
    "pg_catalog.pg_read_file('/etc/passwd')",
    "query_to_xml('DROP TABLE x', true, true, '')",
    "set_config('role', 'postgres', false)",
    "pg_sleep(86400)",
    "lo_export(1, '/tmp/x')",
    "sum(amount) /* */",
    "sum(amount) -- of all",
    "$$a$$",
    "E'\\''",
    "'open",
    "(1",
    "1)(",
    "WITH x AS (VALUES (1)) TABLE x",
]


def mart(logic: str) -> dict[str, Any]:
    return document(
        [
            {"name": "id", "physicalType": "bigint", "primaryKey": True},
            {
                "name": "changed_at",
                "physicalType": "timestamptz",
                "transformLogic": "max(changed_at)",
            },
            {"name": "total", "physicalType": "bigint", "transformLogic": logic},
        ]
    )


@pytest.mark.parametrize("logic", INJECTIONS)
def test_a_marts_expression_is_nothing_but_one(logic: str) -> None:
    with pytest.raises(ContractError, match=r"^total\.transformLogic: "):
        parse_mart(mart(logic))


@pytest.mark.parametrize(
    "logic",
    [
        "count(*) FILTER (WHERE status = 'it''s (done); --')",
        "coalesce(sum(quantity) FILTER (WHERE a IN (1, 2)), 0)::numeric(14,2) * -1",
        "max(CASE WHEN a > 1 THEN b ELSE (c + 1) END)",
        'min("a column")',
    ],
)
def test_an_honest_expression_is_taken(logic: str) -> None:
    assert parse_mart(mart(logic)).column("total").logic == logic


def test_the_projects_own_contracts_are_taken() -> None:
    assert load_contract("transactions").name == "transactions"
    assert load_mart("daily_sales").name == "daily_sales"
