"""The definitions of many tables: what a table costs doesn't depend on how many others there are."""

import cProfile
import pstats
from pathlib import Path

import pytest

from pipeline_assets import definitions
from pipeline_assets.quality.odcs import load_contract
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse.tables import Table, load_tables

CONTRACT = Path(__file__).parents[1] / "orders.odcs.yaml"
LATENCY = "slaProperties:\n  - {property: latency, value: 48, unit: h}\n"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Forty tables beside the project's own, each with a latency to watch."""
    folder = tmp_path_factory.mktemp("contracts")
    made = []
    for number in range(40):
        file = folder / f"orders_{number:02}.odcs.yaml"
        file.write_text(CONTRACT.read_text().replace("orders", f"orders_{number:02}") + LATENCY)
        made.append(Table(load_contract(file)))
    return [*load_tables(), *made]


def calls(tables: list[Table]) -> int:
    """Function calls that it takes to load all definitions, as a code server does."""
    profile = cProfile.Profile()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(definitions, "load_tables", lambda: tables)
        with profile:
            repository = definitions.build_definitions(Settings()).get_repository_def()
            repository.load_all_definitions()
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]  # typeshed lacks it


@pytest.mark.slow
def test_a_table_costs_as_much_beside_forty_as_beside_none(tables: list[Table]) -> None:
    """When each job was resolved against the assets of all tables, it cost 1.8 times as much."""
    few = calls(tables[:6]) - calls(tables[:1])
    many = calls(tables) - calls(tables[:-5])
    assert many < 1.05 * few
