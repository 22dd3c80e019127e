"""dlt's sql_database source into its postgres destination, merged by key.

`default` leaves everything as dlt has it. `best` is the fastest of what its documentation offers:
Arrow tables from ConnectorX, Parquet loaded by ADBC, and the upsert strategy.
"""

import os
import sys
from datetime import datetime

import dlt
from dlt.sources.sql_database import sql_table

BEST = sys.argv[1] == "best"

if BEST:
    os.environ["NORMALIZE__PARQUET_NORMALIZER__ADD_DLT_LOAD_ID"] = "false"
lines = sql_table(
    credentials=os.environ["SOURCE_URL"],
    schema="shop",
    table="widened",
    incremental=dlt.sources.incremental(
        "updated_at",
        initial_value=datetime.fromisoformat(os.environ["WINDOW_START"]),
        end_value=datetime.fromisoformat(os.environ["WINDOW_END"]),
    ),
    primary_key="line_id",
    write_disposition={"disposition": "merge", "strategy": "upsert" if BEST else "delete-insert"},
    **({"backend": "connectorx", "reflection_level": "full_with_precision"} if BEST else {}),
).with_name("line_items")
pipeline = dlt.pipeline(
    "bench",
    destination=dlt.destinations.postgres(os.environ["TARGET_URL"]),
    dataset_name="analytics",
)
options = {"loader_file_format": "parquet"} if BEST else {}
pipeline.run(lines, table_name="line_items", **options).raise_on_failed_jobs()
