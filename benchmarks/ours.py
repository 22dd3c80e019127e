"""This project's own runs of the benchmark, a process each: `python -m benchmarks.ours --help`.

`assets` materializes a day through the Dagster assets, with Dagster's storage on PostgreSQL, as a
user does; `functions` calls what the assets call, without Dagster; `dagster` materializes three
assets that do nothing, with as many checks: Dagster's own part.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg
    import pandas as pd

    from pipeline_assets.warehouse.tables import Table


def main() -> None:
    """Run once, from start to end; or warm up on an empty day first and time what follows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["assets", "functions", "dagster"])
    parser.add_argument("--day", type=datetime.fromisoformat, required=True)
    parser.add_argument("--warm", action="store_true", help="time a second run in this process")
    options = parser.parse_args()
    kinds = {"assets": assets_run, "functions": functions_run, "dagster": empty_assets_run}
    run = kinds[options.kind]()
    if not options.warm:
        run(options.day)
        return
    run(options.day - timedelta(days=1))
    begun, cpu_begun = time.perf_counter(), time.process_time()
    run(options.day)
    figures = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - cpu_begun,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))  # noqa: T201 - the harness reads it


def assets_run() -> Callable[[datetime], None]:
    """A day through `raw_line_items`, `validated_line_items` and `line_items`."""
    from pipeline_assets.warehouse.assets import table_assets

    return _materializer(lambda days: table_assets(_table(), days))


def empty_assets_run() -> Callable[[datetime], None]:
    """A day through three assets that do nothing but report as many checks as the real ones."""
    import dagster as dg

    from pipeline_assets.warehouse.assets import table_assets

    def idle(
        asset: "dg.AssetsDefinition", days: "dg.DailyPartitionsDefinition"
    ) -> "dg.AssetsDefinition":
        specs = list(asset.check_specs)

        @dg.asset(key=asset.key, deps=asset.dependency_keys, partitions_def=days, check_specs=specs)
        def nothing() -> dg.MaterializeResult:
            results = [dg.AssetCheckResult(passed=True, check_name=spec.name) for spec in specs]
            return dg.MaterializeResult(check_results=results)

        return nothing

    return _materializer(
        lambda days: [
            idle(asset, days)
            for asset in table_assets(_table(), days)
            if isinstance(asset, dg.AssetsDefinition)
        ]
    )


def functions_run() -> Callable[[datetime], None]:
    """A day through `extract`, `judge` and `load`, without Dagster and its checks' own queries."""
    from pipeline_assets.definitions import build_resources
    from pipeline_assets.settings import load_settings
    from pipeline_assets.warehouse.extract import extract, source_reader
    from pipeline_assets.warehouse.gate import judge
    from pipeline_assets.warehouse.load import load, prepare

    resources = build_resources(load_settings())
    source, warehouse, files = (resources[name] for name in ("source", "warehouse", "files"))
    table = _table()

    def run(day: datetime) -> None:
        key, window = f"{day:%Y-%m-%d}", (day, day + timedelta(days=1))
        steps = {"start": time.perf_counter()}
        with (
            source.connect(autocommit=True) as source_connection,
            warehouse.connect(autocommit=True) as connection,
            source_reader(source.url()) as reader,
        ):
            prepare(connection, table)
            files.write("raw_line_items", key, extract(reader, table.contract, window))
            steps["extract"] = time.perf_counter()
            judge(table, key, window, files, connection, "benchmark")
            steps["gate"] = time.perf_counter()
            load(table, key, files, source_connection, connection, "benchmark")
            steps["load"] = time.perf_counter()
        moments = list(steps.values())
        for name, begun, ended in zip(list(steps)[1:], moments, moments[1:], strict=False):
            print(f"{name} {ended - begun:.3f}")  # noqa: T201 - for whoever runs this by hand

    return run


def derive(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Add `net_amount` and `order_day`."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    # Arrow rounds half to even; PostgreSQL, like money, half away from zero.
    product = pa.chunked_array(pa.array(frame["amount"] * (1 - frame["discount"])))
    net = pc.round(product, 2, "half_towards_infinity").cast(pa.decimal128(14, 2))
    return frame.assign(
        net_amount=pd.Series(pd.arrays.ArrowExtensionArray(net), index=frame.index),
        order_day=frame["ordered_at"].dt.tz_localize(None).astype(pd.ArrowDtype(pa.date32())),
    )


def _table() -> "Table":
    from benchmarks.data import contract
    from pipeline_assets.warehouse.tables import Table

    return Table(contract(), derive=derive)


def _materializer(
    assets: "Callable[[dg.DailyPartitionsDefinition], list[dg.AssetsDefinition | dg.AssetSpec]]",
) -> Callable[[datetime], None]:
    import warnings

    import dagster as dg

    from pipeline_assets.definitions import build_resources
    from pipeline_assets.settings import load_settings, project_root

    os.environ.setdefault("DAGSTER_HOME", str(project_root()))
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    defined = assets(dg.DailyPartitionsDefinition("2026-01-01"))
    resources = build_resources(load_settings())
    instance = dg.DagsterInstance.get()

    def run(day: datetime) -> None:
        dg.materialize(
            defined, partition_key=f"{day:%Y-%m-%d}", resources=resources, instance=instance
        )

    return run


if __name__ == "__main__":
    main()
