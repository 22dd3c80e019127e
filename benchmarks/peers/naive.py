"""The obvious first version: pandas' read_sql and to_sql, and an upsert from a staging table."""

import os
import sys

import pandas as pd
import sqlalchemy as sa

source = sa.create_engine(os.environ["SOURCE_URL"])
target = sa.create_engine(os.environ["TARGET_URL"])
window = {"start": os.environ["WINDOW_START"], "end": os.environ["WINDOW_END"]}

rows = pd.read_sql(
    sa.text("SELECT * FROM shop.widened WHERE updated_at >= :start AND updated_at < :end"),
    source,
    params=window,
)
if rows.empty:
    sys.exit()
with target.begin() as connection:
    rows.to_sql("staged_line_items", connection, if_exists="replace", index=False)
    names = ", ".join(rows.columns)
    updates = ", ".join(f"{name} = excluded.{name}" for name in rows.columns)
    connection.execute(
        sa.text(
            f"INSERT INTO analytics.line_items ({names}) SELECT {names} FROM staged_line_items"  # noqa: S608 - our own names
            f" ON CONFLICT (line_id) DO UPDATE SET {updates}"
        )
    )
