"""Whatever is wrong with a batch, the gate finds what plain SQL finds, and no row gets lost on the way."""

from collections.abc import Callable
from datetime import timedelta
from random import Random

import psycopg
import pytest

from pipeline_assets.quality.validation import Verdict
from pipeline_assets.resources.files import PartitionFiles
from pipeline_assets.settings import Settings
from pipeline_assets.warehouse import ledger
from pipeline_assets.warehouse.extract import check_source, extract, source_reader
from pipeline_assets.warehouse.gate import judge
from pipeline_assets.warehouse.load import load, prepare
from pipeline_assets.warehouse.tables import Table
from pipeline_assets_tests.conftest import FIRST_DAY
from pipeline_assets_tests.reliability.corruption import (
    VIOLATIONS,
    batch,
    source_table,
    spoiled_contract,
    verdicts,
)

DAYS = 50
"""Batches that are spoiled, judged and loaded together, with one query to the oracle."""


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param(150, id="short", marks=pytest.mark.slow),
        # In pieces, each with a seed of its own: a piece that failed can be repeated in minutes.
        *(
            pytest.param(1000, id=f"{piece}-of-10", marks=pytest.mark.reliability)
            for piece in range(1, 11)
        ),
    ],
)
def test_the_gate_finds_what_sql_finds_and_rejected_plus_loaded_is_extracted(
    settings: Settings, seed: int, batches: int, tell: Callable[[str], None]
) -> None:
    assert settings.source_database_url
    assert settings.warehouse_database_url
    random, site = Random(seed), None
    with (
        psycopg.connect(settings.source_database_url.get_secret_value(), autocommit=True) as source,
        psycopg.connect(
            settings.warehouse_database_url.get_secret_value(),
            autocommit=True,
            options="-c TimeZone=UTC",
        ) as warehouse,
    ):
        source.execute(source_table())
        site = Site(source, warehouse, PartitionFiles(str(settings.pipeline_data_dir)))
        while site.judged < batches:
            site.spoil(random)
            site.compare()
    breakable = {name for name, sql in VIOLATIONS.items() if sql != "false"}
    assert set(site.broken) <= breakable
    # By chance a rule may stay unbroken in a few hundred batches, but hardly in thousands.
    assert set(site.broken) == breakable or batches < 1000, "a rule was never broken"
    assert 0 < site.passed < site.judged
    tell(
        f"{site.judged} batches, {site.rows} rows: {site.passed} batches passed, "
        f"{site.rejected} rows rejected, {len(site.broken)} rules broken"
    )


class Site:
    """A source of spoiled batches, the gate, the load, and the oracle that is compared with them."""

    def __init__(
        self, source: psycopg.Connection, warehouse: psycopg.Connection, files: PartitionFiles
    ) -> None:
        self.source, self.warehouse, self.files = source, warehouse, files
        self.table = Table(spoiled_contract())
        self.contract = self.table.contract
        self.judged = self.passed = self.rows = self.rejected = 0
        self.broken: set[str] = set()
        check_source(source, self.contract)
        prepare(warehouse, self.table)

    def spoil(self, random: Random) -> None:
        """Put other batches into the source, and empty the warehouse."""
        self.source.execute("TRUNCATE public.source")
        with self.source.cursor().copy("COPY public.source FROM STDIN") as copy:
            for day in range(DAYS):
                for row in batch(random, day):
                    copy.write("\t".join("\\N" if value is None else value for value in row) + "\n")
        self.warehouse.execute("TRUNCATE public.things, quarantine.things, pipeline.batches")

    def compare(self) -> None:
        """Judge and load each batch, and ask the oracle about all of them."""
        names = list(VIOLATIONS)
        told = {row[0]: row[1:] for row in self.source.execute(verdicts())}
        assert len(told) == DAYS
        with source_reader(self.source_url()) as reader:
            for day in range(DAYS):
                window = (FIRST_DAY + timedelta(days=day), FIRST_DAY + timedelta(days=day + 1))
                key = f"{window[0]:%Y-%m-%d}"
                self.files.write("raw_things", key, extract(reader, self.contract, window))
                verdict = judge(self.table, key, window, self.files, self.warehouse, "run").verdict
                rows, rejected, *counts, passed = told[key]
                expected = {name: n for name, n in zip(names, counts, strict=True) if n}
                assert dict(verdict.violations) == expected, self.evidence(key)
                assert (verdict.rows, verdict.rejected) == (rows, rejected), self.evidence(key)
                assert verdict.passed == passed, self.evidence(key)
                self.load(key, verdict)
        self.count(told)

    def source_url(self) -> str:
        info = self.source.info
        return psycopg.conninfo.make_conninfo(info.dsn, password=info.password)

    def load(self, key: str, verdict: Verdict) -> None:
        """Load a batch that passed; expect the load to refuse any other."""
        if verdict.passed:
            load(self.table, key, self.files, self.source, self.warehouse, "run")
        else:
            with pytest.raises(ledger.GateError):
                load(self.table, key, self.files, self.source, self.warehouse, "run")
        self.judged += 1
        self.passed += verdict.passed
        self.rejected += verdict.rejected
        self.broken |= {name for name, count in verdict.violations.items() if count}

    def count(self, told: dict[str, tuple[int, ...]]) -> None:
        """Check that rejected plus loaded rows are the extracted ones, and which rules the former break."""
        loaded: dict[str, int] = dict(
            self.warehouse.execute(
                "SELECT changed_at::date::text, count(*) FROM public.things GROUP BY 1"
            ).fetchall()
        )
        held: dict[str, int] = dict(
            self.warehouse.execute(
                "SELECT partition_key, count(*) FROM quarantine.things GROUP BY 1"
            ).fetchall()
        )
        reasons = {
            (key, rule): count
            for key, rule, count in self.warehouse.execute(
                "SELECT partition_key, unnest(broken_rules), count(*) FROM quarantine.things GROUP BY 1, 2"
            )
        }
        for key, (rows, rejected, *counts, passed) in told.items():
            self.rows += rows
            assert held.get(key, 0) == rejected, key
            assert loaded.get(key, 0) == (rows - rejected if passed else 0), key
            for name, count in zip(VIOLATIONS, counts, strict=True):
                assert reasons.get((key, name), 0) == count, (key, name)

    def evidence(self, key: str) -> str:
        rows = self.source.execute(
            "SELECT * FROM public.source WHERE (changed_at AT TIME ZONE 'UTC')::date::text = %s",
            [key],
        )
        return "\n".join(map(str, rows.fetchall()))
