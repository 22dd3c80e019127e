"""The load's steps without Dagster, on a test's databases, for three days of changes."""

import dataclasses
from datetime import timedelta

import yaml

from pipeline_assets.quality.contract import Bound, Contract
from pipeline_assets.quality.odcs import CONTRACTS, parse_contract
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.resources.postgres import Database
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.extract import extract, source_reader
from pipeline_assets.warehouse.gate import judge
from pipeline_assets.warehouse.load import load, prepare
from pipeline_assets.warehouse.reconcile import compare
from pipeline_assets.warehouse.tables import Table, load_tables
from pipeline_assets_tests.conftest import FIRST_DAY

DAYS = 3
WINDOWS = {
    f"{FIRST_DAY + timedelta(days=day):%Y-%m-%d}": (
        FIRST_DAY + timedelta(days=day),
        FIRST_DAY + timedelta(days=day + 1),
    )
    for day in range(DAYS)
}
KEYS = list(WINDOWS)


def strict() -> Table:
    """The table `transactions` as it is: rows that break a rule hold their day."""
    (table,) = [table for table in load_tables() if table.contract.name == "transactions"]
    return table


def lenient(contract: Contract | None = None) -> Table:
    """The table with any number of bad rows allowed: they are quarantined, and no day is held."""
    table = strict()
    contract = contract or table.contract
    rules = tuple(
        dataclasses.replace(rule, bound=Bound("mustBeLessOrEqualTo", (100,), "percent"))
        for rule in contract.rules
    )
    return dataclasses.replace(table, contract=dataclasses.replace(contract, rules=rules))


def numbered() -> Table:
    """The lenient table with integer keys: a load appends the rows whose key is above the table's highest."""
    document = yaml.safe_load((CONTRACTS / "transactions.odcs.yaml").read_text())
    order_id, *_ = document["schema"][0]["properties"]
    order_id |= {"logicalType": "integer", "physicalType": "bigint", "logicalTypeOptions": {}}
    return lenient(parse_contract(document))


class Pipeline:
    """The load's three steps on the databases of a test."""

    def __init__(self, settings: Settings, table: Table | None = None) -> None:
        self.table = table or lenient()
        self.source = Database("source", settings)
        self.files = PartitionFiles(str(settings.pipeline_data_dir / "partitions"))
        self.at_source = self.source.connect(autocommit=True)
        self.at_warehouse = Database("warehouse", settings).connect(autocommit=True)
        prepare(self.at_warehouse, self.table)

    def extract(self, key: str) -> None:
        with source_reader(self.source.url()) as reader:
            batches = extract(reader, self.table.contract, WINDOWS[key])
            self.files.write("raw_transactions", key, batches)

    def judge(self, key: str, files: PartitionFiles | None = None) -> None:
        judge(self.table, key, WINDOWS[key], files or self.files, self.at_warehouse, "run")

    def load(self, key: str, files: PartitionFiles | None = None) -> None:
        load(self.table, key, files or self.files, self.at_source, self.at_warehouse, "run")

    def run(self, key: str) -> None:
        self.extract(key)
        self.judge(key)
        self.load(key)

    def catch_up(self) -> list[str]:
        """Run the days that are out of step, as the sensor does; returns those still out of step."""
        for _ in range(2):
            found = compare(self.at_source, self.at_warehouse, self.table.contract, WINDOWS)
            late = [key for key, comparison in found.items() if not comparison.in_step]
            for key in late:
                self.run(key)
        found = compare(self.at_source, self.at_warehouse, self.table.contract, WINDOWS)
        return [key for key, comparison in found.items() if not comparison.in_step]
